//! Removes what a run made, found by its label rather than by memory: a request that was under way when the run was
//! interrupted may have made a pod whose id never arrived here.

use std::time::{Duration, Instant};

use cri_api::v1::{ListPodSandboxRequest, PodSandboxFilter};

use crate::engine::{Engine, RUN_LABEL};
use crate::error::BenchError;

/// How long an engine that was interrupted may take to show, or drop, a pod it was making.
const SETTLE: Duration = Duration::from_millis(500);

/// Removing a thousand pods one by one takes less; an engine that needs longer is stuck.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(300);

/// Removes every pod of this run from every engine, and says which could not be removed.
pub(crate) async fn remove_all(engines: &[Engine]) -> Result<(), BenchError> {
    let mut outcome = Ok(());
    for engine in engines {
        if let Err(error) = remove_from(engine).await {
            // The other engine is cleaned all the same; the first failure is the one reported.
            outcome = outcome.and(Err(error));
        }
    }
    outcome
}

async fn remove_from(engine: &Engine) -> Result<(), BenchError> {
    let deadline = Instant::now() + REMOVE_TIMEOUT;
    let mut last_error = None;
    let mut is_second_look = false;
    loop {
        let left = find_left(engine).await?;
        // Empty twice, with a pause between: nothing is about to appear either.
        match (left.is_empty(), is_second_look) {
            (true, true) => return Ok(()),
            (true, false) => is_second_look = true,
            (false, _) => is_second_look = false,
        }
        if Instant::now() > deadline {
            return Err(last_error.unwrap_or(BenchError::LeftBehind { engine: engine.name, left }));
        }
        for sandbox in &left {
            if let Err(error) = engine.remove_pod(sandbox).await {
                last_error = Some(error);
            }
        }
        tokio::time::sleep(SETTLE).await;
    }
}

async fn find_left(engine: &Engine) -> Result<Vec<String>, BenchError> {
    let mut runtime = engine.runtime.clone();
    let filter =
        PodSandboxFilter { label_selector: [(RUN_LABEL.to_owned(), engine.run.clone())].into(), ..Default::default() };
    let question = ListPodSandboxRequest { filter: Some(filter) };
    let (answer, _) = engine
        .timed("ListPodSandbox", Duration::from_secs(30), question, async move |r| runtime.list_pod_sandbox(r).await)
        .await?;
    Ok(answer.items.into_iter().map(|sandbox| sandbox.id).collect())
}
