#!/bin/sh
# Starts a daemon with everything of its own, runs a command beside it, and takes all of it away again: storage,
# sockets, namespaces, bridge, firewall tables, cgroups, logs. The node's containers, images, CNI configuration and
# /etc are neither read nor changed.
#
# usage: tests/daemon.sh [OPTION...] COMMAND [ARG...]
#
#   -b DIRECTORY   where crio, crio-monitor and crioctl are (default: target/debug)
#   -c FILE        a drop-in for the configuration; may be repeated, a later one wins
#   -r HOST:PORT   a registry that speaks plain HTTP; may be repeated
#   -R FILE        registries.conf to use instead
#   -n RUNTIME     crun or runc (default: the first that is installed)
#   -d             keep storage on disk (/var/tmp) instead of on a tmpfs, for measurements
#
# What COMMAND finds in its environment:
#   CRIO_SOCKET   the daemon's CRI endpoint, unix:///...; also CONTAINER_RUNTIME_ENDPOINT, for crioctl and crictl
#   CRIO_PID      its process
#   CRIO_ROOT     the scratch directory; crio.log and crio.conf are in it
#   CRIO_BRIDGE   the pods' bridge
#   CRIO_BIN      the directory of -b
#
# Exit status: that of COMMAND; 1 if the daemon did not start, or if COMMAND succeeded and something was left behind.
# DAEMON_KEEP=1 waits for return before tidying up after a failure.
#
# Needs root, Debian packages: crun or runc, containernetworking-plugins, iproute2, iptables, nftables
set -eu

fail() { echo "daemon: $*" >&2; exit 1; }

# crun refuses a hybrid hierarchy whose cgroup2 has controllers. It looks for the mount, so with a tmpfs over it in a
# mount namespace of our own crun sees plain v1 (and the directories it makes there go away with the namespace).
if [ "$(id -u)" -eq 0 ] && grep -qs . /sys/fs/cgroup/unified/cgroup.controllers; then
  # shellcheck disable=SC2016  # the inner shell expands these
  exec unshare --mount --propagation private sh -c \
    'mount --make-rshared / && mount -t tmpfs none /sys/fs/cgroup/unified && exec "$0" "$@"' "$0" "$@"
fi

here=$(cd "$(dirname "$0")" && pwd)
bin=$here/../target/debug registries='' registries_file='' runtime='' storage=tmpfs drop_ins=''
while getopts b:c:r:R:n:d option; do
  case $option in
    b) bin=$OPTARG ;;
    c) drop_ins="$drop_ins
$(readlink -f "$OPTARG")" ;;
    r) registries="$registries $OPTARG" ;;
    R) registries_file=$(readlink -f "$OPTARG") ;;
    n) runtime=$OPTARG ;;
    d) storage=disk ;;
    *) sed -n '6,15s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || fail "which command?"
[ "$(id -u)" -eq 0 ] || fail "must run as root"
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
umask 022

bin=$(cd "$bin" && pwd)
for program in crio crio-monitor crioctl; do
  [ -x "$bin/$program" ] || fail "no $program in $bin; run make build"
done
for program in ip nft setsid; do
  command -v "$program" >/dev/null || fail "$program is not installed; see the packages named at the top"
done
for candidate in ${runtime:-crun runc}; do
  if runtime_path=$(command -v "$candidate"); then runtime=$candidate; break; fi
done
[ -n "${runtime_path:-}" ] || fail "no OCI runtime is installed"
plugins=
for directory in /usr/lib/cni /opt/cni/bin; do
  if [ -x "$directory/bridge" ]; then plugins=$directory; break; fi
done
[ -n "$plugins" ] || fail "no CNI plugins are installed"

# ------------------------------------------------------------------------------------------------ what was there before

forward=/proc/sys/net/ipv4/ip_forward
forward_before=$(cat $forward)
has_table() { nft list table "$1" crio-hostports >/dev/null 2>&1; }
if has_table ip; then table4=kept; else table4=new; fi
if has_table ip6; then table6=kept; else table6=new; fi
cgroups() { find /sys/fs/cgroup -type d '(' -fstype cgroup -o -fstype cgroup2 ')' | sort; }

# The beginning of a 10.x.0.0/16 network that no route of this node touches.
free_net() {
  for x in 219 218 216 215 214 213 212 211; do
    if ! ip -4 route | grep -Eq "(^| )10\.$x\."; then echo "10.$x"; return; fi
  done
  fail "no free 10.x network for the bridge"
}
net=$(free_net)
bridge=crd$$
network=crio-$bridge

# ------------------------------------------------------------------------------------------------ the way back

# Short, because attach sockets lie 74 characters below it and a socket's path may have 107.
root=$(mktemp -d /var/tmp/crd.XXXXXX)
sock=$root/crio.sock
daemon=''
cgroups_before=''

is_alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }
ctl() { "$bin/crioctl" --runtime-endpoint "unix://$sock" "$@"; }

# Processes that name the scratch directory in their command line: monitors, and nobody else's.
ours() {
  for file in /proc/[0-9]*/cmdline; do
    process=${file#/proc/}; process=${process%/cmdline}
    [ "$process" != $$ ] || continue
    # It may have ended since the list was made.
    if { tr '\0' ' ' <"$file"; } 2>/dev/null | grep -Fq "$root/"; then echo "$process"; fi
  done
}
# Mounts on or beneath the scratch directory, deepest first.
mounts() { awk -v d="$root" 'index($2, d "/") == 1 || $2 == d { print $2 }' /proc/self/mounts | sort -r; }
# Cgroups that were not there before and name one of our pods, deepest first.
new_cgroups() { cgroups | comm -13 "$cgroups_before" - 2>/dev/null | grep -i crio | sort -r || true; }

end_daemon() {
  is_alive "$daemon" || return 0
  kill -TERM "$daemon" 2>/dev/null
  tries=0
  # Operations under way get the ten seconds that a service manager would give them, and some more.
  while is_alive "$daemon" && [ "$tries" -lt 150 ]; do sleep 0.1; tries=$((tries + 1)); done
  if is_alive "$daemon"; then echo "daemon: did not end by SIGTERM within 15 s" >&2; kill -KILL "$daemon"; fi
  wait "$daemon" 2>/dev/null
}

tidy_up() {
  status=$?
  trap - EXIT
  trap '' HUP INT TERM
  set +e
  if [ "$status" -ne 0 ]; then
    if [ -s "$root/crio.log" ]; then
      printf '\n--- the last lines of the daemon\n' >&2
      tail -n 25 "$root/crio.log" >&2
    fi
    if [ -n "${DAEMON_KEEP:-}" ]; then
      printf '\nDAEMON_KEEP: everything still stands; look at %s, then press return to tidy up\n' "$root" >&2
      read -r _
    fi
  fi
  if is_alive "$daemon"; then
    for pod in $(ctl pods --quiet 2>/dev/null); do ctl rmp --force "$pod" >/dev/null; done
  fi
  end_daemon
  # Only after a failure are there any: a monitor outlives its daemon on purpose.
  for process in $(ours); do
    # shellcheck disable=SC2013  # one line of words
    for child in $(cat "/proc/$process/task/$process/children" 2>/dev/null); do kill -KILL "$child" 2>/dev/null; done
    kill -KILL "$process" 2>/dev/null
  done
  for cgroup in $(new_cgroups); do
    while read -r process; do kill -KILL "$process" 2>/dev/null; done <"$cgroup/cgroup.procs"
  done
  for place in $(mounts); do umount "$place" 2>/dev/null || umount -l "$place"; done
  rm -rf --one-file-system "$root"
  if ip link show "$bridge" >/dev/null 2>&1; then ip link delete "$bridge"; fi
  if [ "$table4" = new ]; then nft delete table ip crio-hostports 2>/dev/null; fi
  if [ "$table6" = new ]; then nft delete table ip6 crio-hostports 2>/dev/null; fi
  if [ "$(cat $forward)" != "$forward_before" ]; then echo "$forward_before" >$forward; fi
  # Where libcni remembers attachments; only a pod that could not be stopped has one left.
  rm -f "/var/lib/cni/results/$network-"*
  # A killed process leaves its cgroup a moment later.
  tries=0
  while [ -n "$(new_cgroups)" ] && [ "$tries" -lt 20 ]; do
    for cgroup in $(new_cgroups); do rmdir "$cgroup" 2>/dev/null; done
    tries=$((tries + 1)); sleep 0.1
  done

  left=$(
    if [ -e "$root" ]; then echo "  $root"; fi
    mounts | sed 's/^/  mount /'
    ours | sed 's/^/  process /'
    ip -o link show "$bridge" 2>/dev/null | sed 's/^/  link /'
    nft list ruleset 2>/dev/null | grep -F "$net." | sed 's/^[[:space:]]*/  rule /'
    new_cgroups | sed 's/^/  cgroup /'
  )
  rm -f "$cgroups_before"
  if [ -n "$left" ]; then
    printf '\ndaemon: this was left behind:\n%s\n' "$left" >&2
    if [ "$status" -eq 0 ]; then status=1; fi
  fi
  exit "$status"
}
trap tidy_up EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM

cgroups_before=$(mktemp)
cgroups >"$cgroups_before"
# Whatever file system /var/tmp is on: a tmpfs can carry overlays, and goes with one umount.
if [ "$storage" = tmpfs ]; then mount -t tmpfs -o mode=0755,size=1g crio-scratch "$root"; fi
mkdir -p "$root/net.d" "$root/a" "$root/exits" "$root/ns" "$root/hooks" "$root/logs" "$root/conf.d" "$root/tmp"

# ------------------------------------------------------------------------------------------------ the daemon

cat >"$root/net.d/10-$network.conflist" <<END
{"cniVersion": "1.0.0", "name": "$network", "plugins": [
  {"type": "bridge", "bridge": "$bridge", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$root/ipam",
            "ranges": [[{"subnet": "$net.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
END
printf '{"default": [{"type": "insecureAcceptAnything"}]}\n' >"$root/policy.json"
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' "$root/storage" "$root/run" \
  >"$root/storage.conf"
if [ -n "$registries_file" ]; then
  cp "$registries_file" "$root/registries.conf"
else
  for registry in $registries; do
    printf '[[registry]]\nlocation = "%s"\ninsecure = true\n\n' "$registry"
  done >"$root/registries.conf"
fi
cat >"$root/crio.conf" <<END
[crio]
root = "$root/storage"
runroot = "$root/run"
storage_driver = "overlay"
storage_option = []
log_dir = "$root/logs"
version_file = "$root/version"
version_file_persist = ""
clean_shutdown_file = "$root/clean.shutdown"

[crio.api]
listen = "$sock"

[crio.runtime]
default_runtime = "$runtime"
cgroup_manager = "cgroupfs"
container_exits_dir = "$root/exits"
container_attach_socket_dir = "$root/a"
namespaces_dir = "$root/ns"
hooks_dir = ["$root/hooks"]
cdi_spec_dirs = ["$root/cdi"]
# The profile would have to be loaded into the node's kernel, and would stay there.
apparmor_profile = "unconfined"

[crio.runtime.runtimes.$runtime]
runtime_path = "$runtime_path"
runtime_root = "$root/runtime"
monitor_path = "$bin/crio-monitor"
monitor_cgroup = "pod"

[crio.image]
signature_policy = "$root/policy.json"
signature_policy_dir = "$root/policies"
namespaced_auth_dir = "$root/auth"
big_files_temporary_dir = "$root/tmp"

[crio.network]
network_dir = "$root/net.d"
plugin_dirs = ["$plugins"]

[crio.nri]
enable_nri = false
END
number=10
while read -r drop_in; do
  [ -n "$drop_in" ] || continue
  cp "$drop_in" "$root/conf.d/$number-$(basename "$drop_in")"
  number=$((number + 1))
done <<END
$drop_ins
END

# In a session of its own: Ctrl-C is for the command; the daemon is needed to tidy up.
CONTAINERS_STORAGE_CONF=$root/storage.conf TMPDIR=$root/tmp setsid "$bin/crio" --config "$root/crio.conf" \
  --config-dir "$root/conf.d" --registries-conf "$root/registries.conf" >"$root/crio.log" 2>&1 </dev/null &
daemon=$!
tries=0
until ctl version >/dev/null 2>&1; do
  is_alive "$daemon" || fail "crio ended while starting"
  tries=$((tries + 1))
  [ "$tries" -lt 200 ] || fail "crio does not answer at $sock: $(ctl version 2>&1 || true)"
  sleep 0.1
done

export CONTAINER_RUNTIME_ENDPOINT="unix://$sock"
CRIO_SOCKET=unix://$sock CRIO_PID=$daemon CRIO_ROOT=$root CRIO_BRIDGE=$bridge CRIO_BIN=$bin "$@"
