//! The output of `ls` for samples, as snapshots.

use insta::assert_snapshot;

use super::*;
use crate::browse::ProblemKind;
use crate::model::{BucketName, NamespaceName, Prefix, Revision};

fn sample() -> Vec<BucketModel> {
    let revision = |digit: &str| Revision::parse(&format!("sha256:{}", digit.repeat(64))).unwrap();
    let problem =
        |kind, objects, example: &str| ModelProblem { kind, objects, example: example.to_owned() };
    let good = BucketModel {
        prefix: "models/phi3-mini/".to_owned(),
        objects: 3,
        bytes: 60 << 20,
        revision: revision("a"),
        newest_change: Some("2026-01-02T03:04:05.678Z".to_owned()),
        problems: Vec::new(),
    };
    let bad = BucketModel {
        prefix: "models/llama3-8b/".to_owned(),
        objects: 1,
        bytes: 5,
        revision: revision("b"),
        newest_change: None,
        problems: vec![
            problem(ProblemKind::Archived, 2, "models/llama3-8b/old.bin"),
            problem(ProblemKind::NoChecksum, 1, "models/llama3-8b/x"),
            problem(ProblemKind::UnsafeName, 1, "models/llama3-8b/../x"),
            problem(ProblemKind::Collision, 1, "models/llama3-8b/w/1"),
            problem(ProblemKind::NameTwins, 1, "models/llama3-8b/Config.json"),
            problem(ProblemKind::TooManyObjects, 100_001, "models/llama3-8b/"),
            problem(ProblemKind::MissingShards, 1, "models/llama3-8b/2.safetensors"),
            problem(ProblemKind::BrokenIndex, 1, "models/llama3-8b/m.safetensors.index.json"),
            problem(ProblemKind::UnreadIndex, 1, "models/llama3-8b/n.safetensors.index.json"),
        ],
    };
    vec![bad, good]
}

fn source() -> ModelSource {
    ModelSource {
        location: "us-ashburn-1".to_owned(),
        namespace: NamespaceName::parse("mytenancy").unwrap(),
        bucket: BucketName::parse("ai-model-cache").unwrap(),
        prefix: Prefix::parse("models/").unwrap(),
    }
}

fn pretty(json: &str) -> String {
    let value: Value = serde_json::from_str(json).unwrap();
    serde_json::to_string_pretty(&value).unwrap()
}

#[test]
fn models_are_a_table_with_their_problems_below() {
    assert_snapshot!(models(&sample(), None));
}

#[test]
fn a_narrow_terminal_gets_lines_instead_of_columns() {
    let text = models(&sample()[1..], Some(20));
    assert!(text.lines().all(|line| line.chars().count() <= 20), "{text}");
    assert_snapshot!(text);
}

#[test]
fn the_keys_of_models_in_json_do_not_change() {
    assert_snapshot!(pretty(&models_json(&source(), &sample()[1..])));
}

#[test]
fn objects_have_their_checksums_as_object_storage_writes_them() {
    let whole = BucketObject {
        name: "models/phi3-mini/config.json".to_owned(),
        bytes: 17,
        etag: "0f3c".to_owned(),
        md5: Some("1B2M2Y8AsgTpgAmY7PhCfg==".to_owned()),
        crc32c: Some(0xe306_9283),
        changed: Some("2026-01-02T03:04:05.678Z".to_owned()),
        is_archived: false,
    };
    let bare = BucketObject { md5: None, crc32c: None, is_archived: true, ..whole.clone() };
    let revision = sample().remove(0).revision;
    let total = ObjectsSum { objects: 2, bytes: 34, revision };
    let lines = [OBJECT_HEADER.to_owned(), object(&whole), object(&bare), sum(&total)];
    let all = [object_json(&whole).to_string(), object_json(&bare).to_string()].join(",");
    let json = format!("{}{all}{}", objects_head(&source()), objects_tail(&total));
    assert_snapshot!(format!("{}\n\n{}", lines.join("\n"), pretty(&json)));
}
