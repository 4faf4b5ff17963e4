#!/usr/bin/env bash
# Makes the descriptor set that protoc.sh hands to etcd-client's build, or checks that it is what the real protoc makes of the version in
# Cargo.lock. Without the comments and without what is imported only: nothing is generated from either.
#
#   protoc/make.sh            makes it
#   protoc/make.sh --check    says so where it is not what protoc makes, and where no protoc is there to ask
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n '/^name = "etcd-client"$/{n;s/^version = "\(.*\)"$/\1/p}' Cargo.lock)
set="$PWD/protoc/etcd-client-$version.pb"

if [ "${1:-}" = --check ]; then
  if [ ! -e "$set" ]; then
    echo "protoc/make.sh: there is no $set: Cargo.lock names another etcd-client than the one it was made for; run protoc/make.sh" >&2
    exit 1
  fi
  if ! command -v protoc >/dev/null 2>&1; then
    echo "protoc/make.sh: NOT CHECKED: no protoc is installed, so nobody knows whether $set is what it would make" >&2
    exit 0
  fi
fi

manifest=$(cargo metadata --format-version 1 --locked | grep -o '"manifest_path":"[^"]*/etcd-client-'"$version"'/Cargo.toml"' | cut -d'"' -f4)
cd "$(dirname "$manifest")"
# What its build.rs names.
mapfile -t protos < <(sed -n 's/^ *"\(proto\/.*\.proto\)",$/\1/p' build.rs)
out=$(mktemp)
trap 'rm -f "$out"' EXIT
protoc -o "$out" -I proto "${protos[@]}"

if [ "${1:-}" != --check ]; then
  cp "$out" "$set"
  chmod 644 "$set"
elif ! cmp "$out" "$set"; then
  echo "protoc/make.sh: $set is not what $(protoc --version) makes of etcd-client $version; run protoc/make.sh and look at what it changes" >&2
  exit 1
fi
