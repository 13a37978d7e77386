//! What is known about a key.

use crate::codec::{Kind, Raw};

/// The name of a key's flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flag {
    /// The key with `-` for `_`.
    Regular,
    /// Another name.
    Named(&'static str),
    /// The key has no flag.
    None,
}

/// The environment variables that stand for a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Env {
    /// `CONTAINER_<FLAG>`.
    Regular,
    /// These, the first one set counts.
    Named(&'static [&'static str]),
    /// None.
    None,
}

/// One key of a table of type `C`: where it lies, its form, its field and what to tell people about it.
pub(crate) struct Key<C: 'static> {
    /// Table, for example `crio.api`; empty for handlers and workloads.
    pub(crate) table: &'static str,
    /// Name.
    pub(crate) name: &'static str,
    /// Shape.
    pub(crate) kind: Kind,
    /// Reads the field.
    pub(crate) encode: fn(&C) -> Raw,
    /// Sets the field.
    pub(crate) decode: fn(&mut C, Raw) -> Result<(), String>,
    /// One or more sentences for the operator.
    pub(crate) about: &'static str,
    /// Flag.
    pub(crate) flag: Flag,
    /// Short form or second name of the flag.
    pub(crate) alias: Option<&'static str>,
    /// Environment.
    pub(crate) env: Env,
    /// Whether SIGHUP applies it.
    pub(crate) is_reloadable: bool,
    /// Whether help hides the flag.
    pub(crate) is_hidden: bool,
    /// Whether it is printed only if it differs from what an empty table gives.
    pub(crate) is_terse: bool,
    /// Whether it is only read, never printed.
    pub(crate) is_input_only: bool,
    /// What to use instead, if the key is deprecated.
    pub(crate) deprecated: Option<&'static str>,
}

impl<C> Key<C> {
    pub(crate) const fn flag(mut self, name: &'static str) -> Self {
        self.flag = Flag::Named(name);
        self
    }
    pub(crate) const fn no_flag(mut self) -> Self {
        self.flag = Flag::None;
        self
    }
    pub(crate) const fn alias(mut self, alias: &'static str) -> Self {
        self.alias = Some(alias);
        self
    }
    pub(crate) const fn env(mut self, names: &'static [&'static str]) -> Self {
        self.env = Env::Named(names);
        self
    }
    pub(crate) const fn no_env(mut self) -> Self {
        self.env = Env::None;
        self
    }
    pub(crate) const fn reload(mut self) -> Self {
        self.is_reloadable = true;
        self
    }
    pub(crate) const fn hidden(mut self) -> Self {
        self.is_hidden = true;
        self
    }
    pub(crate) const fn terse(mut self) -> Self {
        self.is_terse = true;
        self
    }
    pub(crate) const fn input_only(mut self) -> Self {
        self.is_input_only = true;
        self
    }
    pub(crate) const fn deprecated(mut self, instead: &'static str) -> Self {
        self.deprecated = Some(instead);
        self
    }
    /// `table.name`.
    pub(crate) fn path(&self) -> String {
        if self.table.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.table, self.name) }
    }
    /// The flag's long name, if it has one.
    pub(crate) fn flag_name(&self) -> Option<String> {
        match self.flag {
            Flag::Regular => Some(self.name.replace('_', "-")),
            Flag::Named(name) => Some(name.to_owned()),
            Flag::None => None,
        }
    }
    /// The environment variables that stand for the flag.
    pub(crate) fn env_names(&self) -> Vec<String> {
        match (self.env, self.flag_name()) {
            (Env::Named(names), _) => names.iter().map(|name| (*name).to_owned()).collect(),
            (Env::Regular, Some(flag)) => vec![format!("CONTAINER_{}", flag.replace('-', "_").to_ascii_uppercase())],
            (Env::None, _) | (Env::Regular, None) => Vec::new(),
        }
    }
}

/// Describes one key: table (or, for handlers and workloads, the type), name, codec, field, text.
macro_rules! key {
    ($table:literal, $($rest:tt)+) => { $crate::key::key!(@ $crate::model::Config, $table, $($rest)+) };
    ($type:ident, $($rest:tt)+) => { $crate::key::key!(@ $crate::handler::$type, "", $($rest)+) };
    (@ $type:ty, $table:literal, $name:literal, $codec:ty, $($field:ident).+, $about:literal) => {
        $crate::key::Key {
            table: $table,
            name: $name,
            kind: <$codec as $crate::codec::Codec>::KIND,
            encode: |c: &$type| <$codec as $crate::codec::Codec>::encode(&c.$($field).+),
            decode: |c: &mut $type, raw| {
                c.$($field).+ = <$codec as $crate::codec::Codec>::decode(raw)?;
                Ok(())
            },
            about: $about,
            flag: $crate::key::Flag::Regular,
            alias: None,
            env: $crate::key::Env::Regular,
            is_reloadable: false,
            is_hidden: false,
            is_terse: false,
            is_input_only: false,
            deprecated: None,
        }
    };
}
pub(crate) use key;
