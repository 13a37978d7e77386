# shellcheck shell=bash disable=SC2154,SC2034
# For the scripts beside it, not to be run: a node with the daemon as a service, pods and containers of the node's
# busybox, and checks that print a line each. Expects $bin, the directory of crio, crio-monitor and crioctl.

[ "$(id -u)" -eq 0 ] || { echo "$0: must run as root" >&2; exit 2; }
[ -d /run/systemd/system ] || { echo "$0: systemd does not run this machine" >&2; exit 2; }

work=$(mktemp -d /var/tmp/pods.XXXXXX)
trap 'rm -rf "$work"' EXIT
failures=0 sandbox='' container=''
unified=/sys/fs/cgroup
[ -e "$unified/cgroup.controllers" ] || { echo "$0: this machine does not have cgroup v2" >&2; exit 2; }
ctl() { "$bin/crioctl" --timeout 120 "$@"; }

# check NAME COMMAND...: the command's output is shown only if it fails.
check() {
  local name=$1; shift
  # Not in a subshell: some commands set variables.
  if "$@" > "$work/output" 2>&1; then echo "ok    $name"
  else
    failures=$((failures + 1))
    echo "FAIL  $name: $* => $(head -c 2000 "$work/output")"
  fi
}
equal() { [ "$1" = "$2" ] || { echo "found ${1@Q}, expected ${2@Q}"; return 1; }; }
matches() { [[ $1 =~ $2 ]] || { echo "found ${1@Q}, expected to match $2"; return 1; }; }
# eventually SECONDS COMMAND...: until it succeeds.
eventually() {
  local end=$((SECONDS + $1)); shift
  local output
  until output=$("$@" 2>&1); do
    [ $SECONDS -lt $end ] || { echo "$output"; return 1; }
    sleep 0.3
  done
}
cgroup_of() { sed -n 's/^0:://p' "/proc/$1/cgroup"; }
# crun under systemd has the processes, and the limits, in a cgroup "container" within the scope.
in_cgroup() { local found; found=$(cgroup_of "$1"); equal "${found%/container}" "$2"; }
status_of() { ctl -o json inspect "$1" | jq -r ".status.$2"; }
has_status() { equal "$(status_of "$1" "$2")" "$3"; }
pid_of() { ctl -o json inspect "$1" | jq -r '.info.info.pid // empty'; }
monitor_of() { pgrep -f "crio-monitor.* -c $1 "; }
log_has() { matches "$(ctl logs "$1" 2>&1)" "$2"; }
exec_says() { local id=$1 expected=$2; shift 2; matches "$(ctl exec "$id" "$@" 2>&1)" "$expected"; }

# An image of the node's static busybox, as an OCI layout: no registry is needed.
make_image() {
  local root=$work/rootfs layout=$work/image
  mkdir -p "$root"/{bin,sbin,etc,tmp,proc,sys,dev} "$layout/blobs/sha256"
  cp "$(command -v busybox)" "$root/bin/busybox"
  for applet in sh sleep cat echo tail httpd wget ip id mkdir trap; do ln -sf busybox "$root/bin/$applet"; done
  echo 'root:x:0:0:root:/:/bin/sh' > "$root/etc/passwd"
  printf '#!/bin/sh\nexec sleep 1000000\n' > "$root/sbin/init"
  chmod 755 "$root/sbin/init"
  echo from-the-pod > "$root/tmp/index.html"
  blob() { local sum; sum=$(sha256sum < "$1" | cut -d' ' -f1); mv "$1" "$layout/blobs/sha256/$sum"; echo "$sum"; }
  tar -C "$root" -cf "$work/layer.tar" .
  local layer_size layer config_size config manifest_size manifest
  layer_size=$(stat -c %s "$work/layer.tar"); layer=$(blob "$work/layer.tar")
  echo '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sleep","1000000"]},"rootfs":{"type":"layers","diff_ids":["sha256:'"$layer"'"]}}' > "$work/config"
  config_size=$(stat -c %s "$work/config"); config=$(blob "$work/config")
  echo '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:'"$config"'","size":'"$config_size"'},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:'"$layer"'","size":'"$layer_size"'}]}' > "$work/manifest"
  manifest_size=$(stat -c %s "$work/manifest"); manifest=$(blob "$work/manifest")
  echo '{"imageLayoutVersion":"1.0.0"}' > "$layout/oci-layout"
  echo '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:'"$manifest"'","size":'"$manifest_size"',"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}' > "$layout/index.json"
  image=$config
}

install_node() {
  local plugins=/opt/cni/bin
  [ -x $plugins/bridge ] || plugins=/usr/lib/cni
  mkdir -p /etc/crio /etc/cni/net.d
  cat > /etc/cni/net.d/10-pods.conflist <<CNI
{"cniVersion":"1.0.0","name":"pods","plugins":[
 {"type":"bridge","bridge":"pods0","isGateway":true,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"10.88.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
CNI
  # As CRI-O's own unit has it: no KillMode, so that what must survive a restart has to have left the service's cgroup.
  cat > /etc/systemd/system/crio.service <<UNIT
[Unit]
Description=Container Runtime Interface for OCI
[Service]
Type=notify
ExecStart=$bin/crio --log-level ${CRIO_LOG_LEVEL:-info}
ExecReload=/bin/kill -s HUP \$MAINPID
TasksMax=infinity
LimitNOFILE=1048576
OOMScoreAdjust=-999
TimeoutStartSec=120
Environment=PATH=$bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
UNIT
  systemctl daemon-reload
  plugin_directory=$plugins
}

# configure MANAGER RUNTIME
configure() {
  local path monitor_cgroup=system.slice
  path=$(PATH=$PATH:/usr/sbin:/usr/local/sbin command -v "$2") || return 1
  # Without slices, a monitor that outlives the daemon's service has its place beside its container.
  [ "$1" = cgroupfs ] && monitor_cgroup=pod
  printf '{"default": [{"type": "insecureAcceptAnything"}]}\n' > /etc/crio/policy.json
  cat > /etc/crio/crio.conf <<CONF
[crio.runtime]
cgroup_manager = "$1"
default_runtime = "$2"
hooks_dir = []
[crio.runtime.runtimes.$2]
runtime_path = "$path"
runtime_root = "/run/$2"
monitor_path = "$bin/crio-monitor"
monitor_cgroup = "$monitor_cgroup"
[crio.image]
pause_image = "$image"
pause_command = ""
signature_policy = "/etc/crio/policy.json"
[crio.network]
plugin_dirs = ["$plugin_directory"]
CONF
}

# pod NAME PARENT PID-MODE: runs one; its id in $sandbox, its configuration in $work/NAME.pod. Process namespaces are the
# containers' own (1), or shared in the pod (0), which takes an infra container.
pod() {
  jq -n --arg name "$1" --arg parent "$2" --argjson pid "$3" '{metadata: {name: $name, namespace: "default", uid: ("uid-" + $name), attempt: 0},
    log_directory: ("/var/log/pods/" + $name), linux: {cgroup_parent: $parent, security_context: {namespace_options: {pid: $pid}}}}' > "$work/$1.pod"
  sandbox=
  sandbox=$(ctl pod run --config "$work/$1.pod" 2> "$work/error") || { cat "$work/error"; return 1; }
  sandbox=$(tail -n 1 <<< "$sandbox")
}
# container POD NAME LINUX COMMAND...: creates and starts one in $sandbox; its id in $container
container() {
  local pod=$1 name=$2 linux=$3; shift 3
  jq -n --arg name "$name" --arg image "$image" --argjson linux "$linux" '{metadata: {name: $name, attempt: 0},
    image: {image: $image}, command: $ARGS.positional, log_path: ($name + ".log"),
    linux: ({security_context: {namespace_options: $pod[0].linux.security_context.namespace_options}} * $linux)}' \
    --slurpfile pod "$work/$pod.pod" --args -- "$@" > "$work/$name.ctr"
  container=
  container=$(ctl ctr create --pod "$sandbox" --pod-config "$work/$pod.pod" --config "$work/$name.ctr" 2> "$work/error") ||
    { cat "$work/error"; return 1; }
  container=$(tail -n 1 <<< "$container")
  ctl ctr start "$container" > "$work/error" 2>&1 || { cat "$work/error"; return 1; }
}

warnings() { journalctl -u crio --since "$since" -o cat --no-pager | grep -E 'level="?(warning|error)' | cut -c1-400; }
