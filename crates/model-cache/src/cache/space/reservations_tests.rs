use super::*;
use crate::cache::store::files;

fn id(n: u8) -> BlobId {
    BlobId::parse(&format!("{n:02x}").repeat(32)).unwrap()
}

fn reservations(dir: &Path, bytes: u64, max_size: Option<u64>) -> Reservations {
    files::make_directory(&dir.join("staging"), 0o755).unwrap();
    let free = FileSystem::of(dir).unwrap().free_bytes;
    // Reserves all free space but `bytes`.
    let min_free = free.saturating_sub(bytes);
    Reservations::new(Layout::new(dir), CacheLimits { min_free, min_free_inodes: 0, max_size })
}

fn wanted(n: u8, size: u64) -> SpaceRequest {
    SpaceRequest {
        subject: "m".to_owned(),
        missing: vec![(id(n), size)],
        tree: Space { bytes: 0, inodes: 3 },
    }
}

impl ReserveOutcome {
    pub(in crate::cache) fn unwrap_reserved(self) -> Reservation {
        match self {
            Self::Reserved(reservation) => reservation,
            Self::Missing(gap) => panic!("{gap:?}"),
        }
    }

    fn unwrap_missing(self) -> MissingSpace {
        match self {
            Self::Missing(gap) => gap,
            Self::Reserved(reservation) => panic!("{reservation:?}"),
        }
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let reservations = reservations(dir.path(), 1 << 30, None);
    let gap = reservations.reserve(&wanted(1, 100 << 30), None).unwrap().unwrap_missing();
    assert_eq!(gap.needs, Space { bytes: 100 << 30, inodes: INODES_PER_BLOB + 1 + 3 });
    assert!(matches!(gap.bound, ExhaustedLimit::Reserve { .. }));
    assert!(gap.deficit().bytes > 98 << 30);
    assert_eq!(gap.deficit().inodes, 0);
}

#[test]
fn running_downloads_count_once_and_until_they_end() {
    let dir = tempfile::tempdir().unwrap();
    let reservations = reservations(dir.path(), 4 << 30, None);
    let first = reservations.reserve(&wanted(1, 3 << 30), None).unwrap().unwrap_reserved();
    let shared = reservations.reserve(&wanted(1, 3 << 30), None).unwrap().unwrap_reserved();
    let gap = reservations.reserve(&wanted(2, 3 << 30), None).unwrap().unwrap_missing();
    assert_eq!(gap.running, 3 << 30);
    drop(first);
    reservations.reserve(&wanted(2, 3 << 30), None).unwrap().unwrap_missing();
    drop(shared);
    reservations.reserve(&wanted(2, 3 << 30), None).unwrap().unwrap_reserved();
}

#[test]
fn the_limit_of_the_cache_counts_stored_and_arriving_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let reservations = reservations(dir.path(), 1 << 40, Some(10 << 30));
    let taken = |gib: u64| Taken::new(gib << 30, reservations.count());
    let running =
        reservations.reserve(&wanted(1, 3 << 30), Some(&taken(4))).unwrap().unwrap_reserved();
    let gap = reservations.reserve(&wanted(2, 4 << 30), Some(&taken(4))).unwrap().unwrap_missing();
    assert_eq!(gap.bound, ExhaustedLimit::Limit { bytes: 10 << 30 });
    assert_eq!((gap.free.bytes, gap.deficit().bytes), (3 << 30, 1 << 30));
    drop(running);
    reservations.reserve(&wanted(2, 4 << 30), Some(&taken(4))).unwrap().unwrap_reserved();
    let over =
        reservations.reserve(&wanted(2, 4 << 30), Some(&taken(15))).unwrap().unwrap_missing();
    assert_eq!(over.deficit().bytes, 9 << 30, "the excess must go first");
}

#[test]
fn a_blob_that_arrives_during_a_measurement_counts_with_its_full_size() {
    let dir = tempfile::tempdir().unwrap();
    let reservations = reservations(dir.path(), 1 << 40, Some(10 << 30));
    let before = Taken::new(4 << 30, reservations.count());
    // Admitted or ended since the scan: the scan saw neither as stored.
    let running =
        reservations.reserve(&wanted(1, 3 << 30), Some(&before)).unwrap().unwrap_reserved();
    let gap = reservations.reserve(&wanted(2, 4 << 30), Some(&before)).unwrap().unwrap_missing();
    assert_eq!(gap.free.bytes, 3 << 30);
    // Admitted and ended since the scan: the scan missed it.
    drop(running);
    let gap = reservations.reserve(&wanted(2, 4 << 30), Some(&before)).unwrap().unwrap_missing();
    assert_eq!(gap.free.bytes, 3 << 30);
    drop(before);
    let after = Taken::new(4 << 30, reservations.count());
    reservations.reserve(&wanted(2, 4 << 30), Some(&after)).unwrap().unwrap_reserved();
}

#[test]
fn a_reservation_that_begins_or_ends_during_a_measurement_counts_in_full() {
    let dir = tempfile::tempdir().unwrap();
    let reservations = reservations(dir.path(), 4 << 30, None);
    let second = wanted(2, 3 << 30);
    let before = reservations.measure(&second).unwrap();
    let compare = |measured| reservations.compare(&reservations.lock(), measured, &second, None);
    assert_eq!(compare(&before).deficit(), Space::default());
    let first = reservations.reserve(&wanted(1, 3 << 30), None).unwrap().unwrap_reserved();
    assert_eq!(compare(&before).running, 3 << 30);
    let before = reservations.measure(&second).unwrap();
    drop(first);
    let gap = compare(&before);
    assert_eq!(gap.running, 3 << 30, "the free space was measured before it took any");
    assert!(gap.deficit().bytes > 0);
}

#[test]
fn inodes_are_reserved_too() {
    let dir = tempfile::tempdir().unwrap();
    files::make_directory(&dir.path().join("staging"), 0o755).unwrap();
    let free = FileSystem::of(dir.path()).unwrap();
    let limits = CacheLimits { min_free: 0, min_free_inodes: free.free_inodes, max_size: None };
    let reservations = Reservations::new(Layout::new(dir.path()), limits);
    let gap = reservations.reserve(&wanted(1, 1), None).unwrap();
    // A file system without a fixed number of inodes never refuses.
    assert_eq!(matches!(gap, ReserveOutcome::Missing(_)), free.total_inodes > 0);
    if let ReserveOutcome::Missing(gap) = gap {
        assert!(matches!(gap.bound, ExhaustedLimit::Inodes { .. }));
    }
}
