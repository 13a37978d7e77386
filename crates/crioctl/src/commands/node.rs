//! Verbs about the engine itself.

use cri_api::v1::{StatusRequest, VersionRequest};
use serde_json::json;

use super::Session;
use crate::arguments::Output;
use crate::error::CommandError;
use crate::message_json::{to_json, to_json_with_info};
use crate::table::{TextTable, text};

pub(super) async fn version(session: &Session) -> Result<(), CommandError> {
    let answer = session.client.version(VersionRequest::default()).await?;
    let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    if session.output == Output::Json {
        return session.print_json(&json!({"client": {"name": name, "version": version}, "engine": to_json(&answer)}));
    }
    session.print(
        &TextTable::of_pairs(&[
            ("client", format!("{name} {version}")),
            ("engine", format!("{} {}", answer.runtime_name, answer.runtime_version)),
            ("CRI", answer.runtime_api_version),
        ])
        .render(),
    )
}

pub(super) async fn status(session: &Session) -> Result<(), CommandError> {
    let answer = session.client.status(StatusRequest { verbose: session.output == Output::Json }).await?;
    if session.output == Output::Json {
        return session.print_json(&to_json_with_info(&answer));
    }
    let yes_no = |is: bool| if is { "yes" } else { "no" };
    let mut table = TextTable::new(&["CONDITION", "STATUS", "REASON", "MESSAGE"]);
    for condition in answer.status.iter().flat_map(|status| &status.conditions) {
        table.add(vec![
            text(&condition.r#type),
            text(yes_no(condition.status)),
            text(&condition.reason),
            text(&condition.message),
        ]);
    }
    let mut rendered = table.render();
    if !answer.runtime_handlers.is_empty() {
        let mut table = TextTable::new(&["RUNTIME HANDLER", "USER NAMESPACES", "RECURSIVE READ-ONLY MOUNTS"]);
        for handler in &answer.runtime_handlers {
            let features = handler.features.unwrap_or_default();
            table.add(vec![
                text(if handler.name.is_empty() { "(default)" } else { &handler.name }),
                text(yes_no(features.user_namespaces)),
                text(yes_no(features.recursive_read_only_mounts)),
            ]);
        }
        rendered.push('\n');
        rendered.push_str(&table.render());
    }
    session.print(&rendered)
}
