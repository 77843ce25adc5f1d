//! Determines which files of a model loaders open, by their names: only those can
//! make a model unusable.
//!
//! The choice is that of transformers, diffusers and vLLM, for each directory: a
//! single `model.safetensors`, else what `model.safetensors.index.json` names,
//! else all `*.safetensors`; without any of those `pytorch_model.bin`, else what
//! its index names, else all `*.bin` at the root. `consolidated*.safetensors` and
//! `adapter_model.*` have their own loaders. The user who starts llama.cpp names
//! the GGUF file, so one complete file is enough. No loader opens hidden files
//! (a segment of the path begins with a dot).

use std::collections::{BTreeMap, HashMap, HashSet};

use super::safetensors::shard_path;

/// Names without their ending that loaders try first, in each directory.
const STANDARD: &[&str] = &["model", "diffusion_pytorch_model", "pytorch_model"];

/// The same for files with their own loaders.
const OWN_LOADERS: &[&str] = &["adapter_model"];
const CONSOLIDATED: &str = "consolidated";

/// `*.bin` files that trainers leave and vLLM ignores.
const OF_TRAINERS: &[&str] = &["training_args.bin", "optimizer.bin"];

/// A form of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Format {
    /// `.safetensors`
    Safetensors,
    /// `.gguf`
    Gguf,
    /// `.bin`: any format that its program writes.
    Bin,
}

/// The kind of a file, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    /// Weights.
    Weights(Format),
    /// An index that says which file holds which tensor.
    Index(Format),
}

/// What loaders do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It is opened.
    Opened,
    /// It is opened if its user names it.
    Offered,
    /// It is not opened: its path has a segment that begins with a dot.
    Hidden,
    /// It is not opened: loaders choose others before it.
    Unused,
}

/// The kind of a file; `None` for a file without weights.
pub(super) fn kind(path: &str) -> Option<FileKind> {
    let indexed = path.strip_suffix(".index.json");
    let (path, of): (&str, fn(Format) -> FileKind) = match indexed {
        Some(path) => (path, FileKind::Index),
        None => (path, FileKind::Weights),
    };
    let (_, ending) = path.rsplit_once('.')?;
    match ending {
        "safetensors" => Some(of(Format::Safetensors)),
        "bin" => Some(of(Format::Bin)),
        "gguf" if indexed.is_none() => Some(of(Format::Gguf)),
        _ => None,
    }
}

/// The role of each file of weights and of each index of a model. `shards` reads
/// an index, which gives the paths that it names, or `None` when it is not one.
///
/// # Errors
/// Those of `shards`.
pub(super) fn roles<'a, E>(
    paths: impl IntoIterator<Item = &'a str>,
    mut shards: impl FnMut(&'a str) -> Result<Option<Vec<&'a str>>, E>,
) -> Result<HashMap<&'a str, Role>, E> {
    let mut roles = HashMap::new();
    let mut directories: BTreeMap<&str, DirectoryWeights> = BTreeMap::new();
    for path in paths {
        let Some(kind) = kind(path) else { continue };
        if path.split('/').any(|segment| segment.starts_with('.')) {
            roles.insert(path, Role::Hidden);
        } else {
            directories.entry(split(path).0).or_default().add(kind, path);
        }
    }
    let standard: HashSet<&str> =
        directories.iter().filter(|(_, one)| one.is_standard()).map(|(path, _)| *path).collect();
    let mut named: HashSet<&str> = HashSet::new();
    let mut beneath = Beneath::new(standard);
    for (path, directory) in &directories {
        let below = beneath.has(path);
        for index in &directory.indexes {
            let role = directory.role_of_index(index, below);
            roles.insert(*index, role);
            let names = shards(index)?;
            if role == Role::Opened {
                named.extend(names.into_iter().flatten());
            }
        }
    }
    for (path, directory) in &directories {
        let below = beneath.has(path);
        for file in &directory.files {
            let role =
                if named.contains(*file) { Role::Opened } else { directory.role(file, below) };
            roles.insert(*file, role);
        }
    }
    Ok(roles)
}

/// The weights and indexes of one directory.
#[derive(Default)]
struct DirectoryWeights<'a> {
    files: Vec<&'a str>,
    indexes: Vec<&'a str>,
    /// The names among both, without the directory.
    names: HashSet<&'a str>,
    has_safetensors: bool,
    has_gguf: bool,
}

impl<'a> DirectoryWeights<'a> {
    fn add(&mut self, kind: FileKind, path: &'a str) {
        match kind {
            FileKind::Weights(_) => self.files.push(path),
            FileKind::Index(_) => self.indexes.push(path),
        }
        let (FileKind::Weights(format) | FileKind::Index(format)) = kind;
        self.has_safetensors |= format == Format::Safetensors;
        self.has_gguf |= format == Format::Gguf;
        self.names.insert(split(path).1);
    }

    /// Whether it has weights of a name that loaders try first.
    fn has_standard(&self, ending: &str) -> bool {
        STANDARD.iter().any(|stem| {
            self.names.contains(format!("{stem}{ending}").as_str())
                || self.names.contains(format!("{stem}{ending}.index.json").as_str())
        })
    }

    fn is_standard(&self) -> bool {
        self.has_standard(".safetensors") || self.has_standard(".bin")
    }

    fn role_of_index(&self, path: &str, below: bool) -> Role {
        let name = split(path).1;
        let single = name.strip_suffix(".index.json").unwrap_or(name);
        let (stem, ending) = single.rsplit_once('.').unwrap_or((single, ""));
        let known = STANDARD.contains(&stem) || stem == CONSOLIDATED;
        let behind = ending == "bin" && self.has_safetensors;
        let others = !known && (below || self.is_standard());
        let unused = self.names.contains(single) || behind || others;
        if unused { Role::Unused } else { Role::Opened }
    }

    fn role(&self, path: &str, below: bool) -> Role {
        let (directory, name) = split(path);
        let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
        let known = STANDARD.contains(&stem) || OWN_LOADERS.contains(&stem);
        let opened = match ending {
            "safetensors" => {
                known
                    || stem.starts_with(CONSOLIDATED)
                    || !(below || self.has_standard(".safetensors"))
            }
            "bin" if self.has_safetensors => false,
            "bin" => {
                let only = directory.is_empty() && !self.has_gguf && !self.has_standard(".bin");
                known || (only && !OF_TRAINERS.contains(&name))
            }
            _ if below || self.has_safetensors => false,
            _ => return Role::Offered,
        };
        if opened { Role::Opened } else { Role::Unused }
    }
}

/// Directory and name.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Which directories are below one that loaders use. Each is looked
/// up once: thousands of a model's directories may share hundreds of parents.
struct Beneath<'a> {
    standard: HashSet<&'a str>,
    known: HashMap<&'a str, bool>,
    #[cfg(test)]
    looked_up: usize,
}

impl<'a> Beneath<'a> {
    fn new(standard: HashSet<&'a str>) -> Self {
        Self {
            standard,
            known: HashMap::new(),
            #[cfg(test)]
            looked_up: 0,
        }
    }

    /// Whether a directory above this one is a standard one.
    fn has(&mut self, directory: &'a str) -> bool {
        let (mut path, mut open, mut below) = (directory, Vec::new(), false);
        while !path.is_empty() {
            #[cfg(test)]
            {
                self.looked_up += 1;
            }
            if let Some(known) = self.known.get(path) {
                below = *known;
                break;
            }
            open.push(path);
            let above = split(path).0;
            if self.standard.contains(above) {
                below = true;
                break;
            }
            path = above;
        }
        self.known.extend(open.into_iter().map(|path| (path, below)));
        below
    }
}

/// The set that a GGUF file is one of: `a-00001-of-00002.gguf` is one of `a`.
pub(super) fn gguf_set(path: &str) -> &str {
    let stem = path.strip_suffix(".gguf").unwrap_or(path);
    let numbered = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let parts = stem.rsplit_once("-of-").and_then(|(rest, of)| {
        let (set, number) = rest.rsplit_once('-')?;
        (numbered(of) && numbered(number)).then_some(set)
    });
    parts.unwrap_or(stem)
}

/// The paths that an index names, each with the file of that path, if any.
pub(super) fn named_by<'a>(
    index: &str,
    shards: impl IntoIterator<Item = String>,
    paths: &HashSet<&'a str>,
) -> (Vec<&'a str>, Vec<String>) {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for shard in shards {
        let path = shard_path(index, &shard).unwrap_or(shard);
        match paths.get(path.as_str()) {
            Some(path) => there.push(*path),
            None => missing.push(path),
        }
    }
    (there, missing)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const INDEX: &str = "model.safetensors.index.json";

    /// The files of each role, where each index names the files of its
    /// directory that have a number.
    fn roles_of<'a>(paths: &[&'a str]) -> HashMap<&'a str, Role> {
        let shards = |index: &'a str| {
            let ending = split(index).1.split('.').nth(1).unwrap();
            let numbered = |path: &&&str| {
                split(path).0 == split(index).0
                    && path.ends_with(ending)
                    && path.contains(|c: char| c.is_ascii_digit())
            };
            Ok::<_, Infallible>(Some(paths.iter().filter(numbered).copied().collect()))
        };
        roles(paths.iter().copied(), shards).unwrap()
    }

    fn assert_roles(expected: &[(&str, Role)]) {
        let paths: Vec<&str> = expected.iter().map(|(path, _)| *path).collect();
        let roles = roles_of(&paths);
        for (path, role) in expected {
            assert_eq!(roles.get(path), Some(role), "{path} of {paths:?}");
        }
    }

    #[test]
    fn the_single_file_is_opened_before_what_an_index_names() {
        use Role::{Opened, Unused};
        assert_roles(&[
            ("model.safetensors", Opened),
            (INDEX, Unused),
            ("m-1.safetensors", Unused),
        ]);
        assert_roles(&[(INDEX, Opened), ("m-1.safetensors", Opened), ("old.safetensors", Unused)]);
        assert_roles(&[("a.safetensors", Opened), ("d/b.safetensors", Opened)]);
        let index = "d/x.safetensors.index.json";
        assert_roles(&[(index, Opened), ("d/x-1.safetensors", Opened)]);
        assert_roles(&[("model.safetensors", Opened), (index, Unused)]);
    }

    #[test]
    fn hidden_files_decide_nothing() {
        use Role::{Hidden, Opened};
        assert_roles(&[
            ("model.safetensors", Opened),
            ("._model.safetensors", Hidden),
            (".ipynb_checkpoints/x.safetensors", Hidden),
            ("a/.cache/model.gguf", Hidden),
            (".x.safetensors.index.json", Hidden),
        ]);
    }

    #[test]
    fn parts_of_a_pipeline_are_chosen_for_each_directory() {
        use Role::{Opened, Unused};
        assert_roles(&[
            ("unet/diffusion_pytorch_model.safetensors.index.json", Opened),
            ("unet/d-1.safetensors", Opened),
            ("vae/diffusion_pytorch_model.safetensors", Opened),
            ("vae/diffusion_pytorch_model.fp16.safetensors", Unused),
            ("vae/diffusion_pytorch_model.bin", Unused),
            ("text_encoder/pytorch_model.bin", Opened),
        ]);
        assert_roles(&[
            ("model.safetensors", Opened),
            ("1_Dense/model.safetensors", Opened),
            ("openvino/openvino_model.bin", Unused),
            ("backup/m-1.safetensors", Unused),
        ]);
    }

    #[test]
    fn directories_that_have_hundreds_above_them_take_no_step_for_each_of_those() {
        const ABOVE: usize = 500;
        const DIRECTORIES: usize = 20_000;
        let above = vec!["x"; ABOVE].join("/");
        let directories: Vec<String> =
            (0..DIRECTORIES).map(|n| format!("{above}/{n:05}")).collect();
        let mut beneath = Beneath::new(HashSet::from(["y"]));
        for directory in &directories {
            assert!(!beneath.has(directory));
        }
        assert!(beneath.looked_up <= ABOVE + 2 * DIRECTORIES, "{}", beneath.looked_up);

        let deep = format!("{above}/1/a.bin");
        let standard = format!("{above}/b.safetensors");
        let roles = roles_of(&[&standard, "model.safetensors", &deep]);
        assert_eq!(roles[deep.as_str()], Role::Unused);
        assert_eq!(roles[standard.as_str()], Role::Unused);
    }

    #[test]
    fn consolidated_weights_and_adapters_have_their_own_loaders() {
        use Role::{Opened, Unused};
        assert_roles(&[
            (INDEX, Opened),
            ("model-1.safetensors", Opened),
            ("consolidated.safetensors", Opened),
            ("consolidated-00001-of-00002.safetensors", Opened),
            ("adapter_model.safetensors", Opened),
            ("adapter_model.bin", Unused),
        ]);
    }

    #[test]
    fn pickled_weights_are_opened_where_there_are_no_safetensors() {
        use Role::{Opened, Unused};
        let index = "pytorch_model.bin.index.json";
        assert_roles(&[("pytorch_model.bin", Opened), (index, Unused), ("p-1.bin", Unused)]);
        assert_roles(&[(index, Opened), ("p-1.bin", Opened), ("training_args.bin", Unused)]);
        assert_roles(&[("model.safetensors", Opened), ("pytorch_model.bin", Unused)]);
        assert_roles(&[("ggml-base.bin", Opened), ("optimizer.bin", Unused)]);
        assert_roles(&[("a/vocab.bin", Unused), ("a/pytorch_model.bin", Opened)]);
    }

    #[test]
    fn gguf_files_are_offered_unless_loaders_have_others() {
        use Role::{Offered, Opened, Unused};
        assert_roles(&[("q4.gguf", Offered), ("q8.gguf", Offered), ("x.bin", Unused)]);
        assert_roles(&[("model.safetensors", Opened), ("q4.gguf", Unused), ("g/q8.gguf", Unused)]);
        assert_eq!(gguf_set("d/m-00001-of-00003.gguf"), gguf_set("d/m-00003-of-00003.gguf"));
        assert_ne!(gguf_set("d/m-q4.gguf"), gguf_set("d/m-q8.gguf"));
        assert_eq!(gguf_set("m-1-of-2.gguf"), "m-1-of-2");
    }
}
