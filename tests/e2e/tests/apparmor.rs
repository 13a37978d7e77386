//! AppArmor on a node that does not have it; `tests/vm/confinement.sh` sees to the others.
#![forbid(unsafe_code)]

use cri_api::v1;
use cri_api::v1::security_profile::ProfileType;
use e2e::cri::{WAIT, container_config, refused};
use e2e::{Setup, scenario, tools};
use tonic::Code;

fn with_profile(image: &str, name: &str, kind: ProfileType, reference: &str) -> v1::ContainerConfig {
    let mut config = container_config(image, name, WAIT);
    let profile = v1::SecurityProfile { profile_type: kind.into(), localhost_ref: reference.into() };
    config.linux.get_or_insert_default().security_context.get_or_insert_default().apparmor = Some(profile);
    config
}

#[test]
fn without_apparmor_a_profile_by_name_is_refused_and_the_default_is_none() {
    if std::fs::exists("/sys/kernel/security/apparmor").unwrap_or(true) {
        return tools::say("skipped: this kernel has AppArmor");
    }
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("p"), "").await.expect("RunPodSandbox");
        for (name, kind) in [("default", ProfileType::RuntimeDefault), ("none", ProfileType::Unconfined)] {
            let container = cri.run(&pod, with_profile(&image, name, kind, "")).await;
            assert_eq!(cri.output(&container.id, &["echo", name]).await.trim(), name);
        }
        let before = world.settled().await;
        for (reference, reason) in [
            ("mine", "AppArmor profile \"mine\" is asked for, and this node has no AppArmor"),
            ("localhost/mine", "AppArmor profile \"mine\" is asked for, and this node has no AppArmor"),
        ] {
            let config = with_profile(&image, "named", ProfileType::Localhost, reference);
            let message = refused(cri.create(&pod, config).await, Code::InvalidArgument);
            assert!(message.contains(reason), "{message}");
        }
        let config = with_profile(&image, "broken", ProfileType::Localhost, "mine\nunconfined");
        refused(cri.create(&pod, config).await, Code::InvalidArgument);
        world.assert_nothing_since(&before).await;
        cri.end_pod(&pod.id).await;
    });
}
