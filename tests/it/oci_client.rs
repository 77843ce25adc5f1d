//! The Object Storage client against localstore: verified signatures, real
//! federation, and faults.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use localstore::{Action, LocalStore, Operation, PublicAccess, PutOptions, Rule, Source};
use oci_model_csi::oci::{Environment, ObjectStorage, Settings, Timeouts};
use oci_model_csi::source::{
    AuthMethod, Bucket, ObjectBody, ObjectSummary, RetryPolicy, StorageError, StorageErrorKind,
};

const BUCKET: &str = "models";

fn settings(store: &LocalStore, auth: AuthMethod) -> Settings {
    let (initial, max) = (Duration::from_millis(5), Duration::from_millis(50));
    Settings {
        endpoint: Some(store.endpoint()),
        metadata_base: Some(store.imds_base()),
        federation_endpoint: Some(store.federation_endpoint()),
        ca_file: store.ca_file().map(Path::to_owned),
        retry: RetryPolicy::new(5, initial, max, Duration::from_secs(20)).unwrap(),
        timeouts: Timeouts { body_idle: Duration::from_millis(300), ..Timeouts::default() },
        environment: Environment::empty(),
        ..Settings::new(auth)
    }
}

/// As the instance that localstore plays.
async fn instance(store: &LocalStore) -> ObjectStorage {
    ObjectStorage::connect(settings(store, AuthMethod::InstancePrincipal)).await.unwrap()
}

/// As the user of a config file that localstore wrote; the file is gone when this returns.
async fn user(store: &LocalStore) -> ObjectStorage {
    let directory = tempfile::tempdir().unwrap();
    let config_file = Some(store.write_cli_config(directory.path()).unwrap());
    let settings = Settings { config_file, ..settings(store, AuthMethod::ApiKey) };
    ObjectStorage::connect(settings).await.unwrap()
}

fn bucket(store: &LocalStore) -> Arc<Bucket> {
    Arc::new(Bucket::new(store.namespace(), BUCKET))
}

/// The objects under a prefix, at most so many, and whether there are more.
async fn list(
    client: &ObjectStorage,
    bucket: &Bucket,
    prefix: &str,
    max: usize,
) -> Result<(Vec<ObjectSummary>, bool), StorageError> {
    let (mut pages, mut objects) = (client.pages(bucket, prefix, max), Vec::new());
    while let Some(page) = pages.next().await? {
        objects.extend(page);
    }
    Ok((objects, pages.truncated()))
}

async fn read(mut body: ObjectBody) -> Result<Vec<u8>, StorageError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Names that clients have got wrong: each is one object, whatever it looks like.
const NAMES: [&str; 9] = [
    "sub dir/ünï/we ird+name%20#?&=~(x)'!*:;@,$[].bin",
    "a/../dots",
    "a/..dots",
    "..",
    ".",
    "//double//slash",
    "/leading",
    "trailing/",
    "100%2Fencoded",
];

#[tokio::test]
async fn any_name_that_is_listed_can_be_headed_and_read_by_key_and_by_instance() {
    let store = LocalStore::builder().max_page(2).start().unwrap();
    for name in NAMES {
        store.put(BUCKET, name, name).unwrap();
    }
    let bucket = bucket(&store);
    for client in [user(&store).await, instance(&store).await] {
        assert_eq!(client.namespace().await.unwrap(), store.namespace());
        client.bucket_facts(&bucket).await.unwrap();
        let (objects, _) = list(&client, &bucket, "", 100).await.unwrap();
        let mut expected = NAMES;
        expected.sort_unstable();
        assert!(objects.iter().map(|object| object.name.as_str()).eq(expected));
        for summary in &objects {
            if cfg!(feature = "oci-rust-sdk") && [".", ".."].contains(&summary.name.as_str()) {
                // The SDK's URL type cannot express them; that they are refused is tested there.
                continue;
            }
            let object = bucket.object(&summary.name);
            let head = client.head_object(&object, Some(&summary.etag)).await.unwrap();
            assert_eq!((head.size, &head.etag), (Some(summary.size), &summary.etag));
            let body = client.get_object(&object, &summary.etag, None).await.unwrap();
            assert_eq!(body.head.content_md5, head.content_md5);
            assert!(head.content_md5.is_some());
            assert_eq!(read(body).await.unwrap(), summary.name.as_bytes());
        }
    }
    // 9 names in pages of 2, twice.
    assert_eq!(store.stats().answered(Operation::List, 200), 10);
    assert!(store.stats().refusals.is_empty(), "{:?}", store.stats().refusals);
}

#[tokio::test]
async fn prefixes_are_bytes_and_a_listing_ends_at_the_number_asked_for() {
    let store = LocalStore::builder().max_page(3).start().unwrap();
    for name in ["m a/1", "m a/2", "m+a/3", "m%20a/4", "m/5"] {
        store.put(BUCKET, name, "x").unwrap();
    }
    let (client, bucket) = (user(&store).await, bucket(&store));
    let names = async |prefix: &str, max: usize| {
        let (objects, truncated) = list(&client, &bucket, prefix, max).await.unwrap();
        let names: Vec<_> = objects.into_iter().map(|object| object.name).collect();
        (names.join(" | "), truncated)
    };
    assert_eq!(names("m a/", 10).await, ("m a/1 | m a/2".into(), false));
    assert_eq!(names("m+a/", 10).await, ("m+a/3".into(), false));
    assert_eq!(names("m%20a/", 10).await, ("m%20a/4".into(), false));
    assert_eq!(names("nothing", 10).await, (String::new(), false));
    assert_eq!(names("m", 4).await, ("m a/1 | m a/2 | m%20a/4 | m+a/3".into(), true));
    assert!(!names("m", 5).await.1);
}

#[tokio::test]
async fn ranges_of_every_odd_size_give_the_bytes_that_were_asked_for() {
    let store = LocalStore::builder().start().unwrap();
    let size = 1_048_577;
    let source = Source::Synthetic { size, seed: 7 };
    let options = PutOptions { part_size: Some(300_000), crc32c: true, ..PutOptions::default() };
    let etag = store.put_with(BUCKET, "m.bin", source, options).unwrap();
    let (client, object) = (instance(&store).await, bucket(&store).object("m.bin"));
    let whole = client.get_object(&object, &etag, None).await.unwrap();
    let (crc32c, multipart) = (whole.head.crc32c.unwrap(), whole.head.multipart_md5.unwrap());
    assert_eq!(multipart.parts, Some(4));
    let whole = read(whole).await.unwrap();
    assert_eq!(crc32c, crc32c::crc32c(&whole));
    for range in [0..1, 0..size, size - 1..size, 65_535..65_537, 1..1_048_576] {
        let body = client.get_object(&object, &etag, Some(range.clone())).await.unwrap();
        assert_eq!((body.head.size, body.head.crc32c), (Some(size), None));
        let at = |offset: u64| usize::try_from(offset).unwrap();
        let expected = &whole[at(range.start)..at(range.end)];
        assert!(read(body).await.unwrap() == expected, "{range:?}");
    }
    let beyond = client.get_object(&object, &etag, Some(size..size + 1)).await.unwrap_err();
    assert_eq!(beyond.kind(), StorageErrorKind::RangeNotSatisfiable);
}

#[tokio::test]
async fn short_tokens_are_replaced_under_load_and_no_request_fails() {
    let store = LocalStore::builder().token_ttl(Duration::from_secs(4)).start().unwrap();
    let etag = store.put(BUCKET, "a", "bytes").unwrap();
    let client = instance(&store).await;
    let identity = client.identity().unwrap().clone();
    let begin = Instant::now();
    let worker = || async {
        let object = bucket(&store).object("a");
        while identity.refreshes() < 3 && begin.elapsed() < Duration::from_secs(30) {
            let body = client.get_object(&object, &etag, None).await.unwrap();
            assert_eq!(read(body).await.unwrap(), b"bytes");
        }
    };
    tokio::join!(worker(), worker(), worker());
    assert!(identity.refreshes() >= 3, "{} refreshes", identity.refreshes());
    assert_eq!(identity.refresh_failures(), 0);
    let stats = store.stats();
    assert_eq!(stats.tokens_issued, identity.refreshes());
    assert_eq!((stats.expired_token_refusals, stats.answered(Operation::Get, 401)), (0, 0));
}

#[tokio::test]
async fn tokens_that_are_revoked_cost_one_refresh_and_no_failed_call() {
    let store = LocalStore::builder().start().unwrap();
    store.put(BUCKET, "a", "x").unwrap();
    let (client, bucket) = (instance(&store).await, bucket(&store));
    client.bucket_facts(&bucket).await.unwrap();
    // Tokens differ in the second of their issue.
    store.rotate_leaf().unwrap();
    store.expire_tokens();
    let object = bucket.object("a");
    let calls = (0..16).map(|_| client.head_object(&object, None));
    for result in futures_util::future::join_all(calls).await {
        result.unwrap();
    }
    assert_eq!(store.stats().tokens_issued, 2);
}

#[tokio::test]
async fn one_401_is_hidden_and_a_lasting_one_is_reported() {
    let store = LocalStore::builder().start().unwrap();
    store.create_bucket(BUCKET).unwrap();
    let (client, bucket) = (instance(&store).await, bucket(&store));
    let refuse = Rule::new(Action::status(401)).operation(Operation::GetBucket);
    store.faults().add(refuse.clone().times(1));
    client.bucket_facts(&bucket).await.unwrap();
    assert_eq!(store.stats().answered(Operation::GetBucket, 401), 1);
    assert_eq!(client.identity().unwrap().refreshes(), 2);

    store.faults().add(refuse);
    for _ in 0..5 {
        let error = client.bucket_facts(&bucket).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Unauthenticated);
    }
    assert_eq!(client.identity().unwrap().refreshes(), 3, "refusals that last do not refresh");
}

#[tokio::test]
async fn a_certificate_that_rotates_with_every_fetch_is_handled() {
    let store = LocalStore::builder().rotate_leaf_every(4).start().unwrap();
    store.create_bucket(BUCKET).unwrap();
    let (client, bucket) = (instance(&store).await, bucket(&store));
    for _ in 0..6 {
        client.bucket_facts(&bucket).await.unwrap();
        store.expire_tokens();
    }
    assert_eq!(store.stats().answered(Operation::GetBucket, 200), 6);
}

#[tokio::test]
async fn a_key_that_is_refused_and_gone_from_disk_is_reported_as_both() {
    let store = LocalStore::builder().start().unwrap();
    let client = user(&store).await;
    store.faults().add(Rule::new(Action::status(401)));
    let error = client.bucket_facts(&bucket(&store)).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (StorageErrorKind::Unauthenticated, Some(401)));
    assert!(error.to_string().contains("no other credential is available"), "{error}");
}

#[tokio::test]
async fn a_clock_that_is_off_is_named_by_both_services() {
    let store = LocalStore::builder().start().unwrap();
    store.create_bucket(BUCKET).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config_file = Some(store.write_cli_config(directory.path()).unwrap());
    let settings = Settings { config_file, ..settings(&store, AuthMethod::ApiKey) };
    let user = ObjectStorage::connect(settings).await.unwrap();
    store.faults().add(Rule::new(Action::DateOffset { secs: -432 }));
    for client in [user, instance(&store).await] {
        let error = client.bucket_facts(&bucket(&store)).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Unauthenticated, "{error}");
        let text = error.to_string();
        assert!(text.contains("this node's clock is 7m1") && text.contains("ahead of"), "{text}");
    }
}

/// What everything below logs, at its most talkative.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_line_and_no_error_holds_a_token_or_a_signature() {
    let store = LocalStore::builder().start().unwrap();
    store.create_bucket(BUCKET).unwrap();
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (client, bucket) = (instance(&store).await, bucket(&store));
    client.bucket_facts(&bucket).await.unwrap();
    store.faults().add(Rule::new(Action::status(503)).times(3));
    list(&client, &bucket, "", 9).await.unwrap();
    store.faults().add(Rule::new(Action::status(401)).operation(Operation::Federation));
    store.expire_tokens();
    let error = client.bucket_facts(&bucket).await.unwrap_err();
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("repeating a request"), "the log is captured");
    for secret in ["ST$", "eyJ", "Signature version", "PRIVATE KEY"] {
        assert!(!text.contains(secret), "{secret} is logged");
        assert!(
            !format!("{error} {error:?} {client:?}").contains(secret),
            "{secret} is in an error"
        );
    }
}

#[tokio::test]
async fn https_is_trusted_through_the_ca_file_and_not_without() {
    let store = LocalStore::builder().tls(true).start().unwrap();
    store.put(BUCKET, "a", "x").unwrap();
    let (client, bucket) = (instance(&store).await, bucket(&store));
    assert_eq!(list(&client, &bucket, "", 10).await.unwrap().0.len(), 1);

    let settings = Settings {
        ca_file: None,
        retry: RetryPolicy::once(),
        ..settings(&store, AuthMethod::None)
    };
    let client = ObjectStorage::connect(settings).await.unwrap();
    let error = client.bucket_facts(&bucket).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Protocol);
    assert!(error.to_string().contains("--ca-file"), "{error}");
}

#[tokio::test]
async fn a_public_bucket_is_read_unsigned_and_a_private_one_is_not() {
    let store = LocalStore::builder().start().unwrap();
    let etag = store.put(BUCKET, "a", "x").unwrap();
    let client = ObjectStorage::connect(settings(&store, AuthMethod::None)).await.unwrap();
    let object = bucket(&store).object("a");
    assert!(client.get_object(&object, &etag, None).await.is_err());
    store.set_public_access(BUCKET, PublicAccess::ObjectRead).unwrap();
    let body = client.get_object(&object, &etag, None).await.unwrap();
    assert_eq!(read(body).await.unwrap(), b"x");
    assert_eq!(list(&client, &bucket(&store), "", 9).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn a_bucket_that_may_not_be_seen_is_not_found_with_the_policy_that_is_missing() {
    let store = LocalStore::builder().hide("*", BUCKET).start().unwrap();
    store.create_bucket(BUCKET).unwrap();
    let error = list(&instance(&store).await, &bucket(&store), "", 9).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::NotFound);
    let text = error.to_string();
    assert!(text.contains("404 BucketNotFound") && text.contains("opc-request-id"), "{text}");
    assert!(text.contains("where target.bucket.name='models'"), "{text}");
    assert_eq!(store.stats().requests_of(Operation::List), 1, "a 404 is not repeated");
}

#[tokio::test]
async fn transient_errors_of_listings_and_heads_are_retried() {
    let store = LocalStore::builder().start().unwrap();
    store.put(BUCKET, "a", "x").unwrap();
    let (client, bucket) = (instance(&store).await, bucket(&store));
    for action in [
        Action::status(500),
        Action::status(503),
        Action::status(429),
        Action::Disconnect,
        Action::ResetAfter { bytes: 3 },
        Action::ShortBody { missing: 3 },
        Action::StallAfter { bytes: 3 },
    ] {
        let fault = format!("{action:?}");
        store.faults().add(Rule::new(action).operation(Operation::List).times(2));
        let listing = list(&client, &bucket, "", 9).await;
        assert_eq!(listing.expect(&fault).0.len(), 1);
    }
    store.faults().add(Rule::new(Action::status(503)).operation(Operation::Head).times(4));
    client.head_object(&bucket.object("a"), None).await.unwrap();
    let federation = Rule::new(Action::status(503)).operation(Operation::Federation).times(2);
    store.faults().add(federation);
    store.faults().add(Rule::new(Action::status(404)).operation(Operation::Imds).times(2));
    store.expire_tokens();
    client.bucket_facts(&bucket).await.unwrap();
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let store = LocalStore::builder().start().unwrap();
    store.create_bucket(BUCKET).unwrap();
    let (client, bucket) = (instance(&store).await, bucket(&store));
    store.faults().add(Rule::new(Action::retry_after(429, 1)).operation(Operation::List).times(1));
    let begin = Instant::now();
    list(&client, &bucket, "", 9).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_broken_body_gives_good_bytes_first_and_then_says_how_far_it_got() {
    let store = LocalStore::builder().start().unwrap();
    let source = Source::Synthetic { size: 1 << 20, seed: 1 };
    let etag = store.put_with(BUCKET, "a", source, PutOptions::default()).unwrap();
    let (client, object) = (instance(&store).await, bucket(&store).object("a"));
    let whole = client.get_object(&object, &etag, None).await.unwrap();
    let whole = read(whole).await.unwrap();
    for action in [
        Action::ShortBody { missing: 100_000 },
        Action::StallAfter { bytes: 900_000 },
        Action::ResetAfter { bytes: 900_000 },
    ] {
        let fault = format!("{action:?}");
        store.faults().add(Rule::new(action).operation(Operation::Get).times(1));
        let mut body = client.get_object(&object, &etag, Some(0..1 << 20)).await.unwrap();
        let mut bytes = Vec::new();
        let error = loop {
            match body.chunk().await {
                Ok(chunk) => bytes.extend_from_slice(&chunk.expect(&fault)),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{fault}");
        assert!(error.to_string().contains("of 1048576 bytes received"), "{error}");
        assert_eq!(body.received(), bytes.len() as u64);
        assert!(bytes == whole[..bytes.len()], "{fault}");
    }
}

#[tokio::test]
async fn wrong_ranges_changed_and_archived_objects_are_distinguished() {
    let store = LocalStore::builder().start().unwrap();
    let etag = store.put(BUCKET, "a", "0123456789").unwrap();
    let (client, object) = (instance(&store).await, bucket(&store).object("a"));
    for (action, kind) in [
        (Action::WrongRange, StorageErrorKind::Protocol),
        (Action::IgnoreRange, StorageErrorKind::Protocol),
        (Action::Archived, StorageErrorKind::Archived),
        (Action::ReplaceObject { seed: 1, size: None }, StorageErrorKind::Changed),
    ] {
        store.faults().add(Rule::new(action).operation(Operation::Get).times(1));
        let error = client.get_object(&object, &etag, Some(2..5)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    let error = client.head_object(&object, Some(&etag)).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Changed);
}
