//! HTTP/1 on the CRI's socket: what cAdvisor, `crio status` and operators ask beside the CRI. Source: CRI-O.
//!
//! Whoever may open the socket may ask. Requests have no bodies, and answers are small and made at once, but for pausing,
//! which waits for the runtime.

use std::fmt::Write as _;
use std::sync::Arc;

use config::Config;
use http::{HeaderValue, Method, Response, StatusCode, header};
use lifecycle::{Inspection, LookupError, Node, PauseError};
use serde_json::json;
use tonic::body::Body;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Ids a mapping of everything to itself covers: all but the last, which stands for none. Source: CRI-O.
const ALL_IDS: u32 = u32::MAX;

/// Everything the door needs.
pub(crate) struct SideDoor {
    node: Arc<Node>,
    is_profiling: bool,
}

impl SideDoor {
    pub(crate) fn new(node: Arc<Node>, is_profiling: bool) -> Arc<Self> {
        Arc::new(Self { node, is_profiling })
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, method: &Method, path: &str) -> Response<Body> {
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let what = (parts.next().unwrap_or_default(), parts.next());
        if !self.is_known(what) {
            return text(StatusCode::NOT_FOUND, "404 page not found");
        }
        if method != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is understood here");
        }
        match what {
            ("info", None) => response(StatusCode::OK, JSON, info(self.node.config()).to_string()),
            ("config", None) => {
                let toml = config::template(self.node.config(), config::Template::Default);
                response(StatusCode::OK, "application/toml", toml)
            }
            ("pulls", None) => response(StatusCode::OK, JSON, pulls(&self.node).to_string()),
            ("containers", Some(id)) => match self.node.inspect(id).await {
                Some(inspection) => response(StatusCode::OK, JSON, container(&inspection).to_string()),
                None => absent(id),
            },
            ("pause", Some(id)) => self.paused(id, self.node.pause_container(id).await),
            ("unpause", Some(id)) => self.paused(id, self.node.unpause_container(id).await),
            ("debug", Some("goroutines")) => response(StatusCode::OK, TEXT, activity(&self.node)),
            // Neither a heap to dump nor a profiler is linked in; an empty profile would be a lie.
            _ => text(StatusCode::NOT_IMPLEMENTED, &format!("{path} is not implemented by this version of crio")),
        }
    }

    fn is_known(&self, what: (&str, Option<&str>)) -> bool {
        match what {
            ("info" | "config" | "pulls", None) | ("debug", Some("goroutines" | "heap")) => true,
            ("containers" | "pause" | "unpause", Some(id)) => !id.is_empty() && !id.contains('/'),
            ("debug", Some(rest)) => self.is_profiling && rest.starts_with("pprof/"),
            _ => false,
        }
    }

    fn paused(&self, id: &str, result: Result<(), PauseError>) -> Response<Body> {
        match result {
            Ok(()) => response(StatusCode::OK, "text/html", "200 OK".to_owned()),
            Err(PauseError::Lookup(LookupError::Absent { .. })) => absent(id),
            Err(PauseError::Lookup(error)) => text(StatusCode::BAD_REQUEST, &error.to_string()),
            Err(error @ PauseError::State { .. }) => text(StatusCode::CONFLICT, &error.to_string()),
            Err(error @ PauseError::Runtime { .. }) => {
                text(StatusCode::INTERNAL_SERVER_ERROR, &telemetry::chain(&error).to_string())
            }
        }
    }
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn text(status: StatusCode, line: &str) -> Response<Body> {
    response(status, TEXT, format!("{line}\n"))
}

fn absent(id: &str) -> Response<Body> {
    // An id is the client's word; control characters in it are not repeated.
    let id: String = id.chars().filter(|character| !character.is_control()).take(128).collect();
    text(StatusCode::NOT_FOUND, &format!("can't find the container with id {id}"))
}

fn info(config: &Config) -> serde_json::Value {
    let mappings = |configured: &[config::IdMapping]| -> Vec<serde_json::Value> {
        let mapping = |container, host, size| json!({"container_id": container, "host_id": host, "size": size});
        if configured.is_empty() {
            return vec![mapping(0, 0, ALL_IDS)];
        }
        configured.iter().map(|range| mapping(range.container, range.host, range.size)).collect()
    };
    json!({
        "storage_driver": config.root.storage_driver.as_str(),
        "storage_image": config.root.imagestore.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        "storage_root": config.root.root.display().to_string(),
        "cgroup_driver": config.runtime.cgroup_manager.as_str(),
        "default_id_mappings": {
            "uids": mappings(&config.runtime.uid_mappings),
            "gids": mappings(&config.runtime.gid_mappings),
        },
    })
}

/// Ours: CRI-O tells nothing of pulls.
fn pulls(node: &Node) -> serde_json::Value {
    let pulls = node.pulls().into_iter().map(|(image, progress)| json!({"image": image, "progress": progress}));
    serde_json::Value::Array(pulls.collect())
}

fn container(inspection: &Inspection) -> serde_json::Value {
    json!({
        "name": inspection.name,
        "pid": inspection.pid,
        "image": inspection.image,
        "image_ref": inspection.image_ref,
        "created_time": inspection.created_nanos,
        "labels": inspection.labels,
        "annotations": inspection.annotations,
        "crio_annotations": inspection.spec_annotations,
        "log_path": inspection.log_path,
        "root": inspection.root,
        "sandbox": inspection.sandbox,
        "ip_addresses": inspection.ips,
        "host_network": inspection.is_on_host_network,
    })
}

/// What the daemon is at, for whoever wonders why it does not answer: tasks by number, threads by name and by what they
/// wait for. Tasks have no stacks of their own to show.
pub(crate) fn activity(node: &Node) -> String {
    let metrics = tokio::runtime::Handle::current().metrics();
    let mut out = format!(
        "{} sandboxes, {} containers, {} tasks on {} workers, {} tasks waiting for a worker\n",
        node.sandboxes().len(),
        node.containers().len(),
        metrics.num_alive_tasks(),
        metrics.num_workers(),
        metrics.global_queue_depth(),
    );
    let entries = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let mut threads: Vec<String> = entries
        .filter_map(|entry| {
            let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).ok();
            let state = read("stat")?.rsplit_once(") ")?.1.chars().next()?;
            let (name, place) = (read("comm")?, read("wchan").unwrap_or_default());
            let call = read("syscall").unwrap_or_default();
            let number = call.split(' ').next().unwrap_or_default().trim();
            let thread = entry.file_name().to_string_lossy().into_owned();
            Some(format!("thread {thread} {:?} state {state} system call {number} in {place}\n", name.trim_end()))
        })
        .collect();
    threads.sort();
    let _ = writeln!(out, "{} threads", threads.len());
    threads.iter().for_each(|line| out.push_str(line));
    out
}
