//! Severities by CRI-O's names.

use std::str::FromStr;

/// From which severity on lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Level {
    /// Somebody must act. The names `fatal` and `panic` mean this, too: what ends the daemon is an error.
    Error,
    /// Odd, but handled.
    Warn,
    /// What an operator would tell a colleague.
    #[default]
    Info,
    /// What a developer would ask for.
    Debug,
    /// Everything, that of libraries included.
    Trace,
}

/// A word that is no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is not a log level")]
pub struct UnknownLevel {
    word: String,
}

impl FromStr for Level {
    type Err = UnknownLevel;
    /// In any case: fatal, panic, error, warn or warning, info, debug, trace.
    fn from_str(word: &str) -> Result<Self, UnknownLevel> {
        match word.to_ascii_lowercase().as_str() {
            "fatal" | "panic" | "error" => Ok(Self::Error),
            "warn" | "warning" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err(UnknownLevel { word: word.to_owned() }),
        }
    }
}

impl Level {
    pub(crate) const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    pub(crate) const fn of(level: &tracing::Level) -> Self {
        match *level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }

    pub(crate) const fn to_filter(self) -> tracing::level_filters::LevelFilter {
        use tracing::level_filters::LevelFilter;
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }

    /// The word in a log line. Source: logrus writes `warning`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (word, level) in [
            ("fatal", Some(Level::Error)),
            ("panic", Some(Level::Error)),
            ("error", Some(Level::Error)),
            ("warn", Some(Level::Warn)),
            ("warning", Some(Level::Warn)),
            ("INFO", Some(Level::Info)),
            ("debug", Some(Level::Debug)),
            ("trace", Some(Level::Trace)),
            ("", None),
            ("verbose", None),
        ] {
            assert_eq!(word.parse::<Level>().ok(), level, "{word:?}");
        }
    }
}
