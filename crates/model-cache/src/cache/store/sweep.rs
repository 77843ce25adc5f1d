//! Sweeps leftovers: files whose other half is gone.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::CacheStore;
use super::files;
use super::foreign;
use super::layout::names::{self, BlobFile, Directory};
use super::recover;
use super::requests::revisions_of;
use crate::error::Result;
use crate::model::BlobId;

/// An orphaned file is swept only when it is older than this: its other half may
/// still be written.
const ORPHAN_AGE: Duration = Duration::from_secs(60 * 60);

impl CacheStore {
    /// Sweeps stale downloads except those of `busy`, orphaned records and index entries.
    /// The caller must have locked eviction. Blocks.
    pub(in crate::cache) fn sweep(&self, busy: &HashSet<BlobId>) -> Result<()> {
        recover::drop_stale_downloads(&self.layout, busy)?;
        self.sweep_directory(Directory::Content, |bytes| {
            let id = BlobId::parse(std::str::from_utf8(bytes).ok()?)?;
            Some(self.layout.blob(&id))
        })?;
        self.sweep_directory(Directory::Requests, |bytes| {
            let named = revisions_of(bytes);
            let mut models = named.iter().map(|key| self.layout.model(key));
            models.find(|model| model.exists())
        })?;
        for directory in self.layout.fans()? {
            for name in files::names(&directory)? {
                let path = directory.join(&name);
                let left_over = match BlobFile::parse(&name) {
                    Some((BlobFile::Blob, _)) => false,
                    Some((_, id)) => !self.layout.blob(&id).exists(),
                    None => names::is_unfinished(&name),
                };
                if left_over && is_old(&path) {
                    files::remove(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Removes old entries of an index whose targets are gone.
    fn sweep_directory(
        &self,
        directory: Directory,
        points_at: impl Fn(&[u8]) -> Option<PathBuf>,
    ) -> Result<()> {
        let path = self.layout.directory(directory);
        let ours = files::names(&path)?.into_iter().filter(|one| foreign::is_ours(directory, one));
        for path in ours.map(|name| path.join(name)) {
            let gone = files::read(&path)?
                .is_some_and(|bytes| points_at(&bytes).is_none_or(|target| !target.exists()));
            if gone && is_old(&path) {
                files::remove(&path)?;
            }
        }
        Ok(())
    }
}

fn is_old(path: &Path) -> bool {
    let modified = std::fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    modified
        .is_ok_and(|then| SystemTime::now().duration_since(then).is_ok_and(|age| age > ORPHAN_AGE))
}
