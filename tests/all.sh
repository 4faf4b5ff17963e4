#!/usr/bin/env bash
# Passes the tests, on a fresh Debian machine with a Rust toolchain: installs by itself what they need.
#
#   tests/all.sh            everything
#   tests/all.sh quick      without the sweep, the soak, the fuzzing and systemd
#
# SIM_SEEDS, SOAK_SECONDS and FUZZ_SECONDS widen or narrow what is random.
set -euo pipefail
cd "$(dirname "$0")/.."

# Whoever starts us in the background may have us ignore what a terminal sends; tests of terminals need it.
if [ -z "${LEASEHOLD_TEST_SIGNALS:-}" ]; then
  exec env --default-signal=INT,QUIT LEASEHOLD_TEST_SIGNALS=default tests/all.sh "$@"
fi

began=$SECONDS
section() { # name, command...
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  "$@"
  printf '== %s: %d s\n' "$name" $((SECONDS - start))
}

need() { # command or file, package
  if command -v "$1" >/dev/null 2>&1 || [ -e "$1" ]; then
    return
  fi
  local root=()
  [ "$(id -u)" = 0 ] || root=(sudo)
  if command -v apt-get >/dev/null 2>&1 && "${root[@]}" true 2>/dev/null; then
    [ -n "${updated:-}" ] || "${root[@]}" apt-get update -qq
    updated=1
    # RUNLEVEL: a daemon that comes with it is not started.
    "${root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
  else
    echo "tests/all.sh: '$1' is missing; install the package '$2'" >&2
    exit 1
  fi
}

# Bounds on conditions, not timings: doubled, since test machines are shared.
export LEASEHOLD_TEST_PATIENCE="${LEASEHOLD_TEST_PATIENCE:-2}"

need cc gcc
need etcd etcd-server
need etcdctl etcd-client
need ip iproute2
need nft nftables
need openssl openssl
need protoc protobuf-compiler
need /usr/include/google/protobuf/descriptor.proto libprotobuf-dev
need python3 python3-minimal
# Debian's smallest Python has no sqlite3; the examples of a cluster want it.
python3 -c 'import ctypes, http.client, sqlite3' 2>/dev/null || need "python3's sqlite3" libpython3-stdlib
need setpriv util-linux
need strace strace

section protoc protoc/make.sh --check
section build cargo build --all-targets --locked
section tests cargo test --locked --lib --bins --test house --test calendar --test config --test wire --test metrics --test publish --test process
# They wait more than they work.
section etcd cargo test --locked --test etcd -- --test-threads=4
section examples cargo test --locked --test examples -- --test-threads=1
if [ "${1:-}" = quick ]; then
  exit 0
fi
# Faults want the machine for themselves. LEASEHOLD_FAULTS_ALL=1: every row of docs/faults.md.
section faults cargo test --locked --test faults -- --test-threads=1
# So do burners.
section burners cargo test --locked --test burners -- --test-threads=1
section simulation cargo test --locked --test sim --test cluster --test model
section scaling cargo test --locked --test scaling
section fuzz env FUZZ_SECONDS="${FUZZ_SECONDS:-40}" cargo test --locked --test fuzz
section soak env SOAK_SECONDS="${SOAK_SECONDS:-240}" cargo test --locked --test soak -- --nocapture
# Says so where the machine cannot boot a container, and passes; everywhere else it must boot.
section systemd env LEASEHOLD_SYSTEMD_OPTIONAL=yes tests/systemd/all.sh target/debug/leasehold
printf '\nall tests passed in %d s\n' $((SECONDS - began))
