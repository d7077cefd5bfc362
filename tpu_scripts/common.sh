# shellcheck shell=bash
# Sourced by the scripts beside it: reads `[--dry_run] CONFIG`, and runs gcloud, or only prints the commands.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
script=${0##*/}
dry_run=
config=

die() { printf '%s: %s\n' "$script" "$*" >&2; exit 1; }
say() { printf '%s: %s\n' "$script" "$*" >&2; }

for argument in "$@"; do
  case $argument in
    --dry_run) dry_run=--dry_run ;;
    -*) die "there is no option '$argument'; usage: $script [--dry_run] CONFIG" ;;
    *) config=$argument ;;
  esac
done
[ -n "$config" ] || die "usage: $script [--dry_run] CONFIG, your copy of tpu_scripts/config.sh"
[ -f "$config" ] || die "there is no file '$config'"
# shellcheck source=tpu_scripts/config.sh
. "$config"
for name in PROJECT ZONE NAME ACCELERATOR RUNTIME SPOT BUCKET COMMAND LOGS POLL; do
  [ -n "${!name:-}" ] || die "$config gives $name no value"
done

# The command as one would type it.
show() {
  local word text='' safe='^[A-Za-z0-9_./:=,@%+~-]+$'
  for word in "$@"; do
    [[ $word =~ $safe ]] || word="'${word//\'/\'\\\'\'}'"
    text+="${text:+ }$word"
  done
  printf '%s\n' "$text"
}

run() {
  if [ -n "$dry_run" ]; then show "$@"; else "$@"; fi
}

tpus() { run gcloud compute tpus "$@" "--zone=$ZONE" "--project=$PROJECT"; }

# The same command on all workers, in parallel. Further arguments go to gcloud.
on_workers() {
  local command=$1
  shift
  tpus tpu-vm ssh "$NAME" --worker=all "--command=$command" "$@"
}

# Of the queued resource: ACTIVE, SUSPENDED, ...; NONE where there is none, UNKNOWN where gcloud does not say.
state() {
  local answer
  if answer=$(tpus queued-resources describe "$NAME" '--format=value(state.state)' 2>&1); then
    printf '%s\n' "${answer##*$'\n'}" # warnings come before it
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo NONE
  else
    say "$answer"
    echo UNKNOWN
  fi
}

# Another of these scripts, in the same way.
also() { "$here/$1.sh" ${dry_run:+"$dry_run"} "$config"; }
