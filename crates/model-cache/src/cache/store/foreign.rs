//! Foreign files in the cache directory: any name that the driver does not use is
//! left alone.

use std::fs;
use std::path::{Path, PathBuf};

use super::files;
use super::layout::{DIRECTORIES, Layout, is_fan};
use crate::error::{Error, Result};
use crate::model::{BlobId, ModelKey};

/// Foreign files named in the log.
const NAMED: usize = 10;

/// Whether the driver uses such a name in this directory of the cache. Everything
/// in `trash/` counts as ours.
pub(in crate::cache) fn is_ours(directory: &str, name: &str) -> bool {
    let is_id = |name: &str| BlobId::parse(name).is_some();
    let is_key = |name: &str| ModelKey::parse(name).is_some();
    let is_numbered = |name: &str| {
        let parts = name.rsplit_once('.');
        parts.is_some_and(|(key, n)| is_key(key) && n.parse::<u64>().is_ok())
    };
    let stem =
        |ends: &[&str]| ends.iter().find_map(|end| name.strip_suffix(end)).is_some_and(is_id);
    files::is_unfinished(name)
        || match directory {
            "blobs" => is_fan(name),
            "content" | "requests" => is_id(name),
            "models" | "pins" => is_key(name),
            "leases" => stem(&[".json"]),
            "staging" => {
                stem(&[".part", ".journal"])
                    || Layout::blob_of_copy(name).is_some()
                    || name.strip_prefix("model-").is_some_and(is_key)
            }
            "quarantine" => name.strip_prefix("blob-").is_some_and(is_id) || is_numbered(name),
            "trash" => true,
            _ => false,
        }
}

/// Like [`is_ours`], for the directories of `blobs/`.
pub(in crate::cache) fn is_ours_in_fan(name: &str) -> bool {
    let blob = name.strip_suffix(".json").or_else(|| name.strip_suffix(".unsynced"));
    BlobId::parse(blob.unwrap_or(name)).is_some() || files::is_unfinished(name)
}

/// Logs foreign files in the cache's own directories. Blocks while it lists them.
pub(in crate::cache) fn warn(layout: &Layout) -> Result<()> {
    let mut found: Vec<PathBuf> = Vec::new();
    for directory in DIRECTORIES {
        let path = layout.directory(directory);
        let names = files::names(&path)?.into_iter().filter(|name| !is_ours(directory, name));
        found.extend(names.map(|name| path.join(name)));
    }
    for fan in layout.fans()? {
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

/// Removes the driver's files from a directory of the cache. Blocks.
pub(in crate::cache) fn remove_ours(layout: &Layout, directory: &str) -> Result<()> {
    let path = layout.directory(directory);
    let ours = files::names(&path)?.into_iter().filter(|name| is_ours(directory, name));
    for path in ours.map(|name| path.join(name)) {
        if directory == "blobs" && path.is_dir() {
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
            ("staging", format!("{id}.part")),
            ("staging", format!("{id}.journal")),
            ("staging", format!("{id}.12.import")),
            ("staging", format!("model-{id}")),
            ("staging", format!(".{id}.json.4711.0.tmp")),
            ("leases", format!("{id}.json")),
            ("quarantine", format!("blob-{id}")),
            ("quarantine", format!("{id}.0")),
            ("models", id.clone()),
            ("blobs", "0f".to_owned()),
        ];
        for (directory, name) in ours {
            assert!(is_ours(directory, &name), "{directory}/{name}");
        }
        let foreign = [
            ("staging", "weights.part".to_owned()),
            ("staging", format!("{id}.x.import")),
            ("staging", ".swap.tmp".to_owned()),
            ("leases", "notes.json".to_owned()),
            ("leases", id.clone()),
            ("quarantine", "report.0".to_owned()),
            ("models", "phi3".to_owned()),
            ("blobs", "README".to_owned()),
        ];
        for (directory, name) in foreign {
            assert!(!is_ours(directory, &name), "{directory}/{name}");
        }
        assert!(is_ours_in_fan(&format!("{id}.unsynced")) && !is_ours_in_fan("notes.json"));
    }
}
