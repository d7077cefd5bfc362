#!/usr/bin/env bash
# Until the command has ended on all workers: gathers logs, starts it again where it was stopped, and gets another TPU where
# this one was taken away. watch.sh [--dry_run] CONFIG
# shellcheck source=tpu_scripts/common.sh
. "$(dirname "$0")/common.sh"

# A machine that was never set up has no such file.
worker=zeroprompt_jax/tpu_scripts/on_worker.sh
status="if [ -e $worker ]; then bash $worker status; else echo status none; fi"
if [ -n "$dry_run" ]; then # one round, of a TPU that was taken away
  state
  on_workers "$status"
  for step in logs delete create setup launch; do also "$step"; done
  exit
fi

begin() {
  also create
  { also setup && also launch; } || say 'that did not work; looking again'
}

while true; do
  now=$(state)
  case $now in
    ACTIVE)
      # running, or the exit code of each worker. No answer: it may just be going away.
      codes=$(on_workers "$status" | sed -n 's/^status //p' | sort -u | tr '\n' ' ') || codes=
      also logs || say 'no logs this time'
      case " $codes" in
        ' ') say 'no answer from the workers' ;;
        ' 0 ') say "done; logs in $LOGS"; exit ;;
        *' running '*) say 'running' ;;
        *)
          # 75: stopped, and goes on. 134, 137, 143: ended by JAX as another process died, killed, asked to stop. none: the
          # machine started anew.
          for code in $codes; do
            case $code in 0 | 75 | 134 | 137 | 143 | none) ;; *) die "a worker ended with code $code; see $LOGS" ;; esac
          done
          say "stopped (${codes% }); starting it again"
          # The machine may be going away just now.
          { also setup && also launch; } || say 'that did not work; looking again'
          ;;
      esac
      ;;
    SUSPENDING | SUSPENDED | FAILED)
      say "$NAME is $now; getting another"
      if also delete; then begin; else say 'it is not deleted yet'; fi
      ;;
    NONE) begin ;;
    *) say "$NAME is $now" ;;
  esac
  sleep "$POLL"
done
