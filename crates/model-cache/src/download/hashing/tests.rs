use md5::{Digest as _, Md5};

use super::*;

/// A file of 3 MiB and 5 bytes.
fn file() -> (File, Vec<u8>) {
    let bytes: Vec<u8> = (0..(3 << 20) + 5).map(|n: u32| (n % 253) as u8).collect();
    let mut file = tempfile::tempfile().unwrap();
    io::Write::write_all(&mut file, &bytes).unwrap();
    (file, bytes)
}

async fn digest(service: &HashService, file: &Arc<File>, range: Range<u64>) -> [u8; 16] {
    let mut stream = service.open();
    let mut at = range.start;
    while at < range.end {
        let step = at..(at + 300_001).min(range.end);
        at = step.end;
        stream.hash(Arc::clone(file), step, false).await.unwrap();
    }
    stream.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_any_lengths_side_by_side_get_their_own_digests() {
    let (file, bytes) = file();
    let file = Arc::new(file);
    for lanes in Lanes::available() {
        let service = HashService::new(lanes);
        let ranges = (0..50).map(|n| n * 1000..((n + 1) * 61_001).min(bytes.len() as u64));
        let digests = ranges.clone().map(|range| digest(&service, &file, range));
        let found = futures_util::future::join_all(digests).await;
        for (range, found) in ranges.zip(found) {
            let index = |n| usize::try_from(n).unwrap();
            let content = &bytes[index(range.start)..index(range.end)];
            assert_eq!(found, <[u8; 16]>::from(Md5::digest(content)), "{}", lanes.name());
        }
        let queues = service.0.lock();
        let left = (queues.page_cache.waiting.len(), queues.open_streams);
        assert_eq!(left, (0, 0), "{}", lanes.name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_whose_caller_has_left_and_one_that_cannot_be_read_harm_no_other() {
    let (file, bytes) = file();
    let file = Arc::new(file);
    let service = HashService::new(Lanes::detect());
    let size = bytes.len() as u64;
    let (mut beyond, mut left) = (service.open(), service.open());
    let behind_the_end = beyond.hash(Arc::clone(&file), 0..size + 1, true);
    let given_up = left.hash(Arc::clone(&file), 0..size, true);
    let given_up = tokio::time::timeout(Duration::ZERO, given_up);
    let whole = digest(&service, &file, 0..size);
    let (behind_the_end, _, whole) = tokio::join!(behind_the_end, given_up, whole);
    assert_eq!(behind_the_end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(whole, <[u8; 16]>::from(Md5::digest(&bytes)));
}

#[test]
fn a_further_thread_starts_for_as_many_streams_as_there_are_lanes_or_for_one_that_waits_long() {
    let file = Arc::new(tempfile::tempfile().unwrap());
    let step = |since| HashStep {
        file: Arc::clone(&file),
        range: 0..1,
        stream: Md5Stream::new(),
        since,
        behind: false,
        slow: false,
        hashed: oneshot::channel().0,
    };
    let mut queue = HashQueue::default();
    assert!(!queue.count_thread(4, 2), "no step");
    let started: Vec<bool> = (0..12)
        .map(|_| {
            queue.waiting.push_back(step(Instant::now()));
            queue.count_thread(4, 2)
        })
        .collect();
    let starts: Vec<usize> = (0..12).filter(|n| started[*n]).collect();
    assert_eq!(starts, [0, 3], "the first step, and the fourth; two threads at most");

    queue = HashQueue { waiting: VecDeque::new(), threads: 1 };
    queue.waiting.push_back(step(Instant::now()));
    assert!(!queue.count_thread(4, 2));
    queue.waiting[0] = step(Instant::now().checked_sub(PATIENCE).unwrap());
    assert!(queue.count_thread(4, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_whose_bytes_come_from_the_disk_get_their_digests_too() {
    let (file, bytes) = file();
    let (file, size) = (Arc::new(file), bytes.len() as u64);
    let service = HashService::new(Lanes::detect());
    let mut stream = service.open();
    stream.from = BytesFrom::Disk;
    stream.hash(Arc::clone(&file), 0..size, true).await.unwrap();
    assert_eq!(stream.finish(), <[u8; 16]>::from(Md5::digest(&bytes)));
    assert_eq!(service.0.lock().disk.waiting.len(), 0);
}
