#!/usr/bin/env bash
# Runs a job on TPU slices of a GKE cluster, through xpk (github.com/AI-Hypercomputer/xpk).
#
#   launch/xpk.sh --cluster C --project P --zone Z --type v5litepod-16 --name sd14 --image I -- \
#       train --config configs/sd14.py --workdir /shared/runs/sd14 --config.data.root=/data/GenImage
#
#   --cluster C, --project P, --zone Z   the GKE cluster; no defaults
#   --type T         slice type
#   --slices N       number of slices (default 1)
#   --name NAME      name of the workload; a restart resumes from the job's --workdir
#   --image I        container image with this package and jax[tpu], started in the checkout
#   --cache DIR      compiled programs, best on a mounted volume (default: /tmp/cinemae_xla)
#   --env NAME=VALUE environment of the job; may be repeated
#   --restarts N     restarts of the JobSet after any failure of a pod (default: 20)
#   --dry-run        print the command and stop
#
# GKE sends SIGTERM before it removes a node: the job saves its state and exits with 75, and the
# JobSet restarts it.  Attach the volumes with the data and the --workdir to the cluster beforehand
# (xpk storage attach).
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }

cluster='' project='' zone='' type='' slices=1 name='' image='' restarts=20 dry_run=''
cache=/tmp/cinemae_xla
environment=()
while [ $# -gt 0 ]; do
  case $1 in
    --cluster) cluster=$2; shift 2 ;;
    --project) project=$2; shift 2 ;;
    --zone) zone=$2; shift 2 ;;
    --type) type=$2; shift 2 ;;
    --slices) slices=$2; shift 2 ;;
    --name) name=$2; shift 2 ;;
    --image) image=$2; shift 2 ;;
    --cache) cache=$2; shift 2 ;;
    --restarts) restarts=$2; shift 2 ;;
    --env) environment+=(--env "$2"); shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "error: $1 is no option of xpk.sh: see --help" >&2; exit 2 ;;
  esac
done
for field in cluster project zone type name image; do
  [ -n "${!field}" ] || { echo "error: --$field is missing: see --help" >&2; exit 2; }
done
[ $# -gt 0 ] || { echo "error: no job: end with -- train --config FILE --workdir DIR" >&2; exit 2; }
job=$1
shift

# exec, so that SIGTERM reaches Python, not a shell
command="exec python -m cinemae_jax.$job --distributed"
for argument in "$@"; do
  command+=" $(printf '%q' "$argument")"
done
create=(xpk workload create --cluster "$cluster" --project "$project" --zone "$zone"
  --workload "$name" --tpu-type "$type" --num-slices "$slices" --docker-image "$image"
  --env "JAX_COMPILATION_CACHE_DIR=$cache" ${environment[@]+"${environment[@]}"} --max-restarts "$restarts"
  --restart-on-user-code-failure --termination-grace-period-seconds 120 --command "$command")
if [ -n "$dry_run" ]; then
  printf '%q ' "${create[@]}"
  echo
else
  exec "${create[@]}"
fi
