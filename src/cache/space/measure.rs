//! What the disk says of running downloads and of a model that is wanted.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::{FileSystem, Ledger, Wanted};
use crate::error::Result;
use crate::model::BlobId;

/// What the disk said.
#[derive(Debug)]
pub(super) struct Measured {
    /// What the running downloads will still take, in bytes.
    pub(super) running: HashMap<BlobId, u64>,
    /// What the wanted blobs will.
    pub(super) wanted: HashMap<BlobId, u64>,
    /// Directories that have to be made for them.
    pub(super) fans: u64,
    pub(super) fs: FileSystem,
}

impl Ledger {
    /// Asks the disk, without the book's lock: that is waited for in async
    /// code, and blobs may be a hundred thousand. Blocks.
    pub(super) fn measure(&self, wanted: &Wanted) -> Result<Measured> {
        let pending: Vec<(BlobId, u64)> =
            self.lock().pending.iter().map(|(id, pending)| (id.clone(), pending.size)).collect();
        let to_come = |blobs: &[(BlobId, u64)]| -> HashMap<BlobId, u64> {
            blobs.iter().map(|(id, size)| (id.clone(), self.still_to_come(id, *size))).collect()
        };
        // Before the look at what is free: what comes in between counts twice
        // then, and not never.
        let (running, missing) = (to_come(&pending), to_come(&wanted.missing));
        let fs = FileSystem::of(self.layout.root())?;
        Ok(Measured { running, wanted: missing, fans: self.missing_fans(wanted), fs })
    }

    /// Directories of `blobs/` that have to be made first.
    fn missing_fans(&self, wanted: &Wanted) -> u64 {
        let fans: HashSet<PathBuf> =
            wanted.missing.iter().map(|(id, _)| self.layout.blob_directory(id)).collect();
        u64::try_from(fans.iter().filter(|fan| !fan.is_dir()).count()).unwrap_or(u64::MAX)
    }
}
