//! What the C library's allocator keeps for itself.
//!
//! Source: mallopt(3), malloc_trim(3); glibc only. Elsewhere the calls do nothing.

/// Bounds the number of arenas. Each thread that ever allocated can otherwise keep one of its own, filled with what a
/// single large pull needed.
pub fn limit_arenas(count: u32) {
    #[cfg(target_env = "gnu")]
    {
        let count = libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX);
        // SAFETY: changes a number in the allocator; no pointer is involved.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, count) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = count;
}

/// Gives free memory back to the kernel.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: locks each arena in turn; callable at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_allocator_still_works_afterwards() {
        super::limit_arenas(2);
        let memory = vec![1_u8; 1 << 20];
        super::trim();
        assert_eq!(memory.iter().map(|byte| usize::from(*byte)).sum::<usize>(), 1 << 20);
    }
}
