//! The verb `status`: asks the running daemon over its side door, and prints.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::Value;

type Done = Result<(), Box<dyn Error>>;

const SOCKET: &str = "/var/run/crio/crio.sock";
/// A daemon that says nothing for so long is not well, which is an answer too.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Answers are some KiB; a container's annotations may be long.
const ANSWER_MAX_BYTES: u64 = 16 << 20;

pub(crate) fn command() -> Command {
    let verb = |name: &'static str, aliases: &'static [&'static str], about: &'static str| {
        Command::new(name).visible_aliases(aliases).about(about)
    };
    let id = Arg::new("id").short('i').long("id").help("The container's whole id");
    let file = Arg::new("file")
        .short('f')
        .long("file")
        .value_parser(value_parser!(PathBuf))
        .help("Where to write the profile");
    Command::new("status")
        .about("Ask the running daemon")
        .arg(
            Arg::new("socket")
                .short('s')
                .long("socket")
                .value_parser(value_parser!(PathBuf))
                .default_value(SOCKET)
                .help("The daemon's socket"),
        )
        .subcommand(verb("config", &["c"], "Print its configuration as TOML"))
        .subcommand(verb("info", &["i"], "Print its cgroup and storage drivers"))
        .subcommand(verb("containers", &["container", "cs", "s"], "Print what it knows of a container").arg(id))
        .subcommand(verb("pulls", &["p"], "Print how far the pulls under way have come"))
        .subcommand(verb("goroutines", &["g"], "Print what it is at"))
        .subcommand(verb("heap", &["hp"], "Write a profile of its memory").arg(file))
}

/// Runs the verb.
pub(crate) fn run(arguments: &ArgMatches) -> Done {
    let socket = arguments.get_one::<PathBuf>("socket").ok_or("a socket")?;
    match arguments.subcommand() {
        Some(("config", _)) => print!("{}", ask(socket, "/config")?),
        Some(("info", _)) => print!("{}", info(&serde_json::from_str(&ask(socket, "/info")?)?)),
        Some(("containers", arguments)) => {
            let id = arguments.get_one::<String>("id").filter(|id| !id.is_empty());
            let id = id.ok_or("the argument --id cannot be empty")?;
            // Nothing but an id may become part of the request.
            if !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return Err(format!("{id:?} is not the id of a container").into());
            }
            print!("{}", container(&serde_json::from_str(&ask(socket, &format!("/containers/{id}"))?)?));
        }
        Some(("pulls", _)) => print!("{}", pulls(&serde_json::from_str(&ask(socket, "/pulls")?)?)),
        Some(("heap", _)) => print!("{}", ask(socket, "/debug/heap")?),
        Some(_) => print!("{}", ask(socket, "/debug/goroutines")?),
        None => command().print_help()?,
    }
    Ok(())
}

/// One request; HTTP/1.0, so that the answer ends with the connection and is not cut into chunks.
fn ask(socket: &Path, path: &str) -> Result<String, Box<dyn Error>> {
    let failed = |error: std::io::Error| format!("ask the daemon at {}: {error}", socket.display());
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(failed)?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: crio\r\n\r\n").as_bytes()).map_err(failed)?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    body_of(&String::from_utf8_lossy(&bytes)).map_err(Into::into)
}

fn body_of(answer: &str) -> Result<String, String> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the daemon's answer is no HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status == "200" { Ok(body.to_owned()) } else { Err(format!("{} (HTTP status {status})", body.trim_end())) }
}

/// A line for each pull, and one for each layer it waits for.
fn pulls(answer: &Value) -> String {
    let mut out = String::new();
    for pull in answer.as_array().into_iter().flatten() {
        let progress = &pull["progress"];
        let number = |key: &str| progress[key].as_u64().unwrap_or_default();
        let _ = writeln!(
            out,
            "{}: {} of {}, {} of {} layers, {}/s, {} s",
            pull["image"].as_str().unwrap_or_default(),
            size(number("bytes")),
            size(number("bytes_total")),
            number("layers"),
            number("layers_total"),
            size(number("rate")),
            number("seconds"),
        );
        for layer in progress["each"].as_array().into_iter().flatten() {
            let text = |key: &str| layer[key].as_str().unwrap_or_default();
            let number = |key: &str| layer[key].as_u64().unwrap_or_default();
            if text("state") == "done" {
                continue;
            }
            let from = match text("place") {
                "" => String::new(),
                place => format!(" from {place}"),
            };
            let _ = writeln!(
                out,
                "  {} {}: {} of {}{from}",
                text("digest"),
                text("state"),
                size(number("bytes")),
                size(number("bytes_total")),
            );
        }
    }
    if out.is_empty() { "no pulls\n".to_owned() } else { out }
}

/// Bytes for people: three digits and a unit.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = "B";
    for next in UNITS {
        if tenths < 10_000 {
            break;
        }
        tenths /= 1000;
        unit = next;
    }
    match (unit, tenths) {
        ("B", tenths) => format!("{} B", tenths / 10),
        (unit, tenths) if tenths < 1000 => format!("{}.{} {unit}", tenths / 10, tenths % 10),
        (unit, tenths) => format!("{} {unit}", tenths / 10),
    }
}

fn info(answer: &Value) -> String {
    let text = |key: &str| answer[key].as_str().unwrap_or_default();
    let mappings = |kind: &str| -> String {
        let ranges = answer["default_id_mappings"][kind].as_array().into_iter().flatten();
        ranges.map(|range| format!("  {}:{}:{}\n", range["container_id"], range["host_id"], range["size"])).collect()
    };
    format!(
        "cgroup driver: {}\nstorage driver: {}\nstorage graph root: {}\nstorage image: {}\n\
         default GID mappings (format <container>:<host>:<size>):\n{}\
         default UID mappings (format <container>:<host>:<size>):\n{}",
        text("cgroup_driver"),
        text("storage_driver"),
        text("storage_root"),
        text("storage_image"),
        mappings("gids"),
        mappings("uids"),
    )
}

fn container(answer: &Value) -> String {
    let text = |key: &str| answer[key].as_str().unwrap_or_default();
    let map = |key: &str| -> String {
        let mut lines: Vec<String> = answer[key]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("  {key}: {}\n", value.as_str().unwrap_or_default()))
            .collect();
        lines.sort();
        lines.concat()
    };
    let ips: Vec<&str> = answer["ip_addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    format!(
        "name: {}\npid: {}\nimage: {}\nimage ref: {}\ncreated: {}\nlabels:\n{}annotations:\n{}CRI-O annotations:\n{}\
         log path: {}\ngraph root: {}\nsandbox: {}\nips: {}\n",
        text("name"),
        answer["pid"],
        text("image"),
        text("image_ref"),
        answer["created_time"],
        map("labels"),
        map("annotations"),
        map("crio_annotations"),
        text("log_path"),
        text("root"),
        text("sandbox"),
        ips.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_body_or_why_there_is_none() {
        for (answer, expected) in [
            ("HTTP/1.0 200 OK\r\ncontent-type: x\r\n\r\nbody\n", Ok("body\n")),
            ("HTTP/1.0 404 Not Found\r\n\r\ncan't find it\n", Err("can't find it (HTTP status 404)")),
            ("", Err("the daemon's answer is no HTTP")),
        ] {
            assert_eq!(body_of(answer), expected.map(str::to_owned).map_err(str::to_owned), "{answer:?}");
        }
    }

    #[test]
    fn answers_are_printed_line_by_line() {
        let answer = serde_json::json!({
            "name": "k8s_a", "pid": 7, "image": "i", "image_ref": "r", "created_time": 5, "labels": {"b": "2", "a": "1"},
            "annotations": {}, "crio_annotations": {"x": "y"}, "log_path": "/l", "root": "/m", "sandbox": "s",
            "ip_addresses": ["10.0.0.1", "fd00::1"], "host_network": false,
        });
        let expected = "name: k8s_a\npid: 7\nimage: i\nimage ref: r\ncreated: 5\nlabels:\n  a: 1\n  b: 2\nannotations:\n\
            CRI-O annotations:\n  x: y\nlog path: /l\ngraph root: /m\nsandbox: s\nips: 10.0.0.1, fd00::1\n";
        assert_eq!(container(&answer), expected);
        let answer = serde_json::json!({
            "storage_driver": "overlay", "storage_image": "", "storage_root": "/s", "cgroup_driver": "systemd",
            "default_id_mappings": {"uids": [{"container_id": 0, "host_id": 1, "size": 2}], "gids": []},
        });
        let expected = "cgroup driver: systemd\nstorage driver: overlay\nstorage graph root: /s\nstorage image: \n\
            default GID mappings (format <container>:<host>:<size>):\n\
            default UID mappings (format <container>:<host>:<size>):\n  0:1:2\n";
        assert_eq!(info(&answer), expected);
    }
}
