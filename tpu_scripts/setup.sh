#!/usr/bin/env bash
# Brings this checkout to all workers, installs it there and mounts the bucket: setup.sh [--dry_run] CONFIG
# What git ignores stays here; what is not committed yet goes too.
# shellcheck source=tpu_scripts/common.sh
. "$(dirname "$0")/common.sh"

archive=zeroprompt_jax.tar.gz
if [ -z "$dry_run" ]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  (cd "$here/.." && git ls-files -z --cached --others --exclude-standard | xargs -0 tar -czf "$scratch/$archive" --)
  archive=$scratch/$archive
fi
tpus tpu-vm scp "$archive" "$NAME:" --worker=all
on_workers "mkdir -p zeroprompt_jax && tar -xzf ${archive##*/} -C zeroprompt_jax && bash zeroprompt_jax/tpu_scripts/on_worker.sh setup $BUCKET"
