//! Which profile a container gets.

use std::sync::{PoisonError, RwLock};

use domain::apparmor::{ApparmorName, BadApparmorName};
use domain::security::SecurityProfile;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::built_in::{self, DEFAULT_NAME};
use super::kernel::{Availability, KernelError, Machine};
use super::parser::{self, ParserError};

/// Where the default profile comes from; worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultOrigin {
    /// The kernel has no AppArmor.
    Unavailable,
    /// None: that is what is configured.
    Unconfined,
    /// The built-in one was loaded now.
    Loaded,
    /// The built-in one was still loaded from an earlier start.
    StillLoaded,
    /// A profile of that name is loaded; without a parser nobody can tell whether it is ours.
    FoundWithoutParser,
    /// There is none: it is not loaded and there is no parser.
    MissingParser,
    /// Another one, which the administrator has loaded.
    Named(ApparmorName),
}

/// Why the configured profile cannot be used.
#[derive(Debug, Error)]
pub enum LoadProfileError {
    /// It is no name.
    #[error(transparent)]
    Name(#[from] BadApparmorName),
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// It is not there.
    #[error("AppArmor profile {name:?} of the configuration is not loaded")]
    NotLoaded {
        /// As configured.
        name: String,
    },
    /// The built-in one could not be loaded.
    #[error("load the default AppArmor profile {DEFAULT_NAME}")]
    Parser(#[from] ParserError),
}

/// Why a container cannot have the profile it asks for. Nothing has been made when it is returned.
#[derive(Debug, Error)]
pub enum ResolveProfileError {
    /// It is no name.
    #[error(transparent)]
    Name(#[from] BadApparmorName),
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The node cannot confine.
    #[error("AppArmor profile {name:?} is asked for, and this node has no AppArmor")]
    Unavailable {
        /// As asked.
        name: String,
    },
    /// It is not there.
    #[error("AppArmor profile {name:?} is not loaded on this node")]
    NotLoaded {
        /// As asked, or as configured.
        name: String,
    },
    /// The built-in one is not there and cannot be loaded.
    #[error("AppArmor profile {DEFAULT_NAME:?} is not loaded, and this node has no apparmor_parser to load it")]
    MissingParser,
    /// The built-in one could not be loaded.
    #[error("load the default AppArmor profile {DEFAULT_NAME}")]
    Parser(#[from] ParserError),
}

/// The node's profiles.
#[derive(Debug)]
pub struct Profiles {
    machine: Machine,
    /// What RuntimeDefault means.
    default: RwLock<ApparmorName>,
}

impl Profiles {
    /// Sees to it that the configured default profile is loaded. An empty name is the built-in one.
    ///
    /// `stamp` is what [`Profiles::stamp`] gave an earlier daemon: while it still holds, nothing is loaded again.
    /// Errors: a configured name that is not loaded, or a built-in profile that the parser refuses. Source: CRI-O. A
    /// node without parser is none: containers that ask for the default explicitly are refused, others go without.
    pub fn load(
        machine: Machine,
        configured: &str,
        stamp: Option<&str>,
    ) -> Result<(Self, DefaultOrigin), LoadProfileError> {
        let (default, origin) = adopt(&machine, configured, stamp)?;
        Ok((Self { machine, default: RwLock::new(default) }, origin))
    }

    /// [`Profiles::load`] with another name while running; on an error the old one stays.
    pub fn reload(&self, configured: &str) -> Result<DefaultOrigin, LoadProfileError> {
        let (default, origin) = adopt(&self.machine, configured, self.stamp().as_deref())?;
        *self.default.write().unwrap_or_else(PoisonError::into_inner) = default;
        Ok(origin)
    }

    /// Whether the kernel confines by AppArmor.
    #[must_use]
    pub fn availability(&self) -> Availability {
        self.machine.availability
    }

    /// The built-in text and the kernel's digest of what is loaded under its name: one word, to be written down.
    ///
    /// `None` while it is not loaded, or where the kernel keeps no digests.
    #[must_use]
    pub fn stamp(&self) -> Option<String> {
        stamp(&self.machine)
    }

    /// The profile for a container or sandbox; `None` leaves it as it is born, which is unconfined.
    ///
    /// Nothing chosen means the default; privileged ones have none, whatever was chosen. Where the node has no AppArmor,
    /// only a profile asked for by name is an error. Source: CRI-O, but for that error: there such a container runs
    /// unconfined.
    pub fn resolve(
        &self,
        choice: Option<&SecurityProfile>,
        is_privileged: bool,
    ) -> Result<Option<ApparmorName>, ResolveProfileError> {
        if is_privileged {
            return Ok(None);
        }
        let is_available = self.availability() == Availability::Available;
        match choice {
            Some(SecurityProfile::Localhost(name)) if !is_available => {
                Err(ResolveProfileError::Unavailable { name: name.clone() })
            }
            None | Some(SecurityProfile::RuntimeDefault | SecurityProfile::Unconfined) if !is_available => Ok(None),
            // Said, not left out: the daemon may have a profile itself, which its children would inherit.
            Some(SecurityProfile::Unconfined) => Ok(Some(ApparmorName::unconfined())),
            Some(SecurityProfile::Localhost(name)) => self.find(ApparmorName::parse(name)?).map(Some),
            Some(SecurityProfile::RuntimeDefault) => self.find_default().map(Some),
            None => match self.find_default() {
                // Nobody asked, and the log has said at the start that there is none.
                Err(ResolveProfileError::MissingParser) => Ok(None),
                found => found.map(Some),
            },
        }
    }

    fn find_default(&self) -> Result<ApparmorName, ResolveProfileError> {
        let default = self.default.read().unwrap_or_else(PoisonError::into_inner).clone();
        if default.is_unconfined() { Ok(default) } else { self.find(default) }
    }

    /// Looks a name up; the built-in one is loaded again if somebody has taken it away, as `aa-remove-unknown` does.
    fn find(&self, name: ApparmorName) -> Result<ApparmorName, ResolveProfileError> {
        if self.machine.is_loaded(&name)? {
            return Ok(name);
        }
        if name.as_str() != DEFAULT_NAME {
            return Err(ResolveProfileError::NotLoaded { name: name.to_string() });
        }
        let parser = self.machine.parser.as_ref().ok_or(ResolveProfileError::MissingParser)?;
        parser::load(parser, &built_in::text(&self.machine.policy))?;
        Ok(name)
    }
}

fn adopt(
    machine: &Machine,
    configured: &str,
    known: Option<&str>,
) -> Result<(ApparmorName, DefaultOrigin), LoadProfileError> {
    let name = ApparmorName::parse(if configured.is_empty() { DEFAULT_NAME } else { configured })?;
    let origin = if machine.availability == Availability::Unavailable {
        DefaultOrigin::Unavailable
    } else if name.is_unconfined() {
        DefaultOrigin::Unconfined
    } else if name.as_str() == DEFAULT_NAME {
        load_built_in(machine, &name, known)?
    } else if machine.is_loaded(&name)? {
        DefaultOrigin::Named(name.clone())
    } else {
        return Err(LoadProfileError::NotLoaded { name: name.to_string() });
    };
    Ok((name, origin))
}

fn load_built_in(
    machine: &Machine,
    name: &ApparmorName,
    known: Option<&str>,
) -> Result<DefaultOrigin, LoadProfileError> {
    let is_loaded = machine.is_loaded(name)?;
    if is_loaded && known.is_some() && stamp(machine).as_deref() == known {
        return Ok(DefaultOrigin::StillLoaded);
    }
    let Some(parser) = &machine.parser else {
        return Ok(if is_loaded { DefaultOrigin::FoundWithoutParser } else { DefaultOrigin::MissingParser });
    };
    parser::load(parser, &built_in::text(&machine.policy))?;
    Ok(DefaultOrigin::Loaded)
}

fn stamp(machine: &Machine) -> Option<String> {
    let loaded = machine.digest(DEFAULT_NAME)?;
    let text: String =
        Sha256::digest(built_in::text(&machine.policy)).iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{text}-{loaded}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::{Path, PathBuf};

    /// A machine of files, whose parser lists what it is given as loaded.
    struct Fake {
        directory: tempfile::TempDir,
    }

    impl Fake {
        fn new(loaded: &str) -> Self {
            let fake = Self { directory: tempfile::tempdir().expect("a directory") };
            fake.put("profiles", loaded, 0o644);
            fake
        }

        fn put(&self, path: &str, text: &str, mode: u32) -> PathBuf {
            let path = self.directory.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            let mut file =
                File::options().write(true).create(true).truncate(true).mode(mode).open(&path).expect("opens");
            file.write_all(text.as_bytes()).expect("writes");
            path
        }

        fn machine(&self) -> Machine {
            Machine {
                availability: Availability::Available,
                securityfs: self.directory.path().to_owned(),
                parser: None,
                policy: self.directory.path().to_owned(),
            }
        }

        fn with_parser(&self) -> Machine {
            let root = self.directory.path().display();
            let script = format!(
                "#!/bin/sh\nset -e\ncat > {root}/text\necho load >> {root}/log\necho 'crio-default (enforce)' >> {root}/profiles\n\
                 mkdir -p {root}/policy/profiles/crio-default.1\ncd {root}/policy/profiles/crio-default.1\n\
                 echo crio-default > name\ncksum < {root}/text > sha1\n"
            );
            Machine { parser: Some(self.put("parser", &script, 0o755)), ..self.machine() }
        }

        fn loads(&self) -> usize {
            fs::read_to_string(self.directory.path().join("log")).map_or(0, |log| log.lines().count())
        }
    }

    fn localhost(name: &str) -> Option<SecurityProfile> {
        Some(SecurityProfile::Localhost(name.into()))
    }

    /// What each choice comes down to: profile, `-` for none, or the error.
    fn outcomes(profiles: &Profiles) -> Vec<String> {
        let choices = [
            None,
            Some(SecurityProfile::RuntimeDefault),
            Some(SecurityProfile::Unconfined),
            localhost("own"),
            localhost("absent"),
            localhost("a\nb"),
        ];
        let show = |choice: Option<&SecurityProfile>, is_privileged| match profiles.resolve(choice, is_privileged) {
            Ok(None) => "-".to_owned(),
            Ok(Some(name)) => name.to_string(),
            Err(error) => format!("! {error}"),
        };
        for choice in &choices {
            assert_eq!(show(choice.as_ref(), true), "-", "privileged, {choice:?}");
        }
        choices.iter().map(|choice| show(choice.as_ref(), false)).collect()
    }

    const NO_OWN: &str = "! AppArmor profile \"own\" is not loaded on this node";
    const NO_ABSENT: &str = "! AppArmor profile \"absent\" is not loaded on this node";
    const NO_NAME: &str = "! \"a\\nb\" is not the name of an AppArmor profile";

    #[test]
    fn without_apparmor_only_a_name_is_refused() {
        let fake = Fake::new("own (enforce)\n");
        let machine = Machine { availability: Availability::Unavailable, ..fake.machine() };
        let (profiles, origin) = Profiles::load(machine, "whatever", None).expect("loads");
        assert_eq!(origin, DefaultOrigin::Unavailable);
        let refused = |name: &str| format!("! AppArmor profile {name:?} is asked for, and this node has no AppArmor");
        assert_eq!(outcomes(&profiles), ["-", "-", "-", &refused("own"), &refused("absent"), &refused("a\nb")]);
    }

    #[test]
    fn the_built_in_profile_is_loaded_once_and_again_when_it_has_gone() {
        let fake = Fake::new("own (complain)\n");
        let (profiles, origin) = Profiles::load(fake.with_parser(), "", None).expect("loads");
        assert_eq!((origin, fake.loads()), (DefaultOrigin::Loaded, 1));
        let text = fs::read_to_string(fake.directory.path().join("text")).expect("reads");
        assert_eq!(text, built_in::text(Path::new("/none")));
        let expected = ["crio-default", "crio-default", "unconfined", "own", NO_ABSENT, NO_NAME];
        assert_eq!((outcomes(&profiles), fake.loads()), (expected.map(str::to_owned).to_vec(), 1));
        let stamp = profiles.stamp().expect("the kernel has digests");

        let (_, origin) = Profiles::load(fake.with_parser(), DEFAULT_NAME, Some(&stamp)).expect("loads");
        assert_eq!((origin, fake.loads()), (DefaultOrigin::StillLoaded, 1));
        fake.put("policy/profiles/crio-default.1/sha1", "somebody else's", 0o644);
        let (profiles, origin) = Profiles::load(fake.with_parser(), DEFAULT_NAME, Some(&stamp)).expect("loads");
        assert_eq!((origin, fake.loads()), (DefaultOrigin::Loaded, 2));
        let (_, origin) = Profiles::load(fake.with_parser(), DEFAULT_NAME, Some("old")).expect("loads");
        assert_eq!((origin, fake.loads()), (DefaultOrigin::Loaded, 3));

        fake.put("profiles", "", 0o644);
        assert_eq!(profiles.resolve(None, false).expect("loads").expect("is one").as_str(), DEFAULT_NAME);
        fake.put("profiles", "", 0o644);
        assert!(profiles.resolve(localhost(DEFAULT_NAME).as_ref(), false).is_ok());
        assert_eq!(fake.loads(), 5);
    }

    #[test]
    fn without_a_parser_who_asks_is_refused_and_who_does_not_goes_without() {
        let fake = Fake::new("");
        let (profiles, origin) = Profiles::load(fake.machine(), DEFAULT_NAME, None).expect("loads");
        assert_eq!(origin, DefaultOrigin::MissingParser);
        let missing =
            "! AppArmor profile \"crio-default\" is not loaded, and this node has no apparmor_parser to load it";
        assert_eq!(outcomes(&profiles), ["-", missing, "unconfined", NO_OWN, NO_ABSENT, NO_NAME]);
        let fake = Fake::new("crio-default (enforce)\n");
        let (profiles, origin) = Profiles::load(fake.machine(), DEFAULT_NAME, None).expect("loads");
        assert_eq!(origin, DefaultOrigin::FoundWithoutParser);
        assert_eq!(outcomes(&profiles)[..2], ["crio-default", "crio-default"]);
    }

    #[test]
    fn another_default_must_be_loaded_and_can_be_changed() {
        let fake = Fake::new("own (enforce)\nmine (enforce)\n");
        for bad in ["absent", "a\nb"] {
            assert!(Profiles::load(fake.with_parser(), bad, None).is_err(), "{bad:?}");
        }
        let (profiles, origin) = Profiles::load(fake.with_parser(), "mine", None).expect("loads");
        assert_eq!(origin, DefaultOrigin::Named(ApparmorName::parse("mine").expect("a name")));
        assert_eq!(outcomes(&profiles)[..2], ["mine", "mine"]);
        assert!(profiles.reload("absent").is_err());
        assert_eq!(outcomes(&profiles)[..2], ["mine", "mine"], "the old one stays");
        assert_eq!(profiles.reload("unconfined").expect("reloads"), DefaultOrigin::Unconfined);
        assert_eq!(outcomes(&profiles)[..2], ["unconfined", "unconfined"]);
        assert_eq!(profiles.reload("").expect("reloads"), DefaultOrigin::Loaded);
        assert_eq!((outcomes(&profiles)[..2].to_vec(), fake.loads()), (vec![DEFAULT_NAME.to_owned(); 2], 1));
        // A default that was taken away is refused by its name: nobody here knows its text.
        profiles.reload("own").expect("reloads");
        fake.put("profiles", "", 0o644);
        assert_eq!(outcomes(&profiles)[..2], [NO_OWN, NO_OWN]);
    }
}
