//! Divides the names of a listing, which come in byte order, into models.

use super::{BucketModel, ModelProblem, ProblemKind};
use crate::error::{Error, Result};
use crate::model::{RevisionHasher, flaw_of_name};
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

/// The state of a scan.
pub(super) struct Scan {
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
}

impl Scan {
    pub(super) fn new(root: &str) -> Self {
        Self { open: vec![OpenDirectory::new(root)], beginnings: Vec::new() }
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
            self.open.push(OpenDirectory::new(&name[..=from + slash]));
        }
        let (problems, collides_in) = self.problems(object);
        for directory in &mut self.open {
            directory.add(object, &problems, collides_in);
        }
        if let Some(last) = self.open.last_mut() {
            last.add_own(object);
        }
        Ok(())
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
        for kind in &here {
            match self.problems.iter_mut().find(|problem| problem.kind == *kind) {
                Some(problem) => problem.objects += 1,
                None => self.problems.push(ModelProblem::new(*kind, object.name.clone())),
            }
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
        self.problems.sort_by_key(|problem| problem.kind);
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
mod tests {
    use super::*;

    fn scan(root: &str, names: &[&str]) -> Vec<ScannedModel> {
        let mut scan = Scan::new(root);
        let mut names = names.to_vec();
        names.sort_unstable();
        for name in names {
            let md5 = Some("1B2M2Y8AsgTpgAmY7PhCfg==".to_owned());
            let (name, etag) = (name.to_owned(), "e".to_owned());
            let object = ObjectSummary { name, size: 1, etag, md5, ..ObjectSummary::default() };
            scan.add(&object).unwrap();
        }
        scan.models(true)
    }

    fn prefixes(root: &str, names: &[&str]) -> Vec<String> {
        scan(root, names).into_iter().map(|scanned| scanned.model.prefix).collect()
    }

    #[test]
    fn a_model_is_the_topmost_directory_with_a_file_that_loaders_open() {
        for (root, names, expected) in [
            ("m/", &["m/a/config.json", "m/b/w.gguf"][..], &["m/a/", "m/b/"][..]),
            // Everything below belongs to it, also what comes before its own files.
            ("m/", &["m/a/audio/config.json", "m/a/model_index.json"], &["m/a/"]),
            ("", &["m/a/v1/w.safetensors", "m/a/v2/w.safetensors"], &["m/a/v1/", "m/a/v2/"]),
            // Loose files beside models are no model.
            ("m/", &["m/README.md", "m/a/config.json"], &["m/a/"]),
            // The prefix may be a model itself.
            ("m/a/", &["m/a/config.json", "m/a/sub/config.json"], &["m/a/"]),
            // Without any such file, the topmost directory with objects counts.
            ("m/", &["m/x/one", "m/y/deep/two", "m/y/deep/er/three"], &["m/x/", "m/y/deep/"]),
            ("m/", &["m/a-b/config.json", "m/a/config.json"], &["m/a-b/", "m/a/"]),
            ("m/", &["m/"], &[]),
        ] {
            assert_eq!(prefixes(root, names), expected, "{names:?}");
        }
    }

    #[test]
    fn names_that_no_directory_can_show_are_problems() {
        let problems = |names: &[&str]| {
            let scanned = scan("m/", names).remove(0);
            scanned
                .model
                .problems
                .into_iter()
                .map(|one| (one.kind, one.objects))
                .collect::<Vec<_>>()
        };
        assert_eq!(problems(&["m/a/config.json"]), []);
        let collision = ["m/a/config.json", "m/a/w", "m/a/w-1", "m/a/w.x", "m/a/w/1", "m/a/w/2"];
        assert_eq!(problems(&collision), [(ProblemKind::Collision, 2)]);
        let unsafe_names = ["m/a/config.json", "m/a/../b", "m/a/x//y"];
        assert_eq!(problems(&unsafe_names), [(ProblemKind::UnsafeName, 2)]);
    }

    #[test]
    fn what_is_wrong_above_a_model_is_not_its_problem() {
        let scanned = scan("", &["models/llama", "models/llama/config.json"]).remove(0);
        let found = (scanned.model.prefix.as_str(), scanned.model.problems.len());
        assert_eq!(found, ("models/llama/", 0));
    }

    #[test]
    fn a_stray_file_at_the_root_hides_no_model_from_a_pattern() {
        let mut scan = Scan::new("m/");
        for name in ["m/config.json", "m/llama/config.json"] {
            let object = ObjectSummary { name: name.to_owned(), size: 1, ..Default::default() };
            scan.add(&object).unwrap();
        }
        let models = scan.models(false);
        assert_eq!(models.len(), 1);
        assert_eq!(models[0].model.prefix, "m/llama/");
    }

    #[test]
    fn the_shards_of_a_model_are_those_of_all_its_directories_once() {
        let names = ["m/a/config.json", "m/a/x/1.safetensors", "m/a/x/deep/2.safetensors"];
        let scanned = scan("m/", &names).remove(0);
        assert_eq!(scanned.shards, ["m/a/x/1.safetensors", "m/a/x/deep/2.safetensors"]);
    }

    #[test]
    fn names_of_many_levels_do_not_take_memory_for_each() {
        let deep = format!("m/a/config.json{}", "/x".repeat(400));
        assert_eq!(prefixes("m/", &["m/a/config.json", &deep]), ["m/a/"]);
    }
}
