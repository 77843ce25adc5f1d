//! Checks before a publish whether a model's weights can be loaded
//! (`checkSafetensors`). A loader's own error comes minutes later, and names no
//! remedy.
//!
//! Each model is checked once for all pods, by names and headers alone. Only files
//! that loaders open ([`crate::model::weights`]) make a model unloadable; problems
//! of other files are warnings. A file that cannot be opened is wrong for all
//! requests. A shard that an index names but the tree lacks is wrong only for
//! requests whose filters would have selected it, since filters may leave shards out
//! on purpose.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::ErrorKind as Io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::store::models::CachedModel;
use super::{Cache, CacheInner};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::fair::FairSemaphore;
use crate::flight::Flights;
use crate::model::safetensors::{self, MAX_INDEX};
use crate::model::weights::{self, FileKind, Format, Role};
use crate::model::{ModelKey, ModelRequest, Tenant, Warning, WarningKind, shown};

/// Most verdicts that are remembered. Beyond that, all are dropped.
const REMEMBERED: usize = 10_000;

/// Most bytes of remembered verdicts, since uploaders choose the names in them.
const REMEMBERED_BYTES: usize = 16 << 20;

/// Most missing shards that are remembered per model.
const MISSING: usize = 1000;

/// Models checked at once, at most two of one tenant. Each takes up to about 20 MB of
/// memory (see [`safetensors`]).
const AT_ONCE: usize = 3;

/// Flaws named in one message.
const NAMED: usize = 2;

/// What to do with a model whose weights no loader can open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SafetensorsCheck {
    /// Refuse to publish it.
    Refuse,
    /// Publish it with a warning.
    Warn,
    /// Do not check.
    Ignore,
}

/// The flaws of one model.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct WeightsReport {
    /// Broken files that loaders open.
    broken: Flaws,
    /// Broken files that no loader opens.
    suspect: Flaws,
    /// Shards that indexes name but the tree lacks.
    missing: Vec<Missing>,
}

/// The first flaws of a kind, as text, and the number of further ones.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Flaws {
    named: Vec<String>,
    more: usize,
}

/// A missing shard.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    /// The index that names it, as text.
    index: Arc<str>,
    shard: String,
    /// How loaders use the index.
    role: Role,
}

/// Checks the weights of models, and remembers the verdicts.
pub(super) struct WeightsChecks {
    check: SafetensorsCheck,
    /// Also keyed by tenant, so that no tenant waits for the turn of another.
    flights: Flights<(ModelKey, Tenant), (), Option<Arc<WeightsReport>>>,
    known: Mutex<RememberedReports>,
    places: FairSemaphore,
}

#[derive(Debug, Default)]
struct RememberedReports {
    verdicts: HashMap<ModelKey, Arc<WeightsReport>>,
    bytes: usize,
}

impl WeightsChecks {
    pub(super) fn new(
        check: SafetensorsCheck,
        flights: Flights<(ModelKey, Tenant), (), Option<Arc<WeightsReport>>>,
    ) -> Self {
        Self { check, flights, known: Mutex::default(), places: FairSemaphore::new(AT_ONCE) }
    }

    fn lock(&self) -> MutexGuard<'_, RememberedReports> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs work whose cost the model's author controls, when it is the tenant's turn.
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
    /// Refuses a model whose weights no loader can open, and returns warnings about
    /// lesser flaws. The work takes one of the places of `tenant`.
    ///
    /// Cancellation safe: the check continues for the next caller.
    ///
    /// # Errors
    /// `Precondition`, naming the files and what is wrong with them; `Invalid` when
    /// matching the request's filters takes too long.
    pub async fn check_weights(
        &self,
        model: &CachedModel,
        request: &ModelRequest,
        tenant: &Tenant,
    ) -> Result<Vec<Warning>> {
        let check = self.0.weights_checks.check;
        if check == SafetensorsCheck::Ignore {
            return Ok(Vec::new());
        }
        let places = || self.0.weights_checks.places.clone();
        let known = self.0.weights_checks.lock().verdicts.get(&model.key).cloned();
        let verdict = match known {
            Some(verdict) => Some(verdict),
            None => {
                let (inner, model_) = (Arc::clone(&self.0), model.clone());
                let key = (model.key.clone(), tenant.clone());
                let mut waiter = self.0.weights_checks.flights.join(key, (), |_| {
                    WeightsChecks::in_turn(places(), tenant.clone(), move || {
                        inner.find_flaws(&model_)
                    })
                });
                waiter.completed().await?
            }
        };
        let Some(verdict) = verdict.filter(|verdict| **verdict != WeightsReport::default()) else {
            return Ok(Vec::new());
        };
        let request = request.clone();
        WeightsChecks::in_turn(places(), tenant.clone(), move || {
            verdict.for_request(check, &request)
        })
        .await
    }
}

impl CacheInner {
    /// Checks the files of one model; `None` when they vanished meanwhile. Blocks.
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
        self.weights_checks.lock().insert(model.key.clone(), Arc::clone(&verdict));
        Ok(Some(verdict))
    }
}

/// Why the check of a model ended early.
enum InspectStop {
    /// One of its files is missing, because the model was evicted. Then there is nothing
    /// to publish either.
    Vanished,
    Failed(Error),
}

/// Returns the flaws of a model; `None` when it vanished. Blocks.
fn verdict(model: &CachedModel) -> Result<Option<WeightsReport>> {
    match inspect(model) {
        Ok(verdict) => Ok(Some(verdict)),
        Err(InspectStop::Vanished) => Ok(None),
        Err(InspectStop::Failed(error)) => Err(error),
    }
}

fn inspect(model: &CachedModel) -> Result<WeightsReport, InspectStop> {
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
            Ok(missing) => verdict.record_missing(index, role, missing),
            Err(why) => verdict.record(index, role, &why),
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
            (role, Err(why)) => verdict.record(path, *role, &why),
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

/// GGUF files, among which the user chooses: a directory is broken only if none of its
/// sets of files is intact.
#[derive(Default)]
struct Offered<'a> {
    /// Sets, and whether all files of each are intact.
    sets: HashMap<&'a str, bool>,
    broken: Vec<(&'a str, String)>,
}

impl<'a> Offered<'a> {
    fn add(&mut self, path: &'a str, checked: Result<(), String>) {
        *self.sets.entry(weights::gguf_set(path)).or_insert(true) &= checked.is_ok();
        if let Err(why) = checked {
            // Further ones are counted, not named.
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
            verdict.record(path, if others { Role::Offered } else { Role::Opened }, &why);
        }
    }
}

impl Flaws {
    fn record(&mut self, flaw: impl FnOnce() -> String) {
        if self.named.len() < NAMED {
            self.named.push(flaw());
        } else {
            self.more += 1;
        }
    }

    /// Returns the flaws as text; `None` when there are none.
    fn text(&self) -> Option<String> {
        let more = match self.more {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        (!self.named.is_empty()).then(|| format!("{}{more}", self.named.join("; ")))
    }
}

impl WeightsReport {
    fn record(&mut self, path: &str, role: Role, why: &str) {
        self.flaws(role).record(|| format!("{}: {why}{}", shown(path, 60), reason(role)));
    }

    fn flaws(&mut self, role: Role) -> &mut Flaws {
        if role == Role::Opened { &mut self.broken } else { &mut self.suspect }
    }

    fn record_missing(&mut self, index: &str, role: Role, shards: Vec<String>) {
        let index: Arc<str> = shown(index, 60).into();
        let missing = |shard| Missing { index: Arc::clone(&index), shard, role };
        self.missing.extend(shards.into_iter().map(missing));
    }

    /// Estimates its size in memory.
    fn bytes(&self) -> usize {
        let missing = self
            .missing
            .iter()
            .map(|missing| missing.shard.capacity() + missing.index.len() + size_of::<Missing>());
        let named = self.broken.named.iter().chain(&self.suspect.named).map(String::capacity);
        named.chain(missing).sum::<usize>() + size_of::<Self>()
    }

    /// Returns the warnings for this request, or refuses it. Blocks, for seconds at worst.
    fn for_request(&self, check: SafetensorsCheck, request: &ModelRequest) -> Result<Vec<Warning>> {
        let mut selection = request.filters.selection();
        let mut found = Self {
            broken: self.broken.clone(),
            suspect: self.suspect.clone(),
            missing: Vec::new(),
        };
        for Missing { index, shard, role } in &self.missing {
            if selection.has(shard)? {
                found.flaws(*role).record(|| {
                    let shard = shown(shard, 90);
                    format!("{index}: it names {shard}, which is missing{}", reason(*role))
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
                        "{text}, or leave it out with `exclude`; an administrator can allow such \
                         models (checkSafetensors)"
                    ),
                ));
            }
            let text = format!("{text}; it was mounted anyway (checkSafetensors: warn)");
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

/// Explains why a flaw of a file does not affect the model.
fn reason(role: Role) -> &'static str {
    match role {
        Role::Opened => "",
        Role::Hidden => " (hidden: no loader opens it)",
        Role::Unused => " (loaders open other files instead)",
        Role::Offered => " (other files beside it are intact)",
    }
}

#[cfg(test)]
#[path = "weights_check_tests.rs"]
mod tests;
