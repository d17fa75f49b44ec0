#!/usr/bin/env bash
# Requests a TPU slice from Google Cloud through a queued resource, and waits until it is active.
#
#   launch/tpu_create.sh --name cinemae --project P --zone Z --type v5litepod-16 --spot
#
#   --name NAME      name of the TPU; the request is NAME-request
#   --project P, --zone Z, --type T   project, zone and slice type; no defaults
#   --runtime V      runtime version (default: v2-alpha-tpuv5-lite)
#   --spot           cheaper, but may be preempted at any time: launch/tpu_run.sh resumes the job
#   --valid-for D    give up after this time (default: 6h)
#   --data-disk S    source of a read-only disk for the data set, projects/P/zones/Z/disks/D
#   --delete         delete the TPU and the request instead
#   --dry-run        print the commands and stop
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }

name='' project='' zone='' type='' runtime=v2-alpha-tpuv5-lite valid_for=6h disk=''
spot='' delete='' dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --name) name=$2; shift 2 ;;
    --project) project=$2; shift 2 ;;
    --zone) zone=$2; shift 2 ;;
    --type) type=$2; shift 2 ;;
    --runtime) runtime=$2; shift 2 ;;
    --valid-for) valid_for=$2; shift 2 ;;
    --data-disk) disk=$2; shift 2 ;;
    --spot) spot=yes; shift ;;
    --delete) delete=yes; shift ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: $1 is no option of tpu_create.sh: see --help" >&2; exit 2 ;;
  esac
done
[ -n "$delete" ] && type=${type:-any}
for field in name project zone type; do
  [ -n "${!field}" ] || { echo "error: --$field is missing: see --help" >&2; exit 2; }
done

run() {
  if [ -n "$dry_run" ]; then echo "$*"; else "$@"; fi
}

at=(--project "$project" --zone "$zone")
queued=(gcloud compute tpus queued-resources)
if [ -n "$delete" ]; then
  run "${queued[@]}" delete "$name-request" "${at[@]}" --force --quiet
  exit
fi
options=(--node-id "$name" --accelerator-type "$type" --runtime-version "$runtime"
  --valid-until-duration "$valid_for")
[ -z "$spot" ] || options+=(--spot)
[ -z "$disk" ] || options+=(--data-disk "source=$disk,mode=read-only")
run "${queued[@]}" create "$name-request" "${at[@]}" "${options[@]}"
if [ -n "$dry_run" ]; then exit; fi
failures=0
while true; do
  state=$("${queued[@]}" describe "$name-request" "${at[@]}" --format 'value(state.state)') || state=''
  failures=$((${#state} ? 0 : failures + 1))
  if [ $failures -ge 10 ]; then
    echo "error: gcloud has not described $name-request 10 times in a row: check your login" >&2
    exit 1
  fi
  echo "$(date +%T) $name-request: ${state:-unknown}"
  case $state in
    ACTIVE) exit ;;
    FAILED | SUSPENDED | SUSPENDING | DELETING)
      echo "error: no TPU: launch/tpu_create.sh --delete removes the request" >&2
      exit 1
      ;;
  esac
  sleep 30
done
