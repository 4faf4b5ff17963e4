#!/bin/bash
# The part of boot.sh that runs inside the machine it boots: does things to leasehold.service, looks at what systemd and the
# kernel say about it, and writes one line per check to /results/report.
#
# Every wait is for a condition, with a deadline; `within` looks ten times a second.
#
# shellcheck disable=SC2317 # the functions are called through `check`
set -uo pipefail

unit=leasehold.service
config=/etc/leasehold/leasehold.toml
number=0

check() {
    local title=$1
    shift
    number=$((number + 1))
    if "$@" >/run/said 2>&1; then
        echo "ok $number - $title"
    else
        echo "not ok $number - $title"
        sed 's/^/# /' /run/said
        false
    fi >>/results/report
}

keep_journal() {
    journalctl --sync
    journalctl -b -o short-monotonic -u $unit >/results/journal 2>&1
}
trap keep_journal EXIT
trap 'exit 143' TERM

# within SECONDS COMMAND...: until it succeeds; says what it said last.
within() {
    local deadline=$((SECONDS + $1)) said
    shift
    until said=$("$@" 2>&1); do
        [ $SECONDS -lt $deadline ] || { echo "in vain: $*: $said"; return 1; }
        sleep 0.1
    done
    echo "$said"
}

property() { systemctl show -P "$1" $unit; }
is() { local found; found=$(property "$1"); [ "$found" = "$2" ] || { echo "$1 is $found, not $2"; return 1; }; }
status() { timeout 5 leasehold status --json; }

# The workers that run, as lines of "id pid".
workers() { status | jq -r '.fleets[] | select(.name == "web").workers[] | select(.state == "running") | "\(.id) \(.pid)"' | sort; }
worker_pids() { workers | cut -d' ' -f2; }

# up N: N workers run and the fleet says it is as many.
up() {
    local ready running
    ready=$(status | jq '.fleets[] | select(.name == "web").ready')
    running=$(workers)
    echo "ready: $ready; running: $running"
    [ "$ready" = "$1" ] && [ "$(wc -l <<<"$running")" = "$1" ]
}

# Who a pid is: the pid and when it started.
who() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) }
    # shellcheck disable=SC2086 # split into fields
    set -- "$1" $stat
    [ "$2" != Z ] && echo "$1:${21}"
}

cgroup() { echo "/sys/fs/cgroup$(property ControlGroup)"; }

# Everybody in the unit, strays of workers included.
everybody() {
    local pid
    find "$(cgroup)" -name cgroup.procs -exec cat {} + | while read -r pid; do who "$pid"; done
}

# gone WHO...: none of them lives.
gone() {
    local one
    for one; do
        [ "$(who "${one%:*}")" != "$one" ] || { echo "still there: $one $(tr '\0' ' ' <"/proc/${one%:*}/cmdline")"; return 1; }
    done
}

# Children of the main process that call themselves supervisor.
supervisors() {
    local main dir
    main=$(property MainPID)
    for dir in /proc/[0-9]*; do
        if grep -qsx "PPid:[[:space:]]*$main" "$dir/status" && grep -qs supervisor "$dir/cmdline"; then
            echo "${dir#/proc/}"
        fi
    done
}

write_config() {
    cat >$config <<-TOML
		schema = 1
		[fleet.web]
		command = ["/usr/local/bin/test-worker"]
		workers = $1
		stop = { signal = "SIGTERM", timeout = "5s" }
	TOML
}

now_ms() { echo $(($(date +%s%N) / 1000000)); }

# What systemd has said since `mark`. The same match both times: journalctl 252 takes the first entry that matches for the
# cursor's own, and leaves it out, when the cursor's own does not match.
mark() { cursor=$(journalctl -b -n 1 --show-cursor _PID=1 | sed -n 's/^-- cursor: //p'); }
systemd_said() {
    journalctl --sync
    journalctl -b -o cat --after-cursor="$cursor" _PID=1
}

# ---- start

contained() {
    local main pid own seen=" "
    main=$(property ControlGroup)
    [ "$(status | jq -r '[.fleets[].workers[].containment] | unique | join(" ")')" = unit ] || { status; return 1; }
    for pid in $(worker_pids); do
        own=$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
        [[ $own == "$main"/?* && $seen != *" $own "* ]] || { echo "worker $pid is in $own, the unit is $main"; return 1; }
        seen+="$own "
    done
    [ "$seen" != " " ]
}

# What the unit says for the daemon must not be what the worker gets.
inherits_nothing() {
    local pid
    for pid in $(worker_pids); do
        grep -qx 'NoNewPrivs:[[:space:]]*0' "/proc/$pid/status" || { grep NoNewPrivs "/proc/$pid/status"; return 1; }
        [ "$(cat "/proc/$pid/oom_score_adj")" = 0 ] || { echo "oom_score_adj is $(cat "/proc/$pid/oom_score_adj")"; return 1; }
        grep -q '^Max open files  *1024 ' "/proc/$pid/limits" || { grep 'Max open' "/proc/$pid/limits"; return 1; }
        ! tr '\0' '\n' <"/proc/$pid/environ" | grep -E '^(NOTIFY_SOCKET=/run/systemd/|WATCHDOG_|LISTEN_)' || return
    done
}

directories() {
    stat -c '%n %a %U:%G' /run/leasehold /var/lib/leasehold /var/log/leasehold /run/lock/leasehold-0 | tee /dev/stderr | diff - <(
        echo "/run/leasehold 755 root:root"
        echo "/var/lib/leasehold 700 root:root"
        echo "/var/log/leasehold 750 root:root"
        echo "/run/lock/leasehold-0 700 root:root"
    )
}

# A member of the group, and somebody else.
group_reads_logs() {
    (umask 027 && echo line >/var/log/leasehold/probe)
    setpriv --reuid nobody --regid nogroup --groups leasehold cat /var/log/leasehold/probe || return
    ! setpriv --reuid nobody --regid nogroup --clear-groups cat /var/log/leasehold/probe || return
    rm /var/log/leasehold/probe
}

# Who is not the main process, be it in the unit, says what it likes.
only_keeper_speaks() {
    local pid before
    before=$(property StatusText)
    for pid in $(worker_pids); do
        # systemd-notify speaks for its parent; so it has to be a child of somebody in the worker's cgroup, and not the last command.
        # shellcheck disable=SC2016 # expanded there
        NOTIFY_SOCKET=/run/systemd/notify bash -c 'echo $$ >"$1/cgroup.procs" && systemd-notify --status=false STOPPING=1 && true' - \
            "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")" || return
    done
    is StatusText "$before" && is ActiveState active
}

journal_tells() {
    local pid said
    journalctl --sync
    said=$(journalctl -b -o cat -u $unit)
    for pid in $(worker_pids); do
        [[ $said == *"web/"*" started, pid $pid"* ]] || { echo "nothing about the start of $pid in: $said"; return 1; }
    done
}

check "the unit becomes active at boot, on READY=1" within 60 is ActiveState active || exit 1
check "status --json shows two workers, ready" within 20 up 2
check "each worker is contained (\"unit\") in a cgroup of its own below the unit's" contained
if [ -z "${HARDENED:-}" ]; then
    check "a worker inherits no rights, limits or sockets that are the daemon's" inherits_nothing
fi
check "nobody but the keeper speaks to systemd for the unit" only_keeper_speaks
check "the journal of the unit says which workers were started" journal_tells
check "the directories belong to whom unit, sysusers and tmpfiles say" directories
check "the group leasehold, and nobody else, may read the logs" group_reads_logs

# ---- reload

old_workers_stay() {
    local missing
    missing=$(comm -23 <(echo "$1") <(workers))
    [ -z "$missing" ] || { echo "gone or changed: $missing"; return 1; }
}

reload_adds() {
    write_config 3
    timeout 60 systemctl reload $unit && within 20 up 3 && old_workers_stay "$before"
}

# systemd reports each datagram it gets at log level debug.
heard_reloading() {
    local said
    said=$(systemd_said | grep -oE "$unit: Got notification message.*(RELOADING|READY)=1" | grep -oE '(RELOADING|READY)=1')
    echo "$said"
    [[ $said == *RELOADING=1*READY=1* ]]
}

broken_reload_changes_nothing() {
    echo 'wrokers = 1' >>$config
    ! timeout 60 systemctl reload $unit && is ActiveState active && up 3 && old_workers_stay "$before"
}

before=$(workers)
invocation=$(property InvocationID)
mark
systemctl log-level debug
check "systemctl reload applies the changed file and touches no other worker" reload_adds
check "systemd heard RELOADING=1 and then READY=1" within 10 heard_reloading
systemctl log-level info
before=$(workers)
check "systemctl reload of a faulty file fails and changes nothing" broken_reload_changes_nothing
write_config 3

# ---- the supervisor is killed

one_supervisor() {
    local seen said
    seen="$(supervisors) $(property MainPID)"
    said=$(status | jq -r '"\(.supervisor.pid) \(.keeper.pid)"')
    echo "supervisor and keeper: $seen; status: $said"
    [ "$seen" = "$said" ]
}

# The pid, once there is one that is not $1.
another_supervisor() {
    local seen
    seen=$(status | jq .supervisor.pid) && [ -n "$seen" ] && [ "$seen" != "$1" ]
}

replaced() { kill -KILL "$1" && within 20 another_supervisor "$1" && one_supervisor; }
same_workers() { within 20 up 3 && diff <(echo "$before") <(workers); }
same_run() { is ActiveState active && is InvocationID "$invocation" && is NRestarts 0; }

check "the supervisor is the child of the main process that status names" one_supervisor
before=$(workers)
supervisor=$(supervisors)
check "kill -9 of the supervisor: another one answers" replaced "${supervisor:-none}"
check "kill -9 of the supervisor: every worker keeps its pid" same_workers
check "kill -9 of the supervisor: the unit stays active, in the same run" same_run

# ---- the keeper is killed

# restarted RUN: another run of the unit than RUN is active.
restarted() { is ActiveState active && [ "$(property InvocationID)" != "$1" ]; }

fresh() {
    local pid
    within 30 restarted "$invocation" && within 20 up 3 || return
    for pid in $(worker_pids); do
        ! grep -qx "$(who "$pid")" <<<"$old" || { echo "worker $pid is an old one"; return 1; }
    done
}

keeper_killed() {
    kill -KILL "$(property MainPID)" || return
    # shellcheck disable=SC2086 # one word per process
    within 15 gone $old
}

old=$(everybody)
check "kill -9 of the keeper: every process of the unit ends" keeper_killed
check "kill -9 of the keeper: systemd starts the unit again, with fresh workers" fresh

# ---- the keeper is frozen

frozen() {
    local main limit begun said
    main=$(who "$(property MainPID)")
    limit=$(systemctl show -P WatchdogUSec $unit)
    limit=${limit%s}
    [[ $limit =~ ^[0-9]+$ ]] || { echo "WatchdogSec is not in seconds: $limit"; return 1; }
    begun=$SECONDS
    kill -STOP "${main%:*}" || return
    within $((limit + 3)) gone "$main" || return
    echo "ended after $((SECONDS - begun)) s"
    said=$(systemd_said)
    echo "$said"
    [[ $said == *"$unit: Watchdog timeout"* ]]
}

all_gone() {
    # shellcheck disable=SC2086 # one word per process
    within 15 gone $old
}

old=$(everybody)
invocation=$(property InvocationID)
mark
check "the watchdog kills a frozen keeper in time" frozen
check "frozen keeper: every process of the unit ends" all_gone
check "frozen keeper: systemd starts the unit again, with fresh workers" fresh

# ---- a cluster's singleton

start_etcd() {
    etcd --data-dir /run/etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 >/results/etcd 2>&1 &
    etcd=$!
}

# It writes who it is and when, again and again, and so does what it starts, which leaves group and session, drops its environment and
# has no parent.
write_witness() {
    cat >/usr/local/bin/witness <<-'WITNESS'
		#!/bin/bash
		if [ $# = 0 ]; then
		    set -- "$LEASEHOLD_NODE" "$LEASEHOLD_FENCE"
		    (setsid env -i "$0" "$@" &)
		fi
		while :; do
		    echo "$1 $2 $EPOCHREALTIME" >>/run/oracle
		    sleep 0.01
		done
	WITNESS
    chmod 755 /usr/local/bin/witness
}

# flock: each node has its own, as on two machines.
billing() {
    cat <<-TOML
		[etcd]
		endpoints = ["http://127.0.0.1:2379"]
		[fleet.billing]
		command = ["/usr/local/bin/witness"]
		singleton = { scope = "cluster", flock = "/run/$1.lock", grace = "1s", kill_margin = "2s" }
	TOML
}
write_cluster_config() { write_config 3 && billing vm >>$config; }

holds() { status | jq -e '.fleets[] | select(.name == "billing").workers[] | select(.state == "running" and .containment == "unit").pid'; }
takes() { write_cluster_config && timeout 60 systemctl reload $unit && within 20 holds; }

# Both: nobody of ours is left who could kill.
ends_soon() {
    local both begun took
    both="$(property MainPID) $(supervisors)"
    begun=$(now_ms)
    # shellcheck disable=SC2086 # one word per process
    kill -STOP $both || return
    # shellcheck disable=SC2086 # one word per process
    within 10 gone $old || return
    took=$(($(now_ms) - begun))
    echo "ended after $took ms: $(systemd_said | grep 'Watchdog timeout')"
    [ $took -lt 2000 ]
}

# ---- another node, and a judge

other() { timeout 5 leasehold status --json --run-dir /run/other; }
other_waits() { other | jq -e '.fleets[] | select(.name == "billing").gate.holder | select(. != null)'; }
start_other() {
    { printf 'schema = 1\n[node]\nname = "other"\n' && billing other; } >/etc/leasehold/other.toml
    systemd-run --unit=other --service-type=notify --property=Delegate=yes --property=WatchdogSec=30s \
        leasehold run --config /etc/leasehold/other.toml --run-dir /run/other --state-dir /var/lib/other --log-dir /var/log/other || { journalctl -b -o cat -u other; return 1; }
    within 20 other_waits
}

# speaks NODE: its worker has written within the last second.
speaks() { tail -n 20 /run/oracle | grep "^$1 " | awk -v now="$EPOCHREALTIME" '$3 > now - 1 { found = 1 } END { exit !found }'; }

# Both: nobody of it is left but what systemd ends.
other_killed() {
    local both
    both=$(other | jq -r '"\(.keeper.pid) \(.supervisor.pid)"')
    # shellcheck disable=SC2086 # one word per process
    kill -KILL $both
}

# From what was written alone: nobody began before whoever had the lock was silent, with all that he started, and fences grew.
never_two() {
    sort -k3,3 /run/oracle | awk '
        !($2 in first) { first[$2] = $3; fences[++n] = $2; node[$2] = $1 }
        { last[$2] = $3 }
        END {
            for (i = 2; i <= n; i++) {
                a = fences[i - 1]; b = fences[i]; gap = first[b] - last[a]
                printf "%s with fence %s, then %s with fence %s after %.3f s\n", node[a], a, node[b], b, gap
                if (gap <= 0 || b + 0 <= a + 0) wrong = 1
            }
            exit wrong || n != 3
        }'
}

watched_as_before() { write_config 3 && timeout 60 systemctl reload $unit && within 20 is WatchdogUSec "$usual"; }

if command -v etcd >/dev/null; then
    usual=$(property WatchdogUSec)
    start_etcd
    write_witness
    check "a cluster's singleton is contained by the unit" takes
    check "while it is held, systemd watches within half of its kill_margin" within 10 is WatchdogUSec 1s
    check "another node, in another unit, waits for it" start_other
    old=$(everybody)
    invocation=$(property InvocationID)
    mark
    check "keeper and supervisor frozen: it ends, and all that it started, within its kill_margin" ends_soon
    check "keeper and supervisor frozen: systemd starts the unit again, with fresh workers" fresh
    check "the other node runs it when the lease is over" within 40 speaks other
    check "kill -9 of keeper and supervisor of that one" other_killed
    check "the first node runs it again when that lease is over" within 40 speaks vm
    check "by what they wrote there were never two, and fences grew" never_two
    systemctl stop other
    check "when none is held, systemd watches as it was configured to" watched_as_before
    kill $etcd
fi

# ---- stop

status_names() { local said; said=$(property StatusText); echo "$said"; [[ $said == *draining*"$1"* ]]; }

# The workers say when they have drained: a worker that was killed did not.
stops() {
    local begun took stopping
    rm -f /run/drained
    begun=$(now_ms)
    timeout 60 systemctl stop $unit &
    stopping=$!
    within 2 status_names web/0 || { wait $stopping; return 1; }
    wait $stopping || return
    took=$(($(now_ms) - begun))
    echo "took $took ms; drained: $(cat /run/drained)"
    is ActiveState inactive && is Result success && [ "$(wc -l </run/drained)" = 3 ] && [ $took -lt 5000 ]
}

nothing_left() {
    # shellcheck disable=SC2086 # one word per process
    gone $old || return
    if [ -d "$group" ] && ! grep -qx 'populated 0' "$group/cgroup.events"; then
        find "$group" -name cgroup.procs -exec cat {} +
        return 1
    fi
    [ ! -e /run/leasehold ]
}

# Shorter than a drain: it is prolonged, or the workers are killed.
mkdir -p /run/systemd/system/$unit.d
printf '[Service]\nTimeoutStopSec=1s\n' >/run/systemd/system/$unit.d/short.conf
systemctl daemon-reload
old=$(everybody)
group=$(cgroup)
check "systemctl stop drains every worker, past TimeoutStopSec=, says whom, and takes no longer than a worker may" stops
check "systemctl stop leaves no process, no cgroup with a process and no /run/leasehold" nothing_left

# ---- a configuration that cannot work

ends_for_good() {
    echo 'wrokers = 1' >>$config
    ! timeout 60 systemctl start $unit || return
    # With a restart ahead it would be "activating" from the very instant the process ended.
    is ActiveState failed && is ExecMainStatus 78
}

check "a faulty file ends the unit with 78, for good" ends_for_good

echo "1..$number" >>/results/report
