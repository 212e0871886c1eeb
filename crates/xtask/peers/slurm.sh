#!/bin/bash
# One Slurm node without accounting: a job array of /bin/true, from its submission until the queue is empty, with and
# without cgroups; one JSON object per figure. Usage: slurm.sh DIR JOBS. DIR is made; ends with 77 if Slurm is not
# installed. Everything it starts it ends by process id.
set -u
DIR=$1 JOBS=$2
for program in munged slurmctld slurmd sbatch squeue sinfo setpriv; do
    command -v $program >/dev/null || exit 77
done
mkdir -p "$DIR"/{munge,state,spool}
chmod 755 "$DIR"
HOST=$(hostname -s)
STARTED=()
stop() {
    for pid in "${STARTED[@]}"; do kill "$pid" 2>/dev/null; done
    sleep 1
    for pid in "${STARTED[@]}"; do kill -9 "$pid" 2>/dev/null; done
    wait 2>/dev/null
    for group in /sys/fs/cgroup/*/slurm*; do
        [ -d "$group" ] && find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null
    done
}
trap stop EXIT

head -c 1024 /dev/urandom >"$DIR/munge/key"
chown -R munge "$DIR/munge"
chmod 400 "$DIR/munge/key"
setpriv --reuid munge --regid munge --clear-groups munged -F -f --key-file="$DIR/munge/key" \
    --socket="$DIR/munge/socket" --pid-file="$DIR/munge/pid" --log-file="$DIR/munge/log" \
    --seed-file="$DIR/munge/seed" >/dev/null 2>&1 &
STARTED+=($!)
for _ in $(seq 50); do [ -S "$DIR/munge/socket" ] && break; sleep 0.1; done

# measure LABEL PROCTRACK TASK
measure() {
    cat >"$DIR/slurm.conf" <<CONF
ClusterName=bench
SlurmctldHost=$HOST(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
CryptoType=crypto/munge
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd.log
SlurmctldDebug=error
SlurmdDebug=error
ProctrackType=$2
TaskPlugin=$3
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
ReturnToService=2
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1000,sched_interval=1,default_queue_depth=10000,max_array_tasks=20000
SlurmdParameters=config_overrides
MaxJobCount=50000
MaxArraySize=20001
MinJobAge=10
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=64 RealMemory=8000 State=UNKNOWN
PartitionName=bench Nodes=$HOST Default=YES MaxTime=10 State=UP
CONF
    printf 'CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nConstrainCores=no\nConstrainRAMSpace=yes\n' \
        >"$DIR/cgroup.conf"
    export SLURM_CONF=$DIR/slurm.conf
    slurmctld -D -c >/dev/null 2>&1 &
    local controller=$!
    sleep 2
    slurmd -D -N "$HOST" >/dev/null 2>&1 &
    local node=$!
    STARTED+=("$controller" "$node")
    for _ in $(seq 100); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 0.1; done
    printf '#!/bin/sh\nexec /bin/true\n' >"$DIR/job.sh"
    local start end
    start=$(date +%s%N)
    timeout 20 sbatch -Q --array=1-"$JOBS" -n1 -o /dev/null "$DIR/job.sh" >/dev/null || return 1
    for _ in $(seq 600); do [ -z "$(squeue -h -o %i 2>/dev/null | head -1)" ] && break; sleep 0.1; done
    end=$(date +%s%N)
    awk -v jobs="$JOBS" -v ns=$((end - start)) -v label="$1" -v version="$(slurmd -V)" 'BEGIN {
        printf "{\"bench\":\"launch\",\"peer\":\"%s, %s\",\"what\":\"rate\",\"cores\":\"all\",\"tasks\":%d,\"per_second\":%.1f}\n",
            version, label, jobs, jobs / (ns / 1e9) }'
    kill "$node" "$controller"
    wait "$node" "$controller" 2>/dev/null
    return 0
}
measure "no cgroups" proctrack/linuxproc task/none && measure "cgroup v1" proctrack/cgroup task/cgroup
