#!/bin/bash
# Submits the whole stack to SLURM: one job a service, each waiting for those it needs.
#   deploy/slurm/submit.sh FILE.yaml [key.path=value …]
# cluster.fileroot must lie on a file system that all nodes see. FRONTDESK_PYTHON names the Python with the packages (default: python on PATH),
# SBATCH_* variables reach sbatch as usual (SBATCH_PARTITION, SBATCH_ACCOUNT, …). Resumes the trial where it exists, as a start does.
set -euo pipefail

if (($# < 1)); then
  echo "usage: $0 FILE.yaml [key.path=value …]" >&2
  exit 2
fi
FRONTDESK_PYTHON=$(command -v "${FRONTDESK_PYTHON:-python}")
FRONTDESK_SLURM=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
FRONTDESK_TRIAL=$(dirname "$("$FRONTDESK_PYTHON" -P -m services.launcher config --write --config "$@")")
export FRONTDESK_PYTHON FRONTDESK_SLURM FRONTDESK_TRIAL

if [[ ! -s $FRONTDESK_TRIAL/admin_key ]]; then
  (umask 077 && head -c 24 /dev/urandom | base64 | tr '+/' '-_' >"$FRONTDESK_TRIAL/admin_key")
fi
# Addresses of an earlier submission would send services to jobs that are gone.
rm -rf "$FRONTDESK_TRIAL/endpoints"
mkdir -p "$FRONTDESK_TRIAL/endpoints" "$FRONTDESK_TRIAL/logs"
: >"$FRONTDESK_TRIAL/jobs"

# Prints the id of a new job: job NAME [what it depends on]
job() {
  local wanted=()
  if (($# > 1)); then wanted=(--dependency="$2" --kill-on-invalid-dep=yes); fi
  sbatch --parsable --export=ALL --output="$FRONTDESK_TRIAL/logs/$1.log" "${wanted[@]}" "$FRONTDESK_SLURM/$1.sbatch" | cut -d';' -f1
}

redis=$(job redis)
setup=$(job setup)
store=$(job trajectory_store "after:$redis")
user=$(job user_simulator)
server=$(job policy_server "afterok:$setup")
proxy=$(job policy_proxy "afterok:$setup,after:$store")
runner=$(job agent_runner "after:$proxy")
# All but the trainer's: it cancels these when the experiment has ended.
printf '%s\n' "$redis" "$store" "$user" "$server" "$proxy" "$runner" >"$FRONTDESK_TRIAL/jobs"
trainer=$(job trainer "afterok:$setup,after:$runner")

echo "jobs: $redis $setup $store $user $server $proxy $runner $trainer (the trainer's is $trainer)"
echo "logs: $FRONTDESK_TRIAL/logs"
echo "trial: $FRONTDESK_TRIAL"
