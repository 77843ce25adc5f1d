use super::*;
use crate::cache::store::holds::Holds;
use crate::model::{
    BucketName, Filters, ListedObject, Manifest, ModelSource, NamespaceName, Prefix, Tree,
};

const GOOD: &[u8] = b"\x02\0\0\0\0\0\0\0{}";
const INDEX: &[u8] = br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;

/// Creates a model of these files, as in a cache.
fn model(files: &[(&str, &[u8])]) -> (tempfile::TempDir, CachedModel) {
    let dir = tempfile::tempdir().unwrap();
    let source = ModelSource {
        location: "l".into(),
        namespace: NamespaceName::parse("n").unwrap(),
        bucket: BucketName::parse("b").unwrap(),
        prefix: Prefix::parse("m").unwrap(),
    };
    let objects: Vec<ListedObject> = files
        .iter()
        .map(|(path, bytes)| {
            let file = dir.path().join("tree").join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, bytes).unwrap();
            let size = bytes.len() as u64;
            let (name, etag) = (format!("m/{path}"), "e".into());
            ListedObject { name, size, etag, md5: None, archived: false }
        })
        .collect();
    let tree = Tree::arrange(objects, &source.prefix, &Filters::default()).unwrap().unwrap();
    let manifest = Manifest::new(source, "", tree);
    manifest.write(File::create(dir.path().join("manifest.json")).unwrap()).unwrap();
    let (key, tree) = (manifest.key(), dir.path().join("tree"));
    let summary = Arc::new(manifest.summary());
    let hold = Holds::default().model(&key);
    (dir, CachedModel { key, summary, tree, _hold: hold })
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
    let mut files: Vec<(&str, &[u8])> = bad.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    files.extend([("6.safetensors", GOOD), ("config.json", b"x")]);
    let (_dir, model) = model(&files);
    let verdict = verdict(&model).unwrap().unwrap();
    let error = verdict.for_request(SafetensorsCheck::Refuse, &request(None)).unwrap_err();
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
    let error = verdict.for_request(SafetensorsCheck::Refuse, &request(None)).unwrap_err();
    assert!(error.message().contains("names d/2.safetensors, which is missing"), "{error}");
    verdict.for_request(SafetensorsCheck::Refuse, &request(Some("d/2.*"))).unwrap();
    assert!(
        verdict.for_request(SafetensorsCheck::Refuse, &request(Some("d/3.*"))).is_err(),
        "something else left out"
    );
}

/// A file's path and bytes.
type Content<'a> = (&'a str, &'a [u8]);

/// Returns the warnings of a model of these files, or the error that refuses it.
fn checked(check: SafetensorsCheck, files: &[Content<'_>]) -> Result<Vec<String>> {
    let (_dir, model) = model(files);
    let verdict = verdict(&model).unwrap().unwrap();
    let warnings = verdict.for_request(check, &request(None))?;
    Ok(warnings.into_iter().map(|warning| warning.text).collect())
}

const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
const GGUF: &[u8] = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[test]
fn a_flaw_of_a_file_that_no_loader_opens_is_only_a_warning() {
    let model = ("model.safetensors", GOOD);
    for (path, bytes, why) in [
        ("._model.safetensors", &b"\0\x05\x16\x07\0\x02\0\0Mac OS X"[..], "hidden"),
        (".ipynb_checkpoints/x.safetensors", b"", "hidden"),
        ("model.safetensors.index.json", INDEX, "loaders open other files"),
        ("model.safetensors.index.json", b"{", "loaders open other files"),
        ("model-00002-of-00002.safetensors", b"cut", "loaders open other files"),
        ("pytorch_model.bin", POINTER, "loaders open other files"),
        ("m-q4.gguf", POINTER, "loaders open other files"),
    ] {
        let warnings = checked(SafetensorsCheck::Refuse, &[model, (path, bytes)]).unwrap();
        assert_eq!(warnings.len(), 1, "{path}: {warnings:?}");
        assert!(warnings[0].contains(path) && warnings[0].contains(why), "{warnings:?}");
        let ignored = checked(SafetensorsCheck::Warn, &[model, (path, bytes)]).unwrap();
        assert_eq!(ignored, warnings);
    }
    let fine = [model, ("m-q4.gguf", GGUF), ("pytorch_model.bin", b"PK\x03\x04")];
    assert_eq!(checked(SafetensorsCheck::Refuse, &fine).unwrap(), Vec::<String>::new());
}

#[test]
fn a_flaw_of_a_file_that_loaders_open_refuses_or_warns_as_configured() {
    let index = ("model.safetensors.index.json", INDEX);
    let bin_index = ("pytorch_model.bin.index.json", &br#"{"weight_map": {"a": "p-1.bin"}}"#[..]);
    let cases: &[(&[Content<'_>], &str)] = &[
        (&[("model.safetensors", b"cut")], "it has 3 bytes"),
        (&[("model.safetensors", POINTER), index], "Git LFS pointer"),
        (&[index, ("1.safetensors", GOOD)], "2.safetensors, which is missing"),
        (&[bin_index], "p-1.bin, which is missing"),
        (&[bin_index, ("p-1.bin", POINTER)], "p-1.bin: it is a Git LFS pointer"),
        (&[("pytorch_model.bin", POINTER)], "Git LFS pointer"),
        (&[("m-q4.gguf", POINTER), ("README.md", b"x")], "Git LFS pointer"),
        (&[("m-q4.gguf", b"GGU")], "does not begin as a GGUF file"),
        (&[("a-00001-of-00002.gguf", GGUF), ("a-00002-of-00002.gguf", POINTER)], "a-00002"),
    ];
    for (files, why) in cases {
        let error = checked(SafetensorsCheck::Refuse, files).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition);
        assert!(error.message().contains(why), "{error}");
        let warnings = checked(SafetensorsCheck::Warn, files).unwrap();
        assert!(warnings[0].contains(why), "{warnings:?}");
        assert!(warnings[0].contains("checkSafetensors: warn"), "{warnings:?}");
    }
}

#[test]
fn one_intact_gguf_file_is_enough() {
    let files = [("m-q4.gguf", GGUF), ("m-q8.gguf", POINTER)];
    let warnings = checked(SafetensorsCheck::Refuse, &files).unwrap();
    assert!(warnings[0].contains("m-q8.gguf: it is a Git LFS pointer"), "{warnings:?}");
    assert!(warnings[0].contains("other files beside it are intact"), "{warnings:?}");
}

#[test]
fn the_size_of_verdicts_is_bounded_whatever_indexes_name() {
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
    assert_eq!((verdict.broken.named.len(), verdict.missing.len()), (1, MISSING));
    assert!((MISSING * 900..2 << 20).contains(&verdict.bytes()), "{}", verdict.bytes());

    let mut known = RememberedReports::default();
    for n in 0..100 {
        let key = ModelKey::parse(&format!("{n:064x}")).unwrap();
        known.insert(key, Arc::clone(&verdict));
        let bytes: usize = known.verdicts.values().map(|verdict| verdict.bytes()).sum();
        assert!(bytes == known.bytes && bytes <= REMEMBERED_BYTES, "{bytes} after {n}");
    }
}

#[test]
fn the_longest_names_leave_room_for_the_remedy() {
    let long = format!("{}.safetensors", "x".repeat(240));
    let names = [format!("a{long}"), format!("b{long}"), format!("c{long}")];
    let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &[0xff; 9][..])).collect();
    let (_dir, model) = model(&files);
    let verdict = verdict(&model).unwrap().unwrap();
    let mut request = request(None);
    request.prefix = Prefix::parse(&"p".repeat(900)).unwrap();
    let error = verdict.for_request(SafetensorsCheck::Refuse, &request).unwrap_err();
    let count = error.message().chars().count();
    assert!(error.message().ends_with("(checkSafetensors)") && count <= 800, "{count}: {error}");
}

#[test]
fn a_model_that_vanished_has_no_verdict() {
    let (dir, model) = model(&[("1.safetensors", GOOD)]);
    drop(dir);
    assert_eq!(verdict(&model).unwrap(), None);
}
