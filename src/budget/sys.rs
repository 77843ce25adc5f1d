#![expect(unsafe_code, reason = "mallopt and malloc_trim have no safe wrapper in nix or std")]
//! The allocator's two calls that no crate wraps.
//!
//! JUSTIFICATION: what was freed in small pieces goes back to the system only when
//! the allocator is asked to (`malloc_trim`), and it keeps as many heaps as
//! threads that were ever at work side by side (`M_ARENA_MAX`). It holds nothing
//! but the calls.

#[cfg(target_env = "gnu")]
use nix::libc;

/// Arenas of the allocator. Each keeps what its threads freed, and by default
/// there may be eight for each core.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Limits what the allocator keeps for itself. Before the first thread.
pub(super) fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and is called before there are other threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Gives free pages back to the system. Blocks for milliseconds.
pub(super) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and is safe to be called by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
