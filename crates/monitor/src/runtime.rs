//! The runtime's command line. Source: the OCI runtime command line that runc defines.

use std::ffi::{CString, NulError, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::options::{Options, Task};

/// Variables that are meant for the monitor. A runtime that saw `LISTEN_FDS` would look for descriptors it is not given.
const NOT_PASSED_ON: &[&str] =
    &["_OCI_SYNCPIPE", "_OCI_STARTPIPE", "_OCI_ATTACHPIPE", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// The words of the command, the runtime first.
pub(crate) fn command(options: &Options, console_socket: Option<&Path>) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![options.runtime.clone().into()];
    let switch = |words: &mut Vec<OsString>, is_on: bool, name: &str| {
        if is_on {
            words.push(name.into());
        }
    };
    let value = |words: &mut Vec<OsString>, name: &str, value: &OsStr| {
        words.push(name.into());
        words.push(value.to_owned());
    };
    switch(&mut words, options.has_systemd_cgroup, "--systemd-cgroup");
    words.extend(options.runtime_args.iter().cloned());
    match &options.task {
        Task::Exec(process) => {
            words.push("exec".into());
            value(&mut words, "--pid-file", options.container_pidfile.as_os_str());
            value(&mut words, "--process", process.as_os_str());
            words.push("--detach".into());
        }
        task @ (Task::Create | Task::Restore(_)) => {
            if let Task::Restore(checkpoint) = task {
                words.extend(["restore".into(), "--detach".into()]);
                value(&mut words, "--image-path", checkpoint.as_os_str());
                value(&mut words, "--work-path", options.bundle.as_os_str());
            } else {
                words.push("create".into());
            }
            value(&mut words, "--bundle", options.bundle.as_os_str());
            value(&mut words, "--pid-file", options.container_pidfile.as_os_str());
            switch(&mut words, options.has_no_pivot, "--no-pivot");
            switch(&mut words, options.has_no_new_keyring, "--no-new-keyring");
        }
    }
    words.extend(options.runtime_opts.iter().cloned());
    if let Some(path) = console_socket {
        value(&mut words, "--console-socket", path.as_os_str());
    }
    words.push(options.cid.clone());
    words
}

/// Words as execve(2) takes them.
pub(crate) fn c_strings(words: Vec<OsString>) -> Result<Vec<CString>, NulError> {
    words.into_iter().map(|word| CString::new(word.into_vec())).collect()
}

/// The environment that is passed on, each `NAME=value`.
pub(crate) fn environment() -> Vec<CString> {
    let passed = std::env::vars_os().filter(|(name, _)| !NOT_PASSED_ON.iter().any(|other| name == other));
    let entries = passed.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
    // What came from the kernel as C strings has no zero byte.
    entries.filter_map(|entry| CString::new(entry).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Request, parse};

    #[test]
    fn each_task_has_its_command() {
        let base = "-c id -u id -l /log -r /bin/rt --runtime-arg=--root=/r -b /b -p /pid";
        for (extra, console, expected) in [
            ("", None, "/bin/rt --root=/r create --bundle /b --pid-file /pid id"),
            (
                "-s --no-pivot --no-new-keyring --runtime-opt --x -t",
                Some("/tmp/s"),
                "/bin/rt --systemd-cgroup --root=/r create --bundle /b --pid-file /pid --no-pivot --no-new-keyring --x \
                 --console-socket /tmp/s id",
            ),
            (
                "--restore /c --runtime-opt --lsm-profile=selinux:l",
                None,
                "/bin/rt --root=/r restore --detach --image-path /c --work-path /b --bundle /b --pid-file /pid \
                 --lsm-profile=selinux:l id",
            ),
            (
                "-e --exec-process-spec /p.json -t",
                Some("/tmp/s"),
                "/bin/rt --root=/r exec --pid-file /pid --process /p.json --detach --console-socket /tmp/s id",
            ),
        ] {
            let words = base.split(' ').chain(extra.split(' ').filter(|word| !word.is_empty())).map(OsString::from);
            let Ok(Request::Monitor(options)) = parse(words.collect(), Path::new("/")) else { panic!("{extra}") };
            assert_eq!(command(&options, console.map(Path::new)).join(OsStr::new(" ")), expected);
        }
    }
}
