//! Tests of space in the cache: what counts, what is evicted, what stays.

use super::*;
use crate::cache::space::policy::EvictionGoal;
use crate::metrics::EvictionReason;
use crate::model::ModelUri;

fn id(digit: &str) -> BlobId {
    BlobId::parse(&digit.repeat(64)).unwrap()
}

fn wanted(digit: &str, size: u64) -> SpaceRequest {
    SpaceRequest {
        subject: "m".to_owned(),
        missing: vec![(id(digit), size)],
        tree: Space { bytes: 0, inodes: 1 },
    }
}

#[tokio::test]
async fn a_copy_of_an_import_counts_once_while_it_grows() {
    const SIZE: u64 = 3 << 20;
    let f = fixture();
    let (reservations, layout) = (f.cache.space.reservations(), f.cache.store.layout());
    // A copy does not resume an interrupted download.
    fs::write(layout.part(&id("a")), vec![1; 1 << 20]).unwrap();
    fs::write(layout.copy(&id("a"), 7), "").unwrap();
    let _copying = reservations.reserve(&wanted("a", SIZE), None).unwrap().unwrap_reserved();
    let to_come = || reservations.assess(&wanted("b", SIZE), None).unwrap().running;
    assert_eq!(to_come(), SIZE);
    for has in 1..=3_u64 {
        fs::write(layout.copy(&id("a"), 7), vec![2; usize::try_from(has << 20).unwrap()]).unwrap();
        assert_eq!(to_come(), SIZE - (has << 20));
    }
    let counting = reservations.count();
    let usage = f.cache.store.usage().unwrap();
    let stored = usage.total_without(&counting.arriving()).bytes;
    assert!(usage.total().bytes - stored >= SIZE, "the stored bytes exclude the copy");
    drop(Taken::new(stored, counting));
}

#[tokio::test]
async fn only_as_much_of_the_trash_as_needed_is_deleted() {
    let f = fixture();
    for name in ["a", "b", "c", "d"] {
        fs::write(f.cache.store.layout().trash().join(name), vec![1; 1 << 20]).unwrap();
    }
    let need = Space { bytes: 1 << 20, inodes: 1 };
    assert_eq!(f.cache.store.free_from_trash(Some(need)).unwrap(), 1);
    assert_eq!(f.count(Directory::Trash), 3);
    assert_eq!(f.cache.store.empty_trash().unwrap(), 3);
}

#[tokio::test]
async fn an_unused_model_is_evicted_under_a_quota_and_a_leased_one_stays() {
    let f = fixture();
    let (held, idle) = (f.add_model("a/", &[("a/w", "1")]), f.add_model("b/", &[("b/w", "2")]));
    let lease = f.lease(&held, "/t/1");
    let [held, idle] = [held, idle].map(|model| model.key.clone());
    drop(lease);
    assert!(f.cache.space.evict_for_quota(&wanted("e", 1)).unwrap(), "a model was evicted");
    assert!(
        !f.cache.store.layout().model(&idle).exists()
            && f.cache.store.layout().model(&held).exists()
    );
    assert!(
        !f.cache.space.evict_for_quota(&wanted("e", 1)).unwrap(),
        "nothing more can be evicted"
    );
}

#[tokio::test]
async fn a_superseded_revision_goes_with_its_last_lease_unless_it_was_requested() {
    let f = fixture();
    let request = RequestDigest::of_fields("r", [].into_iter());
    let exists = |key: &ModelKey| f.cache.store.layout().model(key).exists();
    let old = f.add_model("m/", &[("m/s", "shared"), ("m/w", "old")]);
    f.cache.record_latest(&request, &old).unwrap();
    let lease = f.lease(&old, "/t/1");
    let new = f.add_model("m/", &[("m/s", "shared"), ("m/w", "new")]);
    f.cache.record_latest(&request, &new).unwrap();
    let (old_key, new_key) = (old.key.clone(), new.key.clone());
    let old_blob = f.blob(&old, "w");
    let target = lease.target.clone();
    drop((old, lease));
    f.cache.space.evict_superseded().unwrap();
    assert!(exists(&old_key), "a pod holds it");
    f.cache.release(&target).unwrap();
    f.cache.space.evict_superseded().unwrap();
    assert!(!exists(&old_key) && !old_blob.exists());
    assert!(exists(&new_key) && f.blob(&new, "s").exists(), "shared blobs stay");

    // A revision that was requested by name stays, and so does a pinned one.
    f.cache.record_revision(&request, &new).unwrap();
    let newer = f.add_model("m/", &[("m/w", "newer")]);
    f.cache.record_latest(&request, &newer).unwrap();
    f.cache.pin(&newer.key, true).unwrap();
    let newest = f.add_model("m/", &[("m/w", "newest")]);
    f.cache.record_latest(&request, &newest).unwrap();
    let newer_key = newer.key.clone();
    drop((new, newer));
    f.cache.space.evict_superseded().unwrap();
    assert!(exists(&new_key) && exists(&newer_key));
    f.cache.pin(&newer_key, false).unwrap();
    f.cache.space.evict_superseded().unwrap();
    assert!(!exists(&newer_key));
}

/// Records revisions of one model as the newest of a request, one after the other.
fn upload(f: &Fixture, request: &RequestDigest, contents: &[&str]) -> Vec<ModelKey> {
    let mut keys = Vec::new();
    for content in contents {
        let model = f.add_model("m/", &[("m/w", content)]);
        f.cache.record_latest(request, &model).unwrap();
        keys.push(model.key.clone());
    }
    keys
}

fn keep(uri: &str, revisions: usize) -> Vec<KeepRevisions> {
    vec![KeepRevisions { uri: ModelUri::parse(uri).unwrap(), revisions }]
}

/// Which of these models are in the cache, as digits.
fn cached(f: &Fixture, keys: &[ModelKey]) -> String {
    let exists = |key: &ModelKey| f.cache.store.layout().model(key).exists();
    keys.iter().map(|key| if exists(key) { '1' } else { '0' }).collect()
}

#[tokio::test]
async fn the_newest_revisions_stay_as_the_administrator_wants_and_older_ones_go() {
    let f = fixture();
    let request = RequestDigest::of_fields("r", [].into_iter());
    f.cache.keep_revisions(keep("oci://b@n/m/", 2));
    let keys = upload(&f, &request, &["1", "2", "3"]);
    f.cache.space.evict_superseded().unwrap();
    assert_eq!(cached(&f, &keys), "011");
    let report = f.cache.report().unwrap();
    assert!(report.models.iter().all(|model| model.kept && !model.pinned));

    // A roll-back makes the older one the newest: then the other one is the second.
    let older = f.add_model("m/", &[("m/w", "2")]);
    f.cache.record_latest(&request, &older).unwrap();
    drop(older);
    f.cache.space.evict_superseded().unwrap();
    assert_eq!(cached(&f, &keys), "011");
    let next = upload(&f, &request, &["4"]);
    f.cache.space.evict_superseded().unwrap();
    assert_eq!((cached(&f, &keys), cached(&f, &next)), ("010".to_owned(), "1".to_owned()));

    // Another model, another namespace, and no rule keep nothing.
    for rules in [keep("oci://b@n/other/", 9), keep("oci://b@other/m/", 9), Vec::new()] {
        let keys = upload(&f, &request, &["5", "6"]);
        f.cache.keep_revisions(rules);
        f.cache.space.evict_superseded().unwrap();
        assert_eq!(cached(&f, &keys), "01");
    }
    // Without a namespace the bucket decides.
    f.cache.keep_revisions(keep("oci://b/m/", 3));
    let keys = upload(&f, &request, &["7", "8", "9"]);
    f.cache.space.evict_superseded().unwrap();
    assert_eq!(cached(&f, &keys), "111");
}

#[tokio::test]
async fn a_revision_that_a_pod_named_does_not_count_among_the_kept_ones() {
    let f = fixture();
    let request = RequestDigest::of_fields("r", [].into_iter());
    f.cache.keep_revisions(keep("oci://b@n/m/", 1));
    let named = f.add_model("m/", &[("m/w", "named")]);
    f.cache.record_latest(&request, &named).unwrap();
    f.cache.record_revision(&request, &named).unwrap();
    let named = named.key.clone();
    let newest = upload(&f, &request, &["new"]);
    f.cache.space.evict_superseded().unwrap();
    assert_eq!(cached(&f, std::slice::from_ref(&named)), "1", "as without the rule");
    let report = f.cache.report().unwrap();
    let kept: Vec<_> = report.models.iter().filter(|model| model.kept).collect();
    assert_eq!(kept.iter().map(|model| &model.key).collect::<Vec<_>>(), [&newest[0]]);
}

#[tokio::test]
async fn kept_revisions_make_room_for_a_model_that_needs_it() {
    let f = fixture();
    let request = RequestDigest::of_fields("r", [].into_iter());
    f.cache.keep_revisions(keep("oci://b@n/m/", 3));
    let kept = upload(&f, &request, &["1", "2", "3"]);
    let other = f.add_model("other/", &[("other/w", "x")]).key.clone();
    let evict = |bytes| {
        let goal = EvictionGoal::BestEffort(Space { bytes, inodes: 0 });
        f.cache.space.evict(&goal, Some(EvictionReason::Space)).unwrap();
    };
    evict(1);
    assert_eq!((cached(&f, &kept), cached(&f, &[other])), ("111".to_owned(), "0".to_owned()));
    evict(1);
    assert_eq!(cached(&f, &kept), "011");
    evict(u64::MAX);
    assert_eq!(cached(&f, &kept), "000", "a preference, and not a pin");
}

#[tokio::test]
async fn records_of_earlier_versions_have_no_history_and_are_read() {
    let f = fixture();
    let request = RequestDigest::of_fields("r", [].into_iter());
    let old = upload(&f, &request, &["old"]);
    let path = f.cache.store.layout().request(&request);
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("previous") && !text.contains("exact"), "as before: {text}");
    f.cache.keep_revisions(keep("oci://b@n/m/", 2));
    let new = upload(&f, &request, &["new"]);
    f.cache.space.evict_superseded().unwrap();
    assert_eq!((cached(&f, &old), cached(&f, &new)), ("1".to_owned(), "1".to_owned()));
    let (latest, _) = f.cache.recorded_latest(&request).unwrap().unwrap();
    assert_eq!(latest, new[0]);
    // No more are remembered than can be kept.
    let many: Vec<String> = (0..20).map(|n| format!("many {n}")).collect();
    upload(&f, &request, &many.iter().map(String::as_str).collect::<Vec<_>>());
    let text = fs::read_to_string(&path).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(record["previous"].as_array().unwrap().len(), MAX_KEPT_REVISIONS - 1);
}

#[tokio::test]
async fn a_blob_that_was_replaced_since_it_was_read_is_noticed() {
    let f = fixture();
    let model = f.add_model("m/", &[("m/w", "weights")]);
    let (id, path) =
        (model.manifest().unwrap().unwrap().files[0].blob.clone(), f.blob(&model, "w"));
    let read = f.cache.store.blobs().inode(&id).unwrap();
    assert!(f.cache.store.blobs().is_unchanged(&id, read));
    fs::rename(&path, path.with_extension("old")).unwrap();
    fs::write(&path, "weights").unwrap();
    assert!(!f.cache.store.blobs().is_unchanged(&id, read));
}
