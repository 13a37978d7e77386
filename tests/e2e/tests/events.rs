//! Events: what clients are told of pods and containers as it happens, beside what they may ask for.
#![forbid(unsafe_code)]

use cri_api::v1::{self, ContainerEventType as Kind};
use e2e::cri::{WAIT, container_config};
use e2e::{Cri, Setup, scenario, tools};
use tonic::Streaming;

type Events = Streaming<v1::ContainerEventResponse>;

async fn subscribe(cri: &Cri) -> Events {
    let request = v1::GetEventsRequest {};
    cri.runtime.clone().get_container_events(request).await.expect("GetContainerEvents").into_inner()
}

async fn next(events: &mut Events) -> v1::ContainerEventResponse {
    let event = tokio::time::timeout(tools::PATIENCE, events.message()).await.expect("an event in time");
    event.expect("a whole stream").expect("an event")
}

fn with_events() -> Setup {
    Setup { drop_in: "[crio.runtime]\nenable_pod_events = true\n".to_owned(), ..Setup::default() }
}

#[test]
fn every_client_is_told_everything_in_order_and_never_before_it_can_be_seen() {
    scenario(with_events(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mut clients = [subscribe(&cri).await, subscribe(&cri).await];
        // One that never reads and one that goes hold up nobody.
        let _deaf = subscribe(&cri).await;
        drop(subscribe(&cri).await);

        let mut shared = world.pod_config("shared");
        let linux = shared.linux.get_or_insert_default();
        // One process namespace for all: there is an infra process.
        linux.security_context.get_or_insert_default().namespace_options = Some(v1::NamespaceOption::default());
        for config in [world.pod_config("own"), shared] {
            let pod = cri.run_pod(config, "").await.expect("RunPodSandbox");
            let container = cri.run(&pod, container_config(&image, "main", &["sh", "-c", "sleep 0.3; exit 7"])).await;
            let status = cri.exit(&container.id).await;
            cri.remove(&container.id).await.expect("RemoveContainer");
            cri.end_pod(&pod.id).await;

            let expected = [
                (&pod.id, Kind::ContainerCreatedEvent),
                (&pod.id, Kind::ContainerStartedEvent),
                (&container.id, Kind::ContainerCreatedEvent),
                (&container.id, Kind::ContainerStartedEvent),
                (&container.id, Kind::ContainerStoppedEvent),
                (&container.id, Kind::ContainerDeletedEvent),
                (&pod.id, Kind::ContainerStoppedEvent),
                (&pod.id, Kind::ContainerDeletedEvent),
            ];
            for events in &mut clients {
                let mut last = 0;
                for (id, kind) in expected {
                    let event = next(events).await;
                    assert_eq!((&event.container_id, event.container_event_type()), (id, kind));
                    assert!(event.created_at > last, "{event:?}");
                    last = event.created_at;
                    let sandbox = event.pod_sandbox_status.as_ref().expect("a pod");
                    assert_eq!((&sandbox.id, &sandbox.metadata), (&pod.id, &pod.config.metadata));
                    let is_over = kind == Kind::ContainerDeletedEvent || kind == Kind::ContainerStoppedEvent;
                    let is_ready = !is_over || *id == container.id;
                    assert_eq!(sandbox.state() == v1::PodSandboxState::SandboxReady, is_ready, "{event:?}");
                    let states: Vec<_> = event.containers_statuses.iter().map(v1::ContainerStatus::state).collect();
                    match kind {
                        _ if *id == pod.id => assert!(states.is_empty(), "{event:?}"),
                        Kind::ContainerCreatedEvent => assert_eq!(states, [v1::ContainerState::ContainerCreated]),
                        Kind::ContainerStartedEvent => assert_eq!(states, [v1::ContainerState::ContainerRunning]),
                        Kind::ContainerStoppedEvent => {
                            assert_eq!(event.containers_statuses, std::slice::from_ref(&status))
                        }
                        Kind::ContainerDeletedEvent => assert!(states.is_empty(), "{event:?}"),
                    }
                }
            }
            assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
        }
    });
}

#[test]
fn a_pod_s_status_tells_its_containers_and_when_it_was_looked_at() {
    scenario(with_events(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("one"), "").await.expect("RunPodSandbox");
        let other = cri.run_pod(world.pod_config("two"), "").await.expect("RunPodSandbox");
        let mut events = subscribe(&cri).await;
        let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
        cri.run(&other, container_config(&image, "main", WAIT)).await;
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
        let answer = cri.runtime.clone().pod_sandbox_status(request).await.expect("PodSandboxStatus").into_inner();
        assert_eq!(answer.containers_statuses, [cri.status(&container.id).await.expect("ContainerStatus")]);
        let told = next(&mut events).await;
        assert!(answer.timestamp > told.created_at, "{} is no later than {}", answer.timestamp, told.created_at);
    });
}

#[test]
fn without_events_the_stream_ends_at_once_and_a_status_is_only_a_pod_s() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let mut events = subscribe(&cri).await;
        assert_eq!(events.message().await.expect("no error"), None);
        let pod = cri.run_pod(world.pod_config("one"), "").await.expect("RunPodSandbox");
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
        let answer = cri.runtime.clone().pod_sandbox_status(request).await.expect("PodSandboxStatus").into_inner();
        assert_eq!((answer.timestamp, answer.containers_statuses.len()), (0, 0));
    });
}
