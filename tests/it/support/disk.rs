//! Small file systems of a test's own, on loop devices. They end with the
//! test's mount namespace.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system in a file.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    image: PathBuf,
}

impl Disk {
    /// An ext4 of this many bytes; `options` are those of mkfs.
    pub(crate) fn ext4(scratch: &Path, size: u64, options: &[&str]) -> Self {
        Self::made(&[&["mkfs.ext4", "-q", "-m", "0"], options].concat(), scratch, size)
    }

    /// A file system of this many bytes; `kind` is `ext4`, `xfs` or `btrfs`.
    pub(crate) fn formatted(kind: &str, scratch: &Path, size: u64) -> Self {
        Self::made(&[&format!("mkfs.{kind}"), "-q"], scratch, size)
    }

    fn made(format: &[&str], scratch: &Path, size: u64) -> Self {
        let (image, path) = (scratch.join("disk.img"), scratch.join("disk"));
        File::create(&image).and_then(|file| file.set_len(size)).expect("an image");
        fs::create_dir(&path).expect("a mount point");
        run(Command::new(format[0]).args(&format[1..]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &path]));
        Self { path, image }
    }

    /// The loop device that it is on.
    pub(crate) fn device(&self) -> PathBuf {
        let mut listing = Command::new("losetup");
        let output = listing.args(["-n", "-O", "NAME", "-j"]).arg(&self.image).output();
        let output = output.expect("losetup");
        let name = String::from_utf8(output.stdout).expect("UTF-8");
        name.lines().next().expect("a loop device").trim().into()
    }

    /// Fills the disk with this many foreign bytes.
    pub(crate) fn fill(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path.join(name);
        run(Command::new("fallocate").args(["-l", &bytes.to_string()]).arg(&path));
        path
    }

    /// Fills the disk until this many bytes are free.
    pub(crate) fn fill_but(&self, name: &str, bytes: u64) -> PathBuf {
        self.fill(name, self.free() - bytes)
    }

    /// Bytes that can still be written.
    pub(crate) fn free(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(&self.path).expect("the disk");
        stat.blocks_available() * stat.fragment_size()
    }
}

/// Runs a program that must succeed.
#[track_caller]
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
}
