#!/bin/bash
# Confines containers on a real node, by whichever of AppArmor and SELinux its kernel has, and looks at what the kernel
# then says and does.
#
# usage: confinement.sh DIRECTORY [RUNTIME...]
#
#   DIRECTORY   where crio, crio-monitor and crioctl are
#   RUNTIME     runtimes to try (default: crun runc)
#
# Runs as root INSIDE a node that is thrown away afterwards, like pods.sh beside it. Prints a line a check and, after a
# failure, what the daemon logged. Exit status: 0 if every check passed, 1 if not, 2 if the node has neither.
#
# Needs Debian packages: those of pods.sh, and apparmor
set -u

[ $# -ge 1 ] || { sed -n '5,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
bin=$(cd "$1" && pwd) || exit 2
shift
# shellcheck source=tests/vm/node.sh
. "$(dirname "$0")/node.sh"
[ $# -gt 0 ] || set -- crun runc

label_of() { tr -d '\0' < "/proc/$(pid_of "$1")/attr/current"; }
has_label() { equal "$(label_of "$1")" "$2"; }
exec_has_label() { equal "$(ctl exec "$1" cat /proc/self/attr/current 2>&1 | tr -d '\0\r\n')" "$2"; }
# does ID SHELL, cannot ID SHELL: in the container, by a shell.
does() { ctl exec "$1" sh -c "$2"; }
cannot() { ! ctl exec "$1" sh -c "$2"; }
made() { find /var/lib/containers/storage/overlay-containers -mindepth 1 -maxdepth 1 -type d | sort; ctl -o json ps -a | jq -r '.containers[].id' | sort; }
# refused TEXT COMMAND...: it fails and says so.
refused() {
  local text=$1 before; shift
  before=$(made)
  if "$@" > "$work/refusal" 2>&1; then echo "it was not refused"; return 1; fi
  grep -qF -- "$text" "$work/refusal" || { cat "$work/refusal"; return 1; }
  equal "$(made)" "$before"
}
logged() { journalctl -u crio --since "$since" -o cat --no-pager | grep -qE -- "$1"; }
starts_not() { ! systemctl start crio; }
set_key() { sed -i "/^$1 =/d; s|^\[crio.runtime\]$|&\n$1 = $2|" /etc/crio/crio.conf; }

apparmor_profiles=/sys/kernel/security/apparmor/profiles
is_loaded() { grep -qxF "$1 (enforce)" $apparmor_profiles; }
unload() { printf %s "$1" > /sys/kernel/security/apparmor/.remove; }
# typed TYPE [NAME], text PROFILE: security contexts that ask for a profile by the field or by the older text.
typed() { jq -nc --argjson type "$1" --arg name "${2:-}" '{security_context: {apparmor: {profile_type: $type, localhost_ref: $name}}}'; }
text() { jq -nc --arg text "$1" '{security_context: {apparmor_profile: $text}}'; }
# With what mounting and tuning take, so that only the profile is in the way.
powerful() { jq -nc --argjson base "$1" '$base * {security_context: {capabilities: {add_capabilities: ["ALL"]}}}'; }

try_apparmor() {
  local forever=(sleep 100000)
  printf '%s\n' 'profile vm-own flags=(attach_disconnected, mediate_deleted) {' '  file,' '  capability,' '  network,' \
    '  signal,' '  ptrace,' '  deny /etc/passwd r,' '}' | apparmor_parser -Kr
  check "the default profile is loaded" is_loaded crio-default
  check "the daemon said so" logged 'loaded the default AppArmor profile'

  check "a pod with a process of its own runs" pod a "" 0
  local a=$sandbox
  check "its infra container is confined" has_label "$a" "crio-default (enforce)"
  check "a container that asks for nothing runs" container a nothing '{}' "${forever[@]}"
  local nothing=$container
  check "it has the default profile" has_label "$nothing" "crio-default (enforce)"

  check "a container with the default profile runs" container a default "$(powerful "$(typed 0)")" "${forever[@]}"
  local default=$container
  check "it is confined" has_label "$default" "crio-default (enforce)"
  check "so is an exec" exec_has_label "$default" "crio-default (enforce)"
  local path
  for path in /proc/sys/kernel/panic /proc/sys/vm/swappiness /proc/sys/net/ipv4/ip_forward /proc/sysrq-trigger \
    /sys/kernel/mm/ksm/run /proc/irq/default_smp_affinity; do
    check "it cannot write to $path" cannot "$default" ": >> $path"
  done
  check "it cannot mount" cannot "$default" "busybox mount -t tmpfs tmpfs /tmp"
  check "it cannot mount again" cannot "$default" "busybox mount -o remount,rw /proc"
  check "it cannot read the kernel's memory" cannot "$default" "busybox head -c1 /proc/kcore"
  check "it cannot leave its profile" cannot "$default" "printf 'changeprofile unconfined' > /proc/self/attr/current"
  check "it writes to the entries of its processes" does "$default" "echo mine > /proc/self/comm"
  check "it tunes its shared memory" does "$default" ": >> /proc/sys/kernel/shmmax"
  check "it signals its own" does "$default" 'sleep 100 & kill $!'
  check "it looks at its own" does "$default" "busybox readlink /proc/1/exe"

  check "an unconfined container runs" container a unconfined "$(powerful "$(typed 1)")" "${forever[@]}"
  check "it is unconfined" has_label "$container" unconfined
  check "so is an exec in it" exec_has_label "$container" unconfined
  check "it mounts" does "$container" "busybox mount -t tmpfs tmpfs /tmp"
  check "it writes to /proc/sys" does "$container" ": >> /proc/sys/kernel/panic"

  check "a container with a profile of the node runs" container a own "$(typed 2 vm-own)" sh -c 'cat /etc/passwd || echo denied; exec sleep 100000'
  check "it has that profile" has_label "$container" "vm-own (enforce)"
  check "which holds for its first process" eventually 10 log_has "$container" denied
  check "and for an exec" cannot "$container" "cat /etc/passwd"
  check "which has it too" exec_has_label "$container" "vm-own (enforce)"
  check "the older text names it too" container a own-text "$(text localhost/vm-own)" "${forever[@]}"
  check "with the same result" has_label "$container" "vm-own (enforce)"
  check "and the default" container a default-text "$(text runtime/default)" "${forever[@]}"
  check "with that result" has_label "$container" "crio-default (enforce)"
  check "and none" container a unconfined-text "$(text unconfined)" "${forever[@]}"
  check "with none" has_label "$container" unconfined
  check "a profile that is not loaded is refused by name" refused '"no-such-profile" is not loaded' container a missing "$(typed 2 no-such-profile)" "${forever[@]}"
  check "so is what is no name" refused 'AppArmor' container a bad "$(typed 2 ' vm-own')" "${forever[@]}"

  check "the default profile is taken away" unload crio-default
  check "a container brings it back" container a again "$(typed 0)" "${forever[@]}"
  check "and has it" has_label "$container" "crio-default (enforce)"
  # What ran under it before is unconfined for good: that is the kernel's doing.
  default=$container

  check "the daemon restarts" systemctl restart crio
  check "the container is still confined" has_label "$default" "crio-default (enforce)"
  check "an exec is, too" exec_has_label "$default" "crio-default (enforce)"
  since=$(date '+%F %T'); sleep 1
  check "the daemon restarts once more" systemctl restart crio
  check "without loading what is loaded" eval '! logged "loaded the default AppArmor profile"'

  set_key apparmor_profile '"vm-own"'
  check "another default is taken over" systemctl reload crio
  check "and told" eventually 10 logged 'Set config apparmor_profile to ..vm-own'
  check "a container runs" container a other-default "$(typed 0)" "${forever[@]}"
  check "and has it as its default" has_label "$container" "vm-own (enforce)"
  set_key apparmor_profile '"no-such-profile"'
  check "one that is not loaded" systemctl reload crio
  check "is named" eventually 10 logged 'no-such-profile.* is not loaded'
  check "the old one stays" container a kept-default "$(typed 0)" "${forever[@]}"
  check "as a container shows" has_label "$container" "vm-own (enforce)"
  set_key apparmor_profile '"unconfined"'
  check "none is taken over" systemctl reload crio
  check "and told, too" eventually 10 logged 'Set config apparmor_profile to ..unconfined'
  check "another container runs" container a no-default "$(typed 0)" "${forever[@]}"
  check "without profile" has_label "$container" unconfined
  set_key apparmor_profile '"crio-default"'
  check "the first one is taken back" systemctl reload crio
  check "which is told as well" eventually 10 logged 'Set config apparmor_profile to ..crio-default'

  check "a privileged pod runs" privileged_pod p
  check "a privileged container runs" container p privileged '{"security_context":{"privileged":true,"apparmor":{"profile_type":2,"localhost_ref":"no-such-profile"}}}' "${forever[@]}"
  check "it has no profile" has_label "$container" unconfined
  check "confined containers stop" ctl ctr stop --grace 0 "$default"

  sandbox=$a
  set_key apparmor_profile '"no-such-profile"'
  systemctl stop crio
  check "a daemon whose profile is not loaded does not start" starts_not
  check "and names it" logged '"no-such-profile" of the configuration is not loaded'
  set_key apparmor_profile '"crio-default"'
  local parser
  parser=$(readlink -f "$(command -v apparmor_parser)")
  mv "$parser" "$parser.away"
  check "one is taken away again" unload crio-default
  systemctl reset-failed crio
  check "a daemon without apparmor_parser starts" systemctl start crio
  check "and says what it lacks" logged 'no apparmor_parser to load the profile'
  check "the default profile is refused" refused 'no apparmor_parser to load it' container a no-parser "$(typed 0)" "${forever[@]}"
  check "who asks for nothing gets nothing" container a no-parser-nothing '{}' "${forever[@]}"
  check "and is unconfined" has_label "$container" unconfined
  mv "$parser.away" "$parser"
}

# labelled LINUX OPTIONS: security contexts that ask for parts of a label.
labelled() { jq -nc --argjson base "$1" --argjson options "$2" '$base * {security_context: {selinux_options: $options}}'; }
level_of() { local label; label=$(label_of "$1"); echo "${label#*:*:*:}"; }
file_label() { stat -c %C "$1"; }
has_file_label() { equal "$(file_label "$1")" "$2"; }
root_of() { echo "/proc/$(pid_of "$1")/root"; }
infra_label() { jq -r '.process.selinuxLabel // empty' "/var/lib/containers/storage/overlay-containers/$1/userdata/config.json"; }
# A container with a volume: mounted POD NAME LINUX SOURCE.
mounted() {
  local pod=$1 name=$2 linux=$3 source=$4
  jq -n --arg name "$name" --arg image "$image" --arg source "$source" --argjson linux "$linux" --slurpfile pod "$work/$pod.pod" '{metadata: {name: $name},
    image: {image: $image}, command: ["sleep", "100000"], log_path: ($name + ".log"),
    mounts: [{container_path: "/volume", host_path: $source, selinux_relabel: true}],
    linux: ({security_context: {namespace_options: $pod[0].linux.security_context.namespace_options}} * $linux)}' > "$work/$name.ctr"
  container=$(ctl ctr create --pod "$sandbox" --pod-config "$work/$pod.pod" --config "$work/$name.ctr" 2> "$work/error") ||
    { cat "$work/error"; return 1; }
  container=$(tail -n 1 <<< "$container")
  ctl ctr start "$container" > "$work/error" 2>&1 || { cat "$work/error"; return 1; }
}
# pod_with NAME SECURITY ANNOTATIONS: a pod with a security context of its own.
pod_with() {
  jq -n --arg name "$1" --argjson security "$2" --argjson annotations "$3" '{metadata: {name: $name, namespace: "default", uid: ("uid-" + $name), attempt: 0},
    annotations: $annotations, log_directory: ("/var/log/pods/" + $name),
    linux: {security_context: ({namespace_options: {pid: 1}} * $security)}}' > "$work/$1.pod"
  sandbox=
  sandbox=$(ctl pod run --config "$work/$1.pod" 2> "$work/error") || { cat "$work/error"; return 1; }
  sandbox=$(tail -n 1 <<< "$sandbox")
}
# Where the policy has such a type; the image's own defaults have none for an init system.
with_init_type() {
  local contexts
  contexts=$(echo /etc/selinux/*/contexts/lxc_contexts)
  grep -q init_process "$contexts" || echo 'init_process = "system_u:system_r:container_init_t:s0"' >> "$contexts"
}

try_selinux() {
  local forever=(sleep 100000) process=system_u:system_r:container_t file=system_u:object_r:container_file_t
  check "the daemon said so" logged 'labelled with SELinux'
  check "a pod with a process of its own runs" pod a "" 0
  local a=$sandbox level
  level=$(level_of "$a")
  check "its infra container is labelled" has_label "$a" "$process:$level"
  check "with two categories" matches "$level" '^s0:c[0-9]+,c[0-9]+$'
  check "a container runs" container a plain '{}' "${forever[@]}"
  local plain=$container
  check "it has the pod's label" has_label "$plain" "$process:$level"
  check "so has an exec" exec_has_label "$plain" "$process:$level"
  check "its root file system is labelled" has_file_label "$(root_of "$plain")/bin/busybox" "$file:$level"
  check "so is what it writes" does "$plain" "echo x > /tmp/mine"
  check "as the kernel says" has_file_label "$(root_of "$plain")/tmp/mine" "$file:$level"
  check "and its shared memory" has_file_label "$(root_of "$plain")/dev/shm" "$file:$level"
  local path
  for path in /etc/resolv.conf /etc/hostname /run/.containerenv /dev /dev/pts; do
    check "and $path" has_file_label "$(root_of "$plain")$path" "$file:$level"
  done
  check "another container of the pod runs" container a second '{"security_context":{"run_as_user":{"value":1234}}}' "${forever[@]}"
  check "it has the same label" has_label "$container" "$process:$level"
  check "a passwd made for it is labelled" has_file_label "$(root_of "$container")/etc/passwd" "$file:$level"
  check "a container with a level of its own runs" container a leveled "$(labelled '{}' '{"level":"s0:c9,c8"}')" "${forever[@]}"
  check "it has that, in the kernel's spelling" has_label "$container" "$process:s0:c8,c9"
  check "and so have its files" has_file_label "$(root_of "$container")/bin/busybox" "$file:s0:c8,c9"
  check "the files of the pod are everybody's now" has_file_label "$(root_of "$container")/etc/resolv.conf" "$file:s0"
  check "a container of another type runs" container a typed "$(labelled '{}' '{"type":"spc_t"}')" "${forever[@]}"
  check "it has that type" has_label "$container" "system_u:system_r:spc_t:$level"
  check "so has an exec in it" exec_has_label "$container" "system_u:system_r:spc_t:$level"
  check "an init system runs" container a init '{}' /sbin/init 100000
  check "it has the type for those" has_label "$container" "system_u:system_r:container_init_t:$level"
  check "a label the policy does not have is refused" refused 'is not valid in this node' container a bad-type "$(labelled '{}' '{"type":"no_such_t"}')" "${forever[@]}"
  check "so is what is no label" refused 'is not an SELinux label' container a bad-text "$(labelled '{}' '{"type":"x\"y"}')" "${forever[@]}"
  check "a pod with such a label is refused" eval '! pod_with bad "{\"selinux_options\":{\"level\":\"s0:c4000\"}}" "{}" > "$work/refusal" && grep -q "is not valid in this node" "$work/refusal"'

  # Volumes.
  local volume=/var/tmp/volume other=/var/tmp/other
  rm -rf $volume $other; mkdir -p $volume/a/b $other; touch $volume/file $volume/a/b/file $other/file
  mkfifo $volume/fifo; ln -s $other $volume/link; ln -s ../other/file $volume/a/link
  local untouched; untouched=$(file_label $other)
  sandbox=$a
  check "a container with a volume runs" mounted a volume '{}' $volume
  for path in "" /file /a /a/b /a/b/file /fifo /link /a/link; do
    check "the volume's \"$path\" is labelled" has_file_label "$volume$path" "$file:$level"
  done
  check "what links name is not" has_file_label $other "$untouched"
  check "nor below it" has_file_label $other/file "$untouched"
  check "a system directory is refused" refused 'SELinux relabeling of /etc is not allowed' mounted a system '{}' /etc
  ln -sfn /usr /var/tmp/alias
  check "under another name, too" refused 'SELinux relabeling of /usr is not allowed' mounted a alias '{}' /var/tmp/alias
  check "with its label as it was" matches "$(file_label /etc)" ':etc_t:'
  local before; before=$(file_label $other)
  check "a super-privileged container with a volume runs" mounted a super "$(labelled '{}' '{"type":"spc_t"}')" $other
  check "its volume is left alone" has_file_label $other "$before"
  mkdir -p /var/tmp/fixed; mount -t tmpfs -o "context=\"$file:s0\"" tmpfs /var/tmp/fixed
  check "a volume without labels of its own is fine" mounted a fixed '{}' /var/tmp/fixed
  check "and keeps its own" has_file_label /var/tmp/fixed "$file:s0"

  check "a pod that takes volumes at their word runs" pod_with words "{\"selinux_options\":{\"level\":\"s0:c200,c100\"}}" '{"try-skip-volume-selinux-label.crio.io":"true"}'
  local words=$sandbox
  check "its container with a volume runs" mounted words first '{}' $volume
  check "the volume is labelled" has_file_label $volume/a/b/file "$file:s0:c100,c200"
  chcon -h "$file:s0" $volume/a/b/file
  check "the next container runs" mounted words next '{}' $volume
  check "the volume was taken at its word" has_file_label $volume/a/b/file "$file:s0"
  chcon -h "$file:s0" $volume
  check "the one after runs" mounted words last '{}' $volume
  check "a volume of another word is labelled" has_file_label $volume/a/b/file "$file:s0:c100,c200"

  # Whom SELinux does not keep apart.
  check "a pod on the node's network runs" pod_with network '{"namespace_options":{"network":2}}' '{}'
  check "its container runs" container network network '{}' "${forever[@]}"
  check "it has the daemon's label" eval '[[ $(label_of "$container") != *container_t* ]]'
  check "its files are labelled" matches "$(file_label "$(root_of "$container")/bin/busybox")" "^$file:s0:c"
  check "a pod that sees the node's processes runs" pod_with processes '{"namespace_options":{"pid":2}}' '{}'
  check "its label is not written down" equal "$(infra_label "$sandbox")" ""
  check "its container runs, too" container processes processes '{}' "${forever[@]}"
  check "it has no label of its own" eval '[[ $(label_of "$container") != *container_t* ]]'
  check "a privileged pod runs" privileged_pod p
  check "a privileged container runs" container p privileged '{"security_context":{"privileged":true}}' "${forever[@]}"
  check "it has none either" eval '[[ $(label_of "$container") != *container_t* ]]'
  check "an ordinary one beside it runs" container p ordinary '{}' "${forever[@]}"
  check "it has one" matches "$(label_of "$container")" "^$process:s0:c"

  # Levels belong to one pod each, through restarts.
  local number
  for number in 1 2 3; do check "pod $number runs" pod "many$number" "" 1; done
  check "levels are different" equal "$(levels | sort | uniq -d)" ""
  local levels; levels=$(levels)
  check "the daemon restarts" systemctl restart crio
  sandbox=$a
  check "a container runs in the first pod" container a after '{}' "${forever[@]}"
  check "it has the pod's label, too" has_label "$container" "$process:$level"
  check "an exec in the first one has it" exec_has_label "$plain" "$process:$level"
  for number in 4 5; do check "pod $number runs" pod "many$number" "" 1; done
  check "no level was given twice" equal "$(levels | sort | uniq -d)" ""
  check "the old ones are the same" equal "$(levels | head -n "$(wc -l <<< "$levels")" | sort)" "$(sort <<< "$levels")"

  set_key hostnetwork_disable_selinux false
  check "the daemon restarts with labels on the node's network" systemctl restart crio
  check "a pod there runs" pod_with labelled '{"namespace_options":{"network":2}}' '{}'
  check "its container runs there" container labelled labelled '{}' "${forever[@]}"
  check "it is labelled" matches "$(label_of "$container")" "^$process:s0:c"
  set_key selinux false
  check "the daemon restarts without labels" systemctl restart crio
  check "a pod without runs" pod_with off '{}' '{}'
  check "its container runs without" container off off '{}' "${forever[@]}"
  check "it is not labelled" eval '[[ $(label_of "$container") != *container_t* ]]'
}
# The levels in the store's records of pods, oldest first.
levels() { jq -r '.[] | select(.metadata | fromjson | .pod == true) | .flags.ProcessLabel | split(":")[3:] | join(":")' \
  /var/lib/containers/storage/overlay-containers/volatile-containers.json; }

privileged_pod() {
  jq -n --arg name "$1" '{metadata: {name: $name, namespace: "default", uid: ("uid-" + $name), attempt: 0},
    log_directory: ("/var/log/pods/" + $name), linux: {security_context: {privileged: true, namespace_options: {pid: 1}}}}' > "$work/$1.pod"
  sandbox=$(ctl pod run --config "$work/$1.pod" 2> "$work/error") || { cat "$work/error"; return 1; }
  sandbox=$(tail -n 1 <<< "$sandbox")
}

remove_pods() {
  local id
  for id in $(ctl pods -q); do ctl pod rm "$id" > /dev/null || return 1; done
  equal "$(ctl pods -q)" ""
}

has_apparmor() { [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ]; }
has_selinux() { [ -e /sys/fs/selinux/enforce ] && with_init_type; }

make_image
install_node
tried=0
for runtime; do
  before=$failures
  since=$(date '+%F %T')
  for kind in apparmor selinux; do
    has_$kind || continue
    tried=$((tried + 1))
    echo "--    $kind/$runtime"
    rm -f /run/crio/apparmor-crio-default
    configure systemd "$runtime" || { echo "FAIL  there is no $runtime"; failures=$((failures + 1)); continue; }
    sed -i "s|^monitor_path|allowed_annotations = [\"try-skip-volume-selinux-label.crio.io\"]\n&|" /etc/crio/crio.conf
    check "the service starts" systemctl start crio
    check "the image is pulled from a layout" ctl pull "oci:$work/image"
    "try_$kind"
    check "everything is removed" remove_pods
    check "the daemon stops at the end" systemctl stop crio
  done
  if [ "$failures" -gt "$before" ]; then
    echo "--    the daemon's log:"
    journalctl -u crio --since "$since" -o cat --no-pager | cut -c1-600 | tail -n "${LOG_LINES:-60}"
  fi
done
[ $tried -gt 0 ] || { echo "$0: this kernel has neither AppArmor nor SELinux" >&2; exit 2; }
[ "$failures" -eq 0 ] || { echo "$failures checks failed"; exit 1; }
echo "all checks passed"
