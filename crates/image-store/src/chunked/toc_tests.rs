use super::*;

fn annotations(checksum: &str, position: &str, split: &str) -> BTreeMap<String, String> {
    [(CHECKSUM, checksum), (POSITION, position), (SPLIT_POSITION, split)]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn positions_lie_in_the_layer() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let range = |start, length| ByteRange { start, length };
    let find = |position: &str, split: &str| TocPosition::find(&annotations(&digest, position, split), 1000);
    for (position, split, expected) in [
        ("100:50:400:1", "", Some((range(100, 50), None))),
        ("100:50:400:1", "158:40:90", Some((range(100, 50), Some(range(158, 40))))),
        ("950:50:400:1", "", Some((range(950, 50), None))),
        ("951:50:400:1", "", None),
        ("0:50:400:1", "", None),
        ("100:0:400:1", "", None),
        ("100:50:400:2", "", None),
        ("100:50:400", "", None),
        ("100:50:400:1:9", "", None),
        ("-1:50:400:1", "", None),
        ("+1:50:400:1", "", None),
        ("18446744073709551615:50:400:1", "", None),
        ("99999999999999999999:50:400:1", "", None),
        ("100:50:400:1", "120:40:90", None),
        ("100:50:400:1", "990:40:90", None),
        ("100:50:400:1", "158:40", None),
        ("", "158:40:90", None),
    ] {
        let found = find(position, split).ok().flatten().map(|found| (found.table, found.split));
        assert_eq!(found, expected, "{position} {split}");
    }
    assert!(TocPosition::find(&annotations("", "100:50:400:1", ""), 1000).unwrap().is_none(), "not of this kind");
    assert!(TocPosition::find(&annotations("md5:0", "100:50:400:1", ""), 1000).is_err());
    let large = TocPosition::find(&annotations(&digest, "100:50:999999999:1", ""), 1000);
    assert!(matches!(large, Err(TocError::Unsuitable(_))));
    let mut both = annotations(&digest, "100:50:400:1", "");
    both.insert(ESTARGZ.to_owned(), digest.clone());
    assert!(TocPosition::find(&both, 1000).is_err());
}

#[test]
fn times_are_those_of_an_archive() {
    for (text, expected) in [
        ("2024-01-02T03:04:05Z", Some((1_704_164_645, 0))),
        ("2024-01-02T04:04:05.25+01:00", Some((1_704_164_645, 250_000_000))),
        // What Go writes for no time, and what no archive can say.
        ("0001-01-01T00:00:00Z", Some((0, 0))),
        ("1969-12-31T23:59:59Z", Some((0, 0))),
        ("2024-01-02", None),
    ] {
        let table = format!(r#"{{"version":1,"entries":[{{"type":"dir","name":"a","modtime":{text:?}}}]}}"#);
        let found = Toc::parse(table.as_bytes(), 100).ok().map(|toc| toc.entries[0].member.modified);
        assert_eq!(found, expected, "{text}");
    }
}
