//! A parsed profile, and what it says for one container on one machine.

use std::path::PathBuf;

use domain::spec::CapabilitySet;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::host::{Host, KernelVersion};

/// One part of a profile that can be taken or left.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) names: Vec<String>,
    pub(super) action: LinuxSeccompAction,
    pub(super) errno: Option<u32>,
    pub(super) args: Vec<LinuxSeccompArg>,
    pub(super) includes: Filter,
    pub(super) excludes: Filter,
}

/// What a rule depends on. As `includes` every part given must hold; as `excludes` any that holds removes the rule.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    /// All of them as `includes`, any of them as `excludes`. A name unknown here is held by nobody.
    pub(super) capabilities: Vec<String>,
    pub(super) architectures: Vec<String>,
    pub(super) min_kernel: Option<KernelVersion>,
}

impl Filter {
    fn has_architecture(&self, host: &Host) -> bool {
        self.architectures.iter().any(|name| name == host.architecture)
    }
}

impl Rule {
    /// Source: includes and excludes of containers/common; `minKernel` as Docker has it.
    fn applies(&self, capabilities: CapabilitySet, host: &Host) -> bool {
        let has = |name: &String| !known(name).and(capabilities).is_empty();
        let Filter { capabilities: with, architectures, min_kernel } = &self.includes;
        let is_included = with.iter().all(has)
            && (architectures.is_empty() || self.includes.has_architecture(host))
            && min_kernel.is_none_or(|least| host.kernel >= least);
        let is_excluded = self.excludes.capabilities.iter().any(has)
            || self.excludes.has_architecture(host)
            || self.excludes.min_kernel.is_some_and(|least| host.kernel >= least);
        is_included && !is_excluded
    }
}

/// The set of a name as profiles write it, `CAP_` and capitals included; nothing for any other.
fn known(name: &str) -> CapabilitySet {
    let set = CapabilitySet::of_name(name).unwrap_or_default();
    if set.names().any(|known| known == name) { set } else { CapabilitySet::EMPTY }
}

/// A profile as its file says it, checked.
///
/// Made by [`Profile::parse`]. One that has neither a default action nor rules means that there is no filter.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Absent where the profile says nothing at all.
    pub(super) default_action: Option<LinuxSeccompAction>,
    pub(super) default_errno: Option<u32>,
    /// For the machine it was parsed for; empty for just the native one.
    pub(super) architectures: Vec<Arch>,
    pub(super) flags: Vec<LinuxSeccompFilterFlag>,
    pub(super) listener_path: Option<PathBuf>,
    pub(super) listener_metadata: Option<String>,
    pub(super) rules: Vec<Rule>,
}

impl Profile {
    /// The capabilities that make a difference: containers that agree on them get the same filter.
    #[must_use]
    pub fn relevant_capabilities(&self) -> CapabilitySet {
        let names =
            self.rules.iter().flat_map(|rule| rule.includes.capabilities.iter().chain(&rule.excludes.capabilities));
        names.fold(CapabilitySet::EMPTY, |all, name| all.with(known(name)))
    }

    /// What a container with this bounding set gets on this machine; `None` where the profile is empty.
    ///
    /// Source: containers/common, which is what CRI-O uses.
    #[must_use]
    pub fn resolve(&self, capabilities: CapabilitySet, host: &Host) -> Option<LinuxSeccomp> {
        let mut spec = LinuxSeccomp::default();
        spec.set_default_action(self.default_action?);
        spec.set_default_errno_ret(self.default_errno);
        spec.set_architectures(some_unless_empty(self.architectures.clone()));
        spec.set_flags(some_unless_empty(self.flags.clone()));
        spec.set_listener_path(self.listener_path.clone());
        spec.set_listener_metadata(self.listener_metadata.clone());
        let rules = self.rules.iter().filter(|rule| rule.applies(capabilities, host));
        let calls = rules.map(|rule| syscall(rule.names.clone(), rule.action, rule.errno, rule.args.clone()));
        spec.set_syscalls(some_unless_empty(calls.collect()));
        Some(spec)
    }
}

pub(super) fn syscall(
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno: Option<u32>,
    args: Vec<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut call = LinuxSyscall::default();
    call.set_names(names);
    call.set_action(action);
    call.set_errno_ret(errno);
    call.set_args(some_unless_empty(args));
    call
}

/// A condition on an argument; `value_two` is what a masked comparison compares with.
pub(super) fn condition(index: usize, op: LinuxSeccompOperator, value: u64, value_two: u64) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    let builder = if value_two == 0 { builder } else { builder.value_two(value_two) };
    builder.build().expect("every field has a default")
}

/// Runtimes tell an absent list from an empty one in error messages only; absent is shorter.
pub(super) fn some_unless_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}
