#!/bin/sh
# Pulls an image with a web server, runs it, looks at it from all sides, and removes it again.
#
# usage: tests/daemon.sh ... demo/pod.sh IMAGE
set -eu

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=demo/say.sh
. "$here/say.sh"
image=$1
host_port=$(free_port 18080)
# crioctl finds the daemon by CONTAINER_RUNTIME_ENDPOINT.
PATH=$CRIO_BIN:$PATH
# Shows a command as one would type it, and runs it.
try() { show "$*"; "$@"; }

try crioctl version

say "pull"
try crioctl pull "$image"

say "run a pod with a web server"
try crioctl run -d --name web -p "$host_port:80" --log-root "$CRIO_ROOT/logs" "$image"
try crioctl ps

# Prints the page once it is there; the server needs a moment to listen.
fetch() {
  show "wget -O - $1"
  tries=0
  while :; do
    # Not -T: Debian's static busybox crashes on it.
    if page=$(timeout 2 busybox wget -q -O - "$1" 2>/dev/null); then
      case $page in *"Hello from a pod"*) printf '%s\n' "$page"; return 0 ;; esac
      die "unexpected page from $1: $page"
    fi
    tries=$((tries + 1)); [ "$tries" -lt 50 ] || die "no page from $1"
    sleep 0.1
  done
}

say "a page from the pod's address"
address=$(crioctl -o json pod status web | tr -d ' \n' | grep -Eo '"ip":"[0-9.]+"' | head -n 1 | cut -d'"' -f4)
[ -n "$address" ] || die "the pod has no address"
fetch "http://$address/"
say "the same page through a port of the host"
fetch "http://127.0.0.1:$host_port/"

say "what the server logged"
try crioctl logs web
case $(crioctl logs web 2>&1) in *"response:200"*) ;; *) die "the log does not show the requests" ;; esac

say "stop and remove"
# The server is process 1 and has no handler for SIGTERM, so waiting long is for nothing.
try crioctl stop --grace 1 web
try crioctl rm web
[ -z "$(crioctl ps --all --quiet)" ] || die "a container is still there"
[ -z "$(crioctl pods --quiet)" ] || die "a pod is still there"
try crioctl rmi "$image"
