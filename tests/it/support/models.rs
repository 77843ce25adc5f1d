//! Models: uploaded to the local store, and inspected where they are published.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use localstore::{LocalStore, PutOptions, Source, synthetic_bytes};

pub(crate) const BUCKET: &str = "ai-model-cache";
pub(crate) const PREFIX: &str = "models/phi3-mini/";

/// The attributes of a volume of the model under [`PREFIX`].
pub(crate) const PHI3: [(&str, &str); 2] = [("bucket", BUCKET), ("prefix", PREFIX)];

pub(crate) const MIB: u64 = 1 << 20;

/// The content of a directory, by relative path: the bytes of files, `None` for directories.
pub(crate) type Content = BTreeMap<String, Option<Vec<u8>>>;

/// A store with a small model of a few files under [`PREFIX`].
pub(crate) fn store_with_phi3() -> LocalStore {
    let store = LocalStore::builder().start().expect("a local store");
    put(&store, "config.json", b"{\"model_type\": \"phi3\"}");
    put(&store, "tokenizer/vocab.txt", b"one\ntwo\n");
    put(&store, "model.safetensors", synthetic_bytes(1, 0..3 * MIB + 7));
    store
}

/// Puts an object of the model under [`PREFIX`], and returns its ETag.
pub(crate) fn put(store: &LocalStore, name: &str, bytes: impl AsRef<[u8]>) -> String {
    store.put(BUCKET, &format!("{PREFIX}{name}"), bytes).expect("an upload")
}

/// An object of pseudo-random bytes, whose content is that of its seed.
pub(crate) fn put_large(
    store: &LocalStore,
    name: &str,
    size: u64,
    seed: u64,
    options: PutOptions,
) -> String {
    let name = format!("{PREFIX}{name}");
    store.put_with(BUCKET, &name, Source::Synthetic { size, seed }, options).expect("an upload")
}

/// Everything below a directory.
pub(crate) fn content_of(directory: &Path) -> Content {
    try_content_of(directory).expect("a directory with all that is in it")
}

/// As [`content_of`], where entries may be removed meanwhile.
pub(crate) fn try_content_of(directory: &Path) -> io::Result<Content> {
    let mut found = Content::new();
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let relative = entry.path().strip_prefix(directory).expect("below").to_owned();
            let relative = relative.to_str().expect("a UTF-8 name").to_owned();
            if kind.is_dir() {
                open.push(entry.path());
                found.insert(relative, None);
            } else {
                assert!(kind.is_file(), "{relative} is neither a file nor a directory");
                found.insert(relative, Some(fs::read(entry.path())?));
            }
        }
    }
    Ok(found)
}

/// Files and directories as [`content_of`] finds them.
pub(crate) fn content(files: &[(&str, &[u8])], directories: &[&str]) -> Content {
    let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), Some(bytes.to_vec())));
    let directories = directories.iter().map(|name| ((*name).to_owned(), None));
    files.chain(directories).collect()
}

/// Whether a file holds exactly the bytes of a synthetic object.
#[track_caller]
pub(crate) fn assert_synthetic(path: &Path, seed: u64, size: u64) {
    let mut file = File::open(path).expect("the file");
    assert_eq!(file.metadata().expect("its size").len(), size, "{}", path.display());
    let mut at = 0;
    while at < size {
        let expected = synthetic_bytes(seed, at..size.min(at + MIB));
        let mut found = vec![0; expected.len()];
        file.read_exact(&mut found).expect("its bytes");
        assert!(found == expected, "{} differs within 1 MiB from {at}", path.display());
        at += MIB;
    }
}

/// The options of every mount at exactly this path, the first one lowest.
pub(crate) fn mounts_at(path: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let path = path.to_str().expect("a UTF-8 path");
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|fields| fields[4] == path).map(|fields| fields[5].to_owned()).collect()
}

/// Permission bits.
pub(crate) fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("metadata").mode() & 0o7777
}
