#!/usr/bin/env bash
# Gives the TPU back; the bucket keeps the run: delete.sh [--dry_run] CONFIG
# shellcheck source=tpu_scripts/common.sh
. "$(dirname "$0")/common.sh"

tpus queued-resources delete "$NAME" --force --quiet
