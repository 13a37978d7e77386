//! Networks with the reference plugins, and with scripts where those do not reach.

// A test that cannot be set up has failed.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{attachment, chain, id, on_node, sh};
use network::{Network, NetworkOptions};
use serde_json::{Value, json};

/// A plugin that writes down each call as a file and answers like a good one.
///
/// Files are `log/<counter>-<verb>-<name>`; `fail/<verb>-<name>` holds the error object of a verb that is to fail.
fn recorder(node: &common::NodeRef, name: &str) {
    let root = node.root.display();
    node.plugin(
        name,
        &format!(
            r#"input=$(cat)
if [ "$CNI_COMMAND" = VERSION ]; then
    echo '{{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}}'
    exit 0
fi
number=$(ls {root}/log | wc -l)
printf '%s' "$input" > {root}/log/$(printf %03d $number)-$CNI_COMMAND-{name}
env | grep ^CNI_ | sort > {root}/env-$CNI_COMMAND-{name}
if [ -e {root}/fail/$CNI_COMMAND-{name} ]; then
    cat {root}/fail/$CNI_COMMAND-{name}
    exit 1
fi
if [ "$CNI_COMMAND" = ADD ]; then
    echo '{{"cniVersion":"1.1.0","ips":[{{"address":"192.0.2.7/24"}}],"by":"{name}"}}'
fi"#
        ),
    );
}

/// `VERB-plugin` of each call, and their inputs; the log is emptied.
fn calls(node: &common::NodeRef) -> (String, Vec<Value>) {
    let mut files: Vec<_> = std::fs::read_dir(node.path("log")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let name = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap()[4..].to_owned();
    let names: Vec<String> = files.iter().map(name).collect();
    let inputs = files.iter().map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect();
    for file in files {
        std::fs::remove_file(file).unwrap();
    }
    (names.join(" "), inputs)
}

const TWO: &str = r#"{"cniVersion":"1.1.0","name":"rec","plugins":[
    {"type":"one","capabilities":{"bandwidth":true,"cgroupPath":true,"portMappings":true},"own":1},
    {"type":"two","capabilities":{"io.kubernetes.cri.pod-annotations":true,"bandwidth":false}}]}"#;

#[test]
fn reference_plugins_of_every_version() {
    on_node(async |node| {
        for (number, version) in (10..).zip(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"]) {
            let body = node.bridge_conf(version, number);
            let name = format!("real{number}");
            if version < "0.3.0" {
                node.write("conf/10.conf", &format!(r#"{{"cniVersion":"{version}","name":"{name}",{body}}}"#));
            } else {
                let list = format!(
                    r#"{{"cniVersion":"{version}","name":"{name}","plugins":[{{{body}}},{{"type":"portmap"}}]}}"#
                );
                node.write("conf/10.conflist", &list);
                let _ = std::fs::remove_file(node.path("conf/10.conf"));
            }
            let network = node.network().await;
            network.status().await.unwrap();
            assert_eq!(network.default_network().as_ref(), Some(&name));
            let netns = node.new_netns(&name);
            let attachment = attachment(number, Some(netns.clone()));
            let result = network.add(&attachment).await.unwrap_or_else(|error| panic!("{version}: {}", chain(&error)));
            assert_eq!(result.ips[0].to_string(), format!("10.{number}.0.2"), "{version}");
            assert_eq!(result.ips.len(), if version < "0.3.0" { 1 } else { 2 });
            let raw: Value = serde_json::from_str(&result.raw).unwrap();
            assert_eq!(raw["cniVersion"], "1.1.0");
            let inside = node.inside(&netns, || sh("ip -o addr show eth0", ""));
            for ip in &result.ips {
                assert!(inside.contains(&format!(" {ip}/")), "{inside}");
            }
            let file = format!("{name}-{}-eth0", id(number));
            assert_eq!(node.cache_files(), std::slice::from_ref(&file));
            let cached: Value =
                serde_json::from_slice(&std::fs::read(node.path("cache/results").join(file)).unwrap()).unwrap();
            assert_eq!(cached["kind"], "cniCacheV1");
            assert_eq!(cached["result"]["cniVersion"], version);
            assert_eq!(cached["netns"], netns.to_str().unwrap());
            assert_eq!(network.cached_result(&id(number)).as_ref(), Some(&result));
            network.check(&attachment).await.unwrap_or_else(|error| panic!("{version}: {}", chain(&error)));
            if version >= "0.4.0" {
                node.inside(&netns, || sh("ip addr flush dev eth0", ""));
                let error = chain(&network.check(&attachment).await.unwrap_err());
                assert!(
                    error.starts_with(&format!("error checking pod default_pod{number} for CNI network")),
                    "{error}"
                );
            }
            assert_eq!(node.leases(&name).len(), result.ips.len());
            network.del(&attachment).await.unwrap();
            network.del(&attachment).await.unwrap();
            assert!(node.cache_files().is_empty() && node.leases(&name).is_empty());
            assert_eq!(network.cached_result(&id(number)), None);
            assert!(!node.inside(&netns, || sh("ip -o link", "")).contains("eth0"));
        }
    });
}

#[test]
fn addresses_come_back_without_the_namespace() {
    on_node(async |node| {
        let body = node.bridge_conf("1.0.0", 20);
        node.write("conf/10.conflist", &format!(r#"{{"cniVersion":"1.0.0","name":"lost","plugins":[{{{body}}}]}}"#));
        let network = node.network().await;
        let netns = node.new_netns("lost");
        network.add(&attachment(1, Some(netns.clone()))).await.unwrap();
        sys::namespace::unpin(&netns).unwrap();
        // Nor is the configuration there any more.
        std::fs::remove_file(node.path("conf/10.conflist")).unwrap();
        let after_restart = node.network().await;
        assert_eq!(after_restart.default_network(), None);
        assert_eq!(after_restart.cached_result(&id(1)).unwrap().ips[0].to_string(), "10.20.0.2");
        after_restart.del(&attachment(1, None)).await.unwrap();
        assert!(node.cache_files().is_empty() && node.leases("lost").is_empty());
        let error = after_restart.del(&attachment(1, None)).await.unwrap_err();
        assert!(error.to_string().starts_with("no CNI configuration file in "), "{error}");
    });
}

#[test]
fn sandboxes_are_attached_at_the_same_time() {
    on_node(async |node| {
        let body = node.bridge_conf("1.0.0", 21);
        node.write("conf/10.conflist", &format!(r#"{{"cniVersion":"1.0.0","name":"many","plugins":[{{{body}}}]}}"#));
        let network = node.network().await;
        let all: Vec<_> = (1..=8).map(|n| attachment(n, Some(node.new_netns(&format!("many{n}"))))).collect();
        let results = futures_util::future::join_all(all.iter().map(|one| network.add(one))).await;
        let mut ips: Vec<_> = results.into_iter().map(|result| result.unwrap().ips[0]).collect();
        ips.sort();
        ips.dedup();
        assert_eq!(ips.len(), 8);
        for result in futures_util::future::join_all(all.iter().map(|one| network.del(one))).await {
            result.unwrap();
        }
        assert!(node.cache_files().is_empty() && node.leases("many").is_empty());
    });
}

#[test]
fn plugins_are_told_what_they_asked_for() {
    on_node(async |node| {
        recorder(&node, "one");
        recorder(&node, "two");
        node.write("conf/10.conflist", TWO);
        let network = node.network().await;
        let mut attachment = attachment(3, Some("/some/netns".into()));
        attachment.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "1M".into());
        attachment.cgroup_parent = "/kubepods/pod3".into();
        let result = network.add(&attachment).await.unwrap();
        assert_eq!(result.raw, r#"{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.7/24"}]}"#);
        let (names, inputs) = calls(&node);
        assert_eq!(names, "STATUS-one STATUS-two ADD-one ADD-two");
        assert_eq!(
            inputs[2],
            json!({"type":"one","cniVersion":"1.1.0","name":"rec","own":1,
                "capabilities":{"bandwidth":true,"cgroupPath":true,"portMappings":true},
                "runtimeConfig":{"cgroupPath":"/kubepods/pod3","bandwidth":{"ingressRate":1_000_000,
                    "ingressBurst":34_359_738_359_u64,"egressRate":0,"egressBurst":0}}})
        );
        assert_eq!(inputs[3]["prevResult"]["by"], "one");
        assert_eq!(
            inputs[3]["runtimeConfig"],
            json!({"io.kubernetes.cri.pod-annotations":{"kubernetes.io/ingress-bandwidth":"1M"}})
        );
        let environment = std::fs::read_to_string(node.path("env-ADD-two")).unwrap();
        let args = format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod3;K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=uid-3",
            id(3)
        );
        assert!(environment.contains(&args), "{environment}");
        let gc_environment = std::fs::read_to_string(node.path("env-STATUS-one")).unwrap();
        assert!(!gc_environment.contains("CNI_NETNS") && !gc_environment.contains("CNI_CONTAINERID"));

        // Removal: backwards, with the result, and with what the configuration was at ADD.
        node.write("conf/10.conflist", &TWO.replace(r#""own":1"#, r#""own":2"#));
        network.load().await;
        calls(&node);
        attachment.netns = None;
        network.del(&attachment).await.unwrap();
        let (names, inputs) = calls(&node);
        assert_eq!(names, "DEL-two DEL-one");
        assert_eq!(inputs[1]["own"], 1);
        assert_eq!(inputs[1]["prevResult"]["by"], "two");
        assert_eq!(inputs[1]["runtimeConfig"]["cgroupPath"], "/kubepods/pod3");
        let environment = std::fs::read_to_string(node.path("env-DEL-one")).unwrap();
        assert!(environment.contains("CNI_NETNS=\n"), "{environment}");

        // Not in the cache: the present configuration, without a result.
        network.del(&attachment).await.unwrap();
        let (names, inputs) = calls(&node);
        assert_eq!(names, "DEL-two DEL-one");
        assert_eq!((&inputs[1]["own"], inputs[1].get("prevResult")), (&json!(2), None));
    });
}

#[test]
fn a_failed_add_is_taken_back() {
    on_node(async |node| {
        recorder(&node, "one");
        recorder(&node, "two");
        node.write("conf/10.conflist", TWO);
        node.write("fail/ADD-two", r#"time="x" level=error {"cniVersion":"1.1.0","code":11,"msg":"no tunnel yet"}"#);
        let network = node.network().await;
        calls(&node);
        let error = network.add(&attachment(4, Some("/some/netns".into()))).await.unwrap_err();
        assert_eq!(
            chain(&error),
            r#"error adding pod default_pod4 to CNI network "rec": plugin type="two" failed (add): no tunnel yet"#
        );
        assert_eq!(calls(&node).0, "ADD-one ADD-two DEL-two DEL-one");
        assert!(node.cache_files().is_empty());

        // What cannot be written down is taken back too.
        std::fs::remove_dir_all(node.path("fail")).unwrap();
        std::fs::remove_dir_all(node.path("cache/results")).unwrap_or_default();
        node.write("cache/results", "a file");
        let error = network.add(&attachment(4, Some("/some/netns".into()))).await.unwrap_err();
        assert!(error.to_string().starts_with("write CNI cache entry of pod default_pod4"), "{error}");
        assert_eq!(calls(&node).0, "ADD-one ADD-two DEL-two DEL-one");

        // A plugin that hangs.
        std::fs::remove_file(node.path("cache/results")).unwrap();
        node.plugin("two", r#"[ "$CNI_COMMAND" = ADD ] && sleep 1000; echo '{"supportedVersions":["1.1.0"]}'"#);
        network.load().await;
        calls(&node);
        let started = Instant::now();
        let limit = Duration::from_millis(300);
        let error = network.add_within(&attachment(4, Some("/some/netns".into())), limit).await.unwrap_err();
        assert!(chain(&error).contains("and was killed"), "{}", chain(&error));
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_eq!(calls(&node).0, "ADD-one DEL-one");
    });
}

#[test]
fn requests_that_would_mislead_plugins_call_none() {
    on_node(async |node| {
        recorder(&node, "one");
        recorder(&node, "two");
        node.write("conf/10.conflist", TWO);
        let network = node.network().await;
        calls(&node);
        let mut bad = attachment(5, Some("/n".into()));
        bad.uid = "x;K8S_POD_NAME=other".into();
        assert!(chain(&network.add(&bad).await.unwrap_err()).contains("K8S_POD_UID"));
        let mut bad = attachment(5, Some("/n".into()));
        bad.annotations.insert("kubernetes.io/egress-bandwidth".into(), "fast".into());
        let error = network.add(&bad).await.unwrap_err().to_string();
        assert_eq!(error, r#"failed to parse egress bandwidth: "fast" is not a quantity"#);
        assert_eq!(calls(&node).0, "");
    });
}

#[test]
fn garbage_of_1_1_0_is_collected() {
    on_node(async |node| {
        recorder(&node, "one");
        recorder(&node, "two");
        node.write("conf/10.conflist", TWO);
        let first = node.network().await;
        for number in [1, 2] {
            first.add(&attachment(number, Some("/n".into()))).await.unwrap();
        }
        // Somebody else's, and one of a network that is not configured here.
        let foreign = std::fs::read_to_string(node.path("cache/results").join(format!("rec-{}-eth0", id(1)))).unwrap();
        node.write("cache/results/rec-abc-eth0", &foreign.replace(id(1).as_str(), "abc"));
        node.write(
            &format!("cache/results/x-{}-eth0", id(9)),
            &foreign.replace(id(1).as_str(), id(9).as_str()).replace(r#""networkName":"rec""#, r#""networkName":"x""#),
        );
        let network = node.network().await;
        network.add(&attachment(3, Some("/n".into()))).await.unwrap();
        calls(&node);
        network.gc(&[id(2)]).await.unwrap();
        let (names, inputs) = calls(&node);
        assert_eq!(names, "DEL-two DEL-one GC-one GC-two");
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let mut valid: Vec<String> = inputs[2][key].as_array().unwrap().iter().map(Value::to_string).collect();
            valid.sort();
            let expected = [2, 3].map(|n| format!(r#"{{"containerID":"{}","ifname":"eth0"}}"#, id(n)));
            assert_eq!(valid, expected, "{key}");
        }
        let files = [
            format!("rec-{}-eth0", id(2)),
            format!("rec-{}-eth0", id(3)),
            "rec-abc-eth0".into(),
            format!("x-{}-eth0", id(9)),
        ];
        assert_eq!(node.cache_files(), files);

        node.write("fail/DEL-one", r#"{"code":5,"msg":"disk"}"#);
        node.write("fail/GC-one", r#"{"code":5,"msg":"full"}"#);
        let error = node.network().await.gc(&[id(2)]).await.unwrap_err();
        assert_eq!((error.asked, error.failed.len()), (2, 2), "{error:?}");
        assert!(error.failed[0].ends_with(r#"plugin type="one" failed (delete): disk"#), "{error:?}");
        assert!(error.failed[1].ends_with("plugin one: full"), "{error:?}");

        node.write("conf/10.conflist", &TWO.replace(r#""name""#, r#""disableGC":"true","name""#));
        calls(&node);
        node.network().await.gc(&[]).await.unwrap();
        assert!(!calls(&node).0.contains("GC"));
        network.forget(&id(3)).unwrap();
        assert!(!node.cache_files().contains(&format!("rec-{}-eth0", id(3))));
    });
}

#[test]
fn status_of_1_1_0_and_grace() {
    on_node(async |node| {
        recorder(&node, "one");
        recorder(&node, "two");
        node.write("conf/10.conflist", TWO);
        node.write("fail/STATUS-two", r#"{"cniVersion":"1.1.0","code":50,"msg":"agent is down"}"#);
        let network = node.network().await;
        assert_eq!(network.status().await.unwrap_err().to_string(), "agent is down");
        let graceful = Network::new(NetworkOptions { status_grace: Duration::from_secs(60), ..node.options() });
        assert!(graceful.status().await.is_err());
        std::fs::remove_dir_all(node.path("fail")).unwrap();
        network.status().await.unwrap();
        graceful.load().await;
        graceful.status().await.unwrap();
        node.write("fail/STATUS-two", r#"{"code":51}"#);
        assert_eq!(network.status().await.unwrap_err().to_string(), "plugin error code 51");
        graceful.load().await;
        graceful.status().await.unwrap();
    });
}

#[test]
fn unusable_configuration_is_skipped() {
    on_node(async |node| {
        let empty = node.network().await;
        let text =
            format!("no CNI configuration file in {}. Has your network provider started?", node.path("conf").display());
        assert_eq!(empty.status().await.unwrap_err().to_string(), text);
        assert_eq!(empty.add(&attachment(1, Some("/n".into()))).await.unwrap_err().to_string(), text);
        recorder(&node, "one");
        node.plugin("old", r#"echo '{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}'; exit 1"#);
        node.plugin("broken", "exit 1");
        for (name, text) in [
            ("00.conf", "{"),
            ("01.conflist", r#"{"cniVersion":"1.0.0","name":"absent","plugins":[{"type":"absent"}]}"#),
            ("02.conflist", r#"{"cniVersion":"0.3.1","name":"toonew","plugins":[{"type":"one"}]}"#),
            ("03.json", r#"{"cniVersion":"1.0.0","name":"broken","type":"broken"}"#),
            ("04.conflist", r#"{"cniVersion":"1.0.0","name":"nothing"}"#),
            ("05.txt", r#"{"cniVersion":"1.0.0","name":"text","type":"one"}"#),
            ("06.conf/x.conf", r#"{"cniVersion":"1.0.0","name":"deep","type":"one"}"#),
            (
                "10.conflist",
                r#"{"cniVersion":"1.0.0","cniVersions":["0.4.0","1.1.0"],"name":"good","plugins":[{"type":"one"}]}"#,
            ),
            ("11.json", r#"{"cniVersion":"1.0.0","name":"good","type":"one","second":true}"#),
            ("12.conf", r#"{"name":"veryold","type":"old"}"#),
            ("13.conflist", r#"{"cniVersion":"1.0.0","name":"files"}"#),
            ("files/b.conf", r#"{"type":"one","file":"b"}"#),
            ("files/a.conf", r#"{"type":"one","file":"a"}"#),
        ] {
            node.write(&format!("conf/{name}"), text);
        }
        sh(&format!("mkfifo '{}'", node.path("conf/07.conf").display()), "");
        let named = async |name: Option<&str>| {
            let network = Network::new(NetworkOptions { default_network: name.map(str::to_owned), ..node.options() });
            network.load().await;
            network.default_network()
        };
        assert_eq!(named(None).await.as_deref(), Some("good"));
        for name in ["good", "veryold", "files"] {
            assert_eq!(named(Some(name)).await.as_deref(), Some(name));
        }
        for name in ["absent", "toonew", "broken", "nothing", "text", "deep"] {
            assert_eq!(named(Some(name)).await, None, "{name}");
        }
        // Whoever is told that there is none is told what was no use.
        let network = Network::new(NetworkOptions { default_network: Some("absent".into()), ..node.options() });
        network.load().await;
        let why = network.status().await.unwrap_err().to_string();
        assert!(why.starts_with(&text) && why.contains("01.conflist: ") && why.contains("absent"), "{why}");
        // Plugins from the directory are called, and removed by the cache alone.
        let network = Network::new(NetworkOptions { default_network: Some("files".into()), ..node.options() });
        network.load().await;
        calls(&node);
        network.add(&attachment(6, Some("/n".into()))).await.unwrap();
        std::fs::remove_dir_all(node.path("conf/files")).unwrap();
        network.del(&attachment(6, Some("/n".into()))).await.unwrap();
        let (names, inputs) = calls(&node);
        assert_eq!(names, "ADD-one ADD-one DEL-one DEL-one");
        let order: Vec<&Value> = inputs.iter().map(|input| &input["file"]).collect();
        assert_eq!(order, ["a", "b", "b", "a"]);
    });
}

#[test]
fn changes_are_followed() {
    on_node(async |node| {
        let bin = node.path("bin2/deep");
        let options =
            NetworkOptions { plugin_dirs: vec![bin.clone()], conf_dir: node.path("conf2/net.d"), ..node.options() };
        let network = Network::new(options);
        let _watch = network.spawn_watch();
        let wait = async |ready: bool| {
            let started = Instant::now();
            while network.status().await.is_ok() != ready {
                assert!(started.elapsed() < Duration::from_secs(3), "ready={ready} not seen");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            started.elapsed()
        };
        let refused = network.wait_ready(Duration::from_millis(200)).await.unwrap_err();
        assert!(refused.to_string().starts_with("no CNI configuration file in"), "{refused}");
        let conf = r#"{"cniVersion":"1.0.0","name":"late","type":"one"}"#;
        // The configuration first, its plugin later.
        node.write("conf2/net.d/10.conf", conf);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(network.status().await.is_err());
        recorder(&node, "one");
        rustix::fs::rename(node.path("bin/one"), bin.join("one")).unwrap();
        let started = Instant::now();
        network.wait_ready(Duration::from_secs(5)).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        network.wait_ready(Duration::ZERO).await.unwrap();
        // Gone, back, and the whole directory gone and back.
        std::fs::remove_file(node.path("conf2/net.d/10.conf")).unwrap();
        assert!(wait(false).await < Duration::from_secs(1));
        node.write("conf2/net.d/11.conf", conf);
        assert!(wait(true).await < Duration::from_secs(1));
        std::fs::remove_dir_all(node.path("conf2")).unwrap();
        assert!(wait(false).await < Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.write("conf2/net.d/12.conf", conf);
        assert!(wait(true).await < Duration::from_secs(1));
        rustix::fs::rename(node.path("conf2/net.d"), node.path("conf2/old")).unwrap();
        assert!(wait(false).await < Duration::from_secs(1));
        // A plugin that vanishes.
        node.write("conf2/net.d/13.conf", conf);
        wait(true).await;
        std::fs::remove_file(bin.join("one")).unwrap();
        assert!(wait(false).await < Duration::from_secs(1));
    });
}
