#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine, for tests: as root, with Debian's slurm-wlm and munge.
#   slurm.sh start FOLDER   starts it; its clients (sbatch, squeue, …) find it by SLURM_CONF=FOLDER/slurm.conf
#   slurm.sh stop FOLDER    ends it
# All that it writes lies in FOLDER, and its munge is its own, so that a Slurm of the machine's is left alone. It keeps
# no accounts, as not every cluster does.
set -euo pipefail
folder=$(realpath "$2")
export SLURM_CONF=$folder/slurm.conf

start() {
    chmod 755 "$folder" # munge's clients must reach its socket
    mkdir -p "$folder"/{munge,state,spool}
    chmod 700 "$folder"/munge
    dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
    chmod 400 "$folder/munge/key"
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge.socket" --pid-file="$folder/munge/pid" \
        --seed-file="$folder/munge/seed" --log-file="$folder/munge/log"

    local host cpus memory
    host=$(hostname -s)
    cpus=$((($(nproc --all) + 1) / 2))
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.45)}' /proc/meminfo)
    cat >"$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
NodeName=node[0-1] NodeHostname=$host NodeAddr=127.0.0.1 Port=[16818-16819] CPUs=$cpus RealMemory=$memory
PartitionName=cells Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    slurmctld
    slurmd -N node0
    slurmd -N node1
    for _ in {1..60}; do
        [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && return
        sleep 0.5
    done
    echo "Slurm did not come up:" >&2
    cat "$folder"/*.log >&2
    return 1
}

stop() {
    scancel --quiet --user=root || true
    for name in slurmd-node0.pid slurmd-node1.pid slurmctld.pid munge/pid; do
        [ -e "$folder/$name" ] && kill "$(cat "$folder/$name")" || true
    done
}

"$1"
