//! Reads the headers of a model's weights, and finds their flaws.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::ErrorKind as Io;
use std::path::Path;

use super::contents;
use super::loaders::{self, FileKind, Format, Role};
use super::report::WeightsReport;
use super::safetensors::{self, IndexContent, MAX_INDEX};
use crate::error::{Error, Result};
use crate::model::Manifest;

/// Most missing shards that are remembered per model.
pub(super) const MISSING: usize = 1000;

/// Why the check of a model ended early.
enum InspectStop {
    /// One of its files is missing, because the model was evicted. Then there is nothing
    /// to publish either.
    Vanished,
    Failed(Error),
}

/// Finds the flaws of the model that is in the directory `tree`; `None` if files of
/// it are missing, since it was evicted. Blocks.
pub(super) fn inspect(manifest: &Manifest, tree: &Path) -> Result<Option<WeightsReport>> {
    let mut report = WeightsReport::default();
    let inspected = inspect_indexes(manifest, tree, &mut report)
        .and_then(|roles| inspect_files(manifest, tree, &roles, &mut report));
    match inspected {
        Ok(()) => Ok(Some(report)),
        Err(InspectStop::Vanished) => Ok(None),
        Err(InspectStop::Failed(error)) => Err(error),
    }
}

/// Inspects the indexes; returns how loaders use each file.
fn inspect_indexes<'a>(
    manifest: &'a Manifest,
    tree: &Path,
    report: &mut WeightsReport,
) -> Result<HashMap<&'a str, Role>, InspectStop> {
    let sizes: HashMap<&str, u64> =
        manifest.files.iter().map(|file| (file.path.as_str(), file.size)).collect();
    let paths: HashSet<&str> = sizes.keys().copied().collect();
    let mut indexes: Vec<(&str, Result<Vec<String>, String>)> = Vec::new();
    let mut left = MISSING;
    let listed = manifest.files.iter().map(|file| file.path.as_str());
    let roles = loaders::roles(listed, |index| -> Result<_, InspectStop> {
        if sizes.get(index).is_none_or(|size| *size > MAX_INDEX) {
            return Ok(None);
        }
        let (there, found) = match read(tree, index, |file| safetensors::shards(file))? {
            IndexContent::Other => return Ok(None),
            IndexContent::Shards(shards) => {
                let (there, mut missing) = loaders::named_by(index, shards, &paths);
                missing.truncate(left);
                left -= missing.len();
                (Some(there), Ok(missing))
            }
            IndexContent::Flawed(why) => (None, Err(why)),
        };
        indexes.push((index, found));
        Ok(there)
    })?;
    for (index, found) in indexes {
        let role = roles.get(index).copied().unwrap_or(Role::Unused);
        match found {
            Ok(missing) => report.record_missing(index, role, missing),
            Err(why) => report.record(index, role, &why),
        }
    }
    Ok(roles)
}

/// Inspects the files of weights.
fn inspect_files(
    manifest: &Manifest,
    tree: &Path,
    roles: &HashMap<&str, Role>,
    report: &mut WeightsReport,
) -> Result<(), InspectStop> {
    let mut offered = Offered::default();
    for file in &manifest.files {
        let path = file.path.as_str();
        let Some(FileKind::Weights(format)) = loaders::kind(path) else { continue };
        let Some(role) = roles.get(path) else { continue };
        let flaw = match format {
            Format::Safetensors => read(tree, path, |f| safetensors::check_header(f, file.size))?,
            Format::Gguf => read(tree, path, |f| contents::check_gguf(f, file.size))?,
            Format::Bin if contents::can_be_pointer(file.size) => {
                read(tree, path, |f| contents::check_bin(f))?
            }
            Format::Bin => None,
        };
        match (role, flaw) {
            (Role::Offered, flaw) => offered.add(path, flaw),
            (role, Some(why)) => report.record(path, *role, &why),
            (_, None) => {}
        }
    }
    offered.record_in(report);
    Ok(())
}

/// Reads a file of the model.
fn read<T>(
    tree: &Path,
    path: &str,
    read: impl FnOnce(&File) -> std::io::Result<T>,
) -> Result<T, InspectStop> {
    let path = tree.join(path);
    match File::open(&path).and_then(|file| read(&file)) {
        Ok(read) => Ok(read),
        Err(e) if e.kind() == Io::NotFound => Err(InspectStop::Vanished),
        Err(e) => Err(InspectStop::Failed(Error::io(format!("reading {}", path.display()), &e))),
    }
}

/// GGUF files, among which the user chooses: a directory is broken only if none of its
/// sets of files is intact.
#[derive(Default)]
struct Offered<'a> {
    /// Sets, and whether all files of each are intact.
    sets: HashMap<&'a str, bool>,
    broken: Vec<(&'a str, String)>,
}

impl<'a> Offered<'a> {
    fn add(&mut self, path: &'a str, flaw: Option<String>) {
        *self.sets.entry(loaders::gguf_set(path)).or_insert(true) &= flaw.is_none();
        if let Some(why) = flaw {
            // Further ones are counted, not named.
            let why = if self.broken.len() < MISSING { why } else { String::new() };
            self.broken.push((path, why));
        }
    }

    fn record_in(self, report: &mut WeightsReport) {
        let directory = |path: &'a str| path.rsplit_once('/').map_or("", |(above, _)| above);
        let whole: HashSet<&str> =
            self.sets.iter().filter(|(_, whole)| **whole).map(|(set, _)| directory(set)).collect();
        for (path, why) in self.broken {
            let others = whole.contains(directory(path));
            report.record(path, if others { Role::Offered } else { Role::Opened }, &why);
        }
    }
}
