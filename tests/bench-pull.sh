#!/bin/sh
# Measures pulls: our daemon beside Debian's containerd and skopeo, same registry on loopback, same images, in turns,
# each into an empty store. One image of a single large layer, one of many small ones; see crates/cri-bench, pull-bench.
#
# usage: tests/bench-pull.sh DIRECTORY [OPTION-OF-PULL-BENCH-RUN...]
#
# DIRECTORY holds crio, crio-monitor, crioctl and pull-bench. Needs root, the packages of `.ci/setup bench`, and six
# gigabytes of disk where TMPDIR (or /tmp) and /var/tmp are.
#
# What can be set:
#   BENCH_LARGE_MB       compressed size of the large layer, default 600
#   BENCH_SMALL_LAYERS   layers of the other image, default 40
#   BENCH_LAYOUT         a directory to keep the images in from one run to the next, default none
set -eu

here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:?the directory of the binaries}" && pwd)
shift
[ "$(id -u)" -eq 0 ] || { echo "bench-pull: must run as root" >&2; exit 1; }
export BENCH_BIN="$bin" BENCH_HERE="$here"
# shellcheck disable=SC2016  # the inner shells expand these
exec "$here/bench-peer.sh" sh -c '
  layout=${BENCH_LAYOUT:-$BENCH_ROOT/pull-layout}
  if [ ! -e "$layout/oci-layout" ]; then
    "$BENCH_BIN/pull-bench" images "$layout" --large "${BENCH_LARGE_MB:-600}" --small "${BENCH_SMALL_LAYERS:-40}"
  fi
  for image in large small; do
    skopeo --insecure-policy copy --quiet --dest-tls-verify=false "oci:$layout:$image" \
      "docker://$BENCH_REGISTRY/bench/$image"
  done
  if [ -z "${BENCH_LAYOUT:-}" ]; then rm -rf "$layout"; fi
  exec "$BENCH_HERE/daemon.sh" -d -n crun -b "$BENCH_BIN" -r "$BENCH_REGISTRY" sh -c '\''
    exec "$BENCH_BIN/pull-bench" run --ours "$CRIO_SOCKET" --pid "$CRIO_PID" \
      --peer "$BENCH_PEER_SOCKET" --peer-pid "$BENCH_PEER_PID" --skopeo "$CRIO_ROOT/skopeo" \
      --image "$BENCH_REGISTRY/bench/large:latest" --image "$BENCH_REGISTRY/bench/small:latest" "$@"
  '\'' bench-pull "$@"
' bench-pull "$@"
