//! The steps of `crates/foundation/src/abort_point.rs`, by the operation that reaches them, with
//! the number of times that one publish or unpublish of a
//! [`Model`](super::pods::Model) of two shards does so.

use std::ops::RangeInclusive;

pub(crate) type Step = (&'static str, RangeInclusive<u64>);

/// The operation that reaches a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Publish,
    /// A publish that needs an eviction.
    Evict,
    Unpublish,
    /// An import of a directory, while no driver runs.
    Import,
}

/// After each start's own file: those of blobs, of the model, of the lease.
pub(crate) const WRITES: [Step; 4] =
    [("write-1", 2..=4), ("write-1", 5..=7), ("write-1", 8..=10), ("write-1", 11..=12)];

pub(crate) const DOWNLOAD: [Step; 5] = [
    ("download-1", 1..=5),
    ("download-2", 1..=5),
    ("download-3", 1..=4),
    ("download-4", 1..=4),
    ("download-5", 1..=5),
];

pub(crate) const BLOB_COMMIT: [Step; 5] = [
    ("blob-commit-1", 1..=5),
    ("blob-commit-2", 1..=5),
    ("blob-commit-3", 1..=5),
    ("blob-commit-4", 1..=5),
    ("blob-commit-5", 1..=5),
];

pub(crate) const MODEL_COMMIT: [Step; 8] = [
    ("model-commit-1", 1..=1),
    ("model-commit-2", 1..=1),
    ("model-commit-3", 1..=1),
    ("model-commit-4", 1..=1),
    ("durability-1", 1..=1),
    ("blob-commit-6", 1..=5),
    ("durability-2", 1..=1),
    ("model-commit-5", 1..=1),
];

pub(crate) const BIND: [Step; 4] =
    [("bind-1", 1..=1), ("lease-1", 1..=1), ("bind-2", 1..=1), ("bind-3", 1..=1)];

pub(crate) const UNBIND: [Step; 3] =
    [("unbind-1", 1..=1), ("unbind-2", 1..=1), ("unbind-3", 1..=1)];

pub(crate) const EVICT: [Step; 5] = [
    ("evict-1", 1..=1),
    ("evict-2", 1..=1),
    ("evict-3", 1..=5),
    ("evict-4", 1..=5),
    ("evict-5", 1..=6),
];

pub(crate) const IMPORT: [Step; 4] =
    [("import-1", 1..=5), ("import-2", 1..=5), ("import-3", 1..=5), ("import-4", 1..=5)];

/// All steps, with the operations that reach them.
pub(crate) fn all() -> impl Iterator<Item = (Asked, &'static Step)> {
    let publish: [&[Step]; 5] = [&WRITES, &DOWNLOAD, &BLOB_COMMIT, &MODEL_COMMIT, &BIND];
    let publish = publish.into_iter().flatten().map(|step| (Asked::Publish, step));
    let evict = EVICT.iter().map(|step| (Asked::Evict, step));
    let unpublish = UNBIND.iter().map(|step| (Asked::Unpublish, step));
    let import = IMPORT.iter().map(|step| (Asked::Import, step));
    publish.chain(evict).chain(unpublish).chain(import)
}
