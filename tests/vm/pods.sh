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
bin=$(cd "$1" && pwd) || exit 2
shift
# shellcheck source=tests/vm/node.sh
. "$(dirname "$0")/node.sh"
[ $# -gt 0 ] || set -- systemd/crun systemd/runc cgroupfs/crun cgroupfs/runc

exec_in_cgroup() { equal "$(cgroup_of "$(pgrep -fx 'sleep 7.25')")" "$1"; }
log_lines() { ctl logs "$1" 2> /dev/null | wc -l; }

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
