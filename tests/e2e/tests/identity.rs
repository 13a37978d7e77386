//! Who a process is: what pod and image asked for, against what the kernel says, for created and executed programs.
#![forbid(unsafe_code)]

use cri_api::v1;
use e2e::cri::container_config;
use e2e::image::{Archive, Compression, Format, Recipe};
use e2e::{Setup, scenario, tools};
use serde_json::json;

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// What a process is, from `/proc/self/status`: user, group, the others in order.
fn identity(status: &str) -> (String, String, String) {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let four = |name: &str| {
        let ids: Vec<&str> = field(name).split_whitespace().collect();
        assert!(ids.len() == 4 && ids.iter().all(|id| *id == ids[0]), "real, effective, saved and of files: {ids:?}");
        ids[0].to_owned()
    };
    for name in ["CapInh:", "CapAmb:"] {
        assert_eq!(field(name).trim(), "0000000000000000", "{name}");
    }
    let mut groups: Vec<u32> = field("Groups:").split_whitespace().map(|id| id.parse().expect("an id")).collect();
    groups.sort_unstable();
    groups.dedup();
    let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
    (four("Uid:"), four("Gid:"), groups.join(" "))
}

/// containerd CVE-2024-40635, 2026-46680; crun CVE-2026-30892, CVE-2022-27650; CRI-O CVE-2018-1000400, 2022-2995,
/// 2022-27652; runc CVE-2022-29162; containerd CVE-2023-25173.
#[test]
fn a_process_is_who_it_was_asked_to_be() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        // Names made of digits, of which one would be root. No such groups: runc 1.1.5 itself looks the numbers of further
        // groups up as names.
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1001:guest:/home:/bin/sh\n4711:x:0:0::/:/bin/sh\n\
            4294967296:x:0:0::/:/bin/sh\n-u:x:0:0::/:/bin/sh\n";
        let group = b"root:x:0:\nguests:x:1001:\nextra:x:1002:guest\n";
        let files = Archive::default().file("etc/passwd", 0o644, passwd).file("etc/group", 0o644, group).finish();
        let pods = [
            cri.run_pod(world.pod_config("crun"), "crun").await.expect("RunPodSandbox"),
            cri.run_pod(world.pod_config("runc"), "runc").await.expect("RunPodSandbox"),
        ];
        let look = "cat /proc/self/status; exec sleep 3600";
        let assert_is = async |image: &str,
                               name: String,
                               change: &dyn Fn(&mut v1::LinuxContainerSecurityContext),
                               expected: Option<(&str, &str, &str)>| {
            for pod in &pods {
                let mut config = container_config(image, &name, &["sh", "-c", look]);
                change(security(&mut config));
                let made = cri.create(pod, config).await;
                let Some((uid, gid, groups)) = expected else {
                    let error = made.expect_err(&name);
                    assert_eq!(error.code(), tonic::Code::InvalidArgument, "{name}: {error:?}");
                    continue;
                };
                let container = made.unwrap_or_else(|error| panic!("{name}: {error:?}"));
                cri.start(&container.id).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
                let expected = (uid.to_owned(), gid.to_owned(), groups.to_owned());
                let read = || e2e::log::texts(&e2e::log::read(&container.log), "stdout").join("\n");
                let text = tools::becomes(&name, read, |text| text.contains("nonvoluntary_ctxt_switches")).await;
                assert_eq!(identity(&text), expected, "{name}");
                let text = cri.output(&container.id, &["cat", "/proc/self/status"]).await;
                assert_eq!(identity(&text), expected, "{name}: executed");
                cri.stop(&container.id, 0).await.expect("StopContainer");
            }
        };
        // By the image.
        for (number, (user, expected)) in [
            ("", Some(("0", "0", "0"))),
            ("guest", Some(("1000", "1001", "1001 1002"))),
            ("1000", Some(("1000", "1001", "1001 1002"))),
            ("1000:1002", Some(("1000", "1002", "1002"))),
            ("guest:extra", Some(("1000", "1002", "1002"))),
            ("4711", Some(("4711", "0", "0"))),
            ("0:1003", Some(("0", "1003", "1003"))),
            ("65534", Some(("65534", "0", "0"))),
            ("4294967294", Some(("4294967294", "0", "0"))),
            ("4294967295", None),
            ("4294967296", None),
            ("18446744073709551616", None),
            ("-1", None),
            ("+1", None),
            ("-u 1", None),
            // A name like any other, which the image says is root.
            ("-u", Some(("0", "0", "0"))),
            ("0x0", None),
            ("1000:4294967296", None),
            ("nobody-here", None),
            ("guest:nobody-here", None),
            ("root:x:0", None),
            ("\u{ff10}", None),
        ]
        .into_iter()
        .enumerate()
        {
            let image = Recipe::busybox(Format::Oci)
                .layer(files.clone(), Compression::Gzip)
                .config(json!({ "User": user }))
                .build();
            let image = world.registry().push(world, &format!("e2e/user-{number}:1"), &image);
            // A user that is none may already be a reason not to take the image.
            if cri.pull(&image).await.is_err() && expected.is_none() {
                continue;
            }
            assert_is(&image, format!("image-{number}"), &|_| {}, expected).await;
        }
        // By the pod, over an image that says otherwise.
        let image =
            Recipe::busybox(Format::Oci).layer(files, Compression::Gzip).config(json!({ "User": "guest" })).build();
        let image = world.registry().push(world, "e2e/users:1", &image);
        cri.pull(&image).await.expect("PullImage");
        type Change = Box<dyn Fn(&mut v1::LinuxContainerSecurityContext)>;
        let id = |value| Some(v1::Int64Value { value });
        let number = |user: i64| -> Change { Box::new(move |context| context.run_as_user = id(user)) };
        let name =
            |user: &'static str| -> Change { Box::new(move |context| context.run_as_username = user.to_owned()) };
        let both = |user: i64, group: i64| -> Change {
            Box::new(move |context| (context.run_as_user, context.run_as_group) = (id(user), id(group)))
        };
        let groups = |groups: &'static [i64], policy: v1::SupplementalGroupsPolicy| -> Change {
            Box::new(move |context| {
                context.run_as_user = id(1000);
                context.supplemental_groups = groups.to_vec();
                context.supplemental_groups_policy = policy.into();
            })
        };
        let (merge, strict) = (v1::SupplementalGroupsPolicy::Merge, v1::SupplementalGroupsPolicy::Strict);
        type Identity = (&'static str, &'static str, &'static str);
        let cases: Vec<(Change, Option<Identity>)> = vec![
            (number(0), Some(("0", "0", "0"))),
            (number(4711), Some(("4711", "0", "0"))),
            (number(1 << 32), None),
            (number((1 << 32) - 1), None),
            (number(-1), None),
            (name("4711"), Some(("4711", "0", "0"))),
            (name("4294967296"), None),
            (name("-u"), Some(("0", "0", "0"))),
            (name("-u 1"), None),
            (name("root\nx"), None),
            (both(1000, 2000), Some(("1000", "2000", "1002 2000"))),
            (both(0, 1 << 32), None),
            (Box::new(move |context| context.run_as_group = id(1)), None),
            (groups(&[2000, 3000], merge), Some(("1000", "1001", "1001 1002 2000 3000"))),
            (groups(&[2000, 3000], strict), Some(("1000", "1001", "1001 2000 3000"))),
            (groups(&[-1], merge), None),
            (groups(&[1 << 32], merge), None),
        ];
        for (number, (change, expected)) in cases.into_iter().enumerate() {
            assert_is(&image, format!("pod-{number}"), &*change, expected).await;
        }
    });
}
