//! Pins: they keep models that are not in use. A pin is stored beside the model and
//! not in it, so that it survives a repair.

use std::collections::HashSet;

use super::files;
use super::layout::Layout;
use super::layout::names::Directory;
use crate::error::Result;
use crate::model::ModelKey;

/// Pins or unpins a model. Blocks.
pub(in crate::cache) fn set(layout: &Layout, key: &ModelKey, pinned: bool) -> Result<()> {
    match pinned {
        true => files::write_whole(&layout.pin(key), b"", 0o644),
        false => files::remove(&layout.pin(key)),
    }
}

/// Lists the pinned models. Blocks.
pub(in crate::cache) fn all(layout: &Layout) -> Result<HashSet<ModelKey>> {
    let names = files::names(&layout.directory(Directory::Pins))?;
    Ok(names.iter().filter_map(|name| ModelKey::parse(name)).collect())
}
