//! Whether a model's weights can be opened, found out before it is published
//! (`checkSafetensors`): the loader's own error comes minutes later, and names
//! no remedy.
//!
//! It is found out once for each model, for all pods that ask, from names and
//! headers alone. Only what loaders open ([`crate::model::weights`]) makes a
//! model one that cannot be loaded; what is hidden, stale or beside that is a
//! warning. A file that cannot be opened is wrong for everybody. A shard that an
//! index names and the tree has not is wrong only for a request whose filters
//! would have selected it: leaving shards out is what filters are for.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::ErrorKind as Io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::flight::Flights;
use super::models::CachedModel;
use super::{Cache, CacheInner};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::fair::FairSemaphore;
use crate::model::safetensors::{self, MAX_INDEX};
use crate::model::weights::{self, FileKind, Format, Role};
use crate::model::{ModelKey, ModelRequest, Tenant, Warning, WarningKind, shown};

/// Verdicts that are remembered; when they are more, all are found out again.
const REMEMBERED: usize = 10_000;

/// Bytes of them at most: whoever uploads decides what a flaw is called.
const REMEMBERED_BYTES: usize = 16 << 20;

/// Missing shards of one model that are remembered.
const MISSING: usize = 1000;

/// Models whose files are read at once, two of them of one tenant; each takes some
/// 20 MB of memory at worst (see [`safetensors`]).
const AT_ONCE: usize = 3;

/// Flaws that one message names.
const NAMED: usize = 2;

/// What becomes of a model whose weights no loader could open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SafetensorsCheck {
    /// It is not published.
    Refuse,
    /// It is published with a warning.
    Warn,
    /// Nobody looks.
    Ignore,
}

/// What was found in one model.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct WeightsReport {
    /// Files that loaders open and cannot.
    broken: Flaws,
    /// Files that could not be opened, and that no loader opens.
    suspect: Flaws,
    /// What indexes name and the tree has not.
    missing: Vec<Missing>,
}

/// The first flaws of a kind, as they are told, and how many more there are.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Flaws {
    named: Vec<String>,
    more: usize,
}

/// A shard that is not there.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    /// The index that names it, as it is told.
    index: Arc<str>,
    shard: String,
    /// What loaders make of the index.
    role: Role,
}

/// The verdicts of one cache.
pub(super) struct Sanity {
    check: SafetensorsCheck,
    /// By tenant too: a tenant that asks for a model does not wait for the turn of another.
    flights: Flights<(ModelKey, Tenant), (), Option<Arc<WeightsReport>>>,
    known: Mutex<RememberedReports>,
    places: FairSemaphore,
}

#[derive(Debug, Default)]
struct RememberedReports {
    verdicts: HashMap<ModelKey, Arc<WeightsReport>>,
    bytes: usize,
}

impl Sanity {
    pub(super) fn new(
        check: SafetensorsCheck,
        flights: Flights<(ModelKey, Tenant), (), Option<Arc<WeightsReport>>>,
    ) -> Self {
        Self { check, flights, known: Mutex::default(), places: FairSemaphore::new(AT_ONCE) }
    }

    fn lock(&self) -> MutexGuard<'_, RememberedReports> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does work that the model's author made as much as it is, when it is its turn.
    async fn in_turn<T: Send + 'static>(
        places: FairSemaphore,
        tenant: Tenant,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let place = places.enter(&tenant).await;
        blocking(move || {
            let _place = place;
            work()
        })
        .await
    }
}

impl RememberedReports {
    fn insert(&mut self, key: ModelKey, verdict: Arc<WeightsReport>) {
        let bytes = verdict.bytes();
        if self.verdicts.len() >= REMEMBERED || self.bytes + bytes > REMEMBERED_BYTES {
            *self = Self::default();
        }
        self.bytes += bytes;
        self.verdicts.insert(key, verdict);
    }
}

impl Cache {
    /// Refuses a model whose weights no loader could open, and gives warnings
    /// of what is wrong and refuses nothing. The work takes
    /// one of the places of `tenant`.
    ///
    /// Cancellation safe: the look at the files goes on for the next caller.
    ///
    /// # Errors
    /// `Precondition`, naming the files and what is wrong with them; `Invalid`
    /// when the request's filters take too long to be compared with the names.
    pub async fn check_sanity(
        &self,
        model: &CachedModel,
        request: &ModelRequest,
        tenant: &Tenant,
    ) -> Result<Vec<Warning>> {
        let check = self.0.sanity.check;
        if check == SafetensorsCheck::Ignore {
            return Ok(Vec::new());
        }
        let places = || self.0.sanity.places.clone();
        let known = self.0.sanity.lock().verdicts.get(&model.key).cloned();
        let verdict = match known {
            Some(verdict) => Some(verdict),
            None => {
                let (inner, model_) = (Arc::clone(&self.0), model.clone());
                let key = (model.key.clone(), tenant.clone());
                let mut ticket = self.0.sanity.flights.join(key, (), |_| {
                    Sanity::in_turn(places(), tenant.clone(), move || inner.find_flaws(&model_))
                });
                ticket.completed().await?
            }
        };
        let Some(verdict) = verdict.filter(|verdict| **verdict != WeightsReport::default()) else {
            return Ok(Vec::new());
        };
        let request = request.clone();
        Sanity::in_turn(places(), tenant.clone(), move || verdict.for_request(check, &request))
            .await
    }
}

impl CacheInner {
    /// Looks at the files of one model; `None` when they vanished meanwhile. Blocks.
    fn find_flaws(&self, model: &CachedModel) -> Result<Option<Arc<WeightsReport>>> {
        let Some(verdict) = verdict(model)? else { return Ok(None) };
        let verdict = Arc::new(verdict);
        if !verdict.broken.named.is_empty() {
            tracing::warn!(
                model = %model.summary.source,
                revision = model.summary.revision.as_str(),
                files = verdict.broken.named.len() + verdict.broken.more,
                "a model has safetensors files that no loader can open"
            );
        }
        self.sanity.lock().insert(model.key.clone(), Arc::clone(&verdict));
        Ok(Some(verdict))
    }
}

/// Why a look at a model ends early.
enum InspectStop {
    /// One of its files cannot be found, because it was evicted: then there is
    /// nothing to publish either.
    Vanished,
    Failed(Error),
}

/// What is wrong with a model; `None` when it vanished. Blocks.
fn verdict(model: &CachedModel) -> Result<Option<WeightsReport>> {
    match look(model) {
        Ok(verdict) => Ok(Some(verdict)),
        Err(InspectStop::Vanished) => Ok(None),
        Err(InspectStop::Failed(error)) => Err(error),
    }
}

fn look(model: &CachedModel) -> Result<WeightsReport, InspectStop> {
    let manifest = model.manifest().map_err(InspectStop::Failed)?.ok_or(InspectStop::Vanished)?;
    let sizes: HashMap<&str, u64> =
        manifest.files.iter().map(|file| (file.path.as_str(), file.size)).collect();
    let paths: HashSet<&str> = sizes.keys().copied().collect();
    let mut verdict = WeightsReport::default();
    let mut indexes: Vec<(&str, Result<Vec<String>, String>)> = Vec::new();
    let mut left = MISSING;
    let listed = manifest.files.iter().map(|file| file.path.as_str());
    let roles = weights::roles(listed, |index| -> Result<_, InspectStop> {
        if sizes.get(index).is_none_or(|size| *size > MAX_INDEX) {
            return Ok(None);
        }
        let (there, found) = match read(model, index, |file| safetensors::shards(file))? {
            Ok(None) => return Ok(None),
            Ok(Some(shards)) => {
                let (there, mut missing) = weights::named_by(index, shards, &paths);
                missing.truncate(left);
                left -= missing.len();
                (Some(there), Ok(missing))
            }
            Err(why) => (None, Err(why)),
        };
        indexes.push((index, found));
        Ok(there)
    })?;
    for (index, found) in indexes {
        let role = roles.get(index).copied().unwrap_or(Role::Unused);
        match found {
            Ok(missing) => verdict.note_missing(index, role, missing),
            Err(why) => verdict.note(index, role, &why),
        }
    }
    let mut offered = Offered::default();
    for file in &manifest.files {
        let path = file.path.as_str();
        let (Some(FileKind::Weights(format)), Some(role)) = (weights::kind(path), roles.get(path))
        else {
            continue;
        };
        let checked = match format {
            Format::Safetensors => read(model, path, |f| safetensors::check(f, file.size))?,
            Format::Gguf => read(model, path, |f| weights::check_gguf(f, file.size))?,
            Format::Bin if weights::can_be_pointer(file.size) => {
                read(model, path, |f| weights::check_bin(f))?
            }
            Format::Bin => Ok(()),
        };
        match (role, checked) {
            (Role::Offered, checked) => offered.add(path, checked),
            (role, Err(why)) => verdict.note(path, *role, &why),
            (_, Ok(())) => {}
        }
    }
    offered.into_verdict(&mut verdict);
    Ok(verdict)
}

/// Reads a file of the model.
fn read<T>(
    model: &CachedModel,
    path: &str,
    read: impl FnOnce(&File) -> std::io::Result<T>,
) -> Result<T, InspectStop> {
    let path = model.tree.join(path);
    match File::open(&path).and_then(|file| read(&file)) {
        Ok(read) => Ok(read),
        Err(e) if e.kind() == Io::NotFound => Err(InspectStop::Vanished),
        Err(e) => Err(InspectStop::Failed(Error::io(format!("reading {}", path.display()), &e))),
    }
}

/// GGUF files of which the user names one: a directory is broken if none of its
/// sets of files is whole.
#[derive(Default)]
struct Offered<'a> {
    /// Sets, and whether all files of each are whole.
    sets: HashMap<&'a str, bool>,
    broken: Vec<(&'a str, String)>,
}

impl<'a> Offered<'a> {
    fn add(&mut self, path: &'a str, checked: Result<(), String>) {
        *self.sets.entry(weights::gguf_set(path)).or_insert(true) &= checked.is_ok();
        if let Err(why) = checked {
            // More are not named, only counted.
            let why = if self.broken.len() < MISSING { why } else { String::new() };
            self.broken.push((path, why));
        }
    }

    fn into_verdict(self, verdict: &mut WeightsReport) {
        let directory = |path: &'a str| path.rsplit_once('/').map_or("", |(above, _)| above);
        let whole: HashSet<&str> =
            self.sets.iter().filter(|(_, whole)| **whole).map(|(set, _)| directory(set)).collect();
        for (path, why) in self.broken {
            let others = whole.contains(directory(path));
            verdict.note(path, if others { Role::Offered } else { Role::Opened }, &why);
        }
    }
}

impl Flaws {
    fn note(&mut self, flaw: impl FnOnce() -> String) {
        if self.named.len() < NAMED {
            self.named.push(flaw());
        } else {
            self.more += 1;
        }
    }

    /// `None` when there are none.
    fn text(&self) -> Option<String> {
        let more = match self.more {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        (!self.named.is_empty()).then(|| format!("{}{more}", self.named.join("; ")))
    }
}

impl WeightsReport {
    fn note(&mut self, path: &str, role: Role, why: &str) {
        self.flaws(role).note(|| format!("{}: {why}{}", shown(path, 60), reason(role)));
    }

    fn flaws(&mut self, role: Role) -> &mut Flaws {
        if role == Role::Opened { &mut self.broken } else { &mut self.suspect }
    }

    fn note_missing(&mut self, index: &str, role: Role, shards: Vec<String>) {
        let index: Arc<str> = shown(index, 60).into();
        let missing = |shard| Missing { index: Arc::clone(&index), shard, role };
        self.missing.extend(shards.into_iter().map(missing));
    }

    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        let missing = self
            .missing
            .iter()
            .map(|missing| missing.shard.capacity() + missing.index.len() + size_of::<Missing>());
        let named = self.broken.named.iter().chain(&self.suspect.named).map(String::capacity);
        named.chain(missing).sum::<usize>() + size_of::<Self>()
    }

    /// What of it is wrong for this request. Blocks for seconds at worst.
    fn for_request(&self, check: SafetensorsCheck, request: &ModelRequest) -> Result<Vec<Warning>> {
        let mut selection = request.filters.selection();
        let mut found = Self {
            broken: self.broken.clone(),
            suspect: self.suspect.clone(),
            missing: Vec::new(),
        };
        for Missing { index, shard, role } in &self.missing {
            if selection.has(shard)? {
                found.flaws(*role).note(|| {
                    let shard = shown(shard, 90);
                    format!("{index}: it names {shard}, which is not there{}", reason(*role))
                });
            }
        }
        let title = request.title();
        let mut warnings = Vec::new();
        if let Some(broken) = found.broken.text() {
            let text = format!("{title} cannot be loaded: {broken}. Upload it again");
            if check == SafetensorsCheck::Refuse {
                return Err(Error::new(
                    ErrorKind::Precondition,
                    format!(
                        "{text}, or leave it out with `exclude`; an administrator can have models \
                         mounted all the same (checkSafetensors)"
                    ),
                ));
            }
            let text = format!("{text}; it was mounted all the same (checkSafetensors: warn)");
            warnings.push(Warning::new(WarningKind::Weights, text));
        }
        if let Some(suspect) = found.suspect.text() {
            let text = format!(
                "{title} has files that cannot be loaded and are not needed: {suspect}. Remove \
                 them from the bucket, or leave them out with `exclude`"
            );
            warnings.push(Warning::new(WarningKind::Weights, text));
        }
        Ok(warnings)
    }
}

/// Why a flaw of a file is none of the model.
fn reason(role: Role) -> &'static str {
    match role {
        Role::Opened => "",
        Role::Hidden => " (hidden: no loader opens it)",
        Role::Unused => " (loaders open others instead)",
        Role::Offered => " (others beside it are whole)",
    }
}

#[cfg(test)]
#[path = "weights_check_tests.rs"]
mod tests;
