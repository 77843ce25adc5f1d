//! The state that survives a restart: `.localstore/{bucket}/` beside the buckets.
//!
//! ```text
//! bucket.json          the bucket's attributes
//! objects/{sha256}.json  one object; the name's digest, since names are arbitrary
//! data/{uuid}          uploaded bytes: whole objects, or parts of them
//! ```

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::content::{Content, DataFile, remove};
use super::digest::sha256_hex;
use super::object::{Meta, Object};

/// The side directory of one bucket.
#[derive(Debug)]
pub(crate) struct SideDir(PathBuf);

#[derive(Serialize, Deserialize)]
struct SideFile {
    meta: Meta,
    content: Kept,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kept {
    Files(Vec<KeptFile>),
    Synthetic { seed: u64 },
}

#[derive(Serialize, Deserialize)]
struct KeptFile {
    name: String,
    len: u64,
}

impl SideDir {
    pub(crate) fn new(root: &Path, bucket: &str) -> Self {
        Self(root.join(super::SIDE_DIR).join(bucket))
    }

    /// A path for new bytes.
    pub(crate) fn new_data_path(&self) -> io::Result<PathBuf> {
        let dir = self.0.join("data");
        fs::create_dir_all(&dir)?;
        Ok(dir.join(uuid::Uuid::new_v4().to_string()))
    }

    pub(crate) fn save_object(&self, object: &Object) -> io::Result<()> {
        let content = match &object.content {
            // There is nothing to store: the file itself is found again.
            Content::Plain { .. } => return Ok(()),
            Content::Synthetic { seed } => Kept::Synthetic { seed: *seed },
            Content::Files(files) => Kept::Files(files.iter().map(|file| kept(file)).collect()),
        };
        let path = self.object_path(&object.meta.name);
        write_json(&path, &SideFile { meta: object.meta.clone(), content })
    }

    pub(crate) fn remove_object(&self, name: &str) {
        remove(&self.object_path(name));
    }

    fn object_path(&self, name: &str) -> PathBuf {
        self.0.join("objects").join(sha256_hex(name.as_bytes()) + ".json")
    }

    /// Loads all objects kept here. Bytes that none of them names are removed: they
    /// are left from unfinished uploads of a killed server.
    pub(crate) fn load_objects(&self) -> io::Result<Vec<Object>> {
        let data = self.0.join("data");
        let mut objects = Vec::new();
        let mut named = HashSet::new();
        for path in entries(&self.0.join("objects"))? {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let SideFile { meta, content } = read_json(&path)?;
            let content = match content {
                Kept::Synthetic { seed } => Content::Synthetic { seed },
                Kept::Files(files) => Content::Files(
                    files
                        .into_iter()
                        .map(|file| {
                            let path = data.join(file.name);
                            named.insert(path.clone());
                            Arc::new(DataFile::new(path, file.len))
                        })
                        .collect(),
                ),
            };
            objects.push(Object::new(meta, content));
        }
        entries(&data)?.iter().filter(|path| !named.contains(*path)).for_each(|path| remove(path));
        Ok(objects)
    }

    pub(crate) fn save_bucket(&self, info: &impl Serialize) -> io::Result<()> {
        write_json(&self.0.join("bucket.json"), info)
    }

    pub(crate) fn load_bucket<T: DeserializeOwned>(&self) -> Option<T> {
        read_json(&self.0.join("bucket.json")).ok()
    }

    pub(crate) fn remove_all(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn kept(file: &DataFile) -> KeptFile {
    let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    KeptFile { name, len: file.len }
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Readers see the old file or the new one.
fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    fs::rename(&temporary, path)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
    })
}
