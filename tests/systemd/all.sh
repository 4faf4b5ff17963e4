#!/bin/bash
# Every test of systemd/: verify.sh, boot.sh, and boot.sh with hardening.conf; the Debian tree is made once.
#
#   tests/systemd/all.sh BINARY
#
#   LEASEHOLD_SYSTEMD_ROOT=DIR        keep the Debian tree there (boot.sh)
#   LEASEHOLD_SYSTEMD_OPTIONAL=yes    a machine that cannot do a test has passed it; it says so
set -euo pipefail

[ $# = 1 ] || { echo "usage: all.sh BINARY" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
failed=0

if [ -z "${LEASEHOLD_SYSTEMD_ROOT:-}" ]; then
    LEASEHOLD_SYSTEMD_ROOT=$(mktemp -d "${TMPDIR:-/tmp}/leasehold-tree.XXXXXX")
    export LEASEHOLD_SYSTEMD_ROOT
    trap 'rm -rf --one-file-system "$LEASEHOLD_SYSTEMD_ROOT"' EXIT
fi

run() {
    local code=0
    echo "# ${*/#"$here/"/}"
    "$@" || code=$?
    [ $code = 0 ] || { [ $code = 77 ] && [ -n "${LEASEHOLD_SYSTEMD_OPTIONAL:-}" ]; } || failed=1
}

# boot.sh first: it installs what is missing, and verify.sh is glad of it.
run "$here/boot.sh" "$1"
run "$here/boot.sh" --hardened "$1"
run "$here/verify.sh"
exit $failed
