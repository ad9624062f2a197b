#!/usr/bin/env bash
# A real SLURM of one node on this machine's loopback, with accounting, from Debian's packages: for tests, and to try
# things before a cluster is at hand. Needs root; nothing is reachable from elsewhere.
#   slurm/one_node.sh start DIR   install what is missing, start the daemons, return once the node is idle
#   slurm/one_node.sh stop  DIR   end what start has started
# DIR holds state, logs and process ids; other users must be able to enter it, and it lies outside the repository.
# A SLURM or a database that is here already is left alone: start refuses then. A munged is used, and left running.
set -euo pipefail
if [[ $# -ne 2 || ! $1 =~ ^(start|stop)$ ]]; then sed -n '2,8s/^# //p' "$0" >&2; exit 2; fi
action=$1 dir=$(realpath -m "$2") host=$(hostname -s)
fail() { echo "slurm/one_node.sh: $*" >&2; exit 1; }
[[ $(id -u) -eq 0 ]] || fail "needs root, this is $(id -un)"

patiently() { # patiently SECONDS COMMAND...: repeat it until it succeeds
  local until=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do ((SECONDS < until)) || { echo "no success: $*; logs in $dir/log" >&2; return 1; }; sleep 0.5; done
}

gone() { ! kill -0 "$1"; }

leave_alone() { # refuse to touch what this script has not made
  local name file
  for name in slurmctld slurmd slurmdbd mariadbd mysqld; do
    ! pgrep -x "$name" >/dev/null || fail "$name runs here already: end it (slurm/one_node.sh stop DIR, if that was ours), or take another machine"
  done
  grep -qsx ClusterName=onenode /etc/slurm/slurm.conf && return
  for file in /etc/slurm/slurm.conf /etc/slurm/slurmdbd.conf; do
    [[ ! -e $file ]] || fail "$file is there and not ours: move it away, or take another machine"
  done
}

install_packages() {
  command -v slurmctld slurmd slurmdbd mariadbd munged >/dev/null && return
  local policy=/usr/sbin/policy-rc.d # says whether packages may start their services: these would be in our way
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 755 "$policy"
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    slurm-wlm slurmdbd slurm-client munge mariadb-server >/dev/null
}

start_munge() { # who is who between the daemons
  ! pgrep -x munged >/dev/null || return 0
  mkdir -p /run/munge; chown munge:munge /run/munge; chmod 755 /run/munge
  [[ -f /etc/munge/munge.key ]] || mungekey -c
  chown munge:munge /etc/munge/munge.key
  runuser -u munge -- munged --force --pid-file /run/munge/munged.pid
  cp /run/munge/munged.pid "$dir/run/munged.pid" # what stop is to end
}

start_database() { # accounting: sacct tells what became of a job that is gone
  mkdir -p /run/mysqld; chown mysql:mysql /run/mysqld "$dir/db"
  [[ -d $dir/db/mysql ]] || mariadb-install-db --user=mysql --datadir="$dir/db" >"$dir/log/install.log" 2>&1
  nohup mariadbd --user=mysql --datadir="$dir/db" --bind-address=127.0.0.1 --socket=/run/mysqld/mysqld.sock \
    --pid-file="$dir/db/mariadbd.pid" >"$dir/log/mariadbd.log" 2>&1 &
  patiently 60 mariadb -e 'select 1'
  mariadb -e "create database if not exists slurm_acct_db;
    create user if not exists 'slurm'@'localhost' identified by 'slurm';
    grant all on slurm_acct_db.* to 'slurm'@'localhost';"
}

configure() {
  cat >/etc/slurm/slurmdbd.conf <<CONF
AuthType=auth/munge
DbdHost=localhost
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile=$dir/log/slurmdbd.log
PidFile=$dir/run/slurmdbd.pid
CONF
  chmod 600 /etc/slurm/slurmdbd.conf
  # A cancelled task has 5 s to end before it is killed; what is preempted is queued again, after 10 s in place of 120.
  cat >/etc/slurm/slurm.conf <<CONF
ClusterName=onenode
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
KillWait=5
JobRequeue=1
AuthInfo=cred_expire=10
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.pid
SlurmdSpoolDir=$dir/spool
StateSaveLocation=$dir/state
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
JobAcctGatherType=jobacct_gather/linux
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(($(awk '/MemTotal/{print $2}' /proc/meminfo) / 1024 * 8 / 10)) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
}

start() {
  leave_alone
  install_packages
  mkdir -p "$dir"/{db,log,run,spool,state} /etc/slurm
  start_munge; start_database; configure
  slurmdbd
  patiently 20 sacctmgr -n list cluster
  sacctmgr -i -Q add cluster onenode >/dev/null 2>&1 || true
  slurmctld; slurmd
  patiently 30 bash -c 'sinfo -h -o %t | grep -q idle'
  sinfo
}

stop() {
  local file
  for file in "$dir"/run/slurmd.pid "$dir"/run/slurmctld.pid "$dir"/run/slurmdbd.pid "$dir"/db/mariadbd.pid "$dir"/run/munged.pid; do
    [[ -s $file ]] || continue
    local pid; pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    patiently 30 gone "$pid" || true # so that another start finds the place free
    rm -f "$file"                    # the number may be another's the next time
  done
}

"$action"
