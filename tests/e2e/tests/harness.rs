//! The tests' own promise: a scenario that fails takes its world away, and keeps what one needs to see why.
#![forbid(unsafe_code)]

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use e2e::cri::{WAIT, container_config};
use e2e::{Setup, scenario, tools};

/// What there was before the panic.
struct Seen {
    name: String,
    directory: PathBuf,
    processes: Vec<i32>,
}

#[test]
fn a_scenario_that_panics_leaves_only_its_directory() {
    let seen: Arc<Mutex<Option<Seen>>> = Arc::default();
    let told = Arc::clone(&seen);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        scenario(Setup::default(), async |world| {
            let cri = world.cri();
            let image = world.busybox().await;
            let pod = cri.run_pod(world.pod_config("doomed"), "").await.expect("RunPodSandbox");
            cri.run(&pod, container_config(&image, "main", WAIT)).await;
            let mut processes = world.find_processes("");
            assert!(processes.len() >= 2, "a container and its monitor: {processes:?}");
            processes.push(i32::try_from(world.daemon_pid()).expect("a pid"));
            let (name, directory) = (world.name().to_owned(), world.path(""));
            *told.lock().expect("a lock") = Some(Seen { name, directory, processes });
            panic!("on purpose: what follows in this test's output is not a failure");
        });
    }));
    let Some(Seen { name, directory, processes }) = seen.lock().expect("a lock").take() else {
        assert!(result.is_ok(), "skipped");
        return;
    };
    assert!(result.is_err());
    for pid in processes {
        let command = tools::read(format!("/proc/{pid}/cmdline"));
        assert!(
            !command.contains("sleep 3600") && !command.contains(&directory.display().to_string()),
            "{pid}: {command}"
        );
    }
    let cgroups = tools::run(std::process::Command::new("find").args(["/sys/fs/cgroup", "-name", &name]));
    assert_eq!(cgroups, "");
    assert!(!tools::read("/proc/self/mountinfo").contains(&directory.display().to_string()));
    assert!(directory.join("crio.log").is_file() && directory.join("left-behind").is_file());
    std::fs::remove_dir_all(&directory).expect("removes");
}
