//! Space on the disk, in bytes and inodes.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// An amount of space on a file system. Sums saturate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::cache) struct Space {
    /// Allocated bytes.
    pub(in crate::cache) bytes: u64,
    /// Inodes.
    pub(in crate::cache) inodes: u64,
}

impl Space {
    /// The space of one inode.
    pub(in crate::cache) fn of(metadata: &Metadata) -> Self {
        Self { bytes: metadata.blocks().saturating_mul(512), inodes: 1 }
    }

    pub(in crate::cache) fn saturating_add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }

    pub(in crate::cache) fn saturating_sub(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            inodes: self.inodes.saturating_sub(other.inodes),
        }
    }

    /// Whether this is enough for `need`, in bytes and in inodes.
    pub(in crate::cache) fn covers(self, need: Self) -> bool {
        self.bytes >= need.bytes && self.inodes >= need.inodes
    }
}
