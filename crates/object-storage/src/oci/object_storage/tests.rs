use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::oci::test_server::{AfterCut, ScriptedAnswer, Seen, TestServer};
use crate::oci::{Environment, Settings, Timeouts};
use crate::source::{AuthMethod, ObjectSummary};

fn settings(server: &TestServer) -> Settings {
    let (initial, max) = (Duration::from_millis(1), Duration::from_millis(5));
    Settings {
        endpoint: Some(server.url.clone()),
        retry: RetryPolicy::new(4, initial, max, Duration::from_secs(20)).unwrap(),
        timeouts: Timeouts { body_idle: Duration::from_millis(200), ..Timeouts::default() },
        environment: Environment::empty(),
        ..Settings::new(AuthMethod::None)
    }
}

async fn client(server: &TestServer) -> ObjectStorage {
    ObjectStorage::connect(settings(server)).await.unwrap()
}

fn bucket() -> Arc<Bucket> {
    Arc::new(Bucket::new("ns", "models"))
}

/// The objects of the bucket under a prefix, at most so many, and whether there are more.
async fn list(
    client: &ObjectStorage,
    prefix: &str,
    max: usize,
) -> Result<(Vec<ObjectSummary>, bool), StorageError> {
    let bucket = bucket();
    let (mut pages, mut objects) = (client.pages(&bucket, prefix, max), Vec::new());
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

#[tokio::test]
async fn names_reach_the_request_line_encoded_once_and_whole() {
    let server = TestServer::start(|_, _| ScriptedAnswer::new(200, "x").header("etag", "e")).await;
    let client = client(&server).await;
    for (name, target) in [
        ("..", ".."),
        ("a/../b", "a%2F..%2Fb"),
        ("//a", "%2F%2Fa"),
        ("we ird+name%20#?&=~(x).bin", "we%20ird%2Bname%2520%23%3F%26%3D~%28x%29.bin"),
        ("ünï", "%C3%BCn%C3%AF"),
    ] {
        let body = client.get_object(&bucket().object(name), "e", None).await.unwrap();
        assert_eq!(read(body).await.unwrap(), b"x");
        let seen = server.seen().pop().unwrap();
        assert_eq!(seen.target, format!("/n/ns/b/models/o/{target}"));
        assert_eq!(seen.header("if-match"), Some("e"));
        assert_eq!(seen.header("accept-encoding"), None);
    }
    let empty = client.get_object(&bucket().object(""), "e", None).await.unwrap_err();
    assert_eq!(empty.kind(), StorageErrorKind::Invalid);
}

#[tokio::test]
async fn a_range_is_read_whole_with_the_size_of_the_object() {
    let server = TestServer::start(|_, seen| {
        assert_eq!(seen.header("range"), Some("bytes=2-4"));
        ScriptedAnswer::new(206, "cde").header("content-range", "bytes 2-4/10").header("etag", "e")
    })
    .await;
    let body =
        client(&server).await.get_object(&bucket().object("a"), "e", Some(2..5)).await.unwrap();
    assert_eq!((body.head.size, body.length()), (Some(10), Some(3)));
    assert_eq!(read(body).await.unwrap(), b"cde");
}

#[tokio::test]
async fn an_answer_that_is_not_the_requested_range_is_refused_before_its_bytes() {
    type Make = fn() -> ScriptedAnswer;
    let answers: [(Make, &str); 5] = [
        (|| ScriptedAnswer::new(200, "abcdefghij"), "the whole object was returned"),
        (|| ScriptedAnswer::new(206, "cde"), "no valid content-range"),
        (|| ScriptedAnswer::new(206, "cde").header("content-range", "bytes 3-5/10"), "3-5"),
        (|| ScriptedAnswer::new(206, "cd").header("content-range", "bytes 2-4/10"), "body of 2"),
        (|| ScriptedAnswer::new(204, ""), "unexpected status 204"),
    ];
    for (make, why) in answers {
        let server = TestServer::start(move |_, _| make()).await;
        let client = client(&server).await;
        let error = client.get_object(&bucket().object("a"), "e", Some(2..5)).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Protocol, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn another_version_than_the_requested_one_is_changed() {
    let server = TestServer::start(|number, _| match number {
        0 => ScriptedAnswer::new(200, "abc").header("etag", "other"),
        _ => ScriptedAnswer::refusal(412, "IfMatchFailed"),
    })
    .await;
    let client = client(&server).await;
    for _ in 0..2 {
        let error = client.get_object(&bucket().object("a"), "e", None).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Changed, "{error}");
    }
}

#[tokio::test]
async fn an_answer_without_a_version_is_requested_again_and_never_used() {
    let server = TestServer::start(|number, seen| match (number, seen.header("range")) {
        (4, _) => ScriptedAnswer::new(200, "abc").header("etag", "e"),
        (_, None) => ScriptedAnswer::new(200, "abc"),
        (_, Some(_)) => ScriptedAnswer::new(206, "bc").header("content-range", "bytes 1-2/3"),
    })
    .await;
    let (client, object) = (client(&server).await, bucket().object("a"));
    for range in [None, Some(1..3)] {
        let error = client.get_object(&object, "e", range).await.unwrap_err();
        assert!(error.is_transient(), "{error:?}");
        assert!(error.to_string().contains("no ETag"), "{error}");
    }
    let head = client.head_object(&object, Some("e")).await.unwrap();
    assert_eq!((head.etag.as_str(), server.seen().len()), ("e", 5), "asked for again");
    let error = client.head_object(&object, Some("e")).await.unwrap_err();
    assert!(error.is_transient() && server.seen().len() == 9, "as often as the policy says");
    assert!(error.to_string().contains("without it"), "{error}");
    client.head_object(&object, None).await.unwrap();
}

#[tokio::test]
async fn a_malformed_checksum_is_requested_again_as_often_as_the_policy_says() {
    let broken =
        |answer: ScriptedAnswer| answer.header("etag", "e").header("content-md5", "not-base64");
    let server = TestServer::start(move |number, _| match number {
        1 => ScriptedAnswer::new(200, "abc").header("etag", "e"),
        _ => broken(ScriptedAnswer::new(200, "abc")),
    })
    .await;
    let (client, object) = (client(&server).await, bucket().object("a"));
    client.head_object(&object, Some("e")).await.unwrap();
    assert_eq!(server.seen().len(), 2);
    let error = client.head_object(&object, Some("e")).await.unwrap_err();
    assert_eq!((error.kind(), server.seen().len()), (StorageErrorKind::Unavailable, 6));
    assert!(error.to_string().contains("content-md5 \"not-base64\""), "{error}");
    let error = client.get_object(&object, "e", None).await.unwrap_err();
    assert!(error.is_transient(), "its caller asks again: {error}");
}

#[tokio::test]
async fn rare_forms_that_proxies_give_an_answer_are_read() {
    let part = |answer: ScriptedAnswer| answer.header("etag", "W/\"e\"");
    let server = TestServer::start(move |_, seen| {
        let answer = match seen.header("range") {
            Some(_) => ScriptedAnswer::new(206, "cde").header("content-range", "bytes 2-4/*"),
            None => ScriptedAnswer::new(200, "abcdef"),
        };
        match seen.target.rsplit_once('/').unwrap().1 {
            "chunked" => part(answer).chunked(),
            "until-the-end" => part(answer).until_the_end(),
            _ => part(answer),
        }
    })
    .await;
    let client = client(&server).await;
    for name in ["with-a-length", "chunked", "until-the-end"] {
        let object = bucket().object(name);
        let body = client.get_object(&object, "e", Some(2..5)).await.unwrap();
        assert_eq!((body.head.size, body.length()), (None, Some(3)), "{name}");
        assert_eq!(read(body).await.unwrap(), b"cde", "{name}");
        let mut body = client.get_object(&object, "e", None).await.unwrap();
        body.expect_length(6);
        assert_eq!(read(body).await.unwrap(), b"abcdef", "{name}");
        assert_eq!(client.head_object(&object, Some("e")).await.unwrap().etag, "e", "{name}");
    }
    // Only the caller knows then whether all of it came.
    for (expected, why) in [(7, "ended early"), (5, "longer than it should be")] {
        let object = bucket().object("until-the-end");
        let mut body = client.get_object(&object, "e", None).await.unwrap();
        body.expect_length(expected);
        let error = read(body).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn an_error_of_a_proxy_is_named_and_not_blamed_on_the_request() {
    let server = TestServer::start(|number, _| match number {
        0 => {
            ScriptedAnswer::new(407, "<html>").header("proxy-authenticate", "Basic realm=\"corp\"")
        }
        _ => ScriptedAnswer::new(504, "<html>").header("via", "1.1 squid"),
    })
    .await;
    let client = client(&server).await;
    let host = server.url.trim_start_matches("http://").to_owned();
    let error = client.get_object(&bucket().object("a"), "e", None).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("407 Proxy Authentication Required"), "{text}");
    assert!(text.contains("asks for a login (Basic realm=\"corp\")"), "{text}");
    assert!(text.contains(&format!("let {host} through")), "{text}");
    assert_eq!(crate::error::Error::from(error).kind(), crate::error::ErrorKind::Unavailable);
    let error = client.get_object(&bucket().object("a"), "e", None).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("504 Gateway Timeout (from a proxy: Via: 1.1 squid)"), "{text}");
}

#[tokio::test]
async fn a_server_that_says_100_continue_without_end_is_left_at_once_and_its_connection_closed() {
    const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        // A few are legal, and skipped.
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let last = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(&[&INTERIM.repeat(3), &last[..]].concat()).await.unwrap();
        drop(stream);
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let mut sent = 0_u64;
        while stream.write_all(&INTERIM.repeat(100)).await.is_ok() {
            sent += 100;
        }
        sent
    });
    let settings = Settings {
        endpoint: Some(url),
        retry: RetryPolicy::once(),
        environment: Environment::empty(),
        ..Settings::new(AuthMethod::None)
    };
    let client = ObjectStorage::connect(settings).await.unwrap();
    let object = bucket().object("a");
    client.head_object(&object, None).await.unwrap();
    // Long before the minute that is waited for an answer.
    let asked = client.head_object(&object, None);
    let error = tokio::time::timeout(Duration::from_secs(20), asked).await.unwrap().unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert!(error.to_string().contains("more than 16 interim answers"), "{error}");
    let sent = tokio::time::timeout(Duration::from_secs(20), serving).await.unwrap().unwrap();
    assert!(sent > 16, "{sent} interim answers were sent");
}

#[tokio::test]
async fn an_empty_range_is_refused_without_asking() {
    let server = TestServer::start(|_, _| ScriptedAnswer::new(500, "")).await;
    let error =
        client(&server).await.get_object(&bucket().object("a"), "e", Some(7..7)).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Invalid);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_body_that_ends_early_or_stalls_is_unavailable_and_says_how_far_it_came() {
    for then in [AfterCut::Close, AfterCut::Hang] {
        let server = TestServer::start(move |_, _| {
            ScriptedAnswer::new(200, "abcdef").header("etag", "e").cut(4, then)
        })
        .await;
        let mut body =
            client(&server).await.get_object(&bucket().object("a"), "e", None).await.unwrap();
        assert_eq!(body.chunk().await.unwrap().unwrap(), "abcd");
        let error = body.chunk().await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Unavailable);
        assert!(error.to_string().contains("4 of 6 bytes received"), "{error}");
    }
}

#[tokio::test]
async fn get_object_is_one_attempt_and_carries_retry_after() {
    let server = TestServer::start(|_, _| {
        ScriptedAnswer::refusal(429, "TooManyRequests").header("retry-after", "7")
    })
    .await;
    let error =
        client(&server).await.get_object(&bucket().object("a"), "e", None).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Throttled);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    assert_eq!(server.seen().len(), 1);
    assert_eq!(
        error.to_string(),
        format!(
            "GetObject of a in bucket models of namespace ns at {}: 429 TooManyRequests: scripted \
             (opc-request-id iad-1:test)",
            server.url.trim_start_matches("http://")
        )
    );
}

#[tokio::test]
async fn head_object_is_repeated_and_reads_the_checksums() {
    let server = TestServer::start(|number, _| match number {
        0 => ScriptedAnswer::new(503, ""),
        1 => ScriptedAnswer::new(500, "").cut(0, AfterCut::Close),
        _ => ScriptedAnswer::new(200, "123456789")
            .header("etag", "e")
            .header("opc-content-crc32c", "4waSgw=="),
    })
    .await;
    let client = client(&server).await;
    let head = client.head_object(&bucket().object("a"), Some("e")).await.unwrap();
    assert_eq!((head.size, head.crc32c), (Some(9), Some(0xE306_9283)));
    assert_eq!(server.seen().len(), 3);
    assert!(server.seen().iter().all(|seen| seen.header("if-match") == Some("e")));
}

#[tokio::test]
async fn a_lasting_failure_is_reported_with_attempts_and_a_refusal_is_not_repeated() {
    let server = TestServer::start(|_, seen| {
        if seen.target.ends_with("archived") {
            ScriptedAnswer::refusal(409, "NotRestored")
        } else {
            ScriptedAnswer::new(503, "<html>")
        }
    })
    .await;
    let client = client(&server).await;
    let error = client.head_object(&bucket().object("a"), None).await.unwrap_err();
    assert!(error.is_transient());
    assert!(error.to_string().contains("after 4 attempts"), "{error}");
    let error = client.get_object(&bucket().object("archived"), "e", None).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Archived);
    assert!(error.to_string().contains("oci os object restore"), "{error}");
    assert_eq!(server.seen().len(), 5);
}

#[tokio::test]
async fn a_401_without_another_credential_names_the_clock_when_it_is_off() {
    let date = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(432));
    let server = TestServer::start(move |_, _| {
        ScriptedAnswer::refusal(401, "NotAuthenticated").header("date", &date)
    })
    .await;
    let error = client(&server).await.head_object(&bucket().object("a"), None).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unauthenticated);
    let text = error.to_string();
    assert!(text.contains("this node's clock is 7m1"), "{text}");
    assert!(text.contains("ahead of Object Storage"), "{text}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = TestServer::start(|_, _| ScriptedAnswer::new(200, "")).await;
    let location = format!("{}/x?token=s3cret", target.url);
    let server =
        TestServer::start(move |_, _| ScriptedAnswer::new(307, "").header("location", &location))
            .await;
    let error = client(&server).await.head_object(&bucket().object("a"), None).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Protocol);
    let text = error.to_string();
    assert!(text.contains(&format!("a redirect to {}/x, which", target.url)), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    assert_eq!((server.seen().len(), target.seen().len()), (1, 0), "one request, and none there");
}

/// Serves `names` in pages of `page`, as the service does.
fn listing(names: &[String], page: usize, seen: &Seen) -> ScriptedAnswer {
    let query: BTreeMap<_, _> = seen
        .target
        .split_once('?')
        .unwrap()
        .1
        .split('&')
        .map(|pair| pair.split_once('=').unwrap())
        .collect();
    let limit: usize = query["limit"].parse().unwrap();
    assert_eq!(query["prefix"], "m%2F");
    let start = query.get("start").map_or("", |start| start.strip_prefix("m%2F").unwrap());
    let mut rest = names.iter().map(String::as_str).filter(|name| &name[2..] >= start);
    let objects: Vec<_> = rest
        .by_ref()
        .take(page.min(limit))
        .map(|name| serde_json::json!({"name": name, "size": 1, "etag": "e", "md5": null}))
        .collect();
    let page = serde_json::json!({"objects": objects, "nextStartWith": rest.next()});
    ScriptedAnswer::new(200, page.to_string())
}

#[tokio::test]
async fn a_listing_follows_its_pages_up_to_the_greatest_number_and_says_so() {
    let names: Vec<_> = (0..25).map(|n| format!("m/{n:03}")).collect();
    let server = TestServer::start(move |_, seen| listing(&names, 10, seen)).await;
    let client = client(&server).await;
    for (max, length, truncated) in
        [(100, 25, false), (25, 25, false), (24, 24, true), (0, 0, true)]
    {
        let (objects, more) = list(&client, "m/", max).await.unwrap();
        assert_eq!((objects.len(), more), (length, truncated), "{max}");
        assert!(objects.is_sorted_by(|a, b| a.name < b.name));
    }
}

#[tokio::test]
async fn a_listing_that_does_not_advance_is_an_error() {
    for next in ["a", "b"] {
        let page = format!(
            r#"{{"objects":[{{"name":"b","size":1,"etag":"e"}}],"nextStartWith":"{next}"}}"#
        );
        let server = TestServer::start(move |_, _| ScriptedAnswer::new(200, page.clone())).await;
        let error = list(&client(&server).await, "", 10).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Protocol);
        assert!(error.to_string().contains("does not advance"), "{error}");
    }
}

#[tokio::test]
async fn an_empty_page_that_points_further_is_followed() {
    let server = TestServer::start(|number, _| match number {
        0 => ScriptedAnswer::new(200, r#"{"objects":[],"nextStartWith":"b"}"#),
        _ => ScriptedAnswer::new(200, r#"{"objects":[{"name":"b","size":1,"etag":"e"}]}"#),
    })
    .await;
    let (objects, _) = list(&client(&server).await, "", 10).await.unwrap();
    assert_eq!(objects.len(), 1);
}

#[tokio::test]
async fn a_page_of_the_longest_names_is_requested_again_with_fewer_objects() {
    // JSON takes six bytes for each of these; encoded in a query they take three.
    let names: Vec<_> = (0..300).map(|n| format!("m/{n:03}{}", "\u{1}".repeat(1019))).collect();
    let server = TestServer::start(move |_, seen| {
        let start = |query: &str| query.strip_prefix("start=m%2F").map(|name| name[..3].to_owned());
        let from = seen.target.split('&').find_map(start).map_or(0, |n| n.parse().unwrap());
        let limit = |query: &str| query.strip_prefix("limit=").map(|n| n.parse().unwrap());
        let end = (from + seen.target.split('&').find_map(limit).unwrap_or(0)).min(names.len());
        let object = |name| serde_json::json!({"name": name, "size": 1, "etag": "e"});
        let objects: Vec<_> = names[from..end].iter().map(object).collect();
        let page = serde_json::json!({"objects": objects, "nextStartWith": names.get(end)});
        ScriptedAnswer::new(200, page.to_string())
    })
    .await;
    let (objects, _) = list(&client(&server).await, "m/", 1000).await.unwrap();
    assert_eq!(objects.len(), 300);
    assert_eq!(server.seen().len(), 4, "one that is too long, and three of 125");
}

#[tokio::test]
async fn pages_that_stay_too_long_are_an_error_at_once() {
    let server = TestServer::start(|_, _| ScriptedAnswer::new(200, " ".repeat(2 << 20))).await;
    let error = list(&client(&server).await, "", 10).await.unwrap_err();
    assert_eq!((error.kind(), server.seen().len()), (StorageErrorKind::Protocol, 2));
    assert!(error.to_string().contains("longer than 1048576 bytes"), "{error}");
}

#[tokio::test]
async fn a_listing_whose_body_breaks_is_requested_again() {
    let server = TestServer::start(|number, _| {
        let page = ScriptedAnswer::new(200, r#"{"objects":[],"nextStartWith":null}"#);
        if number == 0 { page.cut(5, AfterCut::Close) } else { page }
    })
    .await;
    list(&client(&server).await, "", 10).await.unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn the_namespace_is_requested_once_and_not_at_all_when_it_is_configured() {
    let server = TestServer::start(|number, _| match number {
        0 => ScriptedAnswer::refusal(404, "NamespaceNotFound"),
        _ => ScriptedAnswer::new(200, "\"axaxnpcrorw5\""),
    })
    .await;
    let asking = client(&server).await;
    assert!(asking.namespace().await.is_err());
    for _ in 0..3 {
        assert_eq!(asking.namespace().await.unwrap(), "axaxnpcrorw5");
    }
    assert_eq!(server.seen().len(), 2);
    let settings = Settings { namespace: Some("mine".into()), ..settings(&server) };
    let configured = ObjectStorage::connect(settings).await.unwrap();
    assert_eq!(configured.namespace().await.unwrap(), "mine");
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn every_request_is_observed_with_its_operation_and_status() {
    let server =
        TestServer::start(|number, _| ScriptedAnswer::new(if number == 0 { 503 } else { 200 }, ""))
            .await;
    let log: Arc<Mutex<Vec<_>>> = Arc::default();
    let sink = Arc::clone(&log);
    let observer: RequestObserver =
        Arc::new(move |operation, status| sink.lock().unwrap().push((operation, status)));
    let settings = Settings { observer: Some(observer), ..settings(&server) };
    ObjectStorage::connect(settings)
        .await
        .unwrap()
        .head_object(&bucket().object("a"), None)
        .await
        .unwrap();
    assert_eq!(*log.lock().unwrap(), [("HeadObject", Some(503)), ("HeadObject", Some(200))]);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable_and_named() {
    let server = TestServer::start(|_, _| ScriptedAnswer::new(200, "")).await;
    let client = client(&server).await;
    let host = server.url.trim_start_matches("http://").to_owned();
    let port = host.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    drop(server);
    // The port is free once the aborted task is gone, which this waits for.
    while std::net::TcpListener::bind(("127.0.0.1", port)).is_err() {
        tokio::task::yield_now().await;
    }
    let error = client.head_object(&bucket().object("a"), None).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unavailable);
    let text = error.to_string();
    assert!(text.contains(&host) && text.contains("Connection refused"), "{text}");
    assert_eq!(text.matches("Connection refused").count(), 1, "{text}");
    assert!(std::error::Error::source(&crate::error::Error::from(error)).is_some());
}

#[tokio::test]
async fn an_unsupported_or_missing_setting_is_reported_before_anything_is_sent() {
    let settings = |auth| Settings { environment: Environment::empty(), ..Settings::new(auth) };
    let error = |settings| async { ObjectStorage::connect(settings).await.unwrap_err() };
    let named = Settings {
        region: Some("iad".parse().unwrap()),
        ..settings(AuthMethod::ResourcePrincipal)
    };
    let text = error(named).await.to_string();
    assert!(text.contains("OCI_RESOURCE_PRINCIPAL_VERSION is not set"), "{text}");
    let text = error(settings(AuthMethod::None)).await.to_string();
    assert!(text.contains("--region"), "{text}");
    let ca_file = Some("/nonexistent/ca.pem".into());
    let text = error(Settings { ca_file, ..settings(AuthMethod::None) }).await.to_string();
    assert!(text.contains("/nonexistent/ca.pem"), "{text}");
}

#[tokio::test]
async fn the_location_is_the_region_or_the_configured_endpoint() {
    let settings = |region: Option<&str>, endpoint: Option<&str>| Settings {
        region: region.map(|text| text.parse().unwrap()),
        endpoint: endpoint.map(str::to_owned),
        environment: [("OCI_CLI_REGION", "phx")].into_iter().collect(),
        ..Settings::new(AuthMethod::None)
    };
    for (region, endpoint, location) in [
        (Some("IAD"), None, "us-ashburn-1"),
        (None, None, "us-phoenix-1"),
        (Some("iad"), Some("http://127.0.0.1:9/"), "http://127.0.0.1:9"),
    ] {
        let client = ObjectStorage::connect(settings(region, endpoint)).await.unwrap();
        assert_eq!(client.location().await.unwrap(), location);
    }
}

#[tokio::test]
async fn auto_is_the_variable_then_a_configured_key_then_the_instance() {
    let connect = async |variables: &[(&str, &str)]| {
        let region = Some("iad".parse().unwrap());
        let environment = variables.iter().copied().collect();
        let settings = Settings { region, environment, ..Settings::new(AuthMethod::Auto) };
        ObjectStorage::connect(settings).await
    };
    let empty = tempfile::tempdir().unwrap();
    let home = ("HOME", empty.path().to_str().unwrap());
    let unsigned = connect(&[home, ("OCI_CLI_AUTH", "none")]).await.unwrap();
    assert!(unsigned.identity().is_none());
    let instance = connect(&[home]).await.unwrap();
    assert_eq!(instance.identity().unwrap().refreshes(), 0, "asked for at the first request");
    let key = connect(&[home, ("OCI_CLI_USER", "me")]).await.unwrap_err().to_string();
    assert!(key.contains("oci setup config"), "{key}");
    let resource = [home, ("OCI_RESOURCE_PRINCIPAL_VERSION", "2.2")];
    let missing = connect(&resource).await.unwrap_err().to_string();
    assert!(missing.contains("OCI_RESOURCE_PRINCIPAL_RPST is not set"), "{missing}");
    let chosen = "resource_principal was chosen because ";
    assert!(missing.contains(chosen), "who did not name it has to know: {missing}");
    let cluster = ("KUBERNETES_SERVICE_HOST", "10.96.0.1");
    let pod = connect(&[home, resource[1], cluster]).await.unwrap();
    assert_eq!(pod.method(), AuthMethod::OkeWorkloadIdentity);
    assert!(
        pod.why_chosen().unwrap().contains("without OCI_RESOURCE_PRINCIPAL_RPST, in a cluster")
    );
    let node = connect(&[home, cluster]).await.unwrap();
    assert_eq!(node.method(), AuthMethod::InstancePrincipal);
    assert!(node.why_chosen().unwrap().contains("set the last to 2.2 for the service account"));
    let function = [home, resource[1], cluster, ("OCI_RESOURCE_PRINCIPAL_RPST", "x")];
    let function = connect(&function).await.unwrap_err().to_string();
    assert!(function.contains("OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM is not set"), "{function}");
    std::fs::create_dir(empty.path().join(".oci")).unwrap();
    let session = "[DEFAULT]\nsecurity_token_file=~/absent\n";
    std::fs::write(empty.path().join(".oci/config"), session).unwrap();
    let session = connect(&[home]).await.unwrap_err().to_string();
    assert!(session.contains("reading the session's token"), "{session}");
    let beside = "[DEFAULT]\nuser=u\n[s]\nsecurity_token_file=~/absent\n";
    std::fs::write(empty.path().join(".oci/config"), beside).unwrap();
    let beside = connect(&[home, ("OCI_CLI_PROFILE", "s")]).await.unwrap_err().to_string();
    assert!(beside.contains("reading the session's token"), "{beside}");
    let misspelt = connect(&[home, ("OCI_CLI_AUTH", "instance")]).await.unwrap_err().to_string();
    assert!(misspelt.contains("instance_principal"), "{misspelt}");
    let bundle = ("OCI_CLI_CERT_BUNDLE", "/nonexistent/bundle.pem");
    let missing = connect(&[home, bundle]).await.unwrap_err().to_string();
    assert!(missing.contains("/nonexistent/bundle.pem"), "{missing}");
}
