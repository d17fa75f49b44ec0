#!/usr/bin/env bash
# Runs a job as several processes on this machine, each with its own CPU devices: a cluster for
# tests.  (For GPUs you do not need it: one process drives all GPUs of a machine.)
#
#   launch/local.sh --processes 2 --devices 4 -- train --config configs/sd14.py --workdir runs/x ...
#
#   --processes N   number of processes (default 2)
#   --devices N     CPU devices per process (default 1)
#   --restarts N    restarts after a preemption (exit code 75) or after a signal has killed a
#                   process (default 0)
#   --port N        port of the coordinator (default: a free one)
#   --logs DIR      write the output to DIR/process-0.log and so on (default: stdout of process 0
#                   and stderr of all, prefixed by their number, on the terminal)
#   --dry-run       print the commands and stop
#
# SIGTERM is passed on: every process saves its state and exits with 75.  When a process fails, the
# others are killed.  The exit code is 75 if any process exited with 75, else that of the first
# process that failed.
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }

processes=2 devices=1 restarts=0 port='' logs='' dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --processes) processes=$2; shift 2 ;;
    --devices) devices=$2; shift 2 ;;
    --restarts) restarts=$2; shift 2 ;;
    --port) port=$2; shift 2 ;;
    --logs) logs=$2; shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "error: $1 is no option of local.sh: see --help" >&2; exit 2 ;;
  esac
done
[ $# -gt 0 ] || { echo "error: no job: end with -- train --config FILE --workdir DIR" >&2; exit 2; }
job=$1
shift
python=${PYTHON:-python}

free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

children=()
preempted=''
# shellcheck disable=SC2329  # called by the trap
pass_on() {
  preempted=yes
  [ ${#children[@]} -eq 0 ] || kill -TERM "${children[@]}" 2>/dev/null || true
}
trap pass_on TERM INT

# Replaces this subshell by one process of the job.
start() {
  local id=$1
  shift
  if [ -n "$logs" ]; then
    mkdir -p "$logs"
    exec >>"$logs/process-$id.log" 2>&1
  else
    if [ "$id" -gt 0 ]; then exec >/dev/null; fi
    exec 2> >(exec sed -u "s/^/[$id] /" >&2)
  fi
  JAX_PLATFORMS=cpu XLA_FLAGS=$flags exec "$@"
}

# Starts all processes and waits for them; sets $code.
run() {
  local id pid status address flags deadline=''
  address=localhost:${port:-$(free_port)}
  flags="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
  children=()
  code=0
  for ((id = 0; id < processes; id++)); do
    local command=("$python" -m "cinemae_jax.$job" --distributed "--coordinator=$address"
      "--num_processes=$processes" "--process_id=$id" "$@")
    if [ -n "$dry_run" ]; then
      echo "JAX_PLATFORMS=cpu XLA_FLAGS='${flags# }' ${command[*]}"
      continue
    fi
    start "$id" "${command[@]}" &
    children+=($!)
  done
  [ -z "$preempted" ] || pass_on # a signal came during the start
  while [ ${#children[@]} -gt 0 ]; do
    local left=()
    for pid in "${children[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        left+=("$pid")
        continue
      fi
      status=0
      wait "$pid" || status=$?
      if [ $status -eq 75 ] || { [ $status -ne 0 ] && [ $code -eq 0 ]; }; then code=$status; fi
      if [ $status -gt 1 ] && [ $status -ne 75 ]; then # let the others report before they are killed
        deadline=${deadline:-$((SECONDS + (status > 128 ? 2 : 10)))}
      fi
    done
    children=(${left[@]+"${left[@]}"})
    if [ -n "$deadline" ] && [ $SECONDS -ge "$deadline" ]; then
      kill -KILL ${children[@]+"${children[@]}"} 2>/dev/null || true # they are waiting for a dead process
    fi
    sleep 0.1
  done
}

while true; do
  run "$@"
  if [ "$restarts" -le 0 ] || [ -n "$preempted" ]; then break; fi
  if [ $code -ne 75 ] && [ $code -lt 128 ]; then break; fi
  restarts=$((restarts - 1))
  echo "local.sh: exited with $code, restarting" >&2
done
exit "$code"
