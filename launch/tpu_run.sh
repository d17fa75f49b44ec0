#!/usr/bin/env bash
# Runs a job on all workers of a TPU slice, and resumes it after every preemption.
#
#   launch/tpu_run.sh --name cinemae --project P --zone Z --source . -- \
#       train --config configs/sd14.py --workdir /mnt/shared/runs/sd14 \
#       --config.data.root=/mnt/data/GenImage --config.detector.dtype=bfloat16
#
#   --name NAME, --project P, --zone Z   the TPU, as given to tpu_create.sh
#   --source DIR     checkout to copy to the workers and install (default: already installed)
#   --cache DIR      compiled programs, kept over restarts (default: ~/.cache/cinemae_jax/xla)
#   --recreate ARGS  one string of further arguments for tpu_create.sh, such as
#                    '--type v5litepod-16 --spot': creates the TPU again after a preemption
#   --restarts N     most restarts (default: 100); after one that ran for less than ten minutes, the
#                    next waits, from 10 s up to 5 minutes
#   --env NAME=VALUE environment of the job, such as LIBTPU_INIT_ARGS=...; may be repeated
#   --dry-run        print the commands and stop
#
# The --workdir must be on a file system shared by all workers.  The same command is started again
# when a worker exits with 75 (SIGTERM, state saved), is killed by a signal, or cannot be reached.
# Each worker appends its output to cinemae_jax-HOSTNAME.log in its home folder, after the time, the
# environment of JAX and XLA, and the versions of the installed packages.
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }

name='' project='' zone='' source='' recreate='' restarts=100 dry_run='' environment=''
cache="\$HOME/.cache/cinemae_jax/xla" # of the workers
while [ $# -gt 0 ]; do
  case $1 in
    --name) name=$2; shift 2 ;;
    --project) project=$2; shift 2 ;;
    --zone) zone=$2; shift 2 ;;
    --source) source=$2; shift 2 ;;
    --cache) cache=$2; shift 2 ;;
    --recreate) recreate=$2; shift 2 ;;
    --restarts) restarts=$2; shift 2 ;;
    --env) environment+=" $(printf %q "$2")"; shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "error: $1 is no option of tpu_run.sh: see --help" >&2; exit 2 ;;
  esac
done
for field in name project zone; do
  [ -n "${!field}" ] || { echo "error: --$field is missing: see --help" >&2; exit 2; }
done
[ $# -gt 0 ] || { echo "error: no job: end with -- train --config FILE --workdir DIR" >&2; exit 2; }
here=$(dirname "$0")
job=$1
shift

run() {
  if [ -n "$dry_run" ]; then echo "$*"; else "$@"; fi
}

at=(--project "$project" --zone "$zone")
tpu=(gcloud compute tpus tpu-vm)
folder=cinemae_jax

on_all() { run "${tpu[@]}" ssh "$name" "${at[@]}" --worker all --command "$1"; }

# Runs a command up to four times, with growing pauses: ssh to a new machine fails at first.
persist() {
  local pause
  for pause in 10 30 90; do
    "$@" && return
    echo "tpu_run.sh: failed, trying again in $pause s: $*" >&2
    sleep "$pause"
  done
  "$@"
}

install() {
  [ -n "$source" ] || return 0
  persist on_all "rm -rf $folder"
  persist run "${tpu[@]}" scp --recurse "$source" "$name:$folder" "${at[@]}" --worker all
  persist on_all \
    "python3 -m venv $folder/.venv && $folder/.venv/bin/pip install --quiet -e '${folder}[tpu]'"
}

# The command of every worker; arguments are quoted once for its shell.  If ssh was cut and the old
# job still runs, SIGTERM makes it save and stop first: two jobs cannot share the TPU.  The exit code
# goes to a file, because gcloud does not document how it combines those of several workers.
flags=$(printf ' %q' "$@")
command="cd $folder; rm -f .code
if [ -f .job ]; then
  kill -TERM \$(cat .job) 2>/dev/null
  for i in \$(seq 60); do kill -0 \$(cat .job) 2>/dev/null || break; sleep 1; done
fi
export JAX_COMPILATION_CACHE_DIR=$cache$environment
log=\$HOME/cinemae_jax-\$(hostname).log
{ date; env | grep -E '^(JAX|XLA|LIBTPU|TPU)_' | sort
.venv/bin/pip freeze; } >> \$log 2>&1
exec > >(tee -ap \$log) 2>&1  # -p: the log goes on when ssh is cut
.venv/bin/python -m cinemae_jax.$job --distributed$flags &
child=\$!; echo \$child > .job; trap 'kill -TERM '\$child TERM
while kill -0 \$child 2>/dev/null; do wait \$child; code=\$?; done
rm -f .job; echo \$code > .code; exit \$code"

# True if some worker was preempted, died or cannot be reached.
goes_on() {
  local codes code
  codes=$("${tpu[@]}" ssh "$name" "${at[@]}" --worker all --command "cat $folder/.code" 2>/dev/null) ||
    return 0
  echo "tpu_run.sh: exit codes of the workers: ${codes//$'\n'/ }" >&2
  for code in $codes; do
    if [ "$code" -eq 75 ] || [ "$code" -ge 128 ]; then return 0; fi
  done
  return 1
}

install
pause=10
while true; do
  code=0
  begin=$SECONDS
  on_all "$command" || code=$?
  if [ -n "$dry_run" ] || [ $code -eq 0 ] || [ "$restarts" -le 0 ]; then break; fi
  if ! goes_on; then break; fi
  restarts=$((restarts - 1))
  if [ $((SECONDS - begin)) -ge 600 ]; then pause=10; fi
  echo "tpu_run.sh: waiting for $pause s" >&2
  sleep "$pause"
  pause=$((pause * 2 > 300 ? 300 : pause * 2))
  state=$("${tpu[@]}" describe "$name" "${at[@]}" --format 'value(state)' 2>/dev/null || true)
  echo "tpu_run.sh: restarting; TPU $name is ${state:-gone}" >&2
  if [ "$state" != READY ]; then
    if [ -z "$recreate" ]; then
      echo "error: TPU $name is ${state:-gone}: create it again, or pass --recreate" >&2
      exit "$code"
    fi
    read -ra options <<<"$recreate"
    "$here/tpu_create.sh" --name "$name" "${at[@]}" --delete || true
    "$here/tpu_create.sh" --name "$name" "${at[@]}" "${options[@]}"
    install
  fi
done
exit "$code"
