#!/usr/bin/env bash
# Starts COMMAND on all workers and returns; a run that was stopped goes on: launch.sh [--dry_run] CONFIG
# shellcheck source=tpu_scripts/common.sh
. "$(dirname "$0")/common.sh"

on_workers "bash zeroprompt_jax/tpu_scripts/on_worker.sh start $COMMAND"
