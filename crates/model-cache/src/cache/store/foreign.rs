//! Foreign files in the cache directory: any name that the driver does not use is
//! left alone.

use std::fs;
use std::path::{Path, PathBuf};

use super::CacheStore;
use super::files;
use super::layout::Layout;
use super::layout::names::{self, BlobFile, Directory, QuarantineFile, StagingFile};
use crate::error::{Error, Result};
use crate::model::{BlobId, ModelKey, RequestDigest};

/// Foreign files named in the log.
const NAMED: usize = 10;

/// Whether the driver uses such a name in this directory of the cache. Everything
/// in `trash/` counts as ours.
pub(in crate::cache) fn is_ours(directory: Directory, name: &str) -> bool {
    names::is_unfinished(name)
        || match directory {
            Directory::Blobs => names::is_fan(name),
            Directory::Content => BlobId::parse(name).is_some(),
            Directory::Requests => RequestDigest::parse(name).is_some(),
            Directory::Models | Directory::Pins => ModelKey::parse(name).is_some(),
            Directory::Leases => names::is_lease(name),
            Directory::Staging => StagingFile::parse(name).is_some(),
            Directory::Quarantine => QuarantineFile::parse(name).is_some(),
            Directory::Trash => true,
        }
}

/// Like [`is_ours`], for the directories of `blobs/`.
pub(in crate::cache) fn is_ours_in_fan(name: &str) -> bool {
    BlobFile::parse(name).is_some() || names::is_unfinished(name)
}

impl CacheStore {
    /// Logs foreign files in the cache's own directories. Blocks while it lists them.
    pub(in crate::cache) fn warn_of_foreign_files(&self) -> Result<()> {
        let mut found: Vec<PathBuf> = Vec::new();
        for directory in Directory::ALL {
            let path = self.layout.directory(directory);
            let names = files::names(&path)?.into_iter().filter(|name| !is_ours(directory, name));
            found.extend(names.map(|name| path.join(name)));
        }
        for fan in self.layout.fans()? {
            let names = files::names(&fan)?.into_iter().filter(|name| !is_ours_in_fan(name));
            found.extend(names.map(|name| fan.join(name)));
        }
        for path in found.iter().take(NAMED) {
            tracing::warn!(
                path = %path.display(),
                all = found.len(),
                "the cache holds a file that is not the driver's; it is left alone"
            );
        }
        Ok(())
    }
}

/// Removes the driver's files from a directory of the cache. Blocks.
pub(in crate::cache) fn remove_ours(layout: &Layout, directory: Directory) -> Result<()> {
    let path = layout.directory(directory);
    let ours = files::names(&path)?.into_iter().filter(|name| is_ours(directory, name));
    for path in ours.map(|name| path.join(name)) {
        if directory == Directory::Blobs && path.is_dir() {
            for name in files::names(&path)?.into_iter().filter(|name| is_ours_in_fan(name)) {
                delete(&path.join(name))?;
            }
            remove_empty(&path)?;
        } else {
            delete(&path)?;
        }
    }
    Ok(())
}

/// Removes a directory, unless foreign files are in it.
pub(in crate::cache) fn remove_empty(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other.map_err(|e| Error::io(format!("removing {}", path.display()), &e)),
    }
}

fn delete(path: &Path) -> Result<()> {
    match files::delete_tree(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", path.display()), &e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_the_driver_uses_are_ours() {
        let id = "0f".repeat(32);
        let ours = [
            (Directory::Staging, format!("{id}.part")),
            (Directory::Staging, format!("{id}.journal")),
            (Directory::Staging, format!("{id}.12.import")),
            (Directory::Staging, format!("model-{id}")),
            (Directory::Staging, format!(".{id}.json.4711.0.tmp")),
            (Directory::Leases, format!("{id}.json")),
            (Directory::Quarantine, format!("blob-{id}")),
            (Directory::Quarantine, format!("{id}.0")),
            (Directory::Models, id.clone()),
            (Directory::Blobs, "0f".to_owned()),
        ];
        for (directory, name) in ours {
            assert!(is_ours(directory, &name), "{directory:?}/{name}");
        }
        let foreign = [
            (Directory::Staging, "weights.part".to_owned()),
            (Directory::Staging, format!("{id}.x.import")),
            (Directory::Staging, ".swap.tmp".to_owned()),
            (Directory::Leases, "notes.json".to_owned()),
            (Directory::Leases, id.clone()),
            (Directory::Quarantine, "report.0".to_owned()),
            (Directory::Models, "phi3".to_owned()),
            (Directory::Blobs, "README".to_owned()),
        ];
        for (directory, name) in foreign {
            assert!(!is_ours(directory, &name), "{directory:?}/{name}");
        }
        assert!(is_ours_in_fan(&format!("{id}.unsynced")) && !is_ours_in_fan("notes.json"));
    }
}
