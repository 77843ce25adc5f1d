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

use tokio::sync::Semaphore;

use super::flight::Flights;
use super::models::CachedModel;
use super::{Cache, Inner};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::model::safetensors::{self, MAX_INDEX};
use crate::model::{ModelKey, ModelRequest, shown};

/// Verdicts that are remembered; when they are more, all are found out again.
const REMEMBERED: usize = 10_000;

/// Bytes of them at most: whoever uploads decides what a flaw is called.
const REMEMBERED_BYTES: usize = 16 << 20;

/// Missing shards of one model that are remembered.
const MISSING: usize = 1000;

/// Models whose files are looked at at once. The longest header and the
/// longest index take some 100 MB of memory each while they are read.
const AT_ONCE: usize = 2;

/// Flaws that one message names.
const NAMED: usize = 2;

/// What was found in one model.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The first broken files, and what is wrong with them, as they are told.
    broken: Vec<String>,
    /// Broken files beyond those.
    more_broken: usize,
    /// What indexes name and the tree has not.
    missing: Vec<Missing>,
}

/// A shard that is not there.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    /// The index that names it, as it is told.
    index: Arc<str>,
    shard: String,
}

/// The verdicts of one cache.
pub(super) struct Sanity {
    enabled: bool,
    flights: Flights<ModelKey, (), Option<Arc<Verdict>>>,
    known: Mutex<Known>,
    at_once: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Known {
    verdicts: HashMap<ModelKey, Arc<Verdict>>,
    bytes: usize,
}

impl Sanity {
    pub(super) fn new(enabled: bool, flights: Flights<ModelKey, (), Option<Arc<Verdict>>>) -> Self {
        let (known, at_once) = (Mutex::default(), Arc::new(Semaphore::new(AT_ONCE)));
        Self { enabled, flights, known, at_once }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does work that the model's author made as much as it is, when it is its turn.
    async fn in_turn<T: Send + 'static>(
        at_once: Arc<Semaphore>,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = at_once.acquire_owned().await;
        let turn = turn.map_err(|e| Error::internal(format!("checking a model's files: {e}")))?;
        blocking(move || {
            let _turn = turn;
            work()
        })
        .await
    }
}

impl Known {
    fn insert(&mut self, key: ModelKey, verdict: Arc<Verdict>) {
        let bytes = verdict.bytes();
        if self.verdicts.len() >= REMEMBERED || self.bytes + bytes > REMEMBERED_BYTES {
            *self = Self::default();
        }
        self.bytes += bytes;
        self.verdicts.insert(key, verdict);
    }
}

impl Cache {
    /// Refuses a model whose safetensors files no loader could open.
    ///
    /// Cancellation safe: the look at the files goes on for the next caller.
    ///
    /// # Errors
    /// `Precondition`, naming the files and what is wrong with them; `Invalid`
    /// when the request's filters take too long to be compared with the names.
    pub async fn check_sanity(&self, model: &CachedModel, request: &ModelRequest) -> Result<()> {
        if !self.0.sanity.enabled {
            return Ok(());
        }
        let at_once = || Arc::clone(&self.0.sanity.at_once);
        let known = self.0.sanity.lock().verdicts.get(&model.key).cloned();
        let verdict = match known {
            Some(verdict) => Some(verdict),
            None => {
                let (inner, model_) = (Arc::clone(&self.0), model.clone());
                let mut ticket = self.0.sanity.flights.join(model.key.clone(), (), |_| {
                    Sanity::in_turn(at_once(), move || inner.find_flaws(&model_))
                });
                ticket.landed().await?
            }
        };
        let Some(verdict) = verdict.filter(|verdict| **verdict != Verdict::default()) else {
            return Ok(());
        };
        let request = request.clone();
        Sanity::in_turn(at_once(), move || verdict.for_request(&request)).await
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
                files = verdict.broken.len() + verdict.more_broken,
                "a model has safetensors files that no loader can open"
            );
        }
        self.sanity.lock().insert(model.key.clone(), Arc::clone(&verdict));
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
            safetensors::shards(&opened).map_err(failed)?.map(|shards| {
                let shards = shards
                    .unwrap_or_default()
                    .into_iter()
                    .map(|shard| safetensors::shard_path(&file.path, &shard).unwrap_or(shard));
                let missing = shards.filter(|shard| !paths.contains(shard.as_str()));
                verdict.note_missing(&file.path, missing);
            })
        } else {
            safetensors::check(&opened, file.size).map_err(failed)?
        };
        if let Err(why) = broken {
            verdict.note_broken(&file.path, &why);
        }
    }
    Ok(Some(verdict))
}

impl Verdict {
    fn note_broken(&mut self, path: &str, why: &str) {
        if self.broken.len() < NAMED {
            self.broken.push(told(path, why));
        } else {
            self.more_broken += 1;
        }
    }

    fn note_missing(&mut self, index: &str, shards: impl Iterator<Item = String>) {
        let index: Arc<str> = shown(index, 60).into();
        let left = MISSING - self.missing.len();
        let shards = shards.take(left).map(|shard| Missing { index: Arc::clone(&index), shard });
        self.missing.extend(shards);
    }

    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        let missing = self
            .missing
            .iter()
            .map(|missing| missing.shard.capacity() + missing.index.len() + size_of::<Missing>());
        self.broken.iter().map(String::capacity).chain(missing).sum::<usize>() + size_of::<Self>()
    }

    /// What of it is wrong for this request. Blocks for seconds at worst.
    fn for_request(&self, request: &ModelRequest) -> Result<()> {
        let mut selection = request.filters.selection();
        let (mut named, mut more) = (self.broken.clone(), self.more_broken);
        for Missing { index, shard } in &self.missing {
            if !selection.has(shard)? {
                continue;
            }
            if named.len() < NAMED {
                let why = format!("it names {}, which is not there", shown(shard, 90));
                named.push(format!("{index}: {why}"));
            } else {
                more += 1;
            }
        }
        if named.is_empty() {
            return Ok(());
        }
        let more = match more {
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

/// A file and its flaw, for people.
fn told(path: &str, why: &str) -> String {
    format!("{}: {why}", shown(path, 60))
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
    fn what_is_kept_of_a_model_is_bounded_whatever_its_indexes_name() {
        let shards = |index: usize| -> Vec<u8> {
            let names = (0..700).map(|n| format!(r#""t{n}": "{index}-{n}-{}""#, "x".repeat(900)));
            format!(r#"{{"weight_map": {{{}}}}}"#, names.collect::<Vec<_>>().join(",")).into()
        };
        let indexes: Vec<(String, Vec<u8>)> =
            (0..5).map(|n| (format!("{n}.safetensors.index.json"), shards(n))).collect();
        let too_long = format!(r#"{{"weight_map": {{"a": "{}"}}}}"#, "a".repeat(1 << 20));
        let mut files: Vec<(&str, &[u8])> =
            indexes.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
        files.push(("9.safetensors.index.json", too_long.as_bytes()));
        let (_dir, model) = model(&files);
        let verdict = Arc::new(verdict(&model).unwrap().unwrap());
        assert_eq!((verdict.broken.len(), verdict.missing.len()), (1, MISSING));
        assert!((MISSING * 900..2 << 20).contains(&verdict.bytes()), "{}", verdict.bytes());

        let mut known = Known::default();
        for n in 0..100 {
            let key = ModelKey::parse(&format!("{n:064x}")).unwrap();
            known.insert(key, Arc::clone(&verdict));
            let bytes: usize = known.verdicts.values().map(|verdict| verdict.bytes()).sum();
            assert!(bytes == known.bytes && bytes <= REMEMBERED_BYTES, "{bytes} after {n}");
        }
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
