//! Purge: removes the cache, and leaves foreign files alone.

use super::CacheStore;
use super::files;
use super::foreign;
use super::layout::names::Directory;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ModelKey, size_text};

/// The result of a purge.
#[derive(Debug, Clone, Default)]
pub struct Purged {
    /// Models that were in the cache.
    pub models: usize,
    /// Bytes that the cache took.
    pub bytes: u64,
}

impl CacheStore {
    /// Removes the driver's files from the cache directory, unless a model is in use or
    /// `downloading`, which names one that is. With `keep_running` the cache stays usable.
    /// Blocks.
    pub(in crate::cache) fn purge(
        &self,
        keep_running: bool,
        downloading: impl FnOnce() -> Option<ModelKey>,
    ) -> Result<Purged> {
        let bytes = self.usage()?.total().bytes;
        // No eviction, deletion or new hold on blobs meanwhile.
        let _alone = self.holds.lock_eviction();
        let _emptying = self.emptying.lock();
        self.check_unused(downloading)?;
        let mut models = 0;
        for name in files::names(&self.layout.models())? {
            // A model that is found now may be leased next: first move it out of
            // reach, and only if it is not held.
            let Some(key) = ModelKey::parse(&name) else { continue };
            let moved = self.holds.unless_held(&key, || {
                let leased = self.leases.all().iter().any(|lease| lease.model == key);
                if leased {
                    return Err(self.in_use("a pod has just mounted a model"));
                }
                self.models.remove(&key, Directory::Trash)
            });
            moved.unwrap_or_else(|| Err(self.in_use("a model has just come into use")))?;
            models += 1;
        }
        for directory in Directory::ALL.into_iter().filter(|one| *one != Directory::Leases) {
            foreign::remove_ours(&self.layout, directory)?;
        }
        self.remove_set_aside()?;
        if !keep_running {
            foreign::remove_ours(&self.layout, Directory::Leases)?;
            for directory in Directory::ALL {
                foreign::remove_empty(&self.layout.directory(directory))?;
            }
            let (scrubbed, in_force) = (self.layout.scrubbed(), self.layout.config_in_force());
            for file in [scrubbed, in_force, self.layout.version(), self.layout.lock()] {
                files::remove(&file)?;
            }
        }
        tracing::info!(
            cache = %self.layout.root().display(),
            models,
            bytes = %size_text(bytes),
            "the cache was removed"
        );
        Ok(Purged { models, bytes })
    }

    /// Checks that nothing in the cache is in use; the error names what is.
    fn check_unused(&self, downloading: impl FnOnce() -> Option<ModelKey>) -> Result<()> {
        let leases = self.leases.all();
        if let Some(lease) = leases.first() {
            return Err(self.in_use(&format!(
                "{} volumes hold models of it, among them {} of {}; end those pods first",
                leases.len(),
                lease.volume_id,
                lease.pod.as_deref().unwrap_or("an unknown pod"),
            )));
        }
        let uses = self.mounts()?;
        if let Some(one) = uses.iter().find(|one| !one.root.as_os_str().is_empty()) {
            let (part, at) = (one.root.display(), one.target.display());
            return Err(self.in_use(&format!("{part} is mounted at {at}; unmount that first")));
        }
        if let Some(key) = downloading() {
            let text = format!("model {key} is being downloaded; end what asks for it");
            return Err(self.in_use(&text));
        }
        if !self.holds.held_blobs().is_empty() || !self.holds.held_models().is_empty() {
            return Err(self.in_use("a model is being downloaded, imported or mounted"));
        }
        Ok(())
    }

    fn in_use(&self, why: &str) -> Error {
        let root = self.layout.root().display();
        Error::new(ErrorKind::Conflict, format!("the cache {root} was not removed: {why}"))
    }
}
