//! The output of every command for samples of its answer, as snapshots.

use std::path::PathBuf;
use std::time::Duration;

use insta::assert_snapshot;

use super::*;
use crate::manage::{
    CacheState, DamageEntry, FileEntry, HolderEntry, Import, PrefetchEntry, RemovedModel,
    SetAsideEntry,
};
use crate::model::{BlobId, ModelKey, Revision};

const NEVER: &str = "1970-01-01T00:00:00Z";

fn key(digit: char) -> ModelKey {
    ModelKey::parse(&digit.to_string().repeat(64)).unwrap()
}

fn revision(digit: char) -> Revision {
    Revision::parse(&format!("sha256:{}", digit.to_string().repeat(64))).unwrap()
}

fn holder() -> HolderEntry {
    HolderEntry {
        pod: Some("team-a/web".to_owned()),
        volume_id: "csi-1".to_owned(),
        target: PathBuf::from("/var/lib/kubelet/pods/1/mount"),
        since: "2026-01-01T00:00:00Z".to_owned(),
    }
}

/// A complete model that a pod uses, and one that is being downloaded.
fn models() -> [ModelEntry; 2] {
    let complete = ModelEntry {
        key: key('a'),
        uri: Some("oci://ai-model-cache@mytenancy/models/phi3-mini/".to_owned()),
        location: Some("us-ashburn-1".to_owned()),
        revision: Some(revision('b')),
        node_label: Some("model.phi3-mini.0123456789ab".to_owned()),
        scope: String::new(),
        state: "complete".to_owned(),
        done_bytes: None,
        bytes_per_second: None,
        bytes: 60 << 20,
        allocated_bytes: 61 << 20,
        shared_bytes: 1 << 20,
        last_used: NEVER.to_owned(),
        pinned: true,
        kept: true,
        holders: vec![holder()],
        mounts: vec![PathBuf::from("/mnt/by-hand")],
        files: vec![FileEntry {
            path: "config.json".to_owned(),
            bytes: 17,
            etag: "0f3c".to_owned(),
            blob: BlobId::parse(&"c".repeat(64)).unwrap(),
        }],
    };
    let arriving = ModelEntry {
        key: key('d'),
        uri: None,
        location: None,
        revision: None,
        node_label: None,
        scope: "team-b".to_owned(),
        state: "downloading".to_owned(),
        done_bytes: Some(29),
        bytes: 100,
        shared_bytes: 0,
        pinned: false,
        kept: false,
        holders: Vec::new(),
        mounts: Vec::new(),
        files: Vec::new(),
        ..complete.clone()
    };
    [complete, arriving]
}

fn listing() -> CacheListing {
    CacheListing {
        cache: CacheState {
            directory: PathBuf::from("/var/lib/oci-model-csi"),
            total_bytes: 61 << 20,
            inodes: 9,
            evictable_bytes: 0,
            staging_bytes: 0,
            trash_bytes: 0,
            quarantine_bytes: 0,
            set_aside_bytes: 1 << 30,
            limit_bytes: 100 << 30,
            free_bytes: 40 << 30,
            min_free_bytes: 5 << 30,
        },
        models: models().into(),
        set_aside: vec![
            SetAsideEntry { name: "old-layout-1".to_owned(), bytes: 1 << 30, mounts: Vec::new() },
            SetAsideEntry { name: "old-layout-2".to_owned(), bytes: 5, mounts: vec!["/m".into()] },
        ],
        prefetch: vec![PrefetchEntry {
            uri: "oci://ai-model-cache/models/llama3-8b/".to_owned(),
            node_selector: [("pool".to_owned(), "gpu".to_owned())].into(),
            state: PrefetchState::Failed,
            key: None,
            error: Some("no object under models/llama3-8b/".to_owned()),
        }],
    }
}

#[test]
fn a_listing_has_columns_and_one_line_about_the_cache() {
    assert_snapshot!(text(&CommandAnswer::Ls(listing())));
}

#[test]
fn an_empty_cache_is_one_line() {
    let cache = listing().cache;
    let (models, set_aside, prefetch) = (Vec::new(), Vec::new(), Vec::new());
    let empty = CacheListing { cache, models, set_aside, prefetch };
    assert_snapshot!(text(&CommandAnswer::Ls(empty)));
}

#[test]
fn a_model_is_inspected_with_its_pods_mounts_and_files() {
    assert_snapshot!(text(&CommandAnswer::Inspect(models().into())));
}

#[test]
fn a_verification_names_what_is_damaged_and_who_has_it() {
    let good = VerifyReport { models: 1, blobs: 3, bytes: 3 << 20, damaged: Vec::new() };
    let damage = DamageEntry {
        what: "models/phi3-mini/config.json".to_owned(),
        why: "its CRC-32C differs".to_owned(),
        models: vec!["oci://ai-model-cache@mytenancy/models/phi3-mini/".to_owned()],
        volumes: vec![holder(), HolderEntry { pod: None, ..holder() }],
    };
    let bad = VerifyReport { models: 2, damaged: vec![damage], ..good.clone() };
    let [good, bad] = [good, bad].map(|found| text(&CommandAnswer::Verify(found)));
    assert_snapshot!(good + &bad);
}

#[test]
fn a_collection_lists_its_models() {
    let removed = RemovedModel { key: key('a'), uri: None, last_used: NEVER.to_owned() };
    let models = vec![removed];
    let would = Collection { dry_run: true, models, bytes: 5 << 30, inodes: 12, reached: true };
    let none =
        Collection { dry_run: false, models: Vec::new(), bytes: 0, inodes: 0, reached: true };
    let [would, none] = [would, none].map(|collection| text(&CommandAnswer::Gc(collection)));
    assert_snapshot!(would + &none);
}

#[test]
fn pins_prefetches_and_purges_are_a_line_each() {
    let failed = PrefetchResult {
        uri: "oci://ai-model-cache/nothing/".to_owned(),
        result: "failed".to_owned(),
        key: None,
        revision: None,
        bytes: 0,
        kind: None,
        error: Some("no object under nothing/".to_owned()),
        warnings: Vec::new(),
    };
    let downloaded = PrefetchResult {
        uri: "oci://ai-model-cache/models/phi3-mini/".to_owned(),
        result: "downloaded".to_owned(),
        key: Some(key('a')),
        revision: Some(revision('b')),
        bytes: 60 << 20,
        error: None,
        warnings: vec!["a pattern matched nothing".to_owned()],
        ..failed.clone()
    };
    let started =
        PrefetchResult { revision: None, result: "started".to_owned(), ..downloaded.clone() };
    let answers = [
        CommandAnswer::Pin(Pins { pinned: true, keys: vec![key('a')] }),
        CommandAnswer::Pin(Pins { pinned: false, keys: vec![key('a'), key('d')] }),
        CommandAnswer::Prefetch(vec![failed, downloaded, started]),
        CommandAnswer::Purge(Removal { models: 1, bytes: 60 << 20 }),
    ];
    assert_snapshot!(answers.each_ref().map(text).join("\n"));
}

#[test]
fn an_import_says_what_was_not_adopted_and_what_is_left() {
    let why = |path: &str, why: &str| NotAdopted { path: path.to_owned(), why: why.to_owned() };
    let imported = Imported {
        cached_files: 1,
        adopted_files: 2,
        adopted_bytes: 3 << 20,
        copied_bytes: 1 << 20,
        downloaded_files: 3,
        downloaded_bytes: 7 << 20,
        differing: Vec::new(),
        not_adopted_files: 3,
        not_adopted: vec![why("config.json", "it has 5 bytes, and the object 7")],
        left_files: 2,
        left: vec![".complete".to_owned()],
    };
    let import = Import { key: key('a'), revision: revision('b'), imported, warnings: Vec::new() };
    assert_snapshot!(text(&CommandAnswer::Import(import)));
}

#[test]
fn ages_are_short() {
    assert_eq!(ago(NEVER), "never");
    assert_eq!(ago("nonsense"), "-");
    let days = SystemTime::now() - Duration::from_secs(3 * 24 * 3600 + 5);
    assert_eq!(ago(&humantime::format_rfc3339_seconds(days).to_string()), "3d ago");
}
