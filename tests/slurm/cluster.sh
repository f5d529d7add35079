#!/usr/bin/env bash
# A SLURM with two pretend nodes on this machine, for tests. Runs as root; all that it writes lies in DIR, but for a line
# of /etc/hosts.
#   cluster.sh install      the Debian packages it is made of
#   cluster.sh start DIR    returns when both nodes wait for jobs; clients need SLURM_CONF=DIR/slurm.conf
#   cluster.sh stop DIR     cancels all jobs, ends what start has begun
set -euo pipefail
export PATH=$PATH:/usr/sbin

install() {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slurmctld slurmd slurm-client munge
}

start() {
    mkdir -p "$DIR"/{spool,n1,n2}
    head -c 1024 /dev/urandom >"$DIR/key"
    chmod 400 "$DIR/key"
    echo "NodeName=n[1-2] Name=gpu File=/dev/null,/dev/zero" >"$DIR/gres.conf" # pretend GPUs must be devices of some kind
    configuration >"$DIR/slurm.conf"
    echo "127.0.0.1 n1 n2 # $DIR" >>/etc/hosts # rank 0's address is the name of its node
    begin munged --foreground --force --key-file="$DIR/key" --socket="$DIR/munge.socket" --pid-file="$DIR/munge.pid" \
        --seed-file="$DIR/munge.seed" --log-file="$DIR/munge.log"
    wait_for munge -n -S "$DIR/munge.socket"
    begin slurmctld -D
    wait_for scontrol ping
    for node in n1 n2; do setsid "$0" serve "$DIR" $node >>"$DIR/daemons.log" 2>&1 </dev/null & done
    wait_for both_idle
}

configuration() {
    port=$((17000 + RANDOM % 2000))
    case $(slurmctld -V) in # who is evicted gets the signal of its own --signal; the key has moved
    *" 22."*) user_signal=SlurmctldParameters=preempt_send_user_signal ;;
    *) user_signal=PreemptParameters=send_user_signal ;;
    esac
    cat <<END
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$DIR/munge.socket
StateSaveLocation=$DIR/spool
SlurmdSpoolDir=$DIR/%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.%n.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=3
DefMemPerCPU=256
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$user_signal
NodeName=n[1-2] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=8 RealMemory=16000 Gres=gpu:2
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF
END
}

begin() { # a daemon, in the foreground of a session of its own
    setsid "$@" >>"$DIR/daemons.log" 2>&1 </dev/null &
    echo "$! $1" >>"$DIR/daemons"
}

serve() { # a node's daemon, again should it end by itself; jobs outlive it
    until [ -e "$DIR/stopping" ]; do
        slurmd -D -N "$1" &
        echo "$! slurmd" >>"$DIR/daemons"
        wait $! || echo "slurmd of $1 ended with $?"
        sleep 1
    done
}

wait_for() {
    for _ in {1..120}; do
        if "$@" >"$DIR/waiting" 2>&1; then return; fi
        sleep 0.25
    done
    echo "waited in vain for: $*" >&2
    tail "$DIR/waiting" "$DIR"/*.log >&2
    exit 1
}

both_idle() { [ "$(sinfo --noheader --partition=low --format=%D%t)" = 2idle ]; }

stop() {
    if scancel --user=root; then wait_for nothing_queued; fi
    touch "$DIR/stopping"
    while read -r process name; do
        if is_alive "$process" "$name"; then kill "$process"; fi
    done <"$DIR/daemons"
    wait_for all_dead
    hosts=$(grep -v " # $DIR\$" /etc/hosts)
    echo "$hosts" >/etc/hosts # in place: containers do not let it be replaced
}

nothing_queued() { [ -z "$(squeue --noheader)" ]; }

all_dead() { while read -r process name; do ! is_alive "$process" "$name" || return 1; done <"$DIR/daemons"; }

is_alive() { grep -qs "^$2" "/proc/$1/cmdline"; } # of a process that has ended it is empty

DIR=${2:-}
export SLURM_CONF=$DIR/slurm.conf
"$1" "${@:3}"
