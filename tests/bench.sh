#!/bin/sh
# Measures our daemon beside Debian's containerd: same machine, same moment, same image, same OCI runtime.
#
# usage: tests/bench.sh DIRECTORY [OPTION-OF-CRI-BENCH...]
#
# DIRECTORY holds crio, crio-monitor, crioctl and cri-bench. Needs root and the packages of `.ci/setup bench`.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:?the directory of the binaries}" && pwd)
shift
[ "$(id -u)" -eq 0 ] || { echo "bench: must run as root" >&2; exit 1; }
export BENCH_BIN="$bin" BENCH_HERE="$here"
# The pause image and crun are the peer's too; storage is on disk for both.
# shellcheck disable=SC2016  # the inner shells expand these
exec "$here/bench-peer.sh" sh -c '
  drop_in=$BENCH_ROOT/ours.conf
  printf "[crio.image]\npause_image = \"%s\"\npause_command = \"\"\n" "$BENCH_PAUSE_IMAGE" >"$drop_in"
  "$BENCH_HERE/daemon.sh" -d -n crun -b "$BENCH_BIN" -r "$BENCH_REGISTRY" -c "$drop_in" sh -c '\''
    exec "$BENCH_BIN/cri-bench" --ours "$CRIO_SOCKET" --pid "$CRIO_PID" \
      --peer "$BENCH_PEER_SOCKET" --peer-pid "$BENCH_PEER_PID" --image "$BENCH_IMAGE" --pull "$@"
  '\'' bench "$@"
' bench "$@"
