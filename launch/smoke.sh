#!/usr/bin/env bash
# Proves a cluster in about two minutes, before the long job: the processes join, one collective,
# one pass over 256 random images, a checkpoint, a stop with exit code 75, a restart that resumes.
#
#   launch/smoke.sh --workdir runs/smoke --processes 2                   here, through local.sh
#   launch/smoke.sh --workdir /mnt/shared/smoke -- \
#       launch/tpu_run.sh --name cinemae --project P --zone Z --source . --
#   launch/smoke.sh --workdir /shared/smoke -- \
#       sbatch --wait --nodes 2 --gpus-per-node 8 --time 0:10:00 launch/slurm.sbatch
#
#   --workdir DIR    new folder, shared by all hosts
#   --processes N    number of processes on this machine (default 2)
#   --devices N      CPU devices per process on this machine (default 1)
#   --flags ARGS     one string of further flags for the job, such as '--spmd=shard_map'
#   --dry-run        print the command and stop
#
# What follows -- starts a job as written, with the job's arguments at its end.  If it ends with 75,
# it is started once more.  Exit code 0: DIR/smoke.json says on how many hosts and devices.
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }

workdir='' processes=2 devices=1 flags='' dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --workdir) workdir=$2; shift 2 ;;
    --processes) processes=$2; shift 2 ;;
    --devices) devices=$2; shift 2 ;;
    --flags) flags=$2; shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "error: $1 is no option of smoke.sh: see --help" >&2; exit 2 ;;
  esac
done
[ -n "$workdir" ] || { echo "error: --workdir is missing: see --help" >&2; exit 2; }
here=$(dirname "$0")
if [ $# -eq 0 ]; then
  set -- "$here/local.sh" --processes "$processes" --devices "$devices" --
fi
read -ra further <<<"$flags"
command=("$@" smoke --config=smoke "--workdir=$workdir" ${further[@]+"${further[@]}"})
if [ -n "$dry_run" ]; then
  echo "${command[*]}"
  exit
fi
code=0
"${command[@]}" || code=$?
if [ "$code" -eq 75 ]; then
  echo "smoke.sh: stopped half way, as it should; starting again" >&2
  code=0
  "${command[@]}" || code=$?
fi
if [ "$code" -eq 0 ] && [ -f "$workdir/smoke.json" ]; then cat "$workdir/smoke.json"; fi
echo "smoke.sh: exit code $code after $SECONDS s" >&2
exit "$code"
