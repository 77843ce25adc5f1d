//! Pins: they keep models that are not in use. A pin is stored beside the model and
//! not in it, so that it survives a repair.

use std::collections::HashSet;

use super::CacheStore;
use super::files;
use super::layout::names::Directory;
use crate::error::{Error, ErrorKind, Result};
use crate::model::ModelKey;

impl CacheStore {
    /// Pins or unpins a model. Blocks.
    ///
    /// # Errors
    /// `NotFound` when a model to be pinned is not in the cache.
    pub(in crate::cache) fn pin(&self, key: &ModelKey, pinned: bool) -> Result<()> {
        if !pinned {
            return files::remove(&self.layout.pin(key));
        }
        if !self.layout.model(key).is_dir() {
            let text = format!("model {key} is not in the cache, so it cannot be pinned");
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        files::write_whole(&self.layout.pin(key), b"", 0o644)
    }

    /// Lists the pinned models. Blocks.
    pub(in crate::cache) fn pinned(&self) -> Result<HashSet<ModelKey>> {
        let names = files::names(&self.layout.directory(Directory::Pins))?;
        Ok(names.iter().filter_map(|name| ModelKey::parse(name)).collect())
    }
}
