//! Downloads from a source in memory that throttles, breaks bodies off and cuts them oddly.

use super::*;
use crate::error::ErrorKind;
use crate::source::RetryPolicy;
use oci_model_csi_fake_source::{ETAG, FakeSource};

const NAME: &str = "models/m/weights";

/// Three ranges and a bit, so that boundaries of chunks, ranges and journal entries differ.
const SIZE: u64 = (3 << 20) + 17;

fn engine() -> Engine {
    engine_of(Concurrency::Fixed(4))
}

fn engine_of(concurrency: Concurrency) -> Engine {
    let (initial, max) = (Duration::from_millis(1), Duration::from_millis(5));
    let options = EngineOptions {
        concurrency,
        bandwidth: None,
        range_size: 1 << 20,
        verify: Verify::Always,
        write_back: false,
        retry: RetryPolicy::new(8, initial, max, Duration::from_secs(20)).unwrap(),
    };
    Engine::new(options, Arc::default()).unwrap()
}

fn version(etag: &str) -> ObjectVersion {
    ObjectVersion {
        name: Arc::new(Bucket::new("mytenancy", "b")).object(NAME),
        size: SIZE,
        etag: etag.to_owned(),
        md5: None,
        position: 0,
    }
}

/// Downloads the object as one of these readers, and returns what is in the file.
async fn download(sources: &[&FakeSource], etag: &str) -> Result<(Verified, Vec<u8>)> {
    download_with(&engine(), sources, etag).await
}

async fn download_with(
    engine: &Engine,
    sources: &[&FakeSource],
    etag: &str,
) -> Result<(Verified, Vec<u8>)> {
    let directory = tempfile::tempdir().unwrap();
    let staging =
        Staging { data: directory.path().join("data"), journal: directory.path().join("journal") };
    let share = FairShare::urgent();
    for source in sources {
        share.add_reader(&(Arc::new((*source).clone()) as Arc<dyn ObjectSource>));
    }
    let (data, interest) = (staging.data.clone(), Interest::of(share));
    let verified = engine.download(version(etag), staging, interest, Arc::default()).await?;
    Ok((verified, std::fs::read(data).unwrap()))
}

#[tokio::test]
async fn bytes_arrive_whole_over_throttling_broken_bodies_and_odd_chunks() {
    for sizes in [&[1, 7, 65_537, 4096][..], &[256 << 10], &[usize::MAX]] {
        let source = FakeSource::new(&[(NAME, SIZE)])
            .with_chunks_of(sizes)
            .throttling_each(3)
            .breaking_each(2, 300_000);
        let (verified, file) = download(&[&source], ETAG).await.unwrap();
        assert!(file == *source.bytes(NAME), "chunks of {sizes:?}");
        let crc32c = crc32c::crc32c(source.bytes(NAME));
        assert_eq!(verified, Verified { crc32c, check: Check::Crc32c });
        assert!(source.throttled() > 0 && source.broken() > 0, "{source:?}");
    }
}

#[tokio::test]
async fn all_bytes_arrive_where_the_number_of_requests_adapts() {
    let source = FakeSource::new(&[(NAME, SIZE)]).throttling_each(3).breaking_each(2, 300_000);
    let engine = engine_of(Concurrency::Auto);
    assert_eq!(engine.metrics().download_concurrency.get(), 16);
    let (_, file) = download_with(&engine, &[&source], ETAG).await.unwrap();
    assert!(file == *source.bytes(NAME));
}

#[tokio::test]
async fn a_source_that_delivers_next_to_nothing_each_time_is_given_up() {
    let source = FakeSource::new(&[(NAME, SIZE)]).breaking_each(1, 100);
    let error = download(&[&source], ETAG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("after 8 attempts"), "{error}");
}

#[tokio::test]
async fn a_reader_that_is_refused_is_replaced_by_another() {
    let (refused, good) = (FakeSource::new(&[]).refusing(), FakeSource::new(&[(NAME, SIZE)]));
    let (_, file) = download(&[&refused, &good], ETAG).await.unwrap();
    assert!(file == *good.bytes(NAME));
    let error = download(&[&refused], ETAG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn another_version_of_the_object_is_never_mixed_in() {
    let source = FakeSource::new(&[(NAME, SIZE)]);
    let error = download(&[&source], "e0").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
}
