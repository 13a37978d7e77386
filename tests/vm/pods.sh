#!/bin/bash
# Runs pods and containers as a service of a real node: systemd as process 1, with both cgroup managers and both
# runtimes, through restarts of the daemon, out of memory, and removal.
#
# usage: pods.sh DIRECTORY [MANAGER/RUNTIME...]
#
#   DIRECTORY         where crio, crio-monitor and crioctl are
#   MANAGER/RUNTIME   combinations to try (default: systemd/crun systemd/runc cgroupfs/crun cgroupfs/runc)
#
# Runs as root INSIDE a node that is thrown away afterwards: it installs a unit crio.service, /etc/crio/crio.conf and a
# CNI configuration, and uses the usual storage. With any tool that boots a Debian 12 machine, share the repository with
# it and run `tests/vm/pods.sh target/debug` there.
#
# Prints a line a check and, after a failure, what the daemon logged. Exit status: 0 if every check passed, else 1.
# CRIO_LOG_LEVEL sets the daemon's level of detail (default: info).
#
# Needs Debian packages: crun, runc, containernetworking-plugins (or the plugins in /opt/cni/bin), jq, busybox-static,
# iproute2, iptables, procps
set -u

[ $# -ge 1 ] || { sed -n '5,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "pods: must run as root" >&2; exit 2; }
[ -d /run/systemd/system ] || { echo "pods: systemd does not run this machine" >&2; exit 2; }
bin=$(cd "$1" && pwd) || exit 2
shift
[ $# -gt 0 ] || set -- systemd/crun systemd/runc cgroupfs/crun cgroupfs/runc

work=$(mktemp -d /var/tmp/pods.XXXXXX)
trap 'rm -rf "$work"' EXIT
failures=0 sandbox='' container=''
unified=/sys/fs/cgroup
[ -e "$unified/cgroup.controllers" ] || { echo "pods: this machine does not have cgroup v2" >&2; exit 2; }
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

exec_in_cgroup() { equal "$(cgroup_of "$(pgrep -fx 'sleep 7.25')")" "$1"; }
log_lines() { ctl logs "$1" 2> /dev/null | wc -l; }

# An image of the node's static busybox, as an OCI layout: no registry is needed.
make_image() {
  local root=$work/rootfs layout=$work/image
  mkdir -p "$root"/{bin,etc,tmp,proc,sys,dev} "$layout/blobs/sha256"
  cp "$(command -v busybox)" "$root/bin/busybox"
  for applet in sh sleep cat echo tail httpd wget ip id mkdir trap; do ln -sf busybox "$root/bin/$applet"; done
  echo 'root:x:0:0:root:/:/bin/sh' > "$root/etc/passwd"
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

# What a pod may leave behind, by kind. Slices are not ours to remove: systemd makes them, and the kubelet owns them.
leftovers() {
  systemctl list-units --all --plain --no-legend 'crio-*.scope' | awk '$2 != "not-found"'
  find $unified -type d -name 'crio-*'
  find /run/netns /run/ipcns /run/utsns /var/run/netns -type f 2>/dev/null
  grep -E ' /(var/lib|run)/containers/storage/overlay[^ ]*/(merged|shm)' /proc/self/mountinfo | cut -d' ' -f5
  pgrep -af crio-monitor
  ip -o link | grep -o 'veth[^@: ]*'
}
nothing_left() { equal "$(leftovers)" ""; }

# try MANAGER RUNTIME
try() {
  local manager=$1 runtime=$2 parent expected own monitor
  echo "--    $manager/$runtime"
  configure "$manager" "$runtime" || { echo "FAIL  there is no $runtime"; failures=$((failures + 1)); return; }
  check "the service starts and says it is ready" systemctl start crio
  check "the image is pulled from a layout" ctl pull "oci:$work/image"
  case $manager in
    systemd) parent=pods_test-one.slice own=/pods_test.slice/pods_test-one.slice/crio-%s.scope ;;
    cgroupfs) parent=/pods_test/one own=/pods_test/one/crio-%s ;;
  esac
  case $manager in
    systemd) expected=/system.slice/crio-%s.scope monitor=/system.slice/crio-conmon-%s.scope ;;
    cgroupfs) expected=/crio/crio-%s monitor=/crio/crio-conmon-%s ;;
  esac

  # A pod in the default place.
  check "a pod runs" pod a "" 1
  local a=$sandbox
  check "a container runs" container a server '{}' sh -c 'trap "exit 7" TERM; echo started; httpd -p 80 -h /tmp; while :; do echo tick; sleep 1; done'
  local server=$container server_pid
  server_pid=$(pid_of "$server")
  # shellcheck disable=SC2059  # the formats are ours
  check "its cgroup is below the default parent" in_cgroup "$server_pid" "$(printf $expected "$server")"
  # shellcheck disable=SC2059
  check "its monitor has a cgroup of its own" in_cgroup "$(monitor_of "$server")" "$(printf $monitor "$server")"
  check "its log is kept" eventually 10 log_has "$server" started
  check "exec runs beside it" exec_says "$server" 'uid=0' id
  ctl exec "$server" sleep 7.25 > /dev/null &
  local exec_client=$!
  check "exec runs in its cgroup" eventually 5 exec_in_cgroup "$(cgroup_of "$server_pid")"
  check "exec ends" wait $exec_client

  # A pod where the kubelet would have it.
  check "a pod with a parent runs" pod b "$parent" 0
  local b=$sandbox
  check "a limited container runs" container b limited '{"resources":{"memory_limit_in_bytes":67108864,"cpu_shares":512,"cpu_quota":50000,"cpu_period":100000}}' \
    sh -c 'while :; do sleep 1; done'
  local limited=$container limited_cgroup inner
  # shellcheck disable=SC2059
  limited_cgroup=$(printf $own "$limited")
  # shellcheck disable=SC2059
  check "its infra container's cgroup is below it too" in_cgroup "$(pid_of "$b")" "$(printf $own "$b")"
  check "its cgroup is below that parent" in_cgroup "$(pid_of "$limited")" "$limited_cgroup"
  inner=$unified$(cgroup_of "$(pid_of "$limited")")
  check "its memory limit is the kernel's" equal "$(cat "$inner/memory.max")" 67108864
  check "its processor limit is the kernel's" equal "$(cat "$inner/cpu.max")" "50000 100000"
  systemctl daemon-reload
  check "the limits outlive a reload of systemd" equal "$(cat "$inner/memory.max" "$inner/cpu.max")" $'67108864\n50000 100000'
  local address
  address=$(ctl -o json inspect "$a" | jq -r '.status.network.ip')
  check "it reaches the other pod" exec_says "$limited" from-the-pod wget -qO- "http://$address/index.html"

  check "a container that takes too much starts" container b greedy '{"resources":{"memory_limit_in_bytes":33554432,"memory_swap_limit_in_bytes":33554432}}' tail /dev/zero
  local greedy=$container
  check "it is killed" eventually 60 has_status "$greedy" state CONTAINER_EXITED
  check "for want of memory" has_status "$greedy" reason OOMKilled
  check "with the code of SIGKILL" has_status "$greedy" exitCode 137

  # The daemon comes and goes.
  check "the daemon restarts" systemctl restart crio
  check "its process goes on" equal "$(pid_of "$server")" "$server_pid"
  check "its monitor goes on" monitor_of "$server"
  check "it still runs" has_status "$server" state CONTAINER_RUNNING
  check "the pod is still ready" has_status "$a" state SANDBOX_READY
  check "exec runs in it after the restart" exec_says "$server" 'uid=0' id
  check "what ended before is still told" has_status "$greedy" reason OOMKilled
  check "the daemon is killed" systemctl kill -s KILL --kill-who=main crio
  check "and starts again" eventually 20 systemctl start crio
  check "its process goes on after the kill" equal "$(pid_of "$server")" "$server_pid"
  local lines; lines=$(log_lines "$server")
  check "the daemon stops" systemctl stop crio
  sleep 2
  check "its process goes on without the daemon" kill -0 "$server_pid"
  kill -TERM "$server_pid"
  check "it ends without the daemon" eventually 10 sh -c "! kill -0 $server_pid"
  check "the daemon starts" systemctl start crio
  check "its log went on" test "$(log_lines "$server")" -gt "$lines"
  check "the end it missed is told" eventually 10 has_status "$server" exitCode 7

  # AppArmor, where the node has it.
  if [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ]; then
    local profile='{"security_context":{"apparmor":{"profile_type":%s}}}'
    # shellcheck disable=SC2059
    check "a container without AppArmor profile runs" container b unconfined "$(printf "$profile" 1)" sleep 1000
    check "it is unconfined" exec_says "$container" unconfined cat /proc/1/attr/current
    # shellcheck disable=SC2059
    if container b confined "$(printf "$profile" 0)" sleep 1000 > "$work/refusal" 2>&1
    then check "the default profile confines" exec_says "$container" 'enforce' cat /proc/1/attr/current
    else check "the default profile is refused by name" grep -q 'AppArmor profile RuntimeDefault' "$work/refusal"
    fi
    if container b missing '{"security_context":{"apparmor":{"profile_type":2,"localhost_ref":"no-such-profile"}}}' sleep 1000 > "$work/refusal" 2>&1
    then check "a profile that is not loaded is refused" false
    else check "a profile that is not loaded is refused by name" grep -q no-such-profile "$work/refusal"
    fi
  fi

  check "a container stops" ctl ctr stop --grace 0 "$limited"
  check "a container is removed" ctl ctr rm "$limited"
  check "its cgroup is gone" test ! -e "$unified$limited_cgroup"
  check "a pod stops" ctl pod stop "$a"
  check "a pod is removed" ctl pod rm "$a"
  check "a pod with containers is removed" ctl pod rm "$b"
  [ "$manager" = systemd ] && systemctl stop pods_test.slice
  check "nothing is left behind" eventually 15 nothing_left
  check "the daemon stops at the end" systemctl stop crio
}

warnings() { journalctl -u crio --since "$since" -o cat --no-pager | grep -E 'level="?(warning|error)' | cut -c1-400; }

make_image
install_node
for combination; do
  before=$failures
  since=$(date '+%F %T')
  try "${combination%/*}" "${combination#*/}"
  echo "--    warnings of the daemon: $(warnings | grep -vc 'has no effect in this version')"
  warnings | grep -v 'has no effect in this version'
  if [ "$failures" -gt "$before" ]; then
    echo "--    the daemon's log:"
    journalctl -u crio --since "$since" -o cat --no-pager | cut -c1-600 | tail -n "${LOG_LINES:-60}"
    echo "--    left behind:"
    leftovers
    # A clean slate for the next combination.
    systemctl start crio && for id in $(ctl pods -q); do ctl pod rm "$id" > /dev/null; done
    systemctl stop crio
  fi
done
[ "$failures" -eq 0 ] || { echo "$failures checks failed"; exit 1; }
echo "all checks passed"
