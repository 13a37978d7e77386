#!/bin/sh
# Starts another container engine (Debian's containerd) with a registry and images of its own, for `make bench` to
# compare with, and takes all of it away again.
#
# usage: bench-peer.sh [COMMAND [ARG...]]
#
# With COMMAND: runs it with the variables printed below in its environment and ends with its exit status.
# Without: prints them and stays until it gets SIGTERM, SIGINT or SIGHUP.
#
# Debian packages: containerd crun containernetworking-plugins docker-registry skopeo busybox-static jq iptables iproute2
#
# What it prints (and exports), one NAME=value a line:
#   BENCH_PEER_SOCKET   containerd's CRI endpoint, unix:///...
#   BENCH_PEER_PID      containerd's process
#   BENCH_REGISTRY      HOST:PORT of the registry, plain HTTP
#   BENCH_IMAGE         a small busybox image whose own command waits for SIGTERM
#   BENCH_PAUSE_IMAGE   the sandbox image, the same program under another name
#   BENCH_ROOT          the scratch directory
#
# What can be set:
#   BENCH_ROOT            scratch directory, made and removed when unset; kept when given (must not be an overlay)
#   BENCH_REGISTRY_PORT   default 5127
#   BENCH_BRIDGE          name of the bridge, default cnibench0
#   BENCH_SUBNET          its network, default 10.217.0.0/16
#   BENCH_RUNTIME         OCI runtime, default /usr/bin/crun
#   BENCH_CNI_BIN         reference CNI plugins, default /usr/lib/cni
#   BENCH_CERTS           a directory of registry hosts (containerd's config_path), default none
set -eu

port=${BENCH_REGISTRY_PORT:-5127}
bridge=${BENCH_BRIDGE:-cnibench0}
subnet=${BENCH_SUBNET:-10.217.0.0/16}
runtime=${BENCH_RUNTIME:-/usr/bin/crun}
cni_bin=${BENCH_CNI_BIN:-/usr/lib/cni}
certs=${BENCH_CERTS:-}

fail() { echo "bench-peer: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "must run as root"
for tool in containerd ctr docker-registry skopeo jq busybox iptables ip "$runtime" "$cni_bin/bridge"; do
	command -v "$tool" >/dev/null || fail "$tool is not installed; see the packages named at the top"
done
busybox=$(readlink -f "$(command -v busybox)")
! ldd "$busybox" 2>/dev/null | grep -q '=>' || fail "$busybox is not a static one; install busybox-static"
[ ! -e "/sys/class/net/$bridge" ] || fail "the bridge $bridge exists already; set BENCH_BRIDGE to a free name"

remove_root=false
if [ -z "${BENCH_ROOT:-}" ]; then
	BENCH_ROOT=$(mktemp -d "${TMPDIR:-/tmp}/bench-peer.XXXXXX")
	remove_root=true
fi
root=$BENCH_ROOT
mkdir -p "$root"
registry_pid='' containerd_pid='' command_pid=''
had_cgroup=false
if [ -d /sys/fs/cgroup/memory/k8s.io ] || [ -d /sys/fs/cgroup/k8s.io ]; then had_cgroup=true; fi

# Ends a process started here and waits for it, at most ten seconds before SIGKILL.
end_process() {
	[ -n "$1" ] || return 0
	kill "$1" 2>/dev/null || return 0
	tries=0
	while kill -0 "$1" 2>/dev/null && [ "$tries" -lt 100 ]; do
		sleep 0.1
		tries=$((tries + 1))
	done
	kill -KILL "$1" 2>/dev/null || true
	wait "$1" 2>/dev/null || true
}

# Rules of pods that nobody removed: the plugins put the network's name into the comments of those that lead to a pod's
# own chains. Read back by iptables-restore, whose quoting is that of iptables-save.
remove_rules() {
	iptables-save -t nat 2>/dev/null | awk -v name="$bridge" '
		/^-A/ && index($0, "\\\"" name "\\\"") {
			rules[++count] = $0
			if ($NF ~ /^CNI-(DN-)?[0-9a-f]+$/) chains[$NF] = 1
		}
		END {
			print "*nat"
			for (chain in chains) print "-F " chain
			for (i = 1; i <= count; i++) {
				split(rules[i], words, " ")
				if (!(words[2] in chains)) { sub(/^-A/, "-D", rules[i]); print rules[i] }
			}
			for (chain in chains) print "-X " chain
			print "COMMIT"
		}' | iptables-restore -w --noflush || echo "bench-peer: rules of pods on $bridge are left" >&2
	# What containerd's CNI library remembers of them.
	for result in "/var/lib/cni/results/$bridge"-*-eth0; do
		id=${result#"/var/lib/cni/results/$bridge-"}
		rm -f "$result" "/var/lib/cni/results/cni-loopback-${id%-eth0}-lo"
	done
}

# Pids of the shims of this containerd, which they name by its socket.
shims() {
	for directory in /proc/[0-9]*; do
		if tr '\0' ' ' <"$directory/cmdline" | grep -q "^[^ ]*containerd-shim.* -address $root/containerd.sock "; then
			echo "${directory#/proc/}"
		fi
	done 2>/dev/null
}

cleanup() {
	status=$?
	trap '' EXIT INT TERM HUP
	end_process "$command_pid"
	if [ -n "$containerd_pid" ] && kill -0 "$containerd_pid" 2>/dev/null; then
		for task in $(ctr -a "$root/containerd.sock" -n k8s.io tasks list -q 2>/dev/null); do
			ctr -a "$root/containerd.sock" -n k8s.io tasks delete -f "$task" >/dev/null 2>&1 || true
		done
		# A shim ends a moment after its last task; without containerd it would wait for ever.
		tries=0
		while [ -n "$(shims)" ] && [ "$tries" -lt 50 ]; do
			sleep 0.1
			tries=$((tries + 1))
		done
	fi
	end_process "$containerd_pid"
	for shim in $(shims); do kill -KILL "$shim" 2>/dev/null || true; done
	end_process "$registry_pid"
	# Longest first, so that what is mounted inside goes before what it is mounted on.
	awk -v root="$root/" 'index($5, root) == 1 { print length($5), $5 }' /proc/self/mountinfo | sort -rn |
		while read -r _ place; do umount -l "$place" 2>/dev/null || true; done
	remove_rules
	ip link delete "$bridge" 2>/dev/null || true
	# The parent of the pods' cgroups, if it was not there before and nobody else uses it by now.
	if ! $had_cgroup; then rmdir /sys/fs/cgroup/*/k8s.io /sys/fs/cgroup/k8s.io 2>/dev/null || true; fi
	if $remove_root; then rm -rf "$root"; else rm -rf "$root/root" "$root/state" "$root/containerd.sock"*; fi
	exit "$status"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- the image: one layer, busybox and a program that waits for SIGTERM without a second process ----
tree=$root/tree
rm -rf "$tree" "$root/layout"
mkdir -p "$tree/bin" "$tree/etc" "$tree/tmp" "$tree/root" "$root/layout/blobs/sha256"
cp "$busybox" "$tree/bin/busybox"
for applet in sh sleep true false echo cat ls id env ps hostname ip wget httpd seq head dd; do
	ln "$tree/bin/busybox" "$tree/bin/$applet"
done
mkfifo -m 666 "$tree/wait.fifo"
cat >"$tree/bin/wait-for-stop" <<'SCRIPT'
#!/bin/sh
trap 'exit 0' TERM INT
exec 3<>/wait.fifo
while :; do read -r line <&3; done
SCRIPT
chmod 755 "$tree/bin/wait-for-stop"
echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
echo 'root:x:0:' >"$tree/etc/group"
chmod 1777 "$tree/tmp"

blobs=$root/layout/blobs/sha256
tar -C "$tree" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$root/layer.tar" .
diff_id=$(sha256sum <"$root/layer.tar" | cut -d' ' -f1)
gzip -n -6 "$root/layer.tar"

# Puts a file among the blobs and prints its descriptor.
add_blob() {
	hash=$(sha256sum <"$1" | cut -d' ' -f1)
	size=$(stat -c %s "$1")
	mv "$1" "$blobs/$hash"
	printf '{"mediaType":"%s","digest":"sha256:%s","size":%s}' "$2" "$hash" "$size"
}
oci=application/vnd.oci.image
layer=$(add_blob "$root/layer.tar.gz" "$oci.layer.v1.tar+gzip")
arch=$(dpkg --print-architecture)
jq -nc --arg arch "$arch" --arg diff "sha256:$diff_id" '{architecture: $arch, os: "linux",
	created: "1970-01-01T00:00:00Z", config: {Cmd: ["/bin/wait-for-stop"], Env: ["PATH=/bin"], StopSignal: "SIGTERM"},
	rootfs: {type: "layers", diff_ids: [$diff]}}' >"$root/config.json"
config=$(add_blob "$root/config.json" "$oci.config.v1+json")
jq -nc --argjson config "$config" --argjson layer "$layer" --arg type "$oci.manifest.v1+json" \
	'{schemaVersion: 2, mediaType: $type, config: $config, layers: [$layer]}' >"$root/manifest.json"
manifest=$(add_blob "$root/manifest.json" "$oci.manifest.v1+json")
jq -nc --argjson manifest "$manifest" '{schemaVersion: 2,
	manifests: [$manifest + {annotations: {"org.opencontainers.image.ref.name": "latest"}}]}' >"$root/layout/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' >"$root/layout/oci-layout"

# ---- the registry ----
cat >"$root/registry.yml" <<CONFIG
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: "$root/registry"}, delete: {enabled: true}}
http: {addr: "127.0.0.1:$port"}
CONFIG
docker-registry serve "$root/registry.yml" </dev/null >"$root/registry.log" 2>&1 &
registry_pid=$!
BENCH_REGISTRY=127.0.0.1:$port
BENCH_IMAGE=$BENCH_REGISTRY/bench/busybox:latest
BENCH_PAUSE_IMAGE=$BENCH_REGISTRY/bench/pause:latest

# Asks again for ten seconds: WHAT COMMAND...
wait_for() {
	what=$1
	shift
	tries=0
	until "$@" >/dev/null 2>&1; do
		tries=$((tries + 1))
		[ "$tries" -lt 100 ] || { cat "$root/$what.log" >&2; fail "$what did not start"; }
		sleep 0.1
	done
}
wait_for registry "$busybox" wget -q -O /dev/null "http://$BENCH_REGISTRY/v2/"
# A registry of somebody else may have answered in place of ours, whose address was taken then.
kill -0 "$registry_pid" 2>/dev/null || { cat "$root/registry.log" >&2; fail "the registry at $BENCH_REGISTRY ended"; }
for image in "$BENCH_IMAGE" "$BENCH_PAUSE_IMAGE"; do
	skopeo --insecure-policy copy -q --dest-tls-verify=false "oci:$root/layout:latest" "docker://$image" >/dev/null
done

# ---- the network: the reference plugins, bridge and portmap ----
mkdir -p "$root/net.d"
cat >"$root/net.d/10-bench.conflist" <<CONFIG
{"cniVersion": "0.4.0", "name": "$bridge", "plugins": [
  {"type": "bridge", "bridge": "$bridge", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$root/cni-ipam", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "$subnet"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CONFIG

# ---- containerd ----
cat >"$root/containerd.toml" <<CONFIG
version = 2
root = "$root/root"
state = "$root/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "$root/containerd.sock"
[ttrpc]
  address = "$root/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "$root/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$BENCH_PAUSE_IMAGE"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  # A machine may lack CAP_SYS_RESOURCE, without which the usual -998 cannot be given.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$cni_bin"
    conf_dir = "$root/net.d"
    max_conf_num = 1
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$certs"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "peer"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.peer]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.peer.options]
        BinaryName = "$runtime"
        SystemdCgroup = false
CONFIG
# crun refuses a machine whose cgroup v1 controllers are joined by a cgroup2 that has some too. In a mount namespace of
# its own containerd does not see that cgroup2; nothing changes for anybody else. The process stays the same through
# both execs, so that its pid is containerd's.
prepare=:
if grep -qs . /sys/fs/cgroup/unified/cgroup.controllers; then
	prepare="mount -t tmpfs none /sys/fs/cgroup/unified"
fi
unshare --mount --propagation private sh -c "$prepare"' && exec containerd --config "$1" --log-level warn' \
	sh "$root/containerd.toml" </dev/null >"$root/containerd.log" 2>&1 &
containerd_pid=$!
wait_for containerd ctr -a "$root/containerd.sock" version
kill -0 "$containerd_pid" 2>/dev/null || { cat "$root/containerd.log" >&2; fail "containerd ended"; }
BENCH_PEER_SOCKET=unix://$root/containerd.sock
BENCH_PEER_PID=$containerd_pid

for name in BENCH_PEER_SOCKET BENCH_PEER_PID BENCH_REGISTRY BENCH_IMAGE BENCH_PAUSE_IMAGE BENCH_ROOT; do
	eval "echo \"$name=\$$name\""
	export "${name?}"
done

# In the background and waited for, so that the traps run at once.
if [ $# -gt 0 ]; then
	"$@" &
	command_pid=$!
	result=0
	wait "$command_pid" || result=$?
	command_pid=''
	exit "$result"
fi
wait "$containerd_pid" || true
cat "$root/containerd.log" >&2
fail "containerd ended by itself"
