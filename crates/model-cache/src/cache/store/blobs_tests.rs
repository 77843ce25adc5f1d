//! Tests of blobs on a real disk.

use super::*;

struct BlobFixture {
    _dir: tempfile::TempDir,
    layout: Layout,
    id: BlobId,
}

const CONTENT: &[u8] = b"weights";

fn fixture() -> BlobFixture {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    for directory in names::Directory::ALL {
        fs::create_dir(layout.directory(directory)).unwrap();
    }
    BlobFixture { _dir: dir, layout, id: BlobId::parse(&"ab".repeat(32)).unwrap() }
}

fn commit(f: &BlobFixture) -> Blobs {
    let blobs = Blobs::new(f.layout.clone());
    write_and_commit(f, &blobs);
    blobs
}

fn write_and_commit(f: &BlobFixture, blobs: &Blobs) {
    fs::write(f.layout.part(&f.id), CONTENT).unwrap();
    fs::write(f.layout.journal(&f.id), "").unwrap();
    let verified = Verified { crc32c: crc32c::crc32c(CONTENT), check: Check::Md5 };
    blobs.commit(&f.id, "m/weights", CONTENT.len() as u64, verified).unwrap();
}

#[test]
fn a_committed_blob_is_found_and_leaves_nothing_in_staging() {
    let f = fixture();
    let blobs = commit(&f);
    assert_eq!(blobs.find(&f.id).unwrap().unwrap().check, Check::Md5);
    assert_eq!(files::names(&f.layout.staging()).unwrap(), [""; 0]);
    assert!(!blobs.is_durable(&f.id));
    blobs.mark_durable(&blobs.before_sync(std::slice::from_ref(&f.id))).unwrap();
    assert!(blobs.is_durable(&f.id));
    assert!(blobs.find(&f.id).unwrap().is_some());
}

#[test]
fn a_sync_does_not_make_a_blob_durable_that_was_committed_after_it_began() {
    let f = fixture();
    let blobs = commit(&f);
    let synced = blobs.before_sync(std::slice::from_ref(&f.id));
    blobs.evict(&f.id).unwrap();
    write_and_commit(&f, &blobs);
    blobs.mark_durable(&synced).unwrap();
    assert!(!blobs.is_durable(&f.id));
    assert!(blobs.find(&f.id).unwrap().is_some());
}

#[test]
fn a_suspect_of_an_earlier_process_is_read_before_it_is_served() {
    let f = fixture();
    drop(commit(&f));
    assert!(Blobs::new(f.layout.clone()).find(&f.id).unwrap().is_some(), "intact");
    for torn in [&b""[..], b"weight", b"weighty", b"WEIGHTS", b"\0\0\0\0\0\0\0"] {
        drop(commit(&f));
        files::set_mode(&f.layout.blob(&f.id), 0o644).unwrap();
        fs::write(f.layout.blob(&f.id), torn).unwrap();
        let blobs = Blobs::new(f.layout.clone());
        assert!(blobs.find(&f.id).unwrap().is_none(), "{torn:?} was served");
        assert!(!f.layout.blob(&f.id).exists());
    }
}

#[test]
fn a_blob_of_a_failed_sync_is_read_from_the_disk_until_it_is_found_good() {
    let f = fixture();
    let (blobs, ids) = (commit(&f), [f.id.clone()]);
    files::set_mode(&f.layout.blob(&f.id), 0o644).unwrap();
    for (content, good) in [(CONTENT, true), (b"WEIGHTS", false)] {
        fs::write(f.layout.blob(&f.id), content).unwrap();
        blobs.distrust(&ids);
        assert!(blobs.lock_distrusted().contains(&f.id) && blobs.before_sync(&ids).is_empty());
        assert_eq!(blobs.find(&f.id).unwrap().is_some(), good);
        assert_eq!(blobs.lock_distrusted().contains(&f.id), !good);
    }
}

#[test]
fn a_blob_with_a_torn_record_is_not_served() {
    let f = fixture();
    drop(commit(&f));
    let path = f.layout.blob_record_unsynced(&f.id);
    let whole = fs::read(&path).unwrap();
    for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(Blobs::new(f.layout.clone()).find(&f.id).unwrap().is_none());
    }
}

#[test]
fn a_durable_blob_of_the_wrong_size_is_not_served() {
    let f = fixture();
    let blobs = commit(&f);
    blobs.mark_durable(&blobs.before_sync(std::slice::from_ref(&f.id))).unwrap();
    files::set_mode(&f.layout.blob(&f.id), 0o644).unwrap();
    fs::write(f.layout.blob(&f.id), b"x").unwrap();
    assert!(Blobs::new(f.layout.clone()).find(&f.id).unwrap().is_none());
}

#[test]
fn a_torn_blob_is_dropped_under_all_its_names() {
    let f = fixture();
    let blobs = commit(&f);
    let other = BlobId::parse(&"cd".repeat(32)).unwrap();
    blobs.link(&f.id, &other).unwrap();
    files::set_mode(&f.layout.blob(&f.id), 0o644).unwrap();
    fs::write(f.layout.blob(&f.id), b"WEIGHTS").unwrap();
    let next = Blobs::new(f.layout.clone());
    assert!(next.find(&other).unwrap().is_none());
    for id in [&f.id, &other] {
        assert!(!f.layout.blob(id).exists() && next.record(id).unwrap().is_none(), "{id}");
    }
}

#[test]
fn a_bad_blob_that_was_durable_under_any_name_counts_as_damaged() {
    let f = fixture();
    let blobs = commit(&f);
    blobs.mark_durable(&blobs.before_sync(std::slice::from_ref(&f.id))).unwrap();
    let other = BlobId::parse(&"cd".repeat(32)).unwrap();
    blobs.link(&f.id, &other).unwrap();
    files::set_mode(&f.layout.blob(&f.id), 0o644).unwrap();
    fs::write(f.layout.blob(&f.id), b"WEIGHTS").unwrap();
    let state = Blobs::new(f.layout.clone()).inspect(&other).unwrap();
    assert!(matches!(state, BlobState::Bad(Bad { was_durable: true, .. })), "{state:?}");
}

#[test]
fn equal_content_under_a_new_etag_shares_the_inode() {
    use std::os::unix::fs::MetadataExt;
    let f = fixture();
    let blobs = commit(&f);
    let other = BlobId::parse(&"cd".repeat(32)).unwrap();
    assert!(blobs.link(&f.id, &other).unwrap());
    assert!(blobs.find(&other).unwrap().is_some());
    let ino = |id| fs::metadata(f.layout.blob(id)).unwrap().ino();
    assert_eq!(ino(&f.id), ino(&other));
    assert!(!blobs.link(&BlobId::parse(&"ef".repeat(32)).unwrap(), &f.id).unwrap());
}
