//! The configuration that was last in force, in a small file whose content only the
//! command line knows. It is stored here because the cache directory is what a node
//! keeps across restarts.

use super::CacheStore;
use super::files;
use crate::error::Result;

impl CacheStore {
    /// Returns the stored configuration, if there is one. Blocks.
    pub(in crate::cache) fn config_in_force(&self) -> Result<Option<Vec<u8>>> {
        files::read(&self.layout.config_in_force())
    }

    /// Stores the configuration durably. Blocks for the disk.
    pub(in crate::cache) fn set_config_in_force(&self, content: &[u8]) -> Result<()> {
        files::write_durably(&self.layout.config_in_force(), content, 0o600)
    }
}
