#!/bin/bash
# Boots a small Debian with systemd in a container of its own, with leasehold installed as a package would install it, and
# checks that they get on (inside.sh).
#
#   tests/systemd/boot.sh [--hardened] BINARY
#
#   BINARY       the leasehold to test; it must run on that Debian
#   --hardened   with systemd/hardening.conf as a drop-in
#   LEASEHOLD_SYSTEMD_ROOT=DIR   keep the Debian tree there; without it one is made, and thrown away, each time
#   LEASEHOLD_SYSTEMD_SUITE=trixie   another Debian than 12 (bookworm), and with it another systemd
#
# One line per check. Exit 0: all well; 1: a check failed; 77: this machine cannot do it, and a sentence why.
# Needs root, cgroup2 and, for the tree, a Debian mirror ($LEASEHOLD_SYSTEMD_MIRROR). debootstrap and systemd-nspawn are
# installed with apt-get if they are missing. Takes about a minute, most of it waiting for the watchdog.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
files=$(cd "$here/../../systemd" && pwd)
packages=systemd,systemd-sysv,dbus,jq
suite=${LEASEHOLD_SYSTEMD_SUITE:-bookworm}
# The whole of it, from the first process to the last; on a machine with nothing else to do it is over in a third.
deadline_s=240

cannot() {
    echo "boot.sh: cannot test under systemd here: $*" >&2
    exit 77
}

say() { echo "boot.sh: $*" >&2; }

usage() {
    echo "usage: boot.sh [--hardened] BINARY" >&2
    exit 2
}

hardened=
if [ "${1:-}" = --hardened ]; then
    hardened=yes
    shift
fi
[ $# = 1 ] || usage
if [ ! -f "$1" ] || [ ! -x "$1" ]; then
    say "$1 is not a program"
    exit 2
fi
binary=$(realpath "$1")

# ---- what it takes

[ "$(id -u)" = 0 ] || cannot "only root can boot a container"
cgroup2=$(awk '$4 == "/" && / - cgroup2 / { print $5; exit }' /proc/self/mountinfo)
[ -n "$cgroup2" ] || cannot "no cgroup2 hierarchy is mounted"

missing=
command -v debootstrap >/dev/null || missing+=" debootstrap"
command -v systemd-nspawn >/dev/null || missing+=" systemd-container"
command -v systemctl >/dev/null || missing+=" systemd"
if [ -n "$missing" ]; then
    command -v apt-get >/dev/null || cannot "there is no apt-get to install$missing with"
    say "installing$missing"
    # shellcheck disable=SC2086 # one word per package
    if ! apt-get update >&2 || ! DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >&2; then
        cannot "apt-get failed to install$missing"
    fi
fi

# ---- everything made here goes with us

work=$(mktemp -d "${TMPDIR:-/tmp}/leasehold-boot.XXXXXX")
group=$cgroup2/$(basename "$work")
# systemd-nspawn makes these where there were none, and leaves them.
foreign=()
for dir in /run/systemd /run/systemd/nspawn /run/systemd/nspawn/locks /run/systemd/nspawn/propagate /run/systemd/nspawn/unix-export; do
    [ -e "$dir" ] || foreign=("$dir" "${foreign[@]}")
done

machine=

empty_within() {
    local deadline=$((SECONDS + $1))
    until grep -qx 'populated 0' "$group/cgroup.events"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

# The machine is asked to shut down; then whatever is left below our own cgroup, and nothing else, is killed.
end_processes() {
    [ -d "$group" ] || return 0
    [ -z "$machine" ] || kill -TERM "$machine" 2>/dev/null || true
    empty_within 20 || { echo 1 >"$group/cgroup.kill" && empty_within 20; } || say "processes in $group do not end"
}

cleanup() {
    end_processes
    local dir
    # The second is systemd-nspawn's copy of the name in the old hierarchy, where there is one.
    for dir in "$group" /sys/fs/cgroup/systemd/"$(basename "$group")"; do
        [ ! -d "$dir" ] || find "$dir" -depth -type d -exec rmdir {} + || say "$dir is left"
    done
    for dir in "${foreign[@]}"; do
        [ ! -d "$dir" ] || rmdir --ignore-fail-on-non-empty "$dir"
    done
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir "$group" 2>/dev/null || cannot "no cgroup can be made below $cgroup2"
[ -e "$group/cgroup.kill" ] || cannot "cgroup.kill is missing; it needs Linux 5.14"

# ---- the tree

# The name says what is in it: another list of packages is another tree.
name=$suite-$(cksum <<<"$packages" | cut -d' ' -f1)
if [ -n "${LEASEHOLD_SYSTEMD_ROOT:-}" ]; then
    mkdir -p "$LEASEHOLD_SYSTEMD_ROOT"
    cache=$(realpath "$LEASEHOLD_SYSTEMD_ROOT")
else
    cache=$work/cache
    mkdir "$cache"
fi
exec 9>"$cache/lock"
flock 9
if [ ! -d "$cache/$name" ]; then
    say "making the Debian tree in $cache (half a minute, and 300 MB)"
    rm -rf --one-file-system "$cache/$name.new"
    # The mirror that this machine's own apt uses, unless told otherwise.
    mirror=${LEASEHOLD_SYSTEMD_MIRROR:-$(apt-get indextargets --format '$(SITE)' 2>/dev/null | grep -v security | head -n 1)}
    [ -n "$mirror" ] || cannot "no Debian mirror is known: set LEASEHOLD_SYSTEMD_MIRROR"
    # Whatever it mounts ends with it.
    unshare --mount debootstrap --variant=minbase --include="$packages" "$suite" "$cache/$name.new" \
        "$mirror" >"$work/debootstrap.log" 2>&1 ||
        { tail -n 5 "$work/debootstrap.log" >&2; cannot "debootstrap could not make a Debian tree"; }
    rm -rf "$cache/$name.new"/var/cache/apt/archives/*.deb "$cache/$name.new"/var/lib/apt/lists/*
    mv "$cache/$name.new" "$cache/$name"
fi
root=$work/root
cp -a --reflink=auto "$cache/$name" "$root"
exec 9>&-

# ---- leasehold in it, as a package would have it

install -m 755 "$binary" "$root/usr/bin/leasehold"
install -m 644 -D "$files/leasehold.service" "$root/usr/lib/systemd/system/leasehold.service"
install -m 644 -D "$files/sysusers.d/leasehold.conf" "$root/usr/lib/sysusers.d/leasehold.conf"
install -m 644 -D "$files/tmpfiles.d/leasehold.conf" "$root/usr/lib/tmpfiles.d/leasehold.conf"
[ -z "$hardened" ] || install -m 644 -D "$files/hardening.conf" "$root/etc/systemd/system/leasehold.service.d/hardening.conf"
systemctl --root="$root" enable leasehold.service 2>/dev/null
if ! chroot "$root" /usr/bin/leasehold --version >"$work/version" 2>&1; then
    sed 's/^/# /' "$work/version"
    if grep -qE 'GLIBC|error while loading shared libraries' "$work/version"; then
        cannot "the binary was built for a newer system than Debian $suite"
    fi
    echo "not ok 1 - the binary runs on Debian $suite"
    exit 1
fi

mkdir -p "$root/etc/leasehold" "$root/usr/local/bin" "$work/results"
cat >"$root/etc/leasehold/leasehold.toml" <<'TOML'
schema = 1
[fleet.web]
command = ["/usr/local/bin/test-worker"]
workers = 2
stop = { signal = "SIGTERM", timeout = "5s" }
TOML
# It has something to finish when asked to stop, and leaves two children behind, one of which has left its session.
cat >"$root/usr/local/bin/test-worker" <<'WORKER'
#!/bin/bash
trap 'sleep 2; echo $$ >>/run/drained; exit 0' TERM
setsid sleep infinity &
sleep infinity &
wait
WORKER
# Whoever has one here has a cluster's singleton tested, too.
! etcd=$(command -v etcd) || install -m 755 "$etcd" "$root/usr/bin/etcd"
install -m 755 "$here/inside.sh" "$root/usr/local/bin/inside"
chmod 755 "$root/usr/local/bin/test-worker"
cat >"$root/etc/systemd/system/checks.service" <<UNIT
[Unit]
SuccessAction=poweroff
FailureAction=poweroff
[Service]
Type=oneshot
Environment=HARDENED=$hardened
ExecStart=/usr/local/bin/inside
TimeoutStartSec=$((deadline_s - 30))
UNIT
mkdir -p "$root/etc/systemd/system/default.target.wants"
ln -s ../checks.service "$root/etc/systemd/system/default.target.wants/checks.service"
# Without one this would be a first boot.
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"

# ---- boot

(
    echo "$BASHPID" >"$group/cgroup.procs"
    # No registration: the host may have no systemd at all, and need not know.
    exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout -k 10 "$deadline_s" \
        systemd-nspawn --quiet --directory="$root" --machine="$(basename "$work" | tr . -)" --boot \
        --register=no --keep-unit --private-network --bind="$work/results:/results" --console=read-only --setenv=SYSTEMD_COLORS=0 \
        </dev/null >"$work/console" 2>&1
) &
machine=$!
booted=0
wait $machine || booted=$?
machine=

# ---- what came of it

report=$work/results/report
[ ! -f "$report" ] || cat "$report"
show() { [ ! -s "$1" ] || { echo "# ---- the end of $(basename "$1")" && tail -n 80 "$1" | sed 's/^/# /'; }; }
if ! grep -qs '^1\.\.' "$report"; then
    echo "not ok - the checks ran to their end (systemd-nspawn: exit code $booted)"
    show "$work/console"
    show "$work/results/journal"
    exit 1
elif grep -q '^not ok' "$report"; then
    show "$work/results/journal"
    exit 1
fi
