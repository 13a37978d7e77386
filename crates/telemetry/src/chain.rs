//! Printing an error together with its causes.

use std::error::Error;
use std::fmt;

/// Longer chains are cut: an error whose cause leads back to itself must not print forever.
const MAX_CAUSES: usize = 32;

/// An error and its causes, joined by `: `. Made by [`chain`].
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(&'a (dyn Error + 'static));

/// Prints an error and, after `: ` each, what caused it.
///
/// Our errors say what was attempted and leave the why to their source, so that this is how they become readable.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        for _ in 0..MAX_CAUSES {
            let Some(error) = cause else { return Ok(()) };
            write!(f, ": {error}")?;
            cause = error.source();
        }
        f.write_str(": …")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{what}")]
    struct Step {
        what: &'static str,
        #[source]
        cause: Option<Box<Step>>,
    }

    #[test]
    fn causes_are_joined() {
        let disk = Step { what: "no space left", cause: None };
        let write = Step { what: "write layer", cause: Some(Box::new(disk)) };
        let pull = Step { what: "pull image", cause: Some(Box::new(write)) };
        assert_eq!(chain(&pull).to_string(), "pull image: write layer: no space left");
    }

    #[test]
    fn a_single_error_stands_alone() {
        assert_eq!(chain(&Step { what: "gone", cause: None }).to_string(), "gone");
    }

    #[test]
    fn a_very_long_chain_ends() {
        let mut error = Step { what: "x", cause: None };
        for _ in 0..100 {
            error = Step { what: "x", cause: Some(Box::new(error)) };
        }
        let text = chain(&error).to_string();
        assert_eq!(text.matches('x').count(), MAX_CAUSES + 1);
        assert!(text.ends_with(": …"));
    }
}
