//! Tests of space in the cache: what counts, what is evicted, what stays.

use super::*;

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
