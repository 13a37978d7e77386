//! The profile that containers get when nothing else is asked for.

use std::path::Path;

/// Its name. Source: CRI-O's `apparmor_profile`.
pub const DEFAULT_NAME: &str = "crio-default";

/// What the rules below are written for, where the parser's package brings it: newer kinds of mediation, which the
/// rules do not mention, then stay off. An older parser knows neither the file nor the line.
const ABI: &str = "abi/3.0";

/// Programs that end containers, where they have profiles of their own (AppArmor 4 brings some by these names).
const SENDERS: &str = "{,/usr/bin/,/usr/sbin/,/usr/local/bin/,/usr/local/sbin/,/usr/libexec/crio/}\
    {runc,crun*,youki,crio,crio-monitor,conmon}";

/// The profile as text for `apparmor_parser`; `policy` is the parser's directory of includes.
///
/// A container keeps what its capabilities, seccomp filter and namespaces leave it, but mounts nothing, and writes to
/// none of the kernel's files outside the entries of processes, the cgroup file system and `kernel.shm*`. Within /proc
/// and /sys there is no "all but", so each path is cut off at the first character in which it differs.
/// Deny rules are silent: a program that looks around would fill the audit log.
pub(crate) fn text(policy: &Path) -> String {
    let abi = if policy.join(ABI).is_file() { format!("abi <{ABI}>,\n\n") } else { String::new() };
    format!(
        "{abi}profile {DEFAULT_NAME} flags=(attach_disconnected, mediate_deleted) {{
  file,
  network,
  capability,
  umount,

  # Whoever stops containers, and processes of the same profile among themselves.
  signal (receive) peer=unconfined,
  signal (receive) peer={SENDERS},
  signal (send, receive) peer={DEFAULT_NAME},
  ptrace (trace, read, tracedby, readby) peer={DEFAULT_NAME},

  deny mount,
  deny remount,
  deny pivot_root,

  # /proc: files beside the entries of processes, then every directory but theirs and sys.
  deny /proc/* wkl,
  deny /proc/{{[^0-9s]*,s[^y]*,sy[^s]*,sys[^/]*}}/** wklx,
  # /proc/sys: all but kernel/shm*.
  deny /proc/sys/{{,[^k]**,k,k[^e]**}} wklx,
  deny /proc/sys/kernel/{{,[^s]**,s,s[^h]**,sh,sh[^m]**}} wklx,
  deny /proc/{{kcore,sysrq-trigger}} rwklx,

  # /sys: all but fs/cgroup.
  deny /sys/{{,[^f]**,f[^s]**}} wklx,
  deny /sys/fs/{{,[^c]**,c[^g]**,cg[^r]**}} wklx,
  deny /sys/{{firmware,kernel/security,devices/virtual/powercap}}/** rwklx,
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_feature_set_is_pinned_where_the_parser_has_it() {
        let policy = tempfile::tempdir().expect("a directory");
        assert!(text(policy.path()).starts_with("profile crio-default "));
        std::fs::create_dir(policy.path().join("abi")).expect("a directory");
        std::fs::File::create(policy.path().join(ABI)).expect("a file");
        let text = text(policy.path());
        assert!(text.starts_with("abi <abi/3.0>,\n\nprofile crio-default "));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
