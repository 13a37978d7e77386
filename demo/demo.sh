#!/bin/sh
# Runs a pod with a web server under a daemon of its own, shows that it works, and leaves nothing behind.
#
# usage: demo/demo.sh [DIRECTORY]
#
# DIRECTORY holds crio, crio-monitor and crioctl (default: target/debug beside this directory). Needs root (asks sudo)
# and the packages of `.ci/setup demo`. Everything lives on a small tmpfs of its own: storage, sockets, namespaces,
# registry, logs. The node's own containers, images, CNI configuration and /etc are neither read nor changed.
#
#   DEMO_KEEP=1   on failure, stop before tidying up and say where to look
set -eu

here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../target/debug}" && pwd)
[ "$(id -u)" -eq 0 ] || exec sudo env "DEMO_KEEP=${DEMO_KEEP:-}" "$0" "$bin"
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
umask 022

# ------------------------------------------------------------------------------------------------ saying things

if [ -t 1 ]; then bold=$(printf '\033[1m') dim=$(printf '\033[2m') plain=$(printf '\033[0m'); else bold='' dim='' plain=''; fi
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
show() { printf '%s   $ %s%s\n' "$dim" "$*" "$plain"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# ------------------------------------------------------------------------------------------------ what was there before

for program in crio crio-monitor crioctl; do
  [ -x "$bin/$program" ] || die "no $program in $bin; run make build"
done
for program in skopeo docker-registry busybox ip nft setsid; do
  command -v "$program" >/dev/null || die "$program is not installed; run .ci/setup demo"
done
if runtime=$(command -v crun); then :; elif runtime=$(command -v runc); then :; else
  die "neither crun nor runc is installed; run .ci/setup demo"
fi
runtime_name=$(basename "$runtime")
plugins=
for directory in /usr/lib/cni /opt/cni/bin; do
  if [ -x "$directory/bridge" ]; then plugins=$directory; break; fi
done
[ -n "$plugins" ] || die "no CNI plugins found; run .ci/setup demo"

forward=/proc/sys/net/ipv4/ip_forward
forward_before=$(cat $forward)
has_table() { nft list table "$1" crio-hostports >/dev/null 2>&1; }
if has_table ip; then table4=kept; else table4=new; fi
if has_table ip6; then table6=kept; else table6=new; fi

# A TCP port nobody listens on, at or after $1.
free_port() {
  port=$1
  while grep -Eq ":$(printf %04X "$port") 0+:0000 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null; do port=$((port + 1)); done
  echo "$port"
}
# The third byte of a 10.x.y.0/24 network that no route of this node touches.
free_net() {
  for x in 219 218 217 216 215 214 213 212; do
    if ! ip -4 route | grep -Eq "(^| )10\.$x\."; then echo "10.$x.0"; return; fi
  done
  die "no free 10.x network for the bridge"
}
registry_port=$(free_port 5055)
host_port=$(free_port 18080)
net=$(free_net)
network=crio-demo-$$
bridge=crd$$
image=127.0.0.1:$registry_port/demo/web:latest

# ------------------------------------------------------------------------------------------------ the way back

# Short, because attach sockets lie 72 characters below it and a socket's path may have 107.
scratch=$(mktemp -d /var/tmp/crd.XXXXXX)
sock=$scratch/crio.sock
daemon='' registry='' pod=''

ctl() { "$bin/crioctl" --connect "unix://$sock" "$@"; }
is_alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

# Ends a process we started: politely, then not.
end() {
  is_alive "$1" || return 0
  kill -TERM "$1" 2>/dev/null || true
  tries=0
  while is_alive "$1" && [ "$tries" -lt 150 ]; do sleep 0.1; tries=$((tries + 1)); done
  kill -KILL "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}
# Processes that name the scratch directory in their command line: monitors, and nobody else's.
ours() {
  for file in /proc/[0-9]*/cmdline; do
    process=${file#/proc/}; process=${process%/cmdline}
    [ "$process" != $$ ] || continue
    if tr '\0' ' ' <"$file" 2>/dev/null | grep -Fq "$scratch/"; then echo "$process"; fi
  done
}
mounts() { awk -v d="$scratch" 'index($2, d "/") == 1 || $2 == d { print $2 }' /proc/self/mounts | sort -r; }

tidy_up() {
  status=$?
  trap - EXIT
  trap '' HUP INT TERM
  set +e
  if [ "$status" -ne 0 ]; then
    if [ -s "$scratch/crio.log" ]; then
      printf '\n--- the last lines of the daemon (%s)\n' "$scratch/crio.log" >&2
      tail -n 25 "$scratch/crio.log" >&2
    fi
    if [ -n "${DEMO_KEEP:-}" ]; then
      printf '\nDEMO_KEEP: everything still stands; look at %s, then press return (or end of input) to tidy up\n' "$scratch" >&2
      read -r _
    fi
  fi
  if [ -n "$pod" ] && is_alive "$daemon"; then
    ctl pod stop "$pod" >/dev/null 2>&1
    ctl pod remove "$pod" >/dev/null 2>&1
  fi
  end "$daemon"
  # Only after a failure are there any: a monitor outlives its daemon on purpose.
  stray=$(ours)
  for process in $stray; do
    # shellcheck disable=SC2013  # one line of words
    for child in $(cat "/proc/$process/task/$process/children" 2>/dev/null); do kill -KILL "$child" 2>/dev/null; done
    kill -KILL "$process" 2>/dev/null
  done
  end "$registry"
  for place in $(mounts); do
    [ "$place" = "$scratch" ] || umount "$place" 2>/dev/null || umount -l "$place"
  done
  umount "$scratch" 2>/dev/null || umount -l "$scratch"
  rmdir "$scratch"
  ip link show "$bridge" >/dev/null 2>&1 && ip link delete "$bridge"
  [ "$table4" = kept ] || nft delete table ip crio-hostports 2>/dev/null
  [ "$table6" = kept ] || nft delete table ip6 crio-hostports 2>/dev/null
  [ "$(cat $forward)" = "$forward_before" ] || echo "$forward_before" >$forward
  if [ -n "$pod" ]; then
    find /sys/fs/cgroup -depth -type d -name "*$pod*" -exec rmdir {} \; 2>/dev/null
  fi

  # Where libcni remembers attachments; only a pod that could not be stopped has one left.
  rm -f "/var/lib/cni/results/$network-"*

  left=$(
    [ ! -e "$scratch" ] || echo "  $scratch"
    mounts | sed 's/^/  mount /'
    ours | sed 's/^/  process /'
    ip -o link show "$bridge" 2>/dev/null
    if [ -n "$pod" ]; then find /sys/fs/cgroup -type d -name "*$pod*" 2>/dev/null; fi
    nft list ruleset 2>/dev/null | grep -F "${net%0}" | sed 's/^[[:space:]]*/  rule /'
  )
  if [ -n "$left" ]; then
    printf '\ndemo: this was left behind:\n%s\n' "$left" >&2
    [ "$status" -ne 0 ] || status=1
  elif [ "$status" -eq 0 ]; then
    say "done; no process, mount, namespace, bridge, firewall rule, cgroup or file is left"
  else
    printf '\ndemo: failed; nothing is left behind\n' >&2
  fi
  exit "$status"
}
trap tidy_up EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM

# Whatever file system /var/tmp is on: this one can carry overlays, and goes with one umount.
mount -t tmpfs -o mode=0755,size=512m crio-demo "$scratch"
mkdir -p "$scratch/layout/blobs/sha256" "$scratch/rootfs/bin" "$scratch/rootfs/www" "$scratch/registry" \
  "$scratch/net.d" "$scratch/a" "$scratch/exits" "$scratch/ns" "$scratch/hooks" "$scratch/logs"

# ------------------------------------------------------------------------------------------------ an image, a registry

say "an image with a web server: busybox, one page"
(
  cd "$scratch"
  cp "$(readlink -f "$(command -v busybox)")" rootfs/bin/busybox
  ln -s busybox rootfs/bin/sh
  mkdir -p rootfs/tmp rootfs/etc
  printf 'root:x:0:0:root:/:/bin/sh\n' >rootfs/etc/passwd
  printf '<h1>Hello from a pod</h1>\n' >rootfs/www/index.html
  # Stands in for the pause image, in case the daemon needs an infra container.
  printf '#!/bin/sh\ntrap "exit 0" TERM INT\nwhile :; do busybox sleep 3600 & wait; done\n' >rootfs/pause
  chmod 755 rootfs/pause rootfs/bin/busybox
  chmod 1777 rootfs/tmp

  # Puts a file into the layout by its digest; prints the descriptor without its media type.
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
  rm -r rootfs
)

say "a registry at 127.0.0.1:$registry_port, filled with it"
cat >"$scratch/registry.yml" <<END
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $scratch/registry}}
http: {addr: "127.0.0.1:$registry_port"}
END
setsid docker-registry serve "$scratch/registry.yml" >"$scratch/registry.log" 2>&1 &
registry=$!
tries=0
until busybox wget -q -O /dev/null "http://127.0.0.1:$registry_port/v2/" 2>/dev/null; do
  is_alive "$registry" || die "the registry ended: $(tail -n 3 "$scratch/registry.log")"
  tries=$((tries + 1)); [ "$tries" -lt 100 ] || die "the registry does not answer"
  sleep 0.1
done
show "skopeo copy oci:layout:latest docker://$image"
skopeo --insecure-policy --tmpdir "$scratch" copy --quiet --dest-tls-verify=false \
  "oci:$scratch/layout:latest" "docker://$image"

# ------------------------------------------------------------------------------------------------ the daemon

say "the daemon, with a network of its own: bridge $bridge, $net.0/24"
cat >"$scratch/net.d/10-demo.conflist" <<END
{"cniVersion": "1.0.0", "name": "$network", "plugins": [
  {"type": "bridge", "bridge": "$bridge", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$scratch/ipam",
            "ranges": [[{"subnet": "$net.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
END
printf '{"default": [{"type": "insecureAcceptAnything"}]}\n' >"$scratch/policy.json"
cat >"$scratch/registries.conf" <<END
[[registry]]
location = "127.0.0.1:$registry_port"
insecure = true
END
cat >"$scratch/storage.conf" <<END
[storage]
driver = "overlay"
graphroot = "$scratch/storage"
runroot = "$scratch/run"
END
cat >"$scratch/crio.conf" <<END
[crio]
root = "$scratch/storage"
runroot = "$scratch/run"
storage_driver = "overlay"
storage_option = []
log_dir = "$scratch/logs"
version_file = "$scratch/version"
version_file_persist = ""
clean_shutdown_file = "$scratch/clean.shutdown"

[crio.api]
listen = "$sock"

[crio.runtime]
default_runtime = "$runtime_name"
cgroup_manager = "cgroupfs"
container_exits_dir = "$scratch/exits"
container_attach_socket_dir = "$scratch/a"
namespaces_dir = "$scratch/ns"
hooks_dir = ["$scratch/hooks"]
cdi_spec_dirs = ["$scratch/cdi"]
# The profile would have to be compiled and loaded into the node's kernel, and would stay there.
apparmor_profile = "unconfined"

[crio.runtime.runtimes.$runtime_name]
runtime_path = "$runtime"
runtime_root = "$scratch/runtime"
monitor_path = "$bin/crio-monitor"
monitor_cgroup = "pod"

[crio.image]
pause_image = "$image"
pause_command = "/pause"
signature_policy = "$scratch/policy.json"
signature_policy_dir = "$scratch/policies"
namespaced_auth_dir = "$scratch/auth"
big_files_temporary_dir = "$scratch"

[crio.network]
network_dir = "$scratch/net.d"
plugin_dirs = ["$plugins"]

[crio.nri]
enable_nri = false
END
show "crio --config crio.conf"
CONTAINERS_STORAGE_CONF=$scratch/storage.conf TMPDIR=$scratch setsid "$bin/crio" \
  --config "$scratch/crio.conf" --config-dir "" --registries-conf "$scratch/registries.conf" \
  >"$scratch/crio.log" 2>&1 </dev/null &
daemon=$!
tries=0
until ctl version >/dev/null 2>&1; do
  is_alive "$daemon" || die "the daemon ended"
  tries=$((tries + 1)); [ "$tries" -lt 200 ] || die "the daemon does not answer"
  sleep 0.1
done
ctl version

# ------------------------------------------------------------------------------------------------ a pod

say "pull"
show "crioctl pull $image"
ctl pull "$image"

say "run"
show "crioctl run -d --name web -p $host_port:80 $image"
pod=$(ctl run -d --name web -p "$host_port:80" "$image" | tail -n 1)
ctl ps

# Waits for a page that has the expected words; prints it.
fetch() {
  tries=0
  while :; do
    if page=$(busybox wget -q -T 2 -O - "$1" 2>/dev/null); then
      case $page in *"Hello from a pod"*) printf '%s\n' "$page"; return 0 ;; esac
      die "unexpected page from $1: $page"
    fi
    tries=$((tries + 1)); [ "$tries" -lt 50 ] || die "no page from $1"
    sleep 0.1
  done
}

address=$(ctl -o json pod status "$pod" | tr -d ' \n' | grep -Eo '"ip":"[0-9.]+"' | head -n 1 | cut -d'"' -f4)
[ -n "$address" ] || die "the pod has no address"
say "a page from the pod's address"
show "wget http://$address/"
fetch "http://$address/"
say "the same page through a host port"
show "wget http://127.0.0.1:$host_port/"
fetch "http://127.0.0.1:$host_port/"

say "its log"
show "crioctl logs web"
log=$(ctl logs web 2>&1)
printf '%s\n' "$log"
case $log in *" url:/"* | *"response:200"*) ;; *) die "the log does not show the two requests" ;; esac

say "stop and remove"
show "crioctl stop web; crioctl rm web"
ctl stop web
ctl rm web
if [ -n "$(ctl ps --quiet --all)" ]; then die "a container is still there"; fi
ctl rmi "$image"
