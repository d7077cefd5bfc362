#!/usr/bin/env bash
# Queues for a TPU and waits until it is there: create.sh [--dry_run] CONFIG
# shellcheck source=tpu_scripts/common.sh
. "$(dirname "$0")/common.sh"

spot=()
[ "$SPOT" = no ] || spot=(--spot)
tpus queued-resources create "$NAME" "--node-id=$NAME" "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME" \
  ${spot[@]+"${spot[@]}"}
while now=$(state); do
  case $now in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING | NONE)
      die "$NAME is $now; why: gcloud compute tpus queued-resources describe $NAME --zone=$ZONE --project=$PROJECT" ;;
    gcloud*) printf '%s\n' "$now"; exit ;; # a dry run
    *) say "$NAME is $now"; sleep "$POLL" ;;
  esac
done
say "$NAME is there"
