#![expect(unsafe_code, reason = "mallopt and malloc_trim have no safe wrapper in nix or std")]
//! The allocator's two calls that no crate wraps.
//!
//! JUSTIFICATION: memory that was freed in small pieces returns to the system only
//! when the allocator is asked to (`malloc_trim`), and it keeps as many heaps as
//! threads ever ran side by side (`M_ARENA_MAX`). This module holds only the
//! calls.

#[cfg(target_env = "gnu")]
use nix::libc;

/// Arenas of the allocator. Each keeps what its threads freed; the default is up
/// to eight for each core.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Limits what the allocator keeps for itself. Call it before the first thread.
pub(super) fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and is called before there are other threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Returns free pages to the system. Blocks for milliseconds.
pub(super) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and any thread may call it.
    unsafe {
        libc::malloc_trim(0);
    }
}
