//! Forbidden system calls: seen by the notifier, told in a container's status, or the end of whoever makes them.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use cri_api::v1;
use cri_api::v1::security_profile::ProfileType;
use e2e::cri::{WAIT, container_config};
use e2e::{Container, Cri, Pod, Setup, World, scenario, tools};

const ANNOTATION: &str = "seccomp-notifier-action.crio.io";
/// From the last forbidden call to the stop.
const QUIET: Duration = Duration::from_secs(5);

fn allowed() -> Setup {
    Setup { handler_lines: format!("allowed_annotations = [{ANNOTATION:?}]"), ..Setup::default() }
}

fn with_profile(mut config: v1::ContainerConfig, profile: &std::path::Path) -> v1::ContainerConfig {
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    let localhost_ref = profile.display().to_string();
    security.seccomp = Some(v1::SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref });
    config
}

/// A profile that forbids making directories, in the given way.
fn profile(world: &World, action: &str) -> std::path::PathBuf {
    let path = world.path(&format!("{action}.json"));
    let rule = format!(r#"{{"names": ["mkdir", "mkdirat"], "action": "{action}"}}"#);
    tools::write(&path, format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#));
    path
}

async fn run_pod(world: &World, cri: &Cri, handler: &str, action: &str) -> Pod {
    let mut config = world.pod_config(&format!("{handler}-{action}"));
    config.annotations.insert(ANNOTATION.to_owned(), action.to_owned());
    cri.run_pod(config, handler).await.expect("RunPodSandbox")
}

fn blocked(world: &World, container: &Container) -> usize {
    let text = format!("Seccomp blocked syscall 'mkdir' in container {}", container.id);
    tools::read(world.path("crio.log")).lines().filter(|line| line.contains(&text)).count()
}

async fn fails_to_make(cri: &Cri, container: &Container) {
    let answer = cri.exec(&container.id, &["mkdir", "/tmp/made"], 5).await.expect("ExecSync");
    let text = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert!(answer.exit_code != 0 && text.contains("Function not implemented"), "{text}");
}

#[test]
fn forbidden_calls_are_counted_and_end_a_container_that_wants_it() {
    scenario(allowed(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in ["crun", "runc"] {
            let config = |name| with_profile(container_config(&image, name, WAIT), &profile(world, "SCMP_ACT_ERRNO"));
            let stopping = run_pod(world, &cri, handler, "stop").await;
            let counting = run_pod(world, &cri, handler, "count").await;
            let stopped = cri.run(&stopping, config("stopped")).await;
            let counted = cri.run(&counting, config("counted")).await;
            for _ in 0..3 {
                fails_to_make(&cri, &stopped).await;
                fails_to_make(&cri, &counted).await;
            }
            // Its own program's calls are seen as those of others are.
            let mut own = config("own");
            own.command = vec!["sh".into(), "-c".into(), "mkdir /tmp/a; mkdir /tmp/b; sleep 3600".into()];
            let own = cri.run(&stopping, own).await;
            let last = Instant::now();
            let status = cri.exit(&stopped.id).await;
            assert!(last.elapsed() + Duration::from_secs(1) > QUIET, "{handler}: {:?}", last.elapsed());
            assert_eq!((status.reason.as_str(), status.exit_code), ("seccomp killed", 0), "{handler}: {status:?}");
            assert_eq!(status.message, "Used forbidden syscalls: mkdir (3x)", "{handler}");
            let status = cri.exit(&own.id).await;
            assert_eq!((status.reason.as_str(), status.exit_code), ("seccomp killed", 137), "{handler}: {status:?}");
            assert_eq!(status.message, "Used forbidden syscalls: mkdir (2x)", "{handler}");
            assert_eq!((blocked(world, &stopped), blocked(world, &counted)), (3, 3), "{handler}");
            assert_eq!(cri.status(&counted.id).await.expect("status").state(), v1::ContainerState::ContainerRunning);
            // Nothing that a client sees of the sockets, and nothing of them afterwards.
            let sockets = || tools::names(world.path("seccomp"));
            assert_eq!(sockets(), std::slice::from_ref(&counted.id), "{handler}");
            cri.end_pod(&stopping.id).await;
            cri.end_pod(&counting.id).await;
            assert_eq!(sockets(), Vec::<String>::new(), "{handler}");
        }
    });
}

#[test]
fn a_restart_does_not_hold_up_whoever_makes_forbidden_calls() {
    scenario(allowed(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = run_pod(world, &cri, "crun", "stop").await;
        let script = "while sleep 0.05; do mkdir /tmp/x 2>/dev/null; echo tried; done";
        let config = container_config(&image, "main", &["sh", "-c", script]);
        let container = cri.run(&pod, with_profile(config, &profile(world, "SCMP_ACT_ERRNO"))).await;
        let tried = || e2e::log::read(&container.log).len();
        tools::becomes("it goes on", tried, |count| *count > 3).await;
        world.kill_daemon();
        let before = tried();
        tools::becomes("it goes on without a daemon", tried, |count| *count > before + 10).await;
        world.start_daemon().await;
        let cri = world.cri();
        let log = tools::read(world.path("crio.log"));
        assert!(log.contains("began under an earlier daemon fail without being seen"), "{}", world.log_tail());
        // What begins now is seen.
        let seen = blocked(world, &container);
        fails_to_make(&cri, &container).await;
        tools::becomes("calls are seen again", || blocked(world, &container), |count| *count == seen + 1).await;
        let status = cri.exit(&container.id).await;
        assert_eq!(status.message, "Used forbidden syscalls: mkdir (1x)", "{status:?}");
    });
}

#[test]
fn without_permission_there_is_no_notifier_and_a_fatal_call_is_told_as_such() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in ["crun", "runc"] {
            let pod = run_pod(world, &cri, handler, "stop").await;
            let config = with_profile(container_config(&image, "main", WAIT), &profile(world, "SCMP_ACT_ERRNO"));
            let container = cri.run(&pod, config).await;
            let answer = cri.exec(&container.id, &["mkdir", "/tmp/made"], 5).await.expect("ExecSync");
            assert!(answer.exit_code != 0, "{answer:?}");
            assert_eq!((blocked(world, &container), tools::names(world.path("seccomp")).len()), (0, 0), "{handler}");
            // Killed by the kernel: SIGSYS.
            let config = container_config(&image, "killed", &["mkdir", "/tmp/made"]);
            let config = with_profile(config, &profile(world, "SCMP_ACT_KILL_PROCESS"));
            let (status, _) = cri.run_to_end(&pod, config).await;
            assert_eq!((status.exit_code, status.reason.as_str()), (159, "Error"), "{handler}: {status:?}");
            let config = with_profile(
                container_config(&image, "thread", &["mkdir", "/tmp/made"]),
                &profile(world, "SCMP_ACT_KILL"),
            );
            let (status, _) = cri.run_to_end(&pod, config).await;
            assert_eq!((status.exit_code, status.reason.as_str()), (159, "Error"), "{handler}: {status:?}");
        }
    });
}
