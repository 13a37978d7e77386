//! Against the hierarchies of this machine, below `/crio-test-<pid>-<name>`, removed whatever happens.
//! Needs root; without it every test says that it was skipped.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cgroup::Layout;

struct Tree {
    layout: Layout,
    top: String,
    children: Vec<Child>,
}

impl Tree {
    fn new(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: cgroups can be made by root only");
            return None;
        }
        let layout = Layout::detect().expect("cgroups are mounted");
        let top = format!("/crio-test-{}-{name}", std::process::id());
        Some(Self { layout, top, children: vec![] })
    }

    fn path(&self, below: &str) -> String {
        format!("{}/{below}", self.top)
    }

    /// `script` runs in its own shell; the shell's pid is returned.
    fn start(&mut self, script: &str) -> i32 {
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        self.children.push(child);
        pid
    }

    fn reap(&mut self) {
        for mut child in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = self.layout.kill_all(&self.top, Duration::from_secs(5));
        self.reap();
        let removed = self.layout.remove(&self.top);
        if !std::thread::panicking() {
            removed.expect("the test's cgroups are removed");
        }
    }
}

#[test]
fn cgroups_are_made_and_removed_in_every_hierarchy() {
    let Some(tree) = Tree::new("make") else { return };
    let (layout, path) = (&tree.layout, tree.path("pod/crio-x"));
    assert!(!layout.exists(&path));
    layout.create(&path).expect("creates");
    layout.create(&path).expect("creating again is success");
    for controller in layout.controllers() {
        let directory = layout.directory(controller, &path).expect("has a directory");
        assert!(directory.join("cgroup.procs").exists(), "{}", directory.display());
    }
    assert_eq!(layout.processes(&path).expect("lists"), Vec::<i32>::new());
    assert_eq!(layout.oom_kills(&path).expect("reads"), Some(0));
    layout.remove(&tree.top).expect("removes");
    assert!(!layout.exists(&tree.top));
    layout.remove(&tree.top).expect("removing again is success");
    assert_eq!(layout.oom_kills(&path).expect("reads"), None);
}

#[test]
fn processes_move_are_listed_and_hold_their_cgroup() {
    let Some(mut tree) = Tree::new("move") else { return };
    let path = tree.path("a/b");
    tree.layout.create(&path).expect("creates");
    let pid = tree.start("sleep 60");
    // v1 with a cpuset: this fails unless the new cpuset got CPUs and memory nodes.
    tree.layout.move_process(&path, pid).expect("moves");
    assert!(tree.layout.processes(&tree.top).expect("lists").contains(&pid));
    let start = Instant::now();
    let error = tree.layout.remove(&path).expect_err("a process is in it");
    assert!(matches!(error, cgroup::RemoveError::Busy { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30), "retries are bounded");
    tree.layout.kill_all(&tree.top, Duration::from_secs(10)).expect("kills");
    tree.reap();
    tree.layout.remove(&tree.top).expect("removes");
    let gone = tree.layout.move_process(&path, 1);
    assert!(matches!(gone, Err(cgroup::MoveError::Write { .. })), "{gone:?}");
}

#[test]
fn a_crowd_that_forks_and_ignores_signals_is_ended() {
    let Some(mut tree) = Tree::new("kill") else { return };
    for name in ["one", "two/deep"] {
        let path = tree.path(name);
        tree.layout.create(&path).expect("creates");
        // Each shell waits to be moved, then keeps making children; TERM and HUP are ignored.
        let pid = tree.start("trap '' TERM HUP INT; sleep 0.3; while :; do sleep 30 & sleep 0.02; done");
        tree.layout.move_process(&path, pid).expect("moves");
    }
    std::thread::sleep(Duration::from_millis(600));
    let before = tree.layout.processes(&tree.top).expect("lists").len();
    assert!(before > 6, "{before} processes");
    let start = Instant::now();
    tree.layout.kill_all(&tree.top, Duration::from_secs(20)).expect("kills");
    println!("{before} processes ended in {:?}", start.elapsed());
    tree.reap();
}

#[test]
fn bystanders_survive() {
    let Some(mut tree) = Tree::new("bystander") else { return };
    let (inside, outside) = (tree.path("inside"), tree.path("outside"));
    tree.layout.create(&inside).expect("creates");
    tree.layout.create(&outside).expect("creates");
    let victim = tree.start("sleep 60");
    let bystander = tree.start("sleep 60");
    tree.layout.move_process(&inside, victim).expect("moves");
    tree.layout.move_process(&outside, bystander).expect("moves");
    tree.layout.kill_all(&inside, Duration::from_secs(10)).expect("kills");
    assert!(tree.layout.processes(&outside).expect("lists").contains(&bystander));
    assert!(std::path::Path::new(&format!("/proc/{bystander}")).exists());
}

#[test]
fn paths_that_lead_out_are_refused() {
    let Some(tree) = Tree::new("paths") else { return };
    for path in ["/", "", "relative", "/a/../../b"] {
        assert!(tree.layout.create(path).is_err(), "{path}");
        assert!(tree.layout.remove(path).is_err(), "{path}");
        assert!(tree.layout.processes(path).is_err(), "{path}");
        assert!(tree.layout.kill_all(path, Duration::ZERO).is_err(), "{path}");
    }
}
