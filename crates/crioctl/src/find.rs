//! Which object a person means: an id, the beginning of one, or a name.

/// One thing that may be meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its id.
    pub(crate) id: String,
    /// What people call it.
    pub(crate) names: Vec<String>,
    /// Attempts at the same thing share this; the newest is meant.
    pub(crate) group: String,
    /// When it was made, in nanoseconds.
    pub(crate) created_at: i64,
}

/// A word that means nothing, or too much.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FindError {
    #[error("no {kind} {wanted:?}")]
    Nothing { kind: &'static str, wanted: String },
    #[error("{kind} {wanted:?} may be {}", ids.join(" or "))]
    Ambiguous { kind: &'static str, wanted: String, ids: Vec<String> },
}

/// How many ids an error lists.
const LISTED_MAX: usize = 5;

/// The candidate meant. A whole id comes before a name, and a name before the beginning of an id.
pub(crate) fn find<'a>(
    kind: &'static str,
    wanted: &str,
    candidates: &'a [Candidate],
) -> Result<&'a Candidate, FindError> {
    let nothing = || FindError::Nothing { kind, wanted: wanted.to_owned() };
    if wanted.is_empty() {
        return Err(nothing());
    }
    if let Some(exact) = candidates.iter().find(|candidate| candidate.id == wanted) {
        return Ok(exact);
    }
    let named: Vec<&Candidate> =
        candidates.iter().filter(|candidate| candidate.names.iter().any(|name| name == wanted)).collect();
    if let Some(first) = named.first() {
        if named.iter().all(|candidate| candidate.group == first.group) {
            return named.into_iter().max_by_key(|candidate| candidate.created_at).ok_or_else(nothing);
        }
        return Err(ambiguous(kind, wanted, &named));
    }
    let begun: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.id.starts_with(wanted)).collect();
    match begun[..] {
        [] => Err(nothing()),
        [one] => Ok(one),
        _ => Err(ambiguous(kind, wanted, &begun)),
    }
}

fn ambiguous(kind: &'static str, wanted: &str, candidates: &[&Candidate]) -> FindError {
    let mut ids: Vec<String> =
        candidates.iter().take(LISTED_MAX).map(|candidate| crate::table::short_id(&candidate.id).to_owned()).collect();
    if candidates.len() > LISTED_MAX {
        ids.push(format!("{} others", candidates.len() - LISTED_MAX));
    }
    FindError::Ambiguous { kind, wanted: wanted.to_owned(), ids }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let candidate = |id: &str, name: &str, group: &str, created_at| Candidate {
            id: id.to_owned(),
            names: vec![name.to_owned(), format!("space/{name}")],
            group: group.to_owned(),
            created_at,
        };
        let candidates = [
            candidate("abc1", "web", "p1/web", 1),
            candidate("abd2", "web", "p1/web", 3),
            candidate("abe3", "web", "p1/web", 2),
            candidate("bcd4", "db", "p1/db", 1),
            candidate("cde5", "db", "p2/db", 1),
            candidate("def6", "abc1", "p3/x", 1),
            candidate("efa7", "def", "p3/y", 1),
        ];
        let cases = [
            ("abc1", Ok("abc1")),
            ("abc", Ok("abc1")),
            ("web", Ok("abd2")),
            ("space/web", Ok("abd2")),
            ("def", Ok("efa7")),
            ("def6", Ok("def6")),
            ("db", Err("container \"db\" may be bcd4 or cde5")),
            ("ab", Err("container \"ab\" may be abc1 or abd2 or abe3")),
            ("zzz", Err("no container \"zzz\"")),
            ("abc11", Err("no container \"abc11\"")),
            ("", Err("no container \"\"")),
        ];
        for (wanted, expected) in cases {
            let got = find("container", wanted, &candidates).map(|found| found.id.as_str()).map_err(|e| e.to_string());
            assert_eq!(got, expected.map_err(str::to_owned), "{wanted}");
        }
    }
}
