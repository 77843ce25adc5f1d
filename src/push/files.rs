//! The files of a directory that are pushed, and what prevents that: all of it is found before
//! anything is sent.
//!
//! Of symbolic links only those are followed that lead to a file in the directory itself, or from
//! a snapshot of a Hugging Face Hub cache into the `blobs` of the same repository or those that all
//! repositories of the cache share.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Filters, NameSelection, SMALL_FILE, Warning, counted, two_forms_of_one_name, with_code_points,
};
use crate::text::shown;

/// Names that are left out wherever they are: the state of git and of Hub downloads.
pub(super) const LEFT_OUT: [&str; 2] = [".git", ".cache"];

/// The state of a fetch that was interrupted.
const FETCH_STATE: &str = ".oci-model-csi";

/// Longest object name of Object Storage, in bytes of UTF-8.
const LONGEST_NAME: usize = 1024;

/// Largest object of Object Storage, in bytes.
const LARGEST_OBJECT: u64 = 10 << 40;

/// Problems that one message names.
const NAMED: usize = 20;

/// Characters of a name in a message.
const SHOWN: usize = 120;

/// Names of a Hub cache.
const HUB_REPOSITORY: &str = "models--";
const HUB_SNAPSHOTS: &str = "snapshots";
const HUB_BLOBS: &str = "blobs";

/// Marks the `blobs` that all repositories of a Hub cache share, beside them (huggingface_hub 2).
/// Blobs of a repository may be links to files there.
const HUB_SHARED_MARKER: &str = ".huggingface-shared-blobs";

/// Extensions of files with weights.
const WEIGHTS: [&str; 12] = [
    "safetensors",
    "gguf",
    "bin",
    "pt",
    "pth",
    "onnx",
    "onnx_data",
    "h5",
    "ckpt",
    "msgpack",
    "npz",
    "engine",
];

/// When a file is sent: a reader never finds an index before what it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SendStage {
    /// Weights, and whatever else is large.
    Weights,
    /// Tokenizers, licences and the like.
    Others,
    /// Indexes and `config.json`, where loaders begin.
    Entrances,
}

impl SendStage {
    pub(super) const ALL: [Self; 3] = [Self::Weights, Self::Others, Self::Entrances];

    pub(super) fn of(name: &str, size: u64) -> Self {
        let file = name.rsplit('/').next().unwrap_or(name);
        let extension = file.rsplit_once('.').map_or("", |(_, extension)| extension);
        // Variants have their names in between, as in model.safetensors.index.fp16.json.
        let is_index = extension == "json" && file.contains(".index.");
        if file == "config.json" || file == "model_index.json" || is_index {
            Self::Entrances
        } else if WEIGHTS.contains(&extension) || size > SMALL_FILE {
            Self::Weights
        } else {
            Self::Others
        }
    }
}

/// What shows that a file is still the same: a program that writes to it changes its times (the
/// second one even if it sets the first one back), and one that replaces it the inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileState {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    modified: (i64, i64),
    status_changed: (i64, i64),
}

impl FileState {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            status_changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file that is pushed.
#[derive(Debug, Clone)]
pub(super) struct LocalFile {
    /// Name below the directory, and below the prefix.
    pub(super) name: String,
    /// Where it is opened: behind the links.
    pub(super) path: PathBuf,
    /// As the directory was read.
    pub(super) state: FileState,
    pub(super) stage: SendStage,
}

impl LocalFile {
    /// Whether the file is as the directory was read. Blocks.
    pub(super) fn is_unchanged(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| FileState::of(&metadata) == self.state)
    }
}

/// What a directory has.
#[derive(Debug)]
pub(super) struct DirectoryScan {
    /// In the order in which they are sent.
    pub(super) files: Vec<LocalFile>,
    /// Names that were left out by default, with a slash behind those of directories.
    pub(super) left_out: Vec<String>,
    /// About patterns that matched nothing.
    pub(super) unmatched: Option<Warning>,
}

impl DirectoryScan {
    /// Sum of the sizes, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.state.size).fold(0, u64::saturating_add)
    }
}

/// Reads a directory. `prefix` is that of the objects. Blocks.
///
/// # Errors
/// `Invalid` when it is no directory, or nothing in it is selected; `Precondition`, naming the
/// files, for whatever cannot be pushed as it is.
pub(super) fn scan(dir: &Path, prefix: &str, filters: &Filters) -> Result<DirectoryScan> {
    let root = fs::canonicalize(dir).ok().filter(|root| root.is_dir());
    let Some(root) = root else {
        return Err(Error::invalid(format!("{} is not a directory", dir.display())));
    };
    // They may be links to another disk.
    let hub_blobs = hub_blobs(&root)
        .into_iter()
        .chain(shared_hub_blobs(&root))
        .map(|blobs| fs::canonicalize(&blobs).unwrap_or(blobs))
        .collect();
    let selection = filters.selection();
    let mut walk = Walk {
        dir,
        prefix,
        root,
        hub_blobs,
        selection,
        files: vec![],
        left_out: vec![],
        problems: vec![],
    };
    walk.directory(&walk.root.clone(), "", true)?;
    walk.check_forms();
    if !walk.problems.is_empty() {
        return Err(walk.refusal());
    }
    let unmatched = filters.unmatched(&walk.selection);
    let Walk { mut files, mut left_out, .. } = walk;
    if files.is_empty() {
        let filtered =
            if filters.is_everything() { "" } else { " that include and exclude select" };
        return Err(Error::invalid(format!("{} has no files{filtered}", dir.display())));
    }
    // Large ones first: the last request ends early.
    files.sort_by(|a, b| {
        let key = |file: &LocalFile| (file.stage, std::cmp::Reverse(file.state.size));
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    left_out.sort();
    Ok(DirectoryScan { files, left_out, unmatched })
}

/// The `blobs` of the Hub cache that has this snapshot.
fn hub_blobs(root: &Path) -> Option<PathBuf> {
    root.ancestors().find_map(|commit| {
        let snapshots = commit.parent()?;
        let repository = snapshots.parent()?;
        let is_one = snapshots.file_name()? == HUB_SNAPSHOTS
            && repository.file_name()?.to_str()?.starts_with(HUB_REPOSITORY);
        is_one.then(|| repository.join(HUB_BLOBS))
    })
}

/// The blobs that all repositories of the Hub cache share which has this repository, or this
/// directory of one. Blocks.
fn shared_hub_blobs(root: &Path) -> Option<PathBuf> {
    let is_repository = |path: &&Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(HUB_REPOSITORY))
    };
    let blobs = root.ancestors().find(is_repository)?.parent()?.join(HUB_BLOBS);
    let marker = fs::symlink_metadata(blobs.join(HUB_SHARED_MARKER));
    marker.is_ok_and(|marker| marker.is_file()).then_some(blobs)
}

struct Walk<'a> {
    dir: &'a Path,
    prefix: &'a str,
    root: PathBuf,
    /// Where links may lead besides the root.
    hub_blobs: Vec<PathBuf>,
    selection: NameSelection,
    files: Vec<LocalFile>,
    left_out: Vec<String>,
    problems: Vec<String>,
}

impl Walk<'_> {
    /// Reads a directory whose name below the root is `below`, empty or with its slash.
    /// `is_utf8` says whether `below` is the real name, and not only what can be shown of it.
    fn directory(&mut self, path: &Path, below: &str, is_utf8: bool) -> Result<()> {
        let entries = match fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(error) => {
                self.problem(
                    if below.is_empty() { "." } else { below },
                    &format!("cannot be listed: {error}"),
                );
                return Ok(());
            }
        };
        for entry in entries {
            let own = entry.file_name();
            let name = format!("{below}{}", own.to_string_lossy());
            let is_utf8 = is_utf8 && own.to_str().is_some();
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                Err(error) => {
                    self.problem(&name, &format!("cannot be inspected: {error}"));
                    continue;
                }
            };
            if LEFT_OUT.iter().any(|left_out| own == *left_out) {
                self.left_out.push(if kind.is_dir() { format!("{name}/") } else { name });
            } else if below.is_empty() && own == FETCH_STATE {
                self.problem(&name, "is of a fetch that was interrupted: complete or remove it");
            } else if kind.is_dir() {
                let name = format!("{name}/");
                // What is left out need not be readable, nor small.
                if !self.selection.leaves_out(&name)? {
                    self.directory(&entry.path(), &name, is_utf8)?;
                }
            } else if self.selection.has(&name)? {
                self.file(&entry.path(), name, is_utf8);
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, name: String, is_utf8: bool) {
        let why = match () {
            () if !is_utf8 => "has a name that is not UTF-8, which no object has: rename it",
            () if name.contains(['\n', '\r']) => {
                "has a name with a line break, which no object has: rename it"
            }
            () if self.prefix.len() + name.len() > LONGEST_NAME => {
                "has a name over 1,024 bytes with its prefix, which no object has: rename it"
            }
            () => {
                return match self.open(path, &name) {
                    Ok((path, state)) => {
                        let stage = SendStage::of(&name, state.size);
                        self.files.push(LocalFile { name, path, state, stage });
                    }
                    Err(why) => self.problem(&name, &why),
                };
            }
        };
        self.problem(&name, why);
    }

    /// Opens a file for a moment, to see whether it can be read; returns where it really is.
    fn open(&self, path: &Path, name: &str) -> Result<(PathBuf, FileState), String> {
        let link = fs::read_link(path).ok();
        let target = link.as_ref().map(|target| shown(&target.display().to_string(), SHOWN));
        let target = target.unwrap_or_default();
        let real = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(error) if link.is_some() => {
                return Err(format!("is a link to {target}, which cannot be followed: {error}"));
            }
            Err(error) => return Err(format!("cannot be read: {error}")),
        };
        let may_follow = real.starts_with(&self.root)
            || self.hub_blobs.iter().any(|blobs| real.starts_with(blobs));
        if !may_follow {
            let dir = self.dir.display();
            return Err(format!(
                "is a link to {target}, outside of {dir}: put a copy in its place, or leave it out \
                 with --exclude"
            ));
        }
        let metadata = fs::metadata(&real).map_err(|error| format!("cannot be read: {error}"))?;
        if metadata.is_dir() {
            return Err(format!(
                "is a link to {target}, a directory: put a copy in its place, or leave it out with \
                 --exclude"
            ));
        }
        if !metadata.is_file() {
            return Err("is not a file: leave it out with --exclude".to_owned());
        }
        let file = File::open(&real).map_err(|error| format!("cannot be read: {error}"))?;
        let metadata = file.metadata().map_err(|error| format!("cannot be read: {error}"))?;
        if metadata.len() > LARGEST_OBJECT {
            return Err(format!("is larger than the 10 TiB of an object: split {name}"));
        }
        Ok((real, FileState::of(&metadata)))
    }

    /// Two forms of one name are two objects that most tools take for one.
    fn check_forms(&mut self) {
        let names = self.files.iter().map(|file| file.name.as_str());
        let Some((one, other)) = two_forms_of_one_name(names) else { return };
        let other = shown(&with_code_points(other), SHOWN);
        let why = format!("and \"{other}\" are one name in two Unicode forms: rename one of them");
        self.problem(&with_code_points(one), &why);
    }

    fn problem(&mut self, name: &str, why: &str) {
        self.problems.push(format!("\"{}\" {why}", shown(name, SHOWN)));
    }

    fn refusal(&self) -> Error {
        let named = self.problems.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>();
        let more = match self.problems.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let text = format!(
            "{} cannot be pushed, and nothing was sent ({}): {}{more}",
            self.dir.display(),
            counted(self.problems.len(), "problem"),
            named.join("; ")
        );
        Error::new(ErrorKind::Precondition, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_come_first_and_what_loaders_open_comes_last() {
        for (name, size, stage) in [
            ("model-00001-of-00002.safetensors", 10, SendStage::Weights),
            ("sub/consolidated.00.pth", 10, SendStage::Weights),
            ("tokenizer.json", SMALL_FILE + 1, SendStage::Weights),
            ("tokenizer.json", 10, SendStage::Others),
            ("README.md", 10, SendStage::Others),
            ("model.safetensors.index.json", 10, SendStage::Entrances),
            ("unet/model.safetensors.index.fp16.json", 10, SendStage::Entrances),
            ("config.json", SMALL_FILE + 1, SendStage::Entrances),
            ("unet/config.json", 10, SendStage::Entrances),
            ("model_index.json", 10, SendStage::Entrances),
        ] {
            assert_eq!(SendStage::of(name, size), stage, "{name}");
        }
    }

    #[test]
    fn a_snapshot_of_a_hub_cache_has_the_blobs_of_its_repository() {
        let root = Path::new("/h/hub/models--a--b/snapshots/0123");
        let blobs = Some(PathBuf::from("/h/hub/models--a--b/blobs"));
        assert_eq!(hub_blobs(root), blobs);
        assert_eq!(hub_blobs(&root.join("original")), blobs);
        assert_eq!(hub_blobs(Path::new("/h/snapshots/0123")), None);
        assert_eq!(hub_blobs(Path::new("/h/models--a--b/0123")), None);
    }
}
