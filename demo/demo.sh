#!/bin/sh
# Builds a small image, fills a registry with it, and has a pod with a web server run under a daemon of its own
# (tests/daemon.sh, demo/pod.sh). Leaves nothing behind, and says so if it does.
#
# usage: demo/demo.sh [DIRECTORY]
#
# DIRECTORY holds crio, crio-monitor and crioctl (default: target/debug). Needs root (asks sudo) and the packages of
# `.ci/setup demo`. DAEMON_KEEP=1 waits after a failure, so that one can look.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../target/debug}" && pwd)
[ "$(id -u)" -eq 0 ] || exec sudo env "DAEMON_KEEP=${DAEMON_KEEP:-}" "$0" "$bin"
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
umask 022
# shellcheck source=demo/say.sh
. "$here/say.sh"

for program in skopeo docker-registry busybox setsid; do
  command -v "$program" >/dev/null || die "$program is not installed; run .ci/setup demo"
done
registry_port=$(free_port 5055)
image=127.0.0.1:$registry_port/demo/web:latest

scratch=$(mktemp -d)
registry=''
tidy_up() {
  status=$?
  trap - EXIT
  trap '' HUP INT TERM
  if [ -n "$registry" ]; then
    kill -TERM "$registry" 2>/dev/null || true
    wait "$registry" 2>/dev/null || true
  fi
  rm -rf "$scratch"
  if [ "$status" -eq 0 ]; then
    say "done: no process, mount, namespace, bridge, firewall rule, cgroup or file is left"
  else
    printf '\ndemo: failed\n' >&2
  fi
  exit "$status"
}
trap tidy_up EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM

say "an image with a web server: busybox and one page"
(
  cd "$scratch"
  mkdir -p layout/blobs/sha256 rootfs/bin rootfs/www rootfs/tmp rootfs/etc
  cp "$(readlink -f "$(command -v busybox)")" rootfs/bin/busybox
  ln -s busybox rootfs/bin/sh
  printf 'root:x:0:0:root:/:/bin/sh\n' >rootfs/etc/passwd
  printf '<h1>Hello from a pod</h1>\n' >rootfs/www/index.html
  # Stands in for the pause image, in case the daemon needs an infra container.
  printf '#!/bin/sh\ntrap "exit 0" TERM INT\nwhile :; do busybox sleep 3600 & wait; done\n' >rootfs/pause
  chmod 755 rootfs/pause rootfs/bin/busybox
  chmod 1777 rootfs/tmp

  # Moves a file into the layout under its digest; prints the rest of its descriptor.
  blob() {
    digest=$(sha256sum "$1" | cut -d' ' -f1)
    size=$(wc -c <"$1")
    mv "$1" "layout/blobs/sha256/$digest"
    printf '"digest":"sha256:%s","size":%d' "$digest" "$size"
  }
  type=application/vnd.oci.image
  tar --create --file=layer.tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --directory=rootfs .
  diff_id=$(sha256sum layer.tar | cut -d' ' -f1)
  gzip --no-name layer.tar
  layer=$(blob layer.tar.gz)
  case $(uname -m) in aarch64) arch=arm64 ;; x86_64) arch=amd64 ;; *) arch=$(uname -m) ;; esac
  cat >config.json <<-END
	{"architecture":"$arch","os":"linux","config":{"Env":["PATH=/bin"],
	"Cmd":["/bin/busybox","httpd","-f","-vv","-p","80","-h","/www"],"ExposedPorts":{"80/tcp":{}}},
	"rootfs":{"type":"layers","diff_ids":["sha256:$diff_id"]}}
	END
  config=$(blob config.json)
  cat >manifest.json <<-END
	{"schemaVersion":2,"mediaType":"$type.manifest.v1+json","config":{"mediaType":"$type.config.v1+json",$config},
	"layers":[{"mediaType":"$type.layer.v1.tar+gzip",$layer}]}
	END
  manifest=$(blob manifest.json)
  cat >layout/index.json <<-END
	{"schemaVersion":2,"manifests":[{"mediaType":"$type.manifest.v1+json",$manifest,
	"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}
	END
  printf '{"imageLayoutVersion":"1.0.0"}\n' >layout/oci-layout
)

say "a registry at 127.0.0.1:$registry_port, filled with it"
cat >"$scratch/registry.yml" <<END
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $scratch/registry}}
http: {addr: "127.0.0.1:$registry_port"}
END
setsid docker-registry serve "$scratch/registry.yml" >"$scratch/registry.log" 2>&1 </dev/null &
registry=$!
tries=0
until busybox wget -q -O /dev/null "http://127.0.0.1:$registry_port/v2/" 2>/dev/null; do
  kill -0 "$registry" 2>/dev/null || die "the registry ended: $(tail -n 3 "$scratch/registry.log")"
  tries=$((tries + 1)); [ "$tries" -lt 100 ] || die "the registry does not answer"
  sleep 0.1
done
show "skopeo copy oci:layout:latest docker://$image"
skopeo --insecure-policy --tmpdir "$scratch" copy --quiet --dest-tls-verify=false \
  "oci:$scratch/layout:latest" "docker://$image"

say "a daemon with storage, sockets and a bridge of its own"
printf '[crio.image]\npause_image = "%s"\npause_command = "/pause"\n' "$image" >"$scratch/pause.conf"
"$here/../tests/daemon.sh" -b "$bin" -r "127.0.0.1:$registry_port" -c "$scratch/pause.conf" "$here/pod.sh" "$image"
