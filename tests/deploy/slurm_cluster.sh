#!/bin/bash
# A SLURM cluster of one node on this machine, with a folder, ports and a munge key of its own: slurm_cluster.sh up|down FOLDER CTLD_PORT NODE_PORT
# Needs root, slurmctld, slurmd and munged. The node claims 16 processors, so that a small machine takes all jobs at once.
set -euo pipefail

action=$1 folder=$2
export SLURM_CONF=$folder/slurm.conf

down() {
  local file pid
  for file in "$folder"/run/{slurmd,slurmctld,munged}.pid; do
    [[ -s $file ]] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 100); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
  done
}

if [[ $action == down ]]; then
  down
  exit
fi

mkdir -p "$folder"/{state,log,run,spool,munge}
chmod 755 "$folder" "$folder/run"
chmod 700 "$folder/munge"
(umask 077 && dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none)
cat >"$folder/slurm.conf" <<CONF
ClusterName=frontdesk
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.socket
CredType=cred/munge
SlurmctldPort=$3
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
SlurmdSpoolDir=$folder/spool
StateSaveLocation=$folder/state
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MinJobAge=3600
KillWait=5
InactiveLimit=0
Waittime=0
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$4 CPUs=16 Sockets=1 CoresPerSocket=16 ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
trap 'down' ERR
munged --force --key-file="$folder/munge/key" --socket="$folder/run/munge.socket" --pid-file="$folder/run/munged.pid" \
  --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed"
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF" -N n1
for _ in $(seq 120); do
  if [[ $(sinfo -h -t idle -o %D) == 1 ]]; then
    exit
  fi
  sleep 0.25
done
echo "the node did not become idle, see $folder/log" >&2
down
exit 1
