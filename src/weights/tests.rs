//! Which flaws of weights refuse a model, and which are warnings.

use std::fs;

use super::inspect::{MISSING, inspect};
use super::*;
use crate::error::ErrorKind;
use crate::model::{
    BucketName, Filters, ListedObject, Manifest, ModelSource, NamespaceName, Prefix, Tree,
};

const GOOD: &[u8] = b"\x02\0\0\0\0\0\0\0{}";
const INDEX: &[u8] = br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;

/// A model of these files, in a directory.
struct Model {
    dir: tempfile::TempDir,
    manifest: Manifest,
}

fn model(files: &[(&str, &[u8])]) -> Model {
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
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, bytes).unwrap();
            let size = bytes.len() as u64;
            let name = format!("m/{path}");
            ListedObject { name, size, etag: "e".into(), md5: None, archived: false }
        })
        .collect();
    let tree = Tree::arrange(objects, &source.prefix, &Filters::default()).unwrap().unwrap();
    Model { dir, manifest: Manifest::new(source, "", tree) }
}

/// Inspects a model of these files.
fn report(files: &[(&str, &[u8])]) -> WeightsReport {
    let model = model(files);
    inspect(&model.manifest, model.dir.path()).unwrap().unwrap()
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
    let report = report(&files);
    let error = report.for_request(SafetensorsCheck::Refuse, &request(None)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition);
    let text = error.message();
    assert!(text.starts_with("m/ from b cannot be loaded: 1.safetensors: it has 1 bytes"));
    assert!(text.contains("; and 3 more. Upload it again"), "{text}");
}

#[test]
fn a_missing_shard_counts_unless_the_filters_leave_it_out() {
    let index = "d/m.safetensors.index.json";
    let report = report(&[(index, INDEX), ("d/1.safetensors", GOOD)]);
    let error = report.for_request(SafetensorsCheck::Refuse, &request(None)).unwrap_err();
    assert!(error.message().contains("names d/2.safetensors, which is missing"), "{error}");
    report.for_request(SafetensorsCheck::Refuse, &request(Some("d/2.*"))).unwrap();
    assert!(
        report.for_request(SafetensorsCheck::Refuse, &request(Some("d/3.*"))).is_err(),
        "something else left out"
    );
}

/// A file's path and bytes.
type Content<'a> = (&'a str, &'a [u8]);

/// Returns the warnings of a model of these files, or the error that refuses it.
fn checked(check: SafetensorsCheck, files: &[Content<'_>]) -> Result<Vec<String>> {
    let report = report(files);
    let warnings = report.for_request(check, &request(None))?;
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
fn the_size_of_reports_is_bounded_whatever_indexes_name() {
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
    let report = Arc::new(report(&files));
    assert_eq!((report.broken.named.len(), report.missing.len()), (1, MISSING));
    assert!((MISSING * 900..2 << 20).contains(&report.bytes()), "{}", report.bytes());

    let mut known = RememberedReports::default();
    for n in 0..100 {
        let key = ModelKey::parse(&format!("{n:064x}")).unwrap();
        known.insert(key, Arc::clone(&report));
        let bytes: usize = known.reports.values().map(|report| report.bytes()).sum();
        assert!(bytes == known.bytes && bytes <= REMEMBERED_BYTES, "{bytes} after {n}");
    }
}

#[test]
fn the_longest_names_leave_room_for_the_remedy() {
    let long = format!("{}.safetensors", "x".repeat(240));
    let names = [format!("a{long}"), format!("b{long}"), format!("c{long}")];
    let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &[0xff; 9][..])).collect();
    let report = report(&files);
    let mut request = request(None);
    request.prefix = Prefix::parse(&"p".repeat(900)).unwrap();
    let error = report.for_request(SafetensorsCheck::Refuse, &request).unwrap_err();
    let count = error.message().chars().count();
    assert!(error.message().ends_with("(checkSafetensors)") && count <= 800, "{count}: {error}");
}

#[test]
fn a_model_that_vanished_has_no_report() {
    let Model { dir, manifest } = model(&[("1.safetensors", GOOD)]);
    let gone = dir.path().to_owned();
    drop(dir);
    assert_eq!(inspect(&manifest, &gone).unwrap(), None);
}
