//! Models that get new revisions, and pods that read them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use localstore::{LocalStore, PutOptions, synthetic_bytes};

use super::invariants::{Kind, Violation};
use super::kubelet::{Kubelet, Volume};
use super::models::{BUCKET, Content, mounts_at, try_content_of};

/// One revision of a model, as it was uploaded.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    prefix: String,
    pub(crate) content: Arc<Content>,
}

/// A volume that is published, with all of its files held open.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) volume: Volume,
    pub(crate) model: Model,
    held: Vec<(String, File)>,
}

impl Model {
    /// A revision of the model `name`: small files, an empty one, and shards of
    /// these sizes, all of whose bytes come from the seed.
    pub(crate) fn new(name: &str, seed: u64, shards: &[u64]) -> Self {
        let mut content = Content::new();
        let config = format!("{{\"seed\": {seed}}}").into_bytes();
        let vocabulary = seed.to_string().repeat(100).into_bytes();
        content.insert("config.json".to_owned(), Some(config));
        content.insert("tokenizer/vocab.txt".to_owned(), Some(vocabulary));
        content.insert("tokenizer/empty".to_owned(), Some(Vec::new()));
        content.insert("tokenizer".to_owned(), None);
        for (n, size) in (0_u64..).zip(shards) {
            let bytes = synthetic_bytes(seed.wrapping_mul(1000).wrapping_add(n), 0..*size);
            content.insert(format!("model-{n}.safetensors"), Some(bytes));
        }
        Self { prefix: format!("models/{name}/"), content: Arc::new(content) }
    }

    /// Uploads it. The first shard gets a CRC-32C, everything else an MD5.
    pub(crate) fn upload_to(&self, store: &LocalStore) {
        for (name, bytes) in &*self.content {
            let Some(bytes) = bytes else { continue };
            let crc32c = name.ends_with("0.safetensors");
            let options = PutOptions { crc32c, ..PutOptions::default() };
            let name = format!("{}{name}", self.prefix);
            store.put_with(BUCKET, &name, bytes, options).expect("an upload");
        }
    }

    /// Creates a revision and uploads it.
    pub(crate) fn upload(store: &LocalStore, name: &str, seed: u64, shards: &[u64]) -> Self {
        let model = Self::new(name, seed, shards);
        model.upload_to(store);
        model
    }

    /// The seed of the revision that a directory shows.
    pub(crate) fn seed_shown(directory: &Path) -> Option<u64> {
        let config = fs::read(directory.join("config.json")).ok()?;
        serde_json::from_slice::<serde_json::Value>(&config).ok()?.get("seed")?.as_u64()
    }

    /// The volume of a pod that wants this model.
    pub(crate) fn volume(&self, kubelet: &Kubelet, pod: u64) -> Volume {
        self.volume_with(kubelet, pod, &[])
    }

    /// As [`Model::volume`], with more attributes.
    pub(crate) fn volume_with(
        &self,
        kubelet: &Kubelet,
        pod: u64,
        attributes: &[(&str, &str)],
    ) -> Volume {
        let own = [("bucket", BUCKET), ("prefix", self.prefix.as_str())];
        kubelet.inline(&pod.to_string(), &[&own, attributes].concat())
    }

    /// The URI of the model, as in commands.
    pub(crate) fn uri(&self) -> String {
        format!("oci://{BUCKET}/{}", self.prefix)
    }

    /// Writes its files into a new directory, as another program's download would.
    pub(crate) fn fill(&self, directory: &Path) {
        fs::create_dir_all(directory.join("tokenizer")).expect("directories");
        for (name, bytes) in &*self.content {
            if let Some(bytes) = bytes {
                fs::write(directory.join(name), bytes).expect("a file");
            }
        }
    }

    /// Whether a volume is of this model, whatever the revision.
    pub(crate) fn is_of(&self, volume: &Volume) -> bool {
        volume.attributes.get("prefix") == Some(&self.prefix)
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.sizes().values().sum()
    }

    /// The size of each object, by `bucket/name` as the store counts.
    pub(crate) fn sizes(&self) -> BTreeMap<String, u64> {
        let files = self.content.iter().filter_map(|(name, bytes)| Some((name, bytes.as_ref()?)));
        let key = |name: &str| format!("{BUCKET}/{}{name}", self.prefix);
        files.map(|(name, bytes)| (key(name), bytes.len() as u64)).collect()
    }
}

/// Bytes of this model's objects that the store has sent, whatever their revision.
pub(crate) fn sent_of(store: &LocalStore, model: &Model) -> u64 {
    let sent = store.stats().object_bytes;
    model.sizes().keys().filter_map(|name| sent.get(name)).sum()
}

/// Bytes that were sent although they had been sent before, since the counters
/// of the store were reset and these models were new.
pub(crate) fn sent_twice(store: &LocalStore, models: &[&Model]) -> u64 {
    let sizes: BTreeMap<String, u64> = models.iter().flat_map(|model| model.sizes()).collect();
    let sent = store.stats().object_bytes;
    sent.iter()
        .map(|(name, bytes)| bytes.saturating_sub(sizes.get(name).copied().unwrap_or(0)))
        .sum()
}

impl Pod {
    /// Starts to read a volume that was just published.
    pub(crate) fn start(volume: Volume, model: &Model) -> Self {
        let target = volume.target();
        let names = model.content.iter().filter(|(_, bytes)| bytes.is_some());
        // One that cannot be opened shows in the content.
        let held =
            names.filter_map(|(name, _)| Some((name.clone(), File::open(target.join(name)).ok()?)));
        Self { held: held.collect(), model: model.clone(), volume }
    }

    /// Whether everything is as it was uploaded, in newly opened and in held files.
    pub(crate) fn look(&self) -> Vec<Violation> {
        let target = self.volume.target();
        let shown = target.display();
        let mut found = Vec::new();
        let mut note = |kind, what: String| found.push(Violation { kind, what });
        let mounts = mounts_at(&target);
        match &mounts[..] {
            [options] if options.split(',').any(|option| option == "ro") => {}
            _ => note(Kind::Mount, format!("{shown} has the mounts {mounts:?}")),
        }
        match try_content_of(&target) {
            Err(error) => note(Kind::Vanished, format!("{shown}: {error}")),
            Ok(content) => {
                for (name, expected) in &*self.model.content {
                    match content.get(name) {
                        None => note(Kind::Vanished, format!("{shown}/{name} is not there")),
                        Some(bytes) if bytes == expected => {}
                        Some(_) => note(
                            Kind::WrongBytes,
                            format!("{shown}/{name} is not what was uploaded"),
                        ),
                    }
                }
                for name in content.keys().filter(|name| !self.model.content.contains_key(*name)) {
                    note(Kind::WrongBytes, format!("{shown}/{name} was never uploaded"));
                }
            }
        }
        for (name, file) in &self.held {
            let expected = self.model.content[name].as_ref().expect("a file");
            let mut bytes = vec![0; expected.len() + 1];
            let read = read_to(file, &mut bytes);
            if read.is_none_or(|read| bytes[..read] != expected[..]) {
                note(Kind::WrongBytes, format!("{shown}/{name}, held open, has changed"));
            }
        }
        found
    }

    /// Ends the pod: its files are closed, and the volume is kubelet's to unpublish.
    pub(crate) fn end(self) -> Volume {
        self.volume
    }
}

/// Reads from the start until the buffer is full or the file ends.
fn read_to(file: &File, buffer: &mut [u8]) -> Option<usize> {
    let mut at = 0;
    while at < buffer.len() {
        match file.read_at(&mut buffer[at..], at as u64).ok()? {
            0 => break,
            n => at += n,
        }
    }
    Some(at)
}
