#!/bin/sh
# Stands in for protoc while etcd-client is built (.cargo/config.toml): copies the descriptor set that lies beside us to where protoc was
# told to write. It is made for one version of one crate, and make.sh checks that it is what protoc makes; anything else goes to protoc.
set -eu
made="$(dirname "$0")/${CARGO_PKG_NAME:-nobody}-${CARGO_PKG_VERSION:-0}.pb"
if [ ! -e "$made" ]; then
  if command -v protoc >/dev/null 2>&1; then
    exec protoc "$@"
  fi
  echo "$made is missing, and so is protoc: install protobuf-compiler and libprotobuf-dev, or make it with protoc/make.sh" >&2
  exit 1
fi
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then
    exec cp "$made" "$2"
  fi
  shift
done
echo "protoc/protoc.sh: nobody said -o" >&2
exit 1
