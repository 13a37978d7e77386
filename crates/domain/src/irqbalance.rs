//! The configuration of irqbalance as far as it concerns us: one variable of a file that shells read.

const BANNED: &str = "IRQBALANCE_BANNED_CPUS=";

/// The mask of CPUs that irqbalance leaves alone; empty where the file does not say.
#[must_use]
pub fn banned(text: &str) -> &str {
    let line = text.lines().find_map(|line| line.strip_prefix(BANNED));
    line.map_or("", |value| value.trim_matches(['"', '\'', ' ']))
}

/// The file with another mask; every other line stays.
#[must_use]
pub fn with_banned(text: &str, mask: &str) -> String {
    let line = format!("{BANNED}\"{mask}\"");
    let mut is_set = false;
    let mut lines: Vec<&str> = Vec::new();
    for old in text.lines() {
        is_set |= old.starts_with(BANNED);
        lines.push(if old.starts_with(BANNED) { &line } else { old });
    }
    if !is_set {
        lines.push(&line);
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_variable_changes() {
        for (text, before, after) in [
            ("", "", "IRQBALANCE_BANNED_CPUS=\"3\"\n"),
            ("# a\nX=1\n", "", "# a\nX=1\nIRQBALANCE_BANNED_CPUS=\"3\"\n"),
            ("IRQBALANCE_BANNED_CPUS=\"f,0\"\nX=1", "f,0", "IRQBALANCE_BANNED_CPUS=\"3\"\nX=1\n"),
            ("#IRQBALANCE_BANNED_CPUS=1\n", "", "#IRQBALANCE_BANNED_CPUS=1\nIRQBALANCE_BANNED_CPUS=\"3\"\n"),
            ("IRQBALANCE_BANNED_CPUS=\n", "", "IRQBALANCE_BANNED_CPUS=\"3\"\n"),
        ] {
            assert_eq!((banned(text), with_banned(text, "3").as_str()), (before, after), "{text:?}");
            assert_eq!(banned(&with_banned(text, "3")), "3");
        }
    }
}
