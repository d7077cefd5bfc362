#!/usr/bin/env bash
# Gathers what all workers have printed, LOGS/0.log and so on: logs.sh [--dry_run] CONFIG
# shellcheck source=tpu_scripts/common.sh
. "$(dirname "$0")/common.sh"

[ -n "$dry_run" ] || mkdir -p "$LOGS"
on_workers 'cat zeroprompt.log' "--output-directory=$LOGS"
