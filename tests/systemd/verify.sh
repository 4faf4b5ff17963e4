#!/bin/bash
# Checks the files of systemd/ without installing anything and without a running systemd.
#
#   tests/systemd/verify.sh        exit 0: all well; 1: a check failed; 77: this machine cannot check
#
# shellcheck disable=SC2317 # the functions are called through `check`
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
files=$(cd "$here/../../systemd" && pwd)

cannot() {
    echo "verify.sh: cannot check the systemd files here: $*" >&2
    exit 77
}

command -v systemd-analyze >/dev/null || cannot "systemd-analyze is not installed (Debian: apt-get install systemd)"
version=$(systemd-analyze --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
[ "${version:-0}" -ge 250 ] || cannot "systemd-analyze ${version:-of unknown version} has no offline checks; 250 is the first that has"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
number=0

# check TITLE COMMAND...: one line, and what the command said if it fails. `set -e` is off inside a condition: functions say
# `|| return` themselves.
check() {
    local title=$1
    shift
    number=$((number + 1))
    if "$@" >"$work/said" 2>&1; then
        echo "ok $number - $title"
    else
        echo "not ok $number - $title"
        sed 's/^/# /' "$work/said"
        failed=1
    fi
}

skip() {
    number=$((number + 1))
    echo "ok $number - $1 # SKIP $2"
}

# unit DIRECTORY: the unit as it is but for its program, which need not be installed here.
unit() {
    mkdir -p "$work/$1/leasehold.service.d"
    sed 's,/usr/bin/leasehold,/bin/true,' "$files/leasehold.service" >"$work/$1/leasehold.service"
}

verify() {
    local said
    said=$(systemd-analyze verify --recursive-errors=no "$work/$1/leasehold.service" 2>&1) || { echo "$said"; return 1; }
    # Some faults are only warned about, with exit code 0.
    echo "$said"
    [ -z "$said" ]
}

# rejects NAME LINE: the check above can fail at all.
rejects() {
    unit "$1"
    printf '[Service]\n%s\n' "$2" >"$work/$1/leasehold.service.d/fault.conf"
    ! verify "$1"
}

security() {
    systemd-analyze security --offline=yes --no-pager --threshold="$2" "$work/$1/leasehold.service"
}

has() {
    grep -qxF -- "$1" "$files/leasehold.service" || { echo "no line says $1"; return 1; }
}

# Every one of these would be inherited by every worker; why that is wrong is said in the unit.
forbids_nothing_to_workers() {
    local keys='NoNewPrivileges|Protect[A-Za-z]*|Private[A-Za-z]*|Restrict(Address|Name|Real|SUID|File)[A-Za-z]*|SystemCall[A-Za-z]*'
    keys+='|LockPersonality|MemoryDenyWriteExecute|(ReadOnly|Inaccessible|NoExec)Paths|DeviceAllow|DevicePolicy|User|Group|DynamicUser|UMask'
    ! grep -nE "^($keys)=" "$files/leasehold.service"
}

# The directories as sysusers and tmpfiles make them in an empty tree.
tree() {
    local root=$work/tree
    mkdir -p "$root/etc" || return
    echo 'root:x:0:0:::' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    systemd-sysusers --root="$root" "$files/sysusers.d/leasehold.conf" || return
    grep -q '^leasehold:' "$root/etc/group" || { echo "no group leasehold"; return 1; }
    systemd-tmpfiles --root="$root" --create "$files/tmpfiles.d/leasehold.conf" || return
    is "$root/var/log/leasehold" "750 0:0" || return
    is "$root/run/lock/leasehold-0" "700 0:0" || return
    # That one comes and goes with the unit.
    [ ! -e "$root/run/leasehold" ]
}

is() {
    local found
    found=$(stat -c '%a %u:%g' "$1")
    [ "$found" = "$2" ] || { echo "$1 is $found, not $2"; return 1; }
}

# What tmpfiles and the unit both say about a directory has to agree, or they would take turns.
modes_agree() {
    local ours theirs
    ours=$(sed -n 's/^LogsDirectoryMode=//p' "$files/leasehold.service")
    theirs=$(sed -n 's,^d /var/log/leasehold \([0-7]*\) .*,\1,p' "$files/tmpfiles.d/leasehold.conf")
    echo "unit: $ours, tmpfiles: $theirs"
    [ -n "$ours" ] && [ "$ours" = "$theirs" ]
}

unit plain
unit hardened
cp "$files/hardening.conf" "$work/hardened/leasehold.service.d/"

check "the unit is without fault" verify plain
check "the unit is without fault with hardening.conf" verify hardened
check "an unknown key would have been found" rejects unknown 'WatchdogSecs=30s'
check "a wrong value would have been found" rejects wrong 'TimeoutStopSec=tomorrow'
check "a type that needs systemd 253 would have been found" rejects newer "$([ "$version" -ge 253 ] && echo 'Type=none' || echo 'Type=notify-reload')"
check "exposure is at most 9.2" security plain 92
check "exposure is at most 7.5 with hardening.conf" security hardened 75
for line in Type=notify NotifyAccess=main KillMode=mixed Delegate=yes Restart=always WatchdogSignal=SIGKILL \
    OOMPolicy=continue TasksMax=infinity RuntimeDirectoryPreserve=restart; do
    check "the unit says $line" has "$line"
done
check "the unit forbids workers nothing that some of them need" forbids_nothing_to_workers
check "unit and tmpfiles agree on the mode of the log directory" modes_agree
if [ "$(id -u)" != 0 ]; then
    skip "group and directories are made as meant" "only root can give files away"
elif ! command -v systemd-sysusers >/dev/null || ! command -v systemd-tmpfiles >/dev/null; then
    skip "group and directories are made as meant" "systemd-sysusers or systemd-tmpfiles is not installed"
else
    check "group and directories are made as meant" tree
fi
echo "1..$number"
exit $failed
