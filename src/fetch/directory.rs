//! The directory that a fetch fills: what it may contain, and how files get there.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::download::{Check, ObjectProgress, Verified, crc32c_of_file};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{BlobId, Manifest, ManifestFile};

/// The directory of the fetch's own state; removed when the fetch is complete.
const STATE: &str = ".oci-model-csi";

/// Created by `mkfs.ext4` in the root of a file system, not by a user.
const LOST_AND_FOUND: &str = "lost+found";

/// The right to fill a directory, for one fetch at a time.
#[derive(Debug)]
pub(super) struct DirectoryClaim {
    dir: PathBuf,
    state: PathBuf,
    update: bool,
    _lock: File,
}

impl DirectoryClaim {
    /// Claims the directory, which may be absent. Changes nothing in it but the
    /// fetch's own state. With `update`, files of the model that differ may be replaced.
    pub(super) fn take(dir: &Path, manifest: &Manifest, update: bool) -> Result<Self> {
        check(dir, manifest)?;
        let state = dir.join(STATE);
        fs::create_dir_all(&state)
            .map_err(|e| Error::io(format!("creating {}", state.display()), &e))?;
        let lock = state.join("lock");
        let file = File::create(&lock)
            .map_err(|e| Error::io(format!("creating {}", lock.display()), &e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), state, update, _lock: file }),
            Err(TryLockError::WouldBlock) => Err(Error::new(
                ErrorKind::Conflict,
                format!("another fetch is running in {}; wait for it", dir.display()),
            )),
            Err(TryLockError::Error(e)) => {
                Err(Error::io(format!("locking {}", lock.display()), &e))
            }
        }
    }
}

/// A directory that holds nothing but this model and the fetch's own state.
#[derive(Debug)]
pub(super) struct FetchDirectory {
    dir: PathBuf,
    state: PathBuf,
    /// Files that an earlier fetch finished but did not rename into place.
    finished: HashMap<BlobId, (PathBuf, Verified)>,
    /// Paths of the model's files that were there before and may be replaced.
    replaceable: HashSet<String>,
}

impl FetchDirectory {
    /// Opens the claimed directory for this revision of the model.
    ///
    /// # Errors
    /// `Conflict` if it holds anything foreign; nothing is changed then.
    pub(super) fn open(claim: &DirectoryClaim, manifest: &Manifest) -> Result<Self> {
        check(&claim.dir, manifest)?;
        let dir = claim.dir.clone();
        let state = claim.state.clone();
        let finished = finished_in(&state)?;
        let replaceable = match claim.update {
            true => {
                let paths = manifest.files.iter().map(|file| &file.path);
                paths.filter(|path| dir.join(path).is_file()).cloned().collect()
            }
            false => HashSet::new(),
        };
        Ok(Self { dir, state, finished, replaceable })
    }

    /// Whether a file that is in the directory already may be replaced.
    pub(super) fn may_replace(&self, file: &ManifestFile) -> bool {
        self.replaceable.contains(&file.path)
    }

    pub(super) fn part(&self, id: &BlobId) -> PathBuf {
        self.state.join(format!("{id}.part"))
    }

    pub(super) fn journal(&self, id: &BlobId) -> PathBuf {
        self.state.join(format!("{id}.journal"))
    }

    /// The path of a file that is in the directory already.
    pub(super) fn in_place(&self, file: &ManifestFile) -> Option<PathBuf> {
        let path = self.dir.join(&file.path);
        path.is_file().then_some(path)
    }

    /// Finds a file that an earlier fetch finished but did not rename into place.
    /// Reads it, and accepts it if its CRC is the one in its name. Blocks.
    pub(super) fn finished(
        &self,
        file: &ManifestFile,
        progress: &ObjectProgress,
    ) -> Result<Option<Verified>> {
        let Some((path, verified)) = self.finished.get(&file.blob).cloned() else {
            return Ok(None);
        };
        let crc = crc32c_of_file(&path)
            .map_err(|e| Error::io(format!("reading {}", path.display()), &e))?;
        if crc != (verified.crc32c, file.size) {
            fs::remove_file(&path)
                .map_err(|e| Error::io(format!("removing {}", path.display()), &e))?;
            return Ok(None);
        }
        progress.found(file.size);
        Ok(Some(verified))
    }

    /// Marks a verified part as finished. Blocks.
    pub(super) fn finish(&self, file: &ManifestFile, verified: Verified) -> Result<()> {
        let part = self.part(&file.blob);
        let name = format!("{}.{:08x}.{}", file.blob, verified.crc32c, verified.check.label());
        let done = self.state.join(name);
        fs::set_permissions(&part, fs::Permissions::from_mode(0o644))
            .and_then(|()| fs::rename(&part, &done))
            .and_then(|()| fs::remove_file(self.journal(&file.blob)))
            .map_err(|e| Error::io(format!("finishing {}", file.path), &e))
    }

    /// Renames all files into place and removes the fetch's own state. Blocks.
    pub(super) fn publish(&self, manifest: &Manifest) -> Result<()> {
        for directory in manifest.all_directories() {
            let path = self.dir.join(directory);
            fs::create_dir_all(&path)
                .map_err(|e| Error::io(format!("creating {}", path.display()), &e))?;
        }
        let finished = finished_in(&self.state)?;
        // All are checked before the first one is replaced.
        for file in &manifest.files {
            let target = self.dir.join(&file.path);
            if finished.contains_key(&file.blob) && target.exists() && !self.may_replace(file) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "{} exists already; replace files of an older revision with --update, or \
                         move it away",
                        target.display()
                    ),
                ));
            }
        }
        for file in &manifest.files {
            let target = self.dir.join(&file.path);
            if let Some((from, _)) = finished.get(&file.blob) {
                fs::rename(from, &target)
                    .map_err(|e| Error::io(format!("renaming {} into place", file.path), &e))?;
            }
        }
        fs::remove_dir_all(&self.state)
            .map_err(|e| Error::io(format!("removing {}", self.state.display()), &e))
    }
}

/// The finished files of a state directory.
fn finished_in(state: &Path) -> Result<HashMap<BlobId, (PathBuf, Verified)>> {
    let listing = |e| Error::io(format!("listing {}", state.display()), &e);
    let mut finished = HashMap::new();
    for entry in fs::read_dir(state).map_err(listing)? {
        let entry = entry.map_err(listing)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let id = name.get(..64).and_then(BlobId::parse);
        let verified = name.get(64..).and_then(parse_finished);
        if let (Some(id), Some(verified)) = (id, verified) {
            finished.insert(id, (entry.path(), verified));
        }
    }
    Ok(finished)
}

/// Parses `.<crc32c>.<check>`, which follows the id in a finished file's name.
fn parse_finished(rest: &str) -> Option<Verified> {
    let (crc, label) = rest.strip_prefix('.')?.split_once('.')?;
    let check = Check::ALL.into_iter().find(|check| check.label() == label)?;
    let crc32c = u32::from_str_radix(crc, 16).ok().filter(|_| crc.len() == 8)?;
    Some(Verified { crc32c, check })
}

/// Checks that the directory holds only this model's files and the fetch's own
/// state, and that the model has no file where that state is.
fn check(dir: &Path, manifest: &Manifest) -> Result<()> {
    let is_state = |path: &str| path == STATE || path.starts_with(&format!("{STATE}/"));
    let directories = manifest.all_directories();
    let paths = manifest.files.iter().map(|f| f.path.as_str()).chain(directories.iter().copied());
    if let Some(path) = paths.into_iter().find(|path| is_state(path)) {
        return Err(Error::new(
            ErrorKind::Precondition,
            format!(
                "the model has {path}, where a fetch keeps its own state (was an interrupted fetch \
                 uploaded?): leave it out with --exclude '{STATE}/*'"
            ),
        ));
    }
    if !dir.exists() {
        return Ok(());
    }
    let files: HashSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    let directories: HashSet<&str> = directories.into_iter().collect();
    check_entries(dir, &files, &directories)
}

/// Checks that a directory has no other entries than these, and the fetch's own.
fn check_entries(dir: &Path, files: &HashSet<&str>, directories: &HashSet<&str>) -> Result<()> {
    let mut open = vec![String::new()];
    while let Some(below) = open.pop() {
        let path = dir.join(&below);
        let listed = fs::read_dir(&path)
            .map_err(|e| Error::io(format!("listing {}", path.display()), &e))?;
        for entry in listed {
            let entry = entry.map_err(|e| Error::io(format!("listing {}", path.display()), &e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let relative = if below.is_empty() { name } else { format!("{below}/{name}") };
            let kind = entry
                .file_type()
                .map_err(|e| Error::io(format!("inspecting {}", entry.path().display()), &e))?;
            let known = (kind.is_file() && files.contains(relative.as_str()))
                || (kind.is_dir()
                    && (relative == STATE || directories.contains(relative.as_str())));
            if !known && kind.is_dir() && relative == LOST_AND_FOUND {
                continue;
            }
            if !known {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "{} is not part of the model; nothing was changed: fetch into an empty \
                         directory, or move it away",
                        entry.path().display()
                    ),
                ));
            }
            if kind.is_dir() && relative != STATE {
                open.push(relative);
            }
        }
    }
    Ok(())
}
