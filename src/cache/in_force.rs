//! The configuration that was in force last: a small file of which only the
//! command line knows the content. It is here since the cache's directory is
//! what a node keeps over restarts.

use super::{Cache, files};
use crate::error::Result;

impl Cache {
    /// What was remembered last, if anything was. Blocks.
    pub fn config_in_force(&self) -> Result<Option<Vec<u8>>> {
        files::read(&self.0.layout.config_in_force())
    }

    /// Remembers this, also when the machine dies. Blocks for the disk.
    pub fn set_config_in_force(&self, content: &[u8]) -> Result<()> {
        files::write_durably(&self.0.layout.config_in_force(), content, 0o600)
    }
}
