//! Room in the cache: what counts, what goes for it, what stays.

use super::*;

fn id(digit: &str) -> BlobId {
    BlobId::parse(&digit.repeat(64)).unwrap()
}

fn wanted(digit: &str, size: u64) -> SpaceRequest {
    SpaceRequest { missing: vec![(id(digit), size)], tree: Space { bytes: 0, inodes: 1 } }
}

#[tokio::test]
async fn a_copy_of_an_import_counts_once_while_it_grows() {
    const SIZE: u64 = 3 << 20;
    let f = fixture();
    let (ledger, layout) = (&f.cache.0.ledger, &f.cache.0.layout);
    // What a download left is not what a copy goes on with.
    fs::write(layout.part(&id("a")), vec![1; 1 << 20]).unwrap();
    fs::write(layout.copy(&id("a"), 7), "").unwrap();
    let _copying = ledger.reserve(&wanted("a", SIZE), None).unwrap().unwrap();
    let to_come = || ledger.look(&wanted("b", SIZE), None).unwrap().running;
    assert_eq!(to_come(), SIZE);
    for has in 1..=3_u64 {
        fs::write(layout.copy(&id("a"), 7), vec![2; usize::try_from(has << 20).unwrap()]).unwrap();
        assert_eq!(to_come(), SIZE - (has << 20));
    }
    let counting = ledger.count();
    let stock = DiskUsage::read(layout).unwrap();
    let standing = stock.total_without(&counting.arriving()).bytes;
    assert!(stock.total().bytes - standing >= SIZE, "the copy is left out of what stands");
    drop(Taken::new(standing, counting));
}

#[tokio::test]
async fn of_the_trash_only_what_is_needed_is_waited_for() {
    let f = fixture();
    for name in ["a", "b", "c", "d"] {
        fs::write(f.cache.0.layout.trash().join(name), vec![1; 1 << 20]).unwrap();
    }
    let need = Space { bytes: 1 << 20, inodes: 1 };
    assert_eq!(f.cache.0.free_from_trash(Some(need)).unwrap(), 1);
    assert_eq!(f.count("trash"), 3);
    assert_eq!(f.cache.0.empty_trash().unwrap(), 3);
}

#[tokio::test]
async fn what_nobody_uses_makes_way_where_a_quota_is_met_and_what_is_held_stays() {
    let f = fixture();
    let (held, idle) = (f.stand("a/", &[("a/w", "1")]), f.stand("b/", &[("b/w", "2")]));
    let lease = f.lease(&held, "/t/1");
    let [held, idle] = [held, idle].map(|model| model.key.clone());
    drop(lease);
    assert!(f.cache.0.evict_unasked(&wanted("e", 1)).unwrap(), "something made way");
    assert!(!f.cache.0.layout.model(&idle).exists() && f.cache.0.layout.model(&held).exists());
    assert!(!f.cache.0.evict_unasked(&wanted("e", 1)).unwrap(), "nothing is left that may go");
}

#[tokio::test]
async fn an_older_revision_goes_with_its_last_lease_unless_somebody_names_it() {
    let f = fixture();
    let request = RequestDigest::of_fields("r", [].into_iter());
    let stands = |key: &ModelKey| f.cache.0.layout.model(key).exists();
    let old = f.stand("m/", &[("m/s", "shared"), ("m/w", "old")]);
    f.cache.set_latest(&request, &old).unwrap();
    let lease = f.lease(&old, "/t/1");
    let new = f.stand("m/", &[("m/s", "shared"), ("m/w", "new")]);
    f.cache.set_latest(&request, &new).unwrap();
    let (old_key, new_key) = (old.key.clone(), new.key.clone());
    let old_blob = f.blob(&old, "w");
    let target = lease.target.clone();
    drop((old, lease));
    f.cache.0.evict_superseded().unwrap();
    assert!(stands(&old_key), "a pod holds it");
    f.cache.release(&target).unwrap();
    f.cache.0.evict_superseded().unwrap();
    assert!(!stands(&old_key) && !old_blob.exists());
    assert!(stands(&new_key) && f.blob(&new, "s").exists(), "what is shared stays");

    // Asked for by its revision, it stays; pinned, too.
    f.cache.set_revision(&request, &new).unwrap();
    let newer = f.stand("m/", &[("m/w", "newer")]);
    f.cache.set_latest(&request, &newer).unwrap();
    f.cache.pin(&newer.key, true).unwrap();
    let newest = f.stand("m/", &[("m/w", "newest")]);
    f.cache.set_latest(&request, &newest).unwrap();
    let newer_key = newer.key.clone();
    drop((new, newer));
    f.cache.0.evict_superseded().unwrap();
    assert!(stands(&new_key) && stands(&newer_key));
    f.cache.pin(&newer_key, false).unwrap();
    f.cache.0.evict_superseded().unwrap();
    assert!(!stands(&newer_key));
}

#[tokio::test]
async fn what_was_read_is_put_aside_and_not_what_came_in_its_place() {
    let f = fixture();
    let model = f.stand("m/", &[("m/w", "weights")]);
    let (id, path) =
        (model.manifest().unwrap().unwrap().files[0].blob.clone(), f.blob(&model, "w"));
    let read = f.cache.0.blobs.inode(&id).unwrap();
    assert!(f.cache.0.blobs.stands(&id, read));
    fs::rename(&path, path.with_extension("old")).unwrap();
    fs::write(&path, "weights").unwrap();
    assert!(!f.cache.0.blobs.stands(&id, read));
}
