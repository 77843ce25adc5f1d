//! Whether a model's safetensors files can be opened, found out before it is
//! published (`checkSafetensors`): the loader's own error comes minutes later,
//! and names no remedy.
//!
//! It is found out once for each model, for all pods that ask, from the headers
//! alone. A file that cannot be opened is wrong for everybody. A shard that an
//! index names and the tree has not is wrong only for a request whose filters
//! would have selected it: leaving shards out is what filters are for.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::ErrorKind as Io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::flight::Flights;
use super::models::CachedModel;
use super::{Cache, Inner};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::model::safetensors::{self, MAX_INDEX};
use crate::model::{ModelKey, ModelRequest, shown};

/// Verdicts that are remembered; when they are more, all are found out again.
const REMEMBERED: usize = 10_000;

/// Missing shards of one index that are remembered.
const MISSING: usize = 1000;

/// Flaws that one message names.
const NAMED: usize = 2;

/// What was found in one model.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Path and what is wrong with the file.
    broken: Vec<(String, String)>,
    /// Path of an index, and of a shard that it names and the tree has not.
    missing: Vec<(String, String)>,
}

/// The verdicts of one cache.
pub(super) struct Sanity {
    enabled: bool,
    flights: Flights<ModelKey, (), Option<Arc<Verdict>>>,
    known: Mutex<HashMap<ModelKey, Arc<Verdict>>>,
}

impl Sanity {
    pub(super) fn new(enabled: bool, flights: Flights<ModelKey, (), Option<Arc<Verdict>>>) -> Self {
        Self { enabled, flights, known: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ModelKey, Arc<Verdict>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// Refuses a model whose safetensors files no loader could open.
    ///
    /// Cancellation safe: the look at the files goes on for the next caller.
    ///
    /// # Errors
    /// `Precondition`, naming the files and what is wrong with them.
    pub async fn check_sanity(&self, model: &CachedModel, request: &ModelRequest) -> Result<()> {
        if !self.0.sanity.enabled {
            return Ok(());
        }
        let known = self.0.sanity.lock().get(&model.key).cloned();
        let verdict = match known {
            Some(verdict) => Some(verdict),
            None => {
                let (inner, model_) = (Arc::clone(&self.0), model.clone());
                let mut ticket =
                    self.0.sanity.flights.join(model.key.clone(), (), |_| {
                        blocking(move || inner.find_flaws(&model_))
                    });
                ticket.landed().await?
            }
        };
        verdict.map_or(Ok(()), |verdict| verdict.for_request(request))
    }
}

impl Inner {
    /// Looks at the files of one model; `None` when they vanished meanwhile. Blocks.
    fn find_flaws(&self, model: &CachedModel) -> Result<Option<Arc<Verdict>>> {
        let Some(verdict) = verdict(model)? else { return Ok(None) };
        let verdict = Arc::new(verdict);
        if !verdict.broken.is_empty() {
            tracing::warn!(
                model = %model.manifest.source,
                revision = model.manifest.revision.as_str(),
                files = verdict.broken.len(),
                "a model has safetensors files that no loader can open"
            );
        }
        let mut known = self.sanity.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(model.key.clone(), Arc::clone(&verdict));
        Ok(Some(verdict))
    }
}

/// What is wrong with a model; `None` when one of its files cannot be found,
/// because it was evicted: then there is nothing to publish either. Blocks.
fn verdict(model: &CachedModel) -> Result<Option<Verdict>> {
    let manifest = &model.manifest;
    let paths: BTreeSet<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    let mut verdict = Verdict::default();
    for file in &manifest.files {
        let index = safetensors::is_index(&file.path) && file.size <= MAX_INDEX;
        if !index && !safetensors::is_tensors(&file.path) {
            continue;
        }
        let path = model.tree.join(&file.path);
        let failed = |e| Error::io(format!("reading {}", path.display()), &e);
        let opened = match File::open(&path) {
            Err(e) if e.kind() == Io::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let broken = if index {
            match safetensors::shards(&opened).map_err(failed)? {
                Ok(shards) => {
                    let shards = shards.unwrap_or_default();
                    let missing = shards.iter().filter_map(|shard| {
                        let path = safetensors::shard_path(&file.path, shard);
                        let path = path.unwrap_or_else(|| shard.clone());
                        (!paths.contains(path.as_str())).then(|| (file.path.clone(), path))
                    });
                    // Whoever uploads decides how many there are.
                    verdict.missing.extend(missing.take(MISSING));
                    Ok(())
                }
                Err(why) => Err(why),
            }
        } else {
            safetensors::check(&opened, file.size).map_err(failed)?
        };
        if let Err(why) = broken {
            verdict.broken.push((file.path.clone(), why));
        }
    }
    Ok(Some(verdict))
}

impl Verdict {
    /// What of it is wrong for this request.
    fn for_request(&self, request: &ModelRequest) -> Result<()> {
        let broken = self.broken.iter().map(|(path, why)| (path, why.clone()));
        let missing = self.missing.iter().filter(|(_, shard)| request.filters.select(shard));
        let missing = missing.map(|(index, shard)| {
            (index, format!("it names {}, which is not there", shown(shard, 90)))
        });
        let mut flaws = broken.chain(missing);
        let named: Vec<String> = flaws
            .by_ref()
            .take(NAMED)
            .map(|(path, why)| format!("{}: {why}", shown(path, 60)))
            .collect();
        if named.is_empty() {
            return Ok(());
        }
        let more = match flaws.count() {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        Err(Error::new(
            ErrorKind::Precondition,
            format!(
                "{} cannot be loaded: {}{more}. Upload it again, or leave it out with `exclude`; \
                 an administrator can switch this check off (checkSafetensors)",
                request.title(),
                named.join("; ")
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::holds::Holds;
    use crate::model::{
        BucketName, Filters, ListedObject, Manifest, NamespaceName, Prefix, Source, Tree,
    };

    const GOOD: &[u8] = b"\x02\0\0\0\0\0\0\0{}";
    const INDEX: &[u8] = br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;

    /// A model of these files, as it would stand in a cache.
    fn model(files: &[(&str, &[u8])]) -> (tempfile::TempDir, CachedModel) {
        let dir = tempfile::tempdir().unwrap();
        let source = Source {
            location: "l".into(),
            namespace: NamespaceName::parse("n").unwrap(),
            bucket: BucketName::parse("b").unwrap(),
            prefix: Prefix::parse("m").unwrap(),
        };
        let objects: Vec<ListedObject> = files
            .iter()
            .map(|(path, bytes)| {
                let file = dir.path().join(path);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, bytes).unwrap();
                let size = bytes.len() as u64;
                let (name, etag) = (format!("m/{path}"), "e".into());
                ListedObject { name, size, etag, md5: None, archived: false }
            })
            .collect();
        let tree = Tree::arrange(objects, &source.prefix, &Filters::default()).unwrap().unwrap();
        let manifest = Arc::new(Manifest::new(source, "", tree));
        let (key, tree) = (manifest.key(), dir.path().to_owned());
        let hold = Holds::default().model(&key);
        (dir, CachedModel { key, manifest, tree, _hold: hold })
    }

    fn request(exclude: Option<&str>) -> ModelRequest {
        let (bucket, prefix) = (BucketName::parse("b").unwrap(), Prefix::parse("m").unwrap());
        let mut request = ModelRequest::of(None, bucket, prefix);
        request.filters = Filters::parse(None, exclude).unwrap();
        request
    }

    #[test]
    fn each_broken_file_is_named_and_many_are_counted() {
        let bad: Vec<String> = (1..=5).map(|n| format!("{n}.safetensors")).collect();
        let mut files: Vec<(&str, &[u8])> =
            bad.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
        files.extend([("6.safetensors", GOOD), ("config.json", b"x")]);
        let (_dir, model) = model(&files);
        let verdict = verdict(&model).unwrap().unwrap();
        let error = verdict.for_request(&request(None)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition);
        let text = error.message();
        assert!(text.starts_with("m/ from b cannot be loaded: 1.safetensors: it has 1 bytes"));
        assert!(text.contains("; and 3 more. Upload it again"), "{text}");
    }

    #[test]
    fn a_missing_shard_counts_unless_the_filters_leave_it_out() {
        let index = "d/m.safetensors.index.json";
        let (_dir, model) = model(&[(index, INDEX), ("d/1.safetensors", GOOD)]);
        let verdict = verdict(&model).unwrap().unwrap();
        let error = verdict.for_request(&request(None)).unwrap_err();
        assert!(error.message().contains("names d/2.safetensors, which is not there"), "{error}");
        verdict.for_request(&request(Some("d/2.*"))).unwrap();
        assert!(verdict.for_request(&request(Some("d/3.*"))).is_err(), "something else left out");
    }

    #[test]
    fn the_longest_names_leave_room_for_what_to_do() {
        let long = format!("{}.safetensors", "x".repeat(240));
        let names = [format!("a{long}"), format!("b{long}"), format!("c{long}")];
        let files: Vec<(&str, &[u8])> =
            names.iter().map(|n| (n.as_str(), &[0xff; 9][..])).collect();
        let (_dir, model) = model(&files);
        let verdict = verdict(&model).unwrap().unwrap();
        let mut request = request(None);
        request.prefix = Prefix::parse(&"p".repeat(900)).unwrap();
        let error = verdict.for_request(&request).unwrap_err();
        let count = error.message().chars().count();
        assert!(
            error.message().ends_with("(checkSafetensors)") && count <= 800,
            "{count}: {error}"
        );
    }

    #[test]
    fn a_model_that_vanished_has_no_verdict() {
        let (dir, model) = model(&[("1.safetensors", GOOD)]);
        drop(dir);
        assert_eq!(verdict(&model).unwrap(), None);
    }
}
