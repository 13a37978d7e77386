//! `logs`, and the following of a container's output until it ends.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cri_api::v1::{ContainerState, ContainerStatus};
use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::time::Instant;
use tonic::Code;

use super::Session;
use super::containers::{container_status, find_container};
use crate::arguments::LogsArguments;
use crate::client::Client;
use crate::error::{CallError, CommandError};
use crate::log_file::{LogError, LogFile, LogSink};

/// The CRI has no call that waits for an end which every engine serves, so the state is asked for: soon after the
/// beginning, because most one-off programs end soon, then less and less often.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_millis(500);

/// Room for some hundred events; what overflows only means another look.
const EVENT_BYTES: usize = 8 << 10;

pub(super) async fn logs(session: &Session, arguments: &LogsArguments) -> Result<(), CommandError> {
    let container = find_container(&session.client, &arguments.container).await?;
    let status = container_status(&session.client, &container.id).await?;
    if status.log_path.is_empty() {
        return Err(CommandError::NoLog { id: container.id });
    }
    let path = PathBuf::from(status.log_path);
    let mut sink = LogSink::new(BufWriter::new(std::io::stdout()), std::io::stderr(), arguments.timestamps);
    let outcome = if arguments.follow {
        match follow(&session.client, &container.id, &path, arguments.tail, &mut sink).await {
            // Removed while it was followed: that, too, is an end.
            Err(CommandError::Call(CallError::Refused { status, .. })) if status.code() == Code::NotFound => Ok(()),
            outcome => outcome.map(drop),
        }
    } else {
        let mut file = LogFile::open(&path)?;
        if let Some(count) = arguments.tail {
            file.skip_to_last(count)?;
        }
        file.drain(&mut sink).map(drop).map_err(CommandError::from)
    };
    if sink.skipped > 0 {
        eprintln!("crioctl: {} lines of {} are not log entries and were left out", sink.skipped, path.display());
    }
    outcome
}

/// Passes on what a container writes until it has ended, and returns its last state.
///
/// The file need not exist yet. Engines write a log to its end before they report the exit, so whatever is there when
/// the exit is seen is everything.
pub(crate) async fn follow<O: Write, E: Write>(
    client: &Client,
    id: &str,
    path: &Path,
    tail: Option<usize>,
    sink: &mut LogSink<O, E>,
) -> Result<ContainerStatus, CommandError> {
    let mut watch = path.parent().and_then(watch_directory);
    let mut file = None;
    let mut pause = FIRST_LOOK;
    let mut next_look = Instant::now();
    loop {
        let has_ended = if Instant::now() >= next_look {
            let status = container_status(client, id).await?;
            pause = (pause * 3 / 2).min(LAST_LOOK);
            next_look = Instant::now() + pause;
            (status.state() == ContainerState::ContainerExited).then_some(status)
        } else {
            None
        };
        if file.is_none() {
            file = open_if_there(path, tail)?;
        }
        if let Some(file) = &mut file {
            file.drain(sink)?;
        }
        if let Some(status) = has_ended {
            return Ok(status);
        }
        tokio::select! {
            () = changed(&mut watch) => {}
            () = tokio::time::sleep_until(next_look) => {}
        }
    }
}

fn open_if_there(path: &Path, tail: Option<usize>) -> Result<Option<LogFile>, LogError> {
    let mut file = match LogFile::open(path) {
        Ok(file) => file,
        Err(LogError::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if let Some(count) = tail {
        file.skip_to_last(count)?;
    }
    Ok(Some(file))
}

/// Watches the directory, which sees the file grow, go and come. Without a watch (their number is limited per user)
/// the looks at the container's state must do.
fn watch_directory(directory: &Path) -> Option<EventStream<Vec<u8>>> {
    let inotify = Inotify::init().ok()?;
    inotify.watches().add(directory, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO).ok()?;
    inotify.into_event_stream(vec![0; EVENT_BYTES]).ok()
}

async fn changed(watch: &mut Option<EventStream<Vec<u8>>>) {
    if let Some(events) = watch {
        if let Some(Ok(_)) = events.next().await {
            return;
        }
        *watch = None;
    }
    std::future::pending().await
}
