//! Every parser of bytes that we did not write, by name, behind one signature.
//!
//! Promises: `cargo test` feeds each of them its seeds and some thousand mutations of them, the same ones every time,
//! on the toolchain everybody has; `fuzz/` feeds them to libFuzzer for as long as one likes. Any bytes are a value or
//! an error: a panic, or an input that takes longer than [`SLOWEST`], is a bug.
//! Must not know: what the parsers return; whoever owns one states its laws in its entry point.
//! Begin reading at [`TARGETS`]. The seeds are files in `fuzz/seeds/NAME`.
#![forbid(unsafe_code)]

mod layer;
mod mutate;

use std::time::Duration;

/// No input of a few kilobytes may take longer: beyond this something is not linear.
///
/// Generous, because the tests of the whole workspace run beside it on machines that may be busy.
pub const SLOWEST: Duration = Duration::from_secs(5);

/// One parser.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Also the name of its seeds and of its libFuzzer program.
    pub name: &'static str,
    /// Parses; panics only where a law of the parser is broken.
    pub run: fn(&[u8]),
    /// How many mutations the ordinary tests try; fewer where one means work on disk.
    pub mutations: u32,
}

/// Enough to cross most single-byte and token edits of a small seed, little enough for every `make test`.
const PURE: u32 = 20_000;

/// For those that do several whole passes for one input.
const HEAVY: u32 = PURE / 4;

/// For those that write files and wait for the disk.
const ON_DISK: u32 = 300;

/// Lists the targets and gives each a test of its own, so that they run beside each other and fail by name.
macro_rules! targets {
    ($($name:ident, $mutations:expr, $run:expr;)*) => {
        /// All of them, in the order of the way of an image and a pod through the house.
        pub const TARGETS: &[Target] =
            &[$(Target { name: stringify!($name), run: $run, mutations: $mutations }),*];

        #[cfg(test)]
        mod each {
            $(#[test] fn $name() { crate::smoke::check(stringify!($name)); })*
        }
    };
}

targets! {
    config, HEAVY, config::fuzz;
    reference, PURE, image_pull::fuzz::reference;
    registries, PURE, image_pull::fuzz::registries;
    auth_file, PURE, image_pull::fuzz::auth_file;
    www_authenticate, PURE, image_pull::fuzz::www_authenticate;
    manifest, PURE, image_pull::fuzz::manifest;
    schema1_manifest, HEAVY, domain::schema1::fuzz;
    encrypted_layer, ON_DISK, image_crypt::fuzz;
    multipart, PURE, image_pull::fuzz::multipart;
    archive_index, PURE, image_pull::fuzz::archive_index;
    signature_policy, PURE, image_trust::fuzz::policy;
    registries_d, PURE, image_trust::fuzz::registries_d;
    signature_claim, PURE, image_trust::fuzz::claim;
    openpgp, HEAVY, image_trust::fuzz::openpgp;
    sigstore, HEAVY, image_trust::fuzz::sigstore;
    store_records, PURE, |bytes| _ = image_store::parse_records(bytes);
    artifact_index, PURE, image_store::fuzz_index;
    tar, HEAVY, layer::scan;
    unpack, ON_DISK, layer::unpack;
    compressed_layer, ON_DISK, layer::decompress;
    layer_table, PURE, image_store::fuzz_toc;
    tar_split, HEAVY, image_store::fuzz_split;
    copied_archive, ON_DISK, layer::copy_out;
    artifact, PURE, domain::artifact::fuzz;
    image_config, PURE, |bytes| _ = domain::image::ImageConfig::parse(bytes);
    image_user, PURE, domain::user::fuzz_resolve_user;
    block_io, PURE, injection::fuzz_block_io;
    cpu_lists, PURE, domain::cpus::fuzz;
    workload_overrides, PURE, domain::spec::fuzz_override;
    unified_resources, PURE, domain::spec::fuzz_unified;
    unit_properties, PURE, domain::spec::fuzz_unit_property;
    userns_mode, PURE, domain::userns::fuzz_mode;
    subordinate_ids, PURE, |bytes| _ = domain::id_maps::parse_subordinate_ids(bytes, "containers");
    network_config, PURE, network::fuzz_config;
    network_result, PURE, network::fuzz_result;
    network_cache, PURE, network::fuzz_cache_entry;
    cdi, HEAVY, injection::fuzz_cdi;
    hook, HEAVY, injection::fuzz_hook;
    plugin_report, PURE, network::fuzz_report;
    plugin_result, PURE, |bytes| _ = cni::fuzz_result(bytes);
    netlink_attributes, PURE, |bytes| _ = netlink::fuzz_attributes(bytes);
    monitor_control, PURE, monitor::fuzz_control_lines;
    log_line, PURE, |bytes| bytes.split(|byte| *byte == b'\n').for_each(|line| _ = crioctl::log_line::parse(line));
    streaming_requests, PURE, streaming::fuzz_requests;
    spdy_frames, PURE, streaming::fuzz_frames;
    websocket_messages, PURE, streaming::fuzz_messages;
    terminal_sizes, PURE, streaming::fuzz_sizes;
    selinux_contexts, PURE, domain::selinux::fuzz_policy;
    apparmor_profiles, PURE, confinement::apparmor::fuzz_profiles;
    shim_answers, PURE, shim_client::fuzz_answers;
    cgroup_files, PURE, cgroup::fuzz_stats;
    interfaces, PURE, lifecycle::fuzz_interfaces;
    runtime_features, PURE, |bytes| _ = runtime_client::features::parse_features(bytes);
    runtime_spec, PURE, state_store::spec::fuzz_spec;
    process_state, PURE, confinement::seccomp::fuzz_process_state;
    sandbox_state, PURE, state_store::state::fuzz_state;
}

/// Runs the parser of that name; libFuzzer's programs call this.
///
/// Panics if there is none.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("{name} is in the table")).run)(bytes);
}

#[cfg(test)]
mod smoke {
    use super::{SLOWEST, TARGETS, Target, mutate::Mutator};
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::time::Instant;

    fn fuzz_directory() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
    }

    fn load_seeds(name: &str) -> Vec<Vec<u8>> {
        let directory = fuzz_directory().join("seeds").join(name);
        let entries = std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a seed").path()).collect();
        files.sort();
        assert!(!files.is_empty(), "no seeds in {}", directory.display());
        files.iter().map(|file| std::fs::read(file).expect("a seed")).collect()
    }

    /// How many times the usual number of mutations is wanted: `PARSERS_ROUNDS`, or once.
    fn rounds() -> u32 {
        std::env::var("PARSERS_ROUNDS").map_or(1, |rounds| rounds.parse().expect("PARSERS_ROUNDS is a number"))
    }

    /// Feeds one target its seeds, then mutations of them.
    pub(crate) fn check(name: &str) {
        let target = TARGETS.iter().find(|target| target.name == name).expect("a name of the table");
        feed(*target, &load_seeds(name));
    }

    fn feed(target: Target, seeds: &[Vec<u8>]) {
        let name = target.name;
        let mut mutator = Mutator::new(name);
        let mutations = (0..target.mutations.saturating_mul(rounds())).map(|_| mutator.mutate(seeds));
        for input in seeds.iter().cloned().chain([Vec::new()]).chain(mutations) {
            let begin = Instant::now();
            let outcome = std::panic::catch_unwind(|| (target.run)(&input));
            let shown = || input.escape_ascii().to_string();
            assert!(outcome.is_ok(), "{name} panicked on b\"{}\"", shown());
            assert!(begin.elapsed() < SLOWEST, "{name} took {:?} for b\"{}\"", begin.elapsed(), shown());
        }
    }

    #[test]
    #[should_panic(expected = "careless panicked on b\"")]
    fn a_parser_that_trusts_a_length_is_found() {
        let run = |bytes: &[u8]| {
            if let [b'n', length, rest @ ..] = bytes {
                assert!(usize::from(*length) <= rest.len(), "the rest is as long as it says");
            }
        };
        feed(Target { name: "careless", run, mutations: 2000 }, &[b"n\x03abc".to_vec()]);
    }

    #[test]
    fn targets_seeds_and_fuzz_programs_are_the_same_set() {
        let names = |directory: &str| -> BTreeSet<String> {
            let entries = std::fs::read_dir(fuzz_directory().join(directory)).expect("a directory of fuzz");
            let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
            entries.map(|entry| name(entry).to_string_lossy().trim_end_matches(".rs").to_owned()).collect()
        };
        let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
        assert_eq!(targets.len(), TARGETS.len(), "a name twice");
        assert_eq!(names("seeds"), targets);
        assert_eq!(names("fuzz_targets"), targets);
        let manifest = std::fs::read_to_string(fuzz_directory().join("Cargo.toml")).expect("fuzz/Cargo.toml");
        for target in TARGETS {
            assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{} in fuzz/Cargo.toml", target.name);
        }
    }
}
