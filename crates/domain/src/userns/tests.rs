use super::*;
use crate::security::NamespaceOptions;

fn map(text: &str) -> Vec<IdMapping> {
    if text.is_empty() { vec![] } else { parse_mappings(text).expect("mappings") }
}

fn maps(uids: &str, gids: &str) -> IdMaps {
    IdMaps::new(map(uids), map(gids)).expect("maps")
}

fn options(mode: NamespaceMode, uids: &str, gids: &str) -> UserNamespace {
    UserNamespace { mode, uids: map(uids), gids: map(gids) }
}

fn decide(security: &SandboxSecurity, annotation: Option<&str>, policy: &UsernsPolicy) -> Result<PodIds, String> {
    pod_ids(security, annotation, policy).map_err(|error| error.to_string())
}

#[test]
fn the_request_asks_for_one_range() {
    use NamespaceMode::{Container, Node, Pod, Target};
    let policy = UsernsPolicy { minimum_uid: Some(1000), minimum_gid: Some(1000), ..UsernsPolicy::default() };
    for (mode, uids, gids, expected) in [
        (Node, "", "", Ok(PodIds::Node)),
        (Pod, "0:100000:65536", "0:100000:65536", Ok(PodIds::Cri(maps("0:100000:65536", "0:100000:65536")))),
        (Pod, "0:100000:65536", "0:200000:65536", Ok(PodIds::Cri(maps("0:100000:65536", "0:200000:65536")))),
        (Pod, "", "", Err("exactly one mapping of uids is expected, there are 0")),
        (Pod, "0:100000:5", "", Err("exactly one mapping of gids is expected, there are 0")),
        (Pod, "0:100000:5,5:200000:5", "0:1000:5", Err("exactly one mapping of uids is expected, there are 2")),
        (Pod, "1:100000:5", "0:100000:5", Err("uid 0 of the user namespace is not mapped")),
        (Pod, "0:999:5", "0:100000:5", Err("uid mapping 0:999:5 is below minimum_mappable_uid 1000")),
        (Pod, "0:1000:5", "0:0:5", Err("gid mapping 0:0:5 is below minimum_mappable_gid 1000")),
        (Node, "0:1000:5", "0:1000:5", Err("although the user namespace is the node's")),
        (Container, "0:1000:5", "0:1000:5", Err("is the pod's or the node's")),
        (Target, "", "", Err("is the pod's or the node's")),
    ] {
        let namespaces = NamespaceOptions { user: Some(options(mode, uids, gids)), ..NamespaceOptions::default() };
        let security = SandboxSecurity { namespaces, ..SandboxSecurity::default() };
        // What the request says, the annotation does not change.
        let decided = decide(&security, Some("auto"), &policy);
        match expected {
            Ok(expected) => assert_eq!(decided, Ok(expected)),
            Err(part) => assert!(decided.as_ref().is_err_and(|error| error.contains(part)), "{part}: {decided:?}"),
        }
    }
}

#[test]
fn containers_are_where_their_pod_is() {
    use NamespaceMode::{Node, Pod};
    let (one, two) = ("0:100000:5", "0:200000:5");
    let pod = |ids| options(Pod, ids, ids);
    let node = options(Node, "", "");
    let made = maps(one, one);
    for (asked, of_pod, made, is_fine) in [
        (None, None, None, true),
        (None, Some(pod(one)), Some(&made), true),
        (Some(node.clone()), None, None, true),
        (Some(node.clone()), Some(node.clone()), None, true),
        (Some(pod(one)), Some(pod(one)), Some(&made), true),
        (Some(pod(two)), Some(pod(one)), Some(&made), false),
        (Some(pod(one)), Some(node.clone()), None, false),
        (Some(pod(one)), None, None, false),
        (Some(node.clone()), Some(pod(one)), Some(&made), false),
        // A pod whose annotation gave it ids, and a container that wants those of the node.
        (Some(node), None, Some(&made), false),
        (Some(pod("0:100000:5,5:9:1")), Some(pod(one)), Some(&made), false),
    ] {
        let checked = check_container(asked.as_ref(), of_pod.as_ref(), made);
        assert_eq!(checked.is_ok(), is_fine, "{asked:?} {of_pod:?} {made:?}");
    }
}

#[test]
fn annotations_are_read_or_refused() {
    let asked = |size, uids: &str, gids: &str| PodIds::Auto(AutoIds { size, uids: map(uids), gids: map(gids) });
    let given = |uids: &str, gids: &str| PodIds::Given(maps(uids, gids));
    for (mode, expected) in [
        ("auto", Ok(asked(65536, "", ""))),
        ("auto:size=10", Ok(asked(10, "", ""))),
        ("auto:keep-id=true;map-to-root=false", Ok(asked(65536, "", ""))),
        ("auto:uidmapping=0:5000:1;gidmapping=7:9:2,9:6:1", Ok(asked(65536, "0:5000:1", "7:9:2,9:6:1"))),
        ("private:uidmapping=0:1000:2000,2000:5000:7;gidmapping=0:9:5", Ok(given("0:1000:2000,2000:5000:7", "0:9:5"))),
        ("private:uidmapping=0:0:10", Ok(given("0:0:10", "0:0:10"))),
        ("private:gidmapping=0:0:10", Ok(given("0:0:10", "0:0:10"))),
        ("private", Err("private needs uidmapping or gidmapping")),
        ("private:", Err("\"\" is not an option")),
        ("auto:", Err("\"\" is not an option")),
        ("auto:size", Err("\"size\" is not an option")),
        ("auto:size=0", Err("size \"0\" is not a number of ids")),
        ("auto:size=4294967296", Err("size \"4294967296\" is not a number of ids")),
        ("auto:size=-1", Err("is not a number of ids")),
        ("auto:size=+1", Err("is not a number of ids")),
        ("auto:size=1;size=2", Err("size is given twice")),
        ("auto:keep-id=true;map-to-root=true", Err("exclude each other")),
        ("auto:keep-id=yes", Err("\"yes\" is neither true nor false")),
        ("auto:other=1", Err("auto has no option \"other\"")),
        ("private:size=5;uidmapping=0:0:1", Err("private has no option \"size\"")),
        ("keep-id", Err("neither auto nor private")),
        ("host", Err("neither auto nor private")),
        ("AUTO", Err("neither auto nor private")),
        ("private:uidmapping=", Err("\"\" is not container:host:length")),
        ("private:uidmapping=0:1", Err("is not container:host:length")),
        ("private:uidmapping=0:1:2:3", Err("is not container:host:length")),
        ("private:uidmapping=0:1:x", Err("is not container:host:length")),
        ("private:uidmapping=0:4294967296:1", Err("is not container:host:length")),
        ("private:uidmapping=0:1000:0", Err("0:1000:0 is empty or exceeds")),
        ("private:uidmapping=0:4294967290:9", Err("0:4294967290:9 is empty or exceeds")),
        ("private:uidmapping=0:1000:5,3:2000:5", Err("uid mappings 0:1000:5 and 3:2000:5 overlap")),
        ("private:uidmapping=1:0:5", Err("uid 0 of the user namespace is not mapped")),
    ] {
        let security = SandboxSecurity { run_as_user: Some(0), ..SandboxSecurity::default() };
        let decided = decide(&security, Some(mode), &UsernsPolicy::default());
        match expected {
            Ok(expected) => assert_eq!(decided, Ok(expected), "{mode}"),
            Err(part) => assert!(decided.as_ref().is_err_and(|error| error.contains(part)), "{mode}: {decided:?}"),
        }
    }
    let long = format!("auto:size={}", "1".repeat(MODE_MAX_BYTES));
    assert!(decide(&SandboxSecurity::default(), Some(&long), &UsernsPolicy::default()).is_err());
}

#[test]
fn the_pods_own_ids_have_a_place() {
    let security = SandboxSecurity {
        run_as_user: Some(1000),
        run_as_group: Some(2000),
        supplemental_groups: vec![3000, 2000],
        ..SandboxSecurity::default()
    };
    let policy = UsernsPolicy { minimum_uid: Some(500), ..UsernsPolicy::default() };
    for (mode, uids, gids) in [
        ("auto", "0:1000:1", "0:2000:1,1:3000:1"),
        ("auto:keep-id=true", "1000:1000:1", "2000:2000:1,3000:3000:1"),
        ("auto:map-to-root=true", "0:1000:1", "0:2000:1,1:3000:1"),
        ("auto:uidmapping=0:900:5;gidmapping=0:1500:1000", "0:900:5,5:1000:1", "0:1500:1000,1000:3000:1"),
    ] {
        let decided = decide(&security, Some(mode), &policy);
        let Ok(PodIds::Auto(asked)) = decided else { panic!("{mode}: {decided:?}") };
        assert_eq!((asked.uids, asked.gids), (map(uids), map(gids)), "{mode}");
    }
    let decided = decide(&security, Some("private:uidmapping=0:900:5;gidmapping=0:1500:1000"), &policy);
    assert_eq!(decided, Ok(PodIds::Given(maps("0:900:5,5:1000:1", "0:1500:1000,1000:3000:1"))));
}

#[test]
fn minimums_and_defaults_are_the_operators() {
    let user = |run_as_user| SandboxSecurity { run_as_user, ..SandboxSecurity::default() };
    let default = maps("0:100000:10", "0:100000:10");
    let minimum = |uid, gid| UsernsPolicy { default: Some(default.clone()), minimum_uid: uid, minimum_gid: gid };
    let mapped = "private:uidmapping=0:5000:10;gidmapping=0:6000:10";
    for (user, mode, policy, expected) in [
        (user(None), None, minimum(None, None), Ok(PodIds::Given(default.clone()))),
        (user(None), Some(""), minimum(None, None), Ok(PodIds::Given(default.clone()))),
        (user(None), Some("private"), minimum(None, None), Ok(PodIds::Given(default.clone()))),
        (user(None), None, UsernsPolicy::default(), Ok(PodIds::Node)),
        (user(None), None, minimum(Some(100_001), None), Err("uid mapping 0:100000:10 is below")),
        (user(None), Some(mapped), minimum(None, None), Err("need run_as_user")),
        (user(Some(5001)), Some(mapped), minimum(None, None), Err("need minimum_mappable_uid")),
        (user(Some(5001)), Some(mapped), minimum(Some(5002), None), Err("below minimum_mappable_uid 5002")),
        (user(Some(5001)), Some(mapped), minimum(Some(5001), None), Err("uid mapping 0:5000:10 is below")),
        (user(Some(5001)), Some(mapped), minimum(Some(5000), Some(6001)), Err("gid mapping 0:6000:10 is below")),
        (
            user(Some(5001)),
            Some(mapped),
            minimum(Some(5000), Some(6000)),
            Ok(PodIds::Given(maps("0:5000:10", "0:6000:10"))),
        ),
        // Root of the node is not brought in by a pod that runs as root.
        (user(Some(0)), Some(mapped), minimum(Some(1), None), Ok(PodIds::Given(maps("0:5000:10", "0:6000:10")))),
        (user(Some(9)), Some("auto:keep-id=true"), minimum(Some(10), None), Err("uid mapping 9:9:1 is below")),
    ] {
        let decided = decide(&user, mode, &policy);
        match expected {
            Ok(expected) => assert_eq!(decided, Ok(expected), "{mode:?}"),
            Err(part) => assert!(decided.as_ref().is_err_and(|error| error.contains(part)), "{part}: {decided:?}"),
        }
    }
}

#[test]
fn groups_that_may_ping_are_in_the_namespace() {
    let maps = maps("0:1:1", "0:100000:1000,65534:5:1");
    for (name, value, expected) in [
        ("net.ipv4.ping_group_range", "0 2147483647", Some("0 65534")),
        ("net.ipv4.ping_group_range", "0\t2147483647 ", Some("0 65534")),
        ("net.ipv4.ping_group_range", "0 5", None),
        ("net.ipv4.ping_group_range", "1 0", None),
        ("net.ipv4.ip_local_port_range", "0 2147483647", None),
    ] {
        assert_eq!(fit_sysctl(name, value, &maps).as_deref(), expected, "{name} {value:?}");
    }
}

#[test]
fn mutations_of_modes_are_modes_or_errors() {
    let sample = b"auto:size=10;keep-id=true;map-to-root=false;uidmapping=0:5000:1,3:9000:4;gidmapping=7:9:2";
    for at in 0..sample.len() {
        for byte in [b':', b';', b'=', b',', b'0', b'9', b'-', b'x', 0] {
            let mut mutated = sample.to_vec();
            mutated[at] = byte;
            fuzz_mode(&mutated);
        }
        fuzz_mode(&sample[..at]);
    }
}
