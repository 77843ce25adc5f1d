//! Models that stay although nobody uses them. A pin stands beside the model
//! and not in it, so that it outlives a repair.

use std::collections::HashSet;

use super::files;
use super::layout::Layout;
use crate::error::Result;
use crate::model::ModelKey;

/// Pins or unpins. Blocks.
pub(super) fn set(layout: &Layout, key: &ModelKey, pinned: bool) -> Result<()> {
    match pinned {
        true => files::write_whole(&layout.pin(key), b"", 0o644),
        false => files::remove(&layout.pin(key)),
    }
}

/// All pins. Blocks.
pub(super) fn all(layout: &Layout) -> Result<HashSet<ModelKey>> {
    let names = files::names(&layout.directory("pins"))?;
    Ok(names.iter().filter_map(|name| ModelKey::parse(name)).collect())
}
