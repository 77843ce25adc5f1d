//! Points at which a test kills or stops the process: the numbered steps of
//! the crash protocols.
//!
//! A build with debug assertions reads `OCI_MODEL_CSI_ABORT_AT`: `kill:STEP`
//! sends the process SIGKILL when it reaches the step, `stop:STEP` SIGSTOP, and
//! `kill:STEP:3` does so the third time. A build without them contains none of
//! this, not even the names of the steps.

#[cfg(debug_assertions)]
use std::sync::LazyLock;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(debug_assertions)]
use nix::sys::signal::{Signal, raise};

/// Every step that the code may name, in the order of a publish. `tests/it/kill_points.rs`
/// compares this list with the sources, and reaches each step.
pub const STEPS: &[&str] = &[
    // Any small file that appears by a rename: its temporary file is written.
    "write-1",
    // `download/engine.rs` and `download/target.rs`.
    "download-1",
    "download-2",
    "download-3",
    "download-4",
    "download-5",
    // `cache/store/blobs.rs`; 6 comes after `durability-1`.
    "blob-commit-1",
    "blob-commit-2",
    "blob-commit-3",
    "blob-commit-4",
    "blob-commit-5",
    "blob-commit-6",
    // `cache/store/models.rs`; 5 comes after `durability-2`.
    "model-commit-1",
    "model-commit-2",
    "model-commit-3",
    "model-commit-4",
    "model-commit-5",
    // `cache/store/durability.rs`: the file system is synced; the records of the blobs say so.
    "durability-1",
    "durability-2",
    // `cache/store/leases.rs`: the lease is on the disk.
    "lease-1",
    // `volume/publish.rs`: the target is made; leased; bound and not answered.
    "bind-1",
    "bind-2",
    "bind-3",
    // `volume/publish.rs`: unmounted; target removed; lease removed.
    "unbind-1",
    "unbind-2",
    "unbind-3",
    // `cache/space/evict.rs`.
    "evict-1",
    "evict-2",
    "evict-3",
    "evict-4",
    "evict-5",
    // `cache/fill/import.rs`.
    "import-1",
    "import-2",
    "import-3",
    "import-4",
];

/// Marks a step as done. Does not return if a test stops the process here.
#[cfg(not(debug_assertions))]
#[inline(always)]
#[allow(clippy::inline_always, reason = "neither the call nor its argument may remain")]
pub fn reach(_step: &str) {}

/// Marks a step as done. Does not return if a test stops the process here.
#[cfg(debug_assertions)]
pub fn reach(step: &str) {
    static WANTED: LazyLock<Option<AbortRequest>> = LazyLock::new(AbortRequest::of_process);
    if let Some(wanted) = &*WANTED {
        wanted.reach(step);
    }
}

/// The step at which a test stops this process.
#[cfg(debug_assertions)]
#[derive(Debug)]
struct AbortRequest {
    signal: Signal,
    step: String,
    /// Times that the step must still be reached.
    left: AtomicU64,
}

#[cfg(debug_assertions)]
impl AbortRequest {
    fn of_process() -> Option<Self> {
        let text = std::env::var("OCI_MODEL_CSI_ABORT_AT").ok()?;
        // A test that names no step would pass without having tested anything.
        let wanted = Self::parse(&text);
        Some(wanted.unwrap_or_else(|| panic!("OCI_MODEL_CSI_ABORT_AT names no step: {text:?}")))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let signal = match parts.next()? {
            "kill" => Signal::SIGKILL,
            "stop" => Signal::SIGSTOP,
            _ => return None,
        };
        let step = parts.next().filter(|step| STEPS.contains(step))?.to_owned();
        let times = parts.next().map_or(Some(1), |times| times.parse().ok())?;
        let whole = times > 0 && parts.next().is_none();
        whole.then(|| Self { signal, step, left: AtomicU64::new(times) })
    }

    fn reach(&self, step: &str) {
        debug_assert!(STEPS.contains(&step), "{step} is not in STEPS");
        if self.step == step && self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            // To this thread, so that it does not take another step.
            raise(self.signal).expect("a process may signal itself");
        }
    }
}

#[cfg(debug_assertions)]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_steps_are_accepted() {
        for text in ["kill:lease-1", "stop:download-3", "kill:blob-commit-6:40"] {
            assert!(AbortRequest::parse(text).is_some(), "{text}");
        }
        for text in ["", "lease-1", "kill:", "kill:lease-99", "end:lease-1", "kill:lease-1:0"] {
            assert!(AbortRequest::parse(text).is_none(), "{text}");
        }
        assert!(AbortRequest::parse("kill:lease-1:x").is_none());
        assert!(AbortRequest::parse("kill:lease-1:1:1").is_none());
    }
}
