//! Verbs that take the engine's streaming server.

use super::Session;
use super::containers::{exec_sync_words, exit_status, find_container};
use super::pods::find_pod;
use crate::arguments::{AttachArguments, CopyArguments, ExecArguments, PortForwardArguments};
use crate::error::CommandError;
use crate::sessions::{self, DetachKeys, Wanted};

/// Runs a program. Without input and terminal one request does, which every engine answers.
pub(super) async fn exec(session: &Session, arguments: ExecArguments) -> Result<u8, CommandError> {
    if !arguments.interactive && !arguments.tty {
        return exec_sync_words(session, &arguments.container, arguments.command).await;
    }
    let id = find_container(&session.client, &arguments.container).await?.id;
    let wanted = Wanted {
        stdin: arguments.interactive,
        tty: arguments.tty,
        // The program ends with its session, so there is nothing to leave.
        keys: DetachKeys::none(),
        trust: arguments.trust.trust(),
    };
    sessions::exec(&session.client, id, arguments.command, &wanted).await.map(exit_status)
}

pub(super) async fn attach(session: &Session, arguments: &AttachArguments) -> Result<(), CommandError> {
    let id = find_container(&session.client, &arguments.container).await?.id;
    let wanted = Wanted {
        stdin: arguments.interactive,
        tty: arguments.tty,
        keys: arguments.detach_keys.clone(),
        trust: arguments.trust.trust(),
    };
    sessions::attach(&session.client, id, &wanted).await
}

pub(super) async fn port_forward(session: &Session, arguments: &PortForwardArguments) -> Result<(), CommandError> {
    let pod = find_pod(&session.client, &arguments.pod).await?.id;
    let trust = arguments.trust.trust();
    sessions::forward(&session.client, &pod, &arguments.addresses, &arguments.ports, &trust).await
}

pub(super) async fn copy(session: &Session, arguments: &CopyArguments) -> Result<(), CommandError> {
    let find = async |name: &str| Ok(find_container(&session.client, name).await?.id);
    sessions::copy(&session.client, &arguments.from, &arguments.to, &arguments.trust.trust(), find).await
}
