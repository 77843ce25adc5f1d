//! A file system of the test's own, in a file, whose power can be cut: data that
//! was not made durable is gone when it is mounted again.
//!
//! It is mounted in the namespace of the test. The kernel gives the loop device
//! back when its mount ends, which is with the namespace at the latest, so a
//! test that fails leaves nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::namespace::skipped;
use super::run::eventually;

/// xfs wants 300 MB at least; blocks are taken as they are written.
const SIZE: u64 = 512 << 20;

/// The kinds that a cache may be on, as mkfs names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
}

/// Which unsynced writes are on the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Written {
    Nothing,
    /// Names, sizes and modes, as after an fsync of any other file, and no
    /// byte of a file.
    Metadata,
    /// As well the bytes of small files: records speak of blobs that are zeros.
    SmallFiles,
}

impl Written {
    pub(crate) const ALL: [Self; 3] = [Self::Nothing, Self::Metadata, Self::SmallFiles];
}

#[derive(Debug)]
pub(crate) struct LoopFs {
    kind: Kind,
    image: PathBuf,
    directory: PathBuf,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

impl LoopFs {
    /// An empty file system, mounted at `scratch/disk`. None, and it is said
    /// why, where the machine cannot do that.
    pub(crate) fn mounted(kind: Kind, scratch: &Path) -> Option<Self> {
        let (image, directory) = (scratch.join("disk.img"), scratch.join("disk"));
        let made = File::create(&image)
            .and_then(|file| file.set_len(SIZE))
            .and_then(|()| fs::create_dir(&directory))
            .and_then(|()| {
                run(Command::new(format!("mkfs.{}", kind.name())).arg("-q").arg(&image))
            });
        let made = made.and_then(|()| {
            let disk = Self { kind, image, directory };
            disk.mount()?;
            // Only asked for its version: a cut cannot be tried.
            run(Command::new("xfs_io").arg("-V"))?;
            Ok(disk)
        });
        made.inspect_err(|error| {
            skipped(&format!(
                "a cache on {}: no file system of its own here ({error})",
                kind.name()
            ));
        })
        .ok()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Writes everything to the disk.
    pub(crate) fn sync(&self) {
        let directory = File::open(&self.directory).expect("a directory");
        nix::unistd::syncfs(directory).expect("a sync");
    }

    /// Writes what a kernel may have written of its own accord by now.
    pub(crate) fn write_back(&self, written: Written) {
        match written {
            Written::Nothing => {}
            Written::Metadata => {
                let file = File::create(self.directory.join("of-another-program"));
                let synced = file.and_then(|mut f| f.write_all(b"x").and_then(|()| f.sync_all()));
                synced.expect("a file and its fsync");
            }
            Written::SmallFiles => sync_small_files(&self.directory),
        }
    }

    /// From now on nothing reaches the disk, and nothing can be read from it.
    pub(crate) fn cut_power(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.directory))
            .expect("the shutdown of a file system");
    }

    /// Ends all its mounts below `elsewhere` and its own, and mounts it again.
    /// No process may have a file open on it.
    pub(crate) async fn remount(&self, elsewhere: &Path) {
        for mount in mounts_below(elsewhere).iter().rev() {
            nix::mount::umount(mount).expect("a bind mount");
        }
        eventually("the file system is not in use", Duration::from_secs(10), async || {
            nix::mount::umount(&self.directory).ok()
        })
        .await;
        self.mount().expect("the same file system again");
    }

    fn mount(&self) -> io::Result<()> {
        let kind = ["-t", self.kind.name(), "-o", "loop"];
        run(Command::new("mount").args(kind).arg(&self.image).arg(&self.directory))
    }
}

/// Every mount point below a directory, in the order in which they were mounted.
pub(crate) fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(directory)).collect()
}

fn sync_small_files(directory: &Path) {
    const SMALL: u64 = 64 << 10;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // A mount that ends meanwhile needs no sync.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            sync_small_files(&entry.path());
        } else if metadata.len() <= SMALL
            && let Ok(file) = File::open(entry.path())
        {
            file.sync_all().expect("fsync");
        }
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().map_err(|error| io::Error::other(format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(io::Error::other(format!("{program}: {}: {said}", output.status)))
}
