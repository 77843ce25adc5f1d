//! Tries what the cache needs of its file system, on files that are removed again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};

use super::files;
use super::layout::Layout;
use super::layout::names;
use super::sys::{ReadLease, reflink};
use crate::error::{Error, Result};

/// A name for a file in the directory of a cache that is removed at once; one that stays is removed
/// when the driver starts.
pub fn passing_name(what: &str) -> String {
    names::unfinished(what, 0)
}

/// What each file of a probe contains.
const CONTENT: &[u8] = &[b'x'; 4096];

/// What the file system of a cache can do; errors are the kernel's answers.
#[derive(Debug)]
pub struct FileSystemProbe {
    /// Hard links: trees are made of them, so a cache cannot be without.
    pub hard_links: io::Result<()>,
    /// Renames over an existing name: how everything is committed.
    pub renames: io::Result<()>,
    /// fsync of a file and of its directory: what survives a power loss.
    pub syncs: io::Result<()>,
    /// Space that is allocated before a download writes it.
    pub preallocation: io::Result<()>,
    /// Read leases, with which `cache import --move` recognizes writers.
    pub leases: io::Result<()>,
    /// Copies that share blocks: `cache import` then takes no space.
    pub reflinks: io::Result<()>,
}

/// Tries the file system of a cache, or of an empty directory that will become one. Blocks for
/// two syncs of a small file. Of a driver that is killed here, its next start removes the files.
///
/// # Errors
/// When no file can be written there at all.
pub fn probe_file_system(root: &Path) -> Result<FileSystemProbe> {
    let staging = Layout::new(root).staging();
    let directory = if staging.is_dir() { staging } else { root.to_owned() };
    let name = |number| directory.join(names::unfinished("probe", number));
    let used = ProbeFiles([name(0), name(1), name(2)]);
    let [first, second, third] = &used.0;
    files::write_whole(first, b"", 0o600)?;
    let failed = |e: io::Error| Error::io(format!("opening {}", first.display()), &e);
    let reader = File::open(first).map_err(failed)?;
    let probe = FileSystemProbe {
        hard_links: fs::hard_link(first, second),
        syncs: write_and_sync(&directory, first),
        leases: ReadLease::take(&reader).map(drop),
        preallocation: preallocate(third),
        reflinks: File::create(third).and_then(|copy| reflink(&reader, copy)),
        renames: fs::rename(third, first),
    };
    drop(used);
    Ok(probe)
}

fn write_and_sync(directory: &Path, path: &Path) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.write_all(CONTENT)?;
    file.sync_all()?;
    File::open(directory)?.sync_all()
}

fn preallocate(path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    Ok(fallocate(&file, FallocateFlags::empty(), 0, 1 << 20)?)
}

/// Removes the files of a probe, also of one that failed halfway.
struct ProbeFiles([PathBuf; 3]);

impl Drop for ProbeFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            // One that stays is removed at the driver's next start.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_leaves_nothing_in_an_empty_directory_nor_in_a_cache() {
        let dir = tempfile::tempdir().unwrap();
        let names = |path: &Path| fs::read_dir(path).unwrap().count();
        let probe = probe_file_system(dir.path()).unwrap();
        probe.hard_links.unwrap();
        probe.renames.unwrap();
        probe.syncs.unwrap();
        assert_eq!(names(dir.path()), 0);

        let staging = Layout::new(dir.path()).staging();
        fs::create_dir(&staging).unwrap();
        probe_file_system(dir.path()).unwrap();
        assert_eq!((names(dir.path()), names(&staging)), (1, 0));

        fs::remove_dir(&staging).unwrap();
        fs::remove_dir(dir.path()).unwrap();
        assert!(probe_file_system(dir.path()).is_err(), "nothing can be written there");
    }
}
