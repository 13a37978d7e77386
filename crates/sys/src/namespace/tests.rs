use super::*;

#[test]
fn names_are_one_segment() {
    for (name, ok) in [
        ("6f1c9a2e-0b0c-4a36-8c6b-6f0f0c1c1f11", true),
        ("a", true),
        ("", false),
        (".", false),
        ("..", false),
        ("a/b", false),
        ("../x", false),
        ("a b", false),
        ("a\0", false),
        (&"x".repeat(256), false),
    ] {
        assert_eq!(check_name(name).is_ok(), ok, "{name:?}");
    }
}
