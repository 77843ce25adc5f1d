//! Measures on the disk what running downloads and a requested model still need.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{BLOCK, FileSystem, Reservations, SpaceRequest};
use crate::cache::store::files;
use crate::cache::store::layout::names::StagingFile;
use crate::error::Result;
use crate::model::BlobId;

/// The result of a measurement.
#[derive(Debug)]
pub(super) struct Measured {
    /// Bytes that running downloads will still take.
    pub(super) running: HashMap<BlobId, u64>,
    /// Bytes that the requested blobs will take.
    pub(super) wanted: HashMap<BlobId, u64>,
    /// Directories that must be created for them.
    pub(super) fans: u64,
    pub(super) fs: FileSystem,
}

impl Reservations {
    /// Measures on the disk. The totals are not locked meanwhile: async code waits for
    /// that lock, and there may be a hundred thousand blobs. Blocks.
    pub(super) fn measure(&self, wanted: &SpaceRequest) -> Result<Measured> {
        let pending: Vec<(BlobId, u64)> =
            self.lock().pending.iter().map(|(id, pending)| (id.clone(), pending.size)).collect();
        let copies = self.copies()?;
        let to_come = |blobs: &[(BlobId, u64)]| -> HashMap<BlobId, u64> {
            let of = |id, size| self.still_to_come(id, size, copies.get(id));
            blobs.iter().map(|(id, size)| (id.clone(), of(id, *size))).collect()
        };
        // Before the free space is read: bytes that arrive in between are then counted
        // twice, rather than not at all.
        let (running, missing) = (to_come(&pending), to_come(&wanted.missing));
        let fs = FileSystem::of(self.layout.root())?;
        Ok(Measured { running, wanted: missing, fans: self.missing_fans(wanted), fs })
    }

    /// Counts the directories of `blobs/` that must be created first.
    fn missing_fans(&self, wanted: &SpaceRequest) -> u64 {
        let fans: HashSet<PathBuf> =
            wanted.missing.iter().map(|(id, _)| self.layout.blob_directory(id)).collect();
        u64::try_from(fans.iter().filter(|fan| !fan.is_dir()).count()).unwrap_or(u64::MAX)
    }

    /// Returns the space that the copies of imports take so far.
    fn copies(&self) -> Result<HashMap<BlobId, u64>> {
        let mut copies = HashMap::new();
        for name in files::names(&self.layout.staging())? {
            let Some(StagingFile::Copy(id, _)) = StagingFile::parse(&name) else { continue };
            let has = allocated(&self.layout.staging().join(name));
            *copies.entry(id).or_default() += has.unwrap_or(0);
        }
        Ok(copies)
    }

    /// Returns the bytes that this blob will still take. The staging file is
    /// preallocated, so its space is no longer free. A copy does not resume an
    /// interrupted download.
    fn still_to_come(&self, id: &BlobId, size: u64, copied: Option<&u64>) -> u64 {
        let has = copied.copied().or_else(|| allocated(&self.layout.part(id)));
        let has = has.or_else(|| allocated(&self.layout.blob(id)));
        size.next_multiple_of(BLOCK).saturating_sub(has.unwrap_or(0))
    }
}

fn allocated(path: &Path) -> Option<u64> {
    std::fs::symlink_metadata(path).map(|metadata| metadata.blocks().saturating_mul(512)).ok()
}
