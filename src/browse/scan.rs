//! Divides the names of a listing, which come in byte order, into models.

use std::collections::HashMap;

use super::{BucketModel, ModelProblem, ProblemKind};
use crate::error::{Error, Result};
use crate::model::{RevisionHasher, flaw_of_name, folded};
use crate::source::{ListedMd5, ObjectSummary};
use crate::text::shown;

/// Levels below the prefix that may be models; deeper objects belong to these.
const DEEPEST: usize = 32;

/// Endings of files that loaders open.
const WEIGHTS: [&str; 9] =
    ["safetensors", "gguf", "onnx", "bin", "pt", "pth", "ckpt", "h5", "engine"];

/// Names of files that loaders open.
const CONFIGURATIONS: [&str; 3] = ["config.json", "model_index.json", "params.json"];

/// A model of the listing, before its indexes are read.
pub(super) struct ScannedModel {
    pub(super) model: BucketModel,
    /// Whether loaders would recognize it.
    pub(super) is_recognized: bool,
    /// Its indexes of safetensors files.
    pub(super) indexes: Vec<ScannedIndex>,
    /// Full names of its safetensors files.
    pub(super) shards: Vec<String>,
}

/// An index of shards.
pub(super) struct ScannedIndex {
    pub(super) name: String,
    pub(super) etag: String,
    pub(super) size: u64,
}

/// The most names of one directory that are kept to find twins: a directory with more of them is
/// beyond what the driver mounts.
const COMPARED: usize = 100_000;

/// The state of a scan.
pub(super) struct Scan {
    /// The most objects of a model that the driver mounts.
    most_objects: usize,
    /// The open directories, each within the one before; the first one is the root.
    open: Vec<OpenDirectory>,
    /// Names of objects that the current name begins with, each the beginning of the next.
    beginnings: Vec<String>,
}

struct OpenDirectory {
    /// Full name: empty, or ending in `/`.
    name: String,
    objects: usize,
    bytes: u64,
    revision: RevisionHasher,
    newest: Option<String>,
    problems: Vec<ModelProblem>,
    /// Whether it has objects of its own.
    is_direct: bool,
    is_recognized: bool,
    indexes: Vec<ScannedIndex>,
    shards: Vec<String>,
    /// The models below it that are closed.
    found: Vec<ScannedModel>,
    /// The folded forms of its entries, but of those that are their own folded form: in byte
    /// order, the first one of twins is not.
    folded: HashMap<String, String>,
}

impl Scan {
    pub(super) fn new(root: &str, most_objects: usize) -> Self {
        Self { most_objects, open: vec![OpenDirectory::new(root)], beginnings: Vec::new() }
    }

    /// Adds the next object.
    ///
    /// # Errors
    /// `Internal` for an object that is not under the root.
    pub(super) fn add(&mut self, object: &ObjectSummary) -> Result<()> {
        let name = object.name.as_str();
        if !self.open.first().is_some_and(|root| name.starts_with(&root.name)) {
            return Err(Error::internal(format!(
                "Object Storage listed {:?}, which is not under the prefix",
                shown(name, 200)
            )));
        }
        while self.open.len() > 1
            && !self.open.last().is_some_and(|last| name.starts_with(&last.name))
        {
            self.close();
        }
        while let Some(last) = self.open.last().filter(|_| self.open.len() <= DEEPEST) {
            let from = last.name.len();
            let Some(slash) = name[from..].find('/') else { break };
            let below = &name[..=from + slash];
            self.compare_names(below);
            self.open.push(OpenDirectory::new(below));
        }
        self.compare_names(name);
        let (problems, collides_in) = self.problems(object);
        for directory in &mut self.open {
            directory.add(object, &problems, collides_in);
        }
        if let Some(last) = self.open.last_mut() {
            last.add_own(object);
        }
        Ok(())
    }

    /// Reports an entry of the innermost directory, with its full name, if an earlier one differs
    /// from it in case or Unicode form only.
    fn compare_names(&mut self, full: &str) {
        let Some(last) = self.open.last_mut() else { return };
        if last.has_twin(&full[last.name.len()..]) {
            for directory in &mut self.open {
                directory.count(ProblemKind::NameTwins, full);
            }
        }
    }

    /// What is wrong with an object; and for a collision the length of the longest name that it
    /// collides with: only directories above that name have it.
    fn problems(&mut self, object: &ObjectSummary) -> (Vec<ProblemKind>, usize) {
        let name = object.name.as_str();
        self.beginnings.retain(|beginning| name.starts_with(beginning.as_str()));
        let mut problems = Vec::new();
        let colliding = self.beginnings.iter().filter(|one| name[one.len()..].starts_with('/'));
        let collides_in = colliding.map(String::len).max().unwrap_or_default();
        if collides_in > 0 {
            problems.push(ProblemKind::Collision);
        }
        let is_marker = name.ends_with('/');
        if !is_marker {
            self.beginnings.push(name.to_owned());
        }
        if object.is_archived() {
            problems.push(ProblemKind::Archived);
        }
        let root = self.open.first().map_or(0, |root| root.name.len());
        let relative = &name[root..];
        if flaw_of_name(name, relative).is_some() || (is_marker && object.size > 0) {
            problems.push(ProblemKind::UnsafeName);
        }
        let has_md5 = object.md5.as_deref().is_some_and(|md5| ListedMd5::parse(md5).is_some());
        if !has_md5 && object.size > 0 {
            problems.push(ProblemKind::NoChecksum);
        }
        (problems, collides_in)
    }

    fn close(&mut self) {
        if let Some(closed) = self.open.pop()
            && let Some(parent) = self.open.last_mut()
        {
            parent.take(closed);
        }
    }

    /// Ends the scan. Returns the models in the order of their names, the root among them or not.
    pub(super) fn models(mut self, with_root: bool) -> Vec<ScannedModel> {
        while self.open.len() > 1 {
            self.close();
        }
        let of_root = |root: OpenDirectory| if with_root { root.models() } else { root.found };
        let mut models = self.open.pop().map(of_root).unwrap_or_default();
        for ScannedModel { model, .. } in &mut models {
            if model.objects > self.most_objects {
                let problem = ModelProblem {
                    objects: model.objects,
                    ..ModelProblem::new(ProblemKind::TooManyObjects, model.prefix.clone())
                };
                model.problems.push(problem);
            }
            model.problems.sort_by_key(|problem| problem.kind);
        }
        models.sort_by(|a, b| a.model.prefix.cmp(&b.model.prefix));
        models
    }
}

impl OpenDirectory {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            objects: 0,
            bytes: 0,
            revision: RevisionHasher::new(),
            newest: None,
            problems: Vec::new(),
            is_direct: false,
            is_recognized: false,
            indexes: Vec::new(),
            shards: Vec::new(),
            found: Vec::new(),
            folded: HashMap::new(),
        }
    }

    /// Whether an earlier entry has this name in other case or Unicode form.
    fn has_twin(&mut self, entry: &str) -> bool {
        let name = entry.trim_end_matches('/');
        let form = folded(name);
        // An object and a directory of one name collide, which is another problem.
        if let Some(first) = self.folded.get(&form) {
            return first != name;
        }
        let may_come_first = form != name || !name.is_ascii();
        if may_come_first && self.folded.len() < COMPARED {
            self.folded.insert(form, name.to_owned());
        }
        false
    }

    fn count(&mut self, kind: ProblemKind, example: &str) {
        match self.problems.iter_mut().find(|problem| problem.kind == kind) {
            Some(problem) => problem.objects += 1,
            None => self.problems.push(ModelProblem::new(kind, example.to_owned())),
        }
    }

    /// Adds an object at any depth.
    fn add(&mut self, object: &ObjectSummary, problems: &[ProblemKind], collides_in: usize) {
        let relative = &object.name[self.name.len()..];
        // As the driver: a directory's own marker is not part of the model.
        if relative.is_empty() {
            return;
        }
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(object.size);
        self.revision.add(relative, object.size, &object.etag);
        self.newest = self.newest.take().max(object.time_modified.clone());
        let is_here = |kind: &&ProblemKind| match kind {
            ProblemKind::Collision => collides_in > self.name.len(),
            // A part above this directory may be what is unsafe.
            ProblemKind::UnsafeName => {
                relative.ends_with('/') || flaw_of_name(&object.name, relative).is_some()
            }
            _ => true,
        };
        let here: Vec<ProblemKind> = problems.iter().filter(is_here).copied().collect();
        for kind in here {
            self.count(kind, &object.name);
        }
    }

    /// Adds what an object that lies directly in it says about it.
    fn add_own(&mut self, object: &ObjectSummary) {
        let file = &object.name[self.name.len()..];
        if file.is_empty() {
            return;
        }
        self.is_direct = true;
        let lower = file.to_ascii_lowercase();
        let ending = lower.rsplit_once('.').map_or("", |(_, ending)| ending);
        let is_index = lower.ends_with(".safetensors.index.json");
        self.is_recognized |=
            is_index || WEIGHTS.contains(&ending) || CONFIGURATIONS.contains(&lower.as_str());
        if is_index {
            let (name, etag) = (object.name.clone(), object.etag.clone());
            self.indexes.push(ScannedIndex { name, etag, size: object.size });
        }
        if ending == "safetensors" {
            self.shards.push(object.name.clone());
        }
    }

    /// Takes over what a directory within it has found.
    fn take(&mut self, mut closed: Self) {
        let is_model = closed.is_model();
        if !is_model {
            self.indexes.append(&mut closed.indexes);
            self.shards.append(&mut closed.shards);
        }
        self.found.extend(closed.models());
    }

    fn is_model(&self) -> bool {
        self.is_recognized
            || (self.is_direct && !self.found.iter().any(|model| model.is_recognized))
    }

    /// The models of this directory: itself, or those within.
    fn models(mut self) -> Vec<ScannedModel> {
        if !self.is_model() {
            return self.found;
        }
        for mut within in self.found {
            self.indexes.append(&mut within.indexes);
            self.shards.append(&mut within.shards);
        }
        let model = BucketModel {
            prefix: self.name,
            objects: self.objects,
            bytes: self.bytes,
            revision: self.revision.finish(),
            newest_change: self.newest,
            problems: self.problems,
        };
        let (is_recognized, indexes, shards) = (self.is_recognized, self.indexes, self.shards);
        vec![ScannedModel { model, is_recognized, indexes, shards }]
    }
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
