//! Names of system calls, for messages to people.
//!
//! The tables are the kernel's numbers (`asm/unistd.h`, to Linux 6.13): names in order, `@N` where the numbering jumps.

use std::borrow::Cow;

const X86_64: &str = include_str!("syscalls/x86_64.txt");
const I386: &str = include_str!("syscalls/i386.txt");
/// arm64, riscv64 and all later architectures.
const GENERIC: &str = include_str!("syscalls/generic.txt");

/// Source: `linux/audit.h`: the ELF machine, 64-bit and little-endian flags.
const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const AUDIT_ARCH_AARCH64: u32 = 0xC000_00B7;
const AUDIT_ARCH_RISCV64: u32 = 0xC000_00F3;
/// x32 programs call by the numbers of x86_64 with this bit set, but for those from 512 on.
const X32_BIT: u32 = 0x4000_0000;

/// The name of a call; `syscall N` where it has none here.
#[must_use]
pub fn name(arch: u32, number: i32) -> Cow<'static, str> {
    let table = match arch {
        AUDIT_ARCH_X86_64 => X86_64,
        AUDIT_ARCH_I386 => I386,
        AUDIT_ARCH_AARCH64 | AUDIT_ARCH_RISCV64 => GENERIC,
        _ => "",
    };
    let wanted = if arch == AUDIT_ARCH_X86_64 { number.cast_unsigned() & !X32_BIT } else { number.cast_unsigned() };
    find(table, wanted).map_or_else(|| format!("syscall {number}").into(), Cow::Borrowed)
}

fn find(table: &'static str, wanted: u32) -> Option<&'static str> {
    let mut number = 0;
    for word in table.split_whitespace() {
        if let Some(jump) = word.strip_prefix('@') {
            number = jump.parse().ok()?;
            continue;
        }
        if number == wanted {
            return Some(word);
        }
        number += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_the_names_of_their_architecture() {
        for (arch, number, expected) in [
            (AUDIT_ARCH_X86_64, 0, "read"),
            (AUDIT_ARCH_X86_64, 83, "mkdir"),
            (AUDIT_ARCH_X86_64, 168, "swapoff"),
            (AUDIT_ARCH_X86_64, 334, "rseq"),
            (AUDIT_ARCH_X86_64, 335, "syscall 335"),
            (AUDIT_ARCH_X86_64, 424, "pidfd_send_signal"),
            (AUDIT_ARCH_X86_64, 0x4000_0053, "mkdir"),
            (AUDIT_ARCH_I386, 39, "mkdir"),
            (AUDIT_ARCH_I386, 115, "swapoff"),
            (AUDIT_ARCH_AARCH64, 34, "mkdirat"),
            (AUDIT_ARCH_AARCH64, 225, "swapoff"),
            (AUDIT_ARCH_AARCH64, 435, "clone3"),
            (AUDIT_ARCH_X86_64, -1, "syscall -1"),
            (0, 0, "syscall 0"),
        ] {
            assert_eq!(name(arch, number), expected, "{arch:#x} {number}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_table_is_that_of_the_c_library() {
        for (number, expected) in [
            (libc::SYS_fchmodat2, "fchmodat2"),
            (libc::SYS_clone3, "clone3"),
            (libc::SYS_openat2, "openat2"),
            (libc::SYS_process_madvise, "process_madvise"),
            (libc::SYS_unshare, "unshare"),
        ] {
            assert_eq!(name(AUDIT_ARCH_X86_64, i32::try_from(number).expect("small")), expected);
        }
    }
}
