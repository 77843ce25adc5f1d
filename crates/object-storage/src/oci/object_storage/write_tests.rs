use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::*;
use crate::oci::test_server::{ScriptedAnswer, TestServer};
use crate::oci::{Environment, Settings, Timeouts};
use crate::source::{AuthMethod, RetryPolicy};

async fn client(url: &str) -> ObjectStorage {
    let (initial, max) = (Duration::from_millis(1), Duration::from_millis(5));
    let settings = Settings {
        endpoint: Some(url.to_owned()),
        retry: RetryPolicy::new(3, initial, max, Duration::from_secs(20)).unwrap(),
        timeouts: Timeouts { body_idle: Duration::from_secs(1), ..Timeouts::default() },
        environment: Environment::empty(),
        ..Settings::new(AuthMethod::None)
    };
    ObjectStorage::connect(settings).await.unwrap()
}

fn object() -> ObjectName {
    Arc::new(Bucket::new("ns", "models")).object("m/a b")
}

fn body(chunks: &'static [&'static str]) -> UploadBody {
    let length = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    let chunks = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes())));
    UploadBody { length, chunks: stream::iter(chunks).boxed() }
}

#[tokio::test]
async fn an_object_is_sent_once_with_its_md5_under_a_condition_and_asks_for_a_crc32c() {
    let server = TestServer::start(|number, _| match number {
        0 => ScriptedAnswer::new(200, "")
            .header("etag", "e")
            .header("opc-content-crc32c", "4waSgw==")
            .header("opc-content-md5", "1B2M2Y8AsgTpgAmY7PhCfg=="),
        _ => ScriptedAnswer::refusal(503, "ServiceUnavailable"),
    })
    .await;
    let client = client(&server.url).await;
    let sent = body(&["1234", "56789"]);
    let stored = client.put_object(&object(), sent, [7; 16], &Replaces::Nothing).await.unwrap();
    assert_eq!((stored.etag.as_str(), stored.crc32c), ("e", Some(0xE306_9283)));
    assert_eq!(stored.md5.map(|md5| md5[0]), Some(0xd4));
    let seen = server.seen().pop().unwrap();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PUT", "/n/ns/b/models/o/m%2Fa%20b"));
    assert_eq!(seen.body, b"123456789");
    for (name, value) in [
        ("content-length", "9"),
        ("content-md5", "BwcHBwcHBwcHBwcHBwcHBw=="),
        ("opc-checksum-algorithm", "CRC32C"),
        ("if-none-match", "*"),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
    assert_eq!(seen.header("transfer-encoding"), None);
    let version = Replaces::Version("e-1".to_owned());
    let error = client.put_object(&object(), body(&["x"]), [7; 16], &version).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert_eq!(server.seen().len(), 2, "the caller sends the bytes again");
    assert_eq!(server.seen()[1].header("if-match"), Some("e-1"));
}

#[tokio::test]
async fn an_empty_object_has_a_length() {
    let server = TestServer::start(|_, _| ScriptedAnswer::new(200, "").header("etag", "e")).await;
    let client = client(&server.url).await;
    client.put_object(&object(), body(&[]), [0; 16], &Replaces::Nothing).await.unwrap();
    assert_eq!(server.seen()[0].header("content-length"), Some("0"));
}

#[tokio::test]
async fn a_commit_names_all_parts_and_is_one_attempt() {
    let server = TestServer::start(|number, _| match number {
        0 => ScriptedAnswer::new(200, "")
            .header("etag", "e")
            .header("opc-content-crc32c", "4waSgw=="),
        _ => ScriptedAnswer::refusal(500, "InternalServerError"),
    })
    .await;
    let client = client(&server.url).await;
    let parts =
        [(1, "a"), (2, "b")].map(|(number, etag)| PartToCommit { number, etag: etag.to_owned() });
    let object = object();
    let commit =
        || client.commit_multipart_upload(&object, "u/1", &parts, &[7], &Replaces::Nothing);
    assert_eq!(commit().await.unwrap().crc32c, Some(0xE306_9283));
    let seen = server.seen().pop().unwrap();
    assert_eq!(seen.target, "/n/ns/b/models/u/m%2Fa%20b?uploadId=u%2F1");
    let sent: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
    let named = json!([{"partNum": 1, "etag": "a"}, {"partNum": 2, "etag": "b"}]);
    assert_eq!(sent, json!({"partsToCommit": named, "partsToExclude": [7]}));
    assert!(commit().await.unwrap_err().is_transient());
    assert_eq!(server.seen().len(), 2, "the caller looks first whether it was done");
}

#[tokio::test]
async fn a_body_that_cannot_be_read_to_its_end_stores_nothing() {
    let server = TestServer::start(|_, _| ScriptedAnswer::new(200, "").header("etag", "e")).await;
    let client = client(&server.url).await;
    let chunks = stream::iter([Ok(Bytes::from_static(b"half")), Err("gone".to_owned())]).boxed();
    let broken = UploadBody { length: 8, chunks };
    let error =
        client.put_object(&object(), broken, [0; 16], &Replaces::Nothing).await.unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    assert_eq!(server.seen().len(), 0, "no whole request came");
}

#[tokio::test]
async fn an_upload_that_the_network_does_not_take_is_given_up() {
    // It accepts connections, and reads nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = client(&url).await;
    let chunk = Bytes::from(vec![0; 1 << 20]);
    let chunks = stream::repeat_with(move || Ok(chunk.clone())).take(64).boxed();
    let large = UploadBody { length: 64 << 20, chunks };
    let object = object();
    let sent = client.put_object(&object, large, [0; 16], &Replaces::Nothing);
    let error = tokio::time::timeout(Duration::from_secs(20), sent).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("the upload stalled for 1 s"), "{error}");
    assert!(error.is_transient(), "{error:?}");
}
