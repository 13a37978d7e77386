use super::*;

/// Manifests signed by libtrust, and what containers/image makes of them; the n-th diff id is the digest of `n` as text.
const SAMPLES: &str = include_str!("samples.json");

/// Digests of `0`, `1` and `2`.
const DIFF_IDS: [&str; 3] = [
    "sha256:5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9",
    "sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b",
    "sha256:d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35",
];

#[derive(Deserialize)]
struct Sample {
    what: String,
    signed: String,
    layers: Vec<Digest>,
    config: String,
}

fn samples() -> Vec<Sample> {
    serde_json::from_str(SAMPLES).expect("samples are JSON")
}

fn diff_ids(count: usize) -> Vec<Digest> {
    DIFF_IDS[..count].iter().map(|text| Digest::parse(text).expect("a digest")).collect()
}

#[test]
fn configurations_are_those_of_the_field() {
    for sample in samples() {
        let manifest = Schema1::parse(sample.signed.as_bytes()).expect(&sample.what);
        assert_eq!(manifest.layers().cloned().collect::<Vec<_>>(), sample.layers, "{}", sample.what);
        let config = manifest.config(&diff_ids(sample.layers.len())).expect(&sample.what);
        assert_eq!(String::from_utf8_lossy(&config), sample.config, "{}", sample.what);
        assert!(matches!(manifest.config(&[]), Err(Schema1Error::DiffIds { .. })));
    }
}

#[test]
fn of_a_signed_manifest_only_the_payload_counts() {
    let sample = samples().swap_remove(0);
    let signed = sample.signed.as_str();
    let covered = payload(signed.as_bytes()).expect("is signed").into_owned();
    assert!(!covered.windows(12).any(|window| window == b"\"signatures\""));
    assert_eq!(Schema1::parse(&covered).expect("parses"), Schema1::parse(signed.as_bytes()).expect("parses"));
    // The second list of layers would win in a reader of the whole text, and no digest covers it.
    let end = signed.rfind('}').expect("an object");
    let smuggled = format!("{},\"fsLayers\":[],\"history\":[]}}", &signed[..end]);
    assert_eq!(payload(smuggled.as_bytes()).expect("is signed"), covered);
    assert_eq!(Schema1::parse(smuggled.as_bytes()).expect("parses"), Schema1::parse(&covered).expect("parses"));
    // Nothing else has a payload.
    for whole in [
        &b"{}"[..],
        br#"{"schemaVersion":2,"signatures":[1]}"#,
        br#"{"schemaVersion":1,"signatures":null}"#,
        b"\"signatures\"",
    ] {
        assert_eq!(payload(whole).expect("is whole"), whole);
    }
}

#[test]
fn signatures_that_cover_nothing_certain_are_refused() {
    let protected = |length: &str| BASE64.encode(format!(r#"{{"formatLength":{length},"formatTail":"Cn0"}}"#));
    let manifest = |list: &str| format!(r#"{{"schemaVersion":1,"signatures":[{list}]}}"#);
    let one = |length: &str| format!(r#"{{"protected":"{}"}}"#, protected(length));
    for list in [
        String::new(),
        "{}".to_owned(),
        r#"{"protected":"!"}"#.to_owned(),
        r#"{"protected":"e30"}"#.to_owned(),
        one("100000"),
        one("-1"),
        one("1.5"),
        format!("{},{}", one("1"), one("2")),
        vec![one("1"); SIGNATURES_MAX + 1].join(","),
    ] {
        assert!(payload(manifest(&list).as_bytes()).is_err(), "{list:.200}");
    }
    assert_eq!(payload(manifest(&one("1")).as_bytes()).expect("is signed"), &b"{\n}"[..]);
    let twice = manifest(&format!("{},{}", one("1"), one("1")));
    assert!(payload(twice.as_bytes()).is_ok());
}

#[test]
fn entries_that_are_no_chain_are_refused() {
    let [one, two, three] = ["1", "2", "3"].map(|digit| digit.repeat(64));
    let manifest = |layers: usize, entries: &[String]| {
        let layer = format!(r#"{{"blobSum":"{}"}}"#, DIFF_IDS[0]);
        let history: Vec<String> =
            entries.iter().map(|entry| serde_json::json!({ "v1Compatibility": entry }).to_string()).collect();
        let layers = vec![layer; layers].join(",");
        format!(r#"{{"schemaVersion":1,"fsLayers":[{layers}],"history":[{}]}}"#, history.join(","))
    };
    let entry = |id: &str, parent: &str| format!(r#"{{"id":"{id}","parent":"{parent}"}}"#);
    for (entries, is_good) in [
        (vec![entry(&one, "")], true),
        (vec![entry(&two, &one), entry(&one, "")], true),
        (vec![entry(&two, "other"), entry(&two, &one), entry(&one, "")], true),
        (vec![], false),
        (vec![entry("1", "")], false),
        (vec![entry(&"A".repeat(64), "")], false),
        (vec![entry(&one, &two)], false),
        (vec![entry(&two, &three), entry(&one, "")], false),
        (vec![entry(&one, &two), entry(&two, &one), entry(&one, "")], false),
        (vec!["[]".to_owned()], false),
        (vec![format!(r#"{{"id":"{one}","created":"yesterday"}}"#)], false),
    ] {
        let text = manifest(entries.len(), &entries);
        assert_eq!(Schema1::parse(text.as_bytes()).is_ok(), is_good, "{text}");
    }
    let unequal = manifest(2, &[entry(&one, "")]);
    assert!(matches!(Schema1::parse(unequal.as_bytes()), Err(Schema1Error::Entries { .. })));
    assert!(Schema1::parse(br#"{"schemaVersion":2}"#).is_err());
}

#[test]
fn mutated_samples_do_not_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for sample in samples() {
        for _ in 0..500 {
            let mut bytes = sample.signed.clone().into_bytes();
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = usize::try_from(state >> 33).expect("31 bits") % bytes.len();
            bytes[at] = state.to_le_bytes()[3];
            fuzz(&bytes);
        }
    }
}
