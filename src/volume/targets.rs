//! Allows one call at a time for a target path.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;

/// The target paths of running calls.
#[derive(Debug, Clone, Default)]
pub(super) struct Targets(Arc<Mutex<HashSet<PathBuf>>>);

/// The exclusive right to work on a target; ends when dropped.
#[derive(Debug)]
pub(super) struct TargetGuard {
    targets: Targets,
    target: PathBuf,
}

impl Targets {
    /// The guard of a target, or `InProgress` while another call holds it
    /// (CSI specification, "Concurrency": a plugin answers ABORTED).
    pub(super) fn enter(&self, target: &Path) -> Result<TargetGuard> {
        if self.lock().insert(target.to_owned()) {
            Ok(TargetGuard { targets: self.clone(), target: target.to_owned() })
        } else {
            Err(Error::new(
                ErrorKind::InProgress,
                format!(
                    "another call is running for {}; the call will be retried",
                    target.display()
                ),
            ))
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        lock(&self.0)
    }
}

impl Drop for TargetGuard {
    fn drop(&mut self) {
        self.targets.lock().remove(&self.target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_call_on_a_target_is_in_progress() {
        let targets = Targets::default();
        let first = targets.enter(Path::new("/a")).unwrap();
        assert_eq!(targets.enter(Path::new("/a")).unwrap_err().kind(), ErrorKind::InProgress);
        let _other = targets.enter(Path::new("/b")).unwrap();
        drop(first);
        targets.enter(Path::new("/a")).unwrap();
    }
}
