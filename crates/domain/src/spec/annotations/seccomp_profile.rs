//! Which annotation names the artifact with a container's seccomp profile.

use std::collections::BTreeMap;

const KEY: &str = "seccomp-profile.crio.io";
/// Stands for every container of the pod.
const POD: &str = "POD";

/// The reference of the artifact, if there is one; the annotations are those that take effect, by their new names.
///
/// The pod's come first: for this container, then for all. Then the image's: plain, for this container, for all. The
/// first that is there decides, and an empty one means none. Source: CRI-O.
#[must_use]
pub fn seccomp_artifact<'a>(
    container: &str,
    pod: &'a BTreeMap<String, String>,
    image: &'a BTreeMap<String, String>,
) -> Option<&'a str> {
    let (of_container, of_all) = (format!("{KEY}/{container}"), format!("{KEY}/{POD}"));
    let first = pod
        .get(&of_container)
        .or_else(|| pod.get(&of_all))
        .or_else(|| image.get(KEY))
        .or_else(|| image.get(&of_container))
        .or_else(|| image.get(&of_all));
    first.map(String::as_str).filter(|reference| !reference.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_comes_before_its_image_and_the_container_before_the_pod() {
        let map = |rows: &[(&str, &str)]| -> BTreeMap<String, String> {
            rows.iter().map(|(suffix, value)| (format!("{KEY}{suffix}"), (*value).to_owned())).collect()
        };
        for (pod, image, expected) in [
            (&[][..], &[][..], None),
            (&[("/web", "a"), ("/POD", "b")], &[("", "c")], Some("a")),
            (&[("/POD", "b"), ("/other", "x")], &[("", "c")], Some("b")),
            // Of a pod only the two forms with a suffix count.
            (&[("", "x")], &[], None),
            (&[("/other", "x")], &[("", "c"), ("/web", "d"), ("/POD", "e")], Some("c")),
            (&[], &[("/web", "d"), ("/POD", "e")], Some("d")),
            (&[], &[("/POD", "e")], Some("e")),
            (&[("/web", "")], &[("", "c")], None),
        ] {
            assert_eq!(seccomp_artifact("web", &map(pod), &map(image)), expected, "{pod:?} {image:?}");
        }
    }
}
