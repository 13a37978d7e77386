//! `delete`: nothing of a container is left, at the shim, of the shim, or of us. The record goes last.

use std::time::{Duration, Instant};

use crate::client::CallError;
use crate::options::Settings;
use crate::record::{Record, fifo_directory};
use crate::task::Task;
use crate::verbs::{VerbError, enter, find};
use crate::wire::ProcessStatus;
use crate::{shim, stdio};

/// How long a killed container may take to end.
const KILLED_LIMIT: Duration = Duration::from_secs(5);
/// How long a shim that was told to end may take, and one that was killed.
const SHIM_END_LIMIT: Duration = Duration::from_secs(3);
/// How long the stand-in may take to notice and to pass on the last words.
const STAND_IN_END_LIMIT: Duration = Duration::from_secs(2);
/// A shim that is told of an end may need a moment to let go of it.
const RETRY: Duration = Duration::from_millis(50);
const SIGKILL: u32 = 9;

/// What came of asking the shim.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// It has let go of the container.
    Deleted,
    /// It is dead, or there never was one.
    Gone,
    /// It does not answer as it should.
    Hangs,
}

pub(crate) fn delete(settings: &Settings, id: &str, is_forced: bool) -> Result<u8, VerbError> {
    let mut record = find(&settings.root, id)?;
    if record.shim.is_none() {
        record.shim = shim::find_process(settings, &record.bundle, None, None);
    }
    let mut asked = match record.address() {
        Some(_) => ask(&record, is_forced)?,
        None => Asked::Gone,
    };
    let has_company = record.has_company(&settings.root);
    if !has_company && end_shim(&record, &asked) {
        asked = Asked::Gone;
    }
    match asked {
        Asked::Deleted => {}
        // It may answer the next time; until then something of the container may be left.
        Asked::Hangs => return Err(VerbError::Hangs(id.to_owned())),
        Asked::Gone if record.address().is_none() && record.shim.is_none() => {}
        Asked::Gone => {
            // Without its bundle the shim's binary knows of nothing, and nothing of it can be mounted there.
            if record.bundle.is_dir() {
                enter(&record.bundle)?;
                shim::delete(settings, id, &record.bundle)?;
            }
        }
    }
    if let Some(stand_in) = record.stand_in
        && !stand_in.wait_end(STAND_IN_END_LIMIT)
    {
        stand_in.kill();
    }
    let fifos = fifo_directory(&settings.root, id);
    stdio::remove_all(&fifos).map_err(|source| VerbError::File { action: "remove", path: fifos, source })?;
    record.remove(&settings.root)?;
    Ok(0)
}

fn ask(record: &Record, is_forced: bool) -> Result<Asked, VerbError> {
    match try_ask(record, is_forced) {
        Ok(()) => Ok(Asked::Deleted),
        Err(VerbError::Call(error)) if error.is_gone() => Ok(Asked::Gone),
        Err(VerbError::Call(error @ CallError::Refused { .. })) => Err(error.into()),
        Err(VerbError::Call(_)) => Ok(Asked::Hangs),
        Err(error) => Err(error),
    }
}

fn try_ask(record: &Record, is_forced: bool) -> Result<(), VerbError> {
    let mut task = Task::connect(record)?;
    match task.state() {
        Ok(ProcessStatus::Stopped) => {}
        Ok(_) if !is_forced => return Err(VerbError::Runs(record.id.clone())),
        Ok(_) => {
            unless_unknown(task.kill(SIGKILL, true))?;
            unless_unknown(task.wait(Some(KILLED_LIMIT)).map(drop))?;
        }
        Err(error) if error.is_unknown() => return let_go(&mut task),
        Err(error) => return Err(error.into()),
    }
    let give_up = Instant::now() + KILLED_LIMIT;
    loop {
        match unless_unknown(task.delete()) {
            Ok(()) => break,
            Err(CallError::Refused { .. }) if Instant::now() < give_up => std::thread::sleep(RETRY),
            Err(error) => return Err(error.into()),
        }
    }
    let_go(&mut task)
}

/// The shim ends if this was its last container; one that refuses keeps others.
fn let_go(task: &mut Task) -> Result<(), VerbError> {
    match task.shutdown() {
        Ok(()) | Err(CallError::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn unless_unknown(result: Result<(), CallError>) -> Result<(), CallError> {
    match result {
        Err(error) if error.is_unknown() => Ok(()),
        result => result,
    }
}

/// Sees to it that a shim with no container left ends; whether it had to be killed.
fn end_shim(record: &Record, asked: &Asked) -> bool {
    let Some(shim) = record.shim else { return false };
    let is_asked = *asked == Asked::Deleted && shim.wait_end(SHIM_END_LIMIT);
    if is_asked {
        return false;
    }
    shim.kill();
    shim.wait_end(SHIM_END_LIMIT)
}
