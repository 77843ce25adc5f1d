//! Every fault, as seen by a client without retries.

use std::io;
use std::time::{Duration, Instant};

use localstore::{Action, LocalStore, Operation, PutOptions, Rule, Source, synthetic_bytes};
use serde_json::json;

use crate::client::{Answer, Client, at, open_store};

const SIZE: u64 = 1_000_000;

fn store() -> LocalStore {
    let store = open_store();
    let source = Source::Synthetic { size: SIZE, seed: 1 };
    store.put_with("b", "x", source, PutOptions::default()).unwrap();
    store
}

/// The answer to a whole GET of the object under one rule.
fn under(action: Action) -> Answer {
    let store = store();
    store.faults().add(Rule::new(action).operation(Operation::Get).bucket("b").object("x"));
    Client::new(&store).get(&at(&store, "b/o/x"))
}

#[test]
fn latency_delays_the_answer() {
    let begin = Instant::now();
    assert_eq!(under(Action::Latency { ms: 200 }).status, 200);
    assert!(begin.elapsed() >= Duration::from_millis(200));
}

#[test]
fn bandwidth_is_shared_by_all_connections() {
    let store = store();
    store.faults().add(Rule::new(Action::Bandwidth { bytes_per_sec: 4 * SIZE }));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let answer = Client::new(&store).get(&at(&store, "b/o/x"));
                assert_eq!(answer.body.len() as u64, SIZE);
            });
        }
    });
    // Two megabytes at four a second; the last chunk is not waited for.
    assert!(begin.elapsed() >= Duration::from_millis(400), "{:?}", begin.elapsed());
    assert_eq!(store.stats().body_bytes, 2 * SIZE);
    assert_eq!(store.stats().concurrent_requests_max, 2);
}

#[test]
fn a_crowded_store_sends_less_in_all() {
    let store = store();
    // The second body halves the rate: two seconds for what one takes half a second each.
    store.faults().add(Rule::new(Action::Crowding { bytes_per_sec: 2 * SIZE, bodies: 1 }));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| Client::new(&store).get(&at(&store, "b/o/x")));
        }
    });
    assert!(begin.elapsed() >= Duration::from_millis(1500), "{:?}", begin.elapsed());
    assert_eq!(store.stats().body_bytes, 2 * SIZE);
}

#[test]
fn a_connection_beyond_the_limit_is_reset_until_another_is_closed() {
    let store = store();
    store.faults().add(Rule::new(Action::ConnectionLimit { connections: 1 }));
    let target = at(&store, "b/o/x");
    let mut first = Client::new(&store);
    assert_eq!(first.get(&target).status, 200);
    let error = Client::new(&store).try_call("GET", &target, &[], b"").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(first.get(&target).status, 200);
    drop(first);
    let begin = Instant::now();
    // The store learns of the close a moment later.
    while Client::new(&store).try_call("GET", &target, &[], b"").is_err() {
        assert!(begin.elapsed() < Duration::from_secs(10), "the place of a closed connection");
    }
}

#[test]
fn a_status_has_ocis_code_and_retry_after() {
    for (code, name) in [
        (401, "NotAuthenticated"),
        (403, "NotAuthorized"),
        (404, "ObjectNotFound"),
        (412, "IfMatchFailed"),
        (429, "TooManyRequests"),
        (500, "InternalServerError"),
        (503, "ServiceUnavailable"),
    ] {
        let answer = under(Action::retry_after(code, 7));
        assert_eq!((answer.status, answer.code().as_str()), (code, name));
        assert_eq!(answer.header("retry-after"), Some("7"));
    }
    let named = under(Action::Status {
        code: 409,
        oci_code: Some("NotRestored".to_owned()),
        message: Some("cold".to_owned()),
        retry_after: None,
    });
    assert_eq!(
        (named.status, named.json()),
        (409, json!({"code": "NotRestored", "message": "cold"}))
    );
}

#[test]
fn a_rule_skips_the_first_requests_and_ends_after_its_count() {
    let store = store();
    store.faults().add(Rule::new(Action::status(500)).operation(Operation::Get).skip(1).times(2));
    let mut client = Client::new(&store);
    let target = at(&store, "b/o/x");
    let statuses: Vec<u16> = (0..4).map(|_| client.get(&target).status).collect();
    assert_eq!(statuses, [200, 500, 500, 200]);
    assert_eq!(client.call("HEAD", &target, &[], b"").status, 200);
    assert_eq!(store.stats().answered(Operation::Get, 500), 2);
    assert_eq!(store.faults().list()[0].hits, 2);
}

#[test]
fn a_reset_breaks_the_body_with_rst() {
    let answer = under(Action::ResetAfter { bytes: 100_000 });
    assert_eq!((answer.status, answer.broken), (200, Some(io::ErrorKind::ConnectionReset)));
    assert!(answer.body.len() <= 100_000);
}

#[test]
fn a_disconnect_comes_before_any_answer() {
    let store = store();
    store.faults().add(Rule::new(Action::Disconnect).operation(Operation::Get).times(1));
    let target = at(&store, "b/o/x");
    let error = Client::new(&store).try_call("GET", &target, &[], b"").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(Client::new(&store).get(&target).status, 200);
}

#[test]
fn a_stall_keeps_the_connection_and_sends_nothing() {
    let store = store();
    store.faults().add(Rule::new(Action::StallAfter { bytes: 50_000 }));
    let mut client = Client::new(&store);
    client.patience(Duration::from_secs(1));
    let answer = client.get(&at(&store, "b/o/x"));
    assert_eq!(answer.body.len(), 50_000);
    assert_eq!(answer.broken, Some(io::ErrorKind::WouldBlock), "the client's own timeout");
}

#[test]
fn a_short_body_ends_in_a_clean_close() {
    let answer = under(Action::ShortBody { missing: 10 });
    assert_eq!(answer.header("content-length"), Some(SIZE.to_string().as_str()));
    assert_eq!(answer.broken, Some(io::ErrorKind::UnexpectedEof));
    assert_eq!(answer.body, synthetic_bytes(1, 0..SIZE - 10));
}

#[test]
fn a_wrong_range_says_which_it_is() {
    let store = store();
    store.faults().add(Rule::new(Action::WrongRange));
    let answer = Client::new(&store).get_range(&at(&store, "b/o/x"), "bytes=100-199");
    assert_eq!(answer.header("content-range"), Some("bytes 101-200/1000000"));
    assert_eq!((answer.status, answer.body), (206, synthetic_bytes(1, 101..201)));
}

#[test]
fn an_ignored_range_is_the_whole_object() {
    let store = store();
    store.faults().add(Rule::new(Action::IgnoreRange));
    let answer = Client::new(&store).get_range(&at(&store, "b/o/x"), "bytes=100-199");
    assert_eq!((answer.status, answer.body.len() as u64), (200, SIZE));
    assert_eq!(answer.header("content-range"), None);
}

#[test]
fn a_flipped_byte_is_the_only_difference() {
    const OFFSET: usize = 654_321;
    let flipped = under(Action::FlipByte { offset: OFFSET as u64 });
    let mut expected = synthetic_bytes(1, 0..SIZE);
    expected[OFFSET] ^= 1;
    assert_eq!(flipped.body, expected);
    assert!(flipped.header("content-md5").is_some(), "the checksum is still that of the object");
}

#[test]
fn a_replaced_object_fails_the_next_if_match() {
    let store = store();
    let etag = store.etag("b", "x").unwrap();
    let replace = Action::ReplaceObject { seed: 2, size: None };
    store.faults().add(Rule::new(replace).operation(Operation::Get).skip(1).times(1));
    let mut client = Client::new(&store);
    let target = at(&store, "b/o/x");
    let pinned = [("range", "bytes=0-9"), ("if-match", etag.as_str())];
    assert_eq!(client.call("GET", &target, &pinned, b"").body, synthetic_bytes(1, 0..10));
    assert_eq!(client.call("GET", &target, &pinned, b"").code(), "IfMatchFailed");
    assert_ne!(store.etag("b", "x").unwrap(), etag);
    assert_eq!(client.get(&target).body, synthetic_bytes(2, 0..SIZE));
}

#[test]
fn an_archived_object_shows_everywhere() {
    let store = store();
    store.faults().add(Rule::new(Action::Archived).object("x"));
    let mut client = Client::new(&store);
    let target = at(&store, "b/o/x");
    assert_eq!(client.get(&target).code(), "NotRestored");
    let head = client.call("HEAD", &target, &[], b"");
    assert_eq!((head.status, head.header("archival-state")), (200, Some("Archived")));
    let listing = client.get(&at(&store, "b/o?fields=archivalState")).json();
    assert_eq!(listing["objects"][0]["archivalState"], "Archived");
}

#[test]
fn an_upload_can_be_reset_on_its_way() {
    let store = store();
    let rule = Rule::new(Action::ResetAfter { bytes: 100_000 }).operation(Operation::Put);
    store.faults().add(rule.times(1));
    let target = at(&store, "b/o/new");
    let body = vec![1; 3_000_000];
    let error = Client::new(&store).try_call("PUT", &target, &[], &body).unwrap_err();
    assert!(
        matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
        "{error}"
    );
    assert!(store.etag("b", "new").is_err(), "nothing is left of it");
    assert_eq!(Client::new(&store).call("PUT", &target, &[], &body).status, 200);
}

#[test]
fn rules_and_objects_are_made_over_http_too() {
    let store = open_store();
    let mut client = Client::new(&store);
    let object = json!({"bucket": "b", "name": "x", "size": 10, "seed": 4, "crc32c": true});
    let created = client.call("POST", "/_localstore/objects", &[], object.to_string().as_bytes());
    assert_eq!(created.status, 201);
    let rule = json!({"match": {"operation": "get"}, "action": {"status": {"code": 503}}});
    let added = client.call("POST", "/_localstore/faults", &[], rule.to_string().as_bytes());
    let id = added.json()["id"].as_u64().unwrap();
    let target = at(&store, "b/o/x");
    assert_eq!(client.get(&target).status, 503);
    assert_eq!(client.get("/_localstore/faults").json()[0]["hits"], 1);
    let one = format!("/_localstore/faults/{id}");
    assert_eq!(client.call("DELETE", &one, &[], b"").status, 204);
    assert_eq!(client.get(&target).body, synthetic_bytes(4, 0..10));
    client.call("POST", "/_localstore/faults", &[], rule.to_string().as_bytes());
    assert_eq!(client.call("DELETE", "/_localstore/faults", &[], b"").status, 204);
    assert_eq!(client.get("/_localstore/faults").json(), json!([]));
    let misspelt = client.call("POST", "/_localstore/faults", &[], br#"{"action": "explode"}"#);
    assert_eq!(misspelt.status, 400);

    let stats = client.get("/_localstore/stats").json();
    assert_eq!(stats["requests"]["get"], json!({"200": 1, "503": 1}));
    assert_eq!(stats["object_bytes"]["b/x"], 10);
    assert_eq!(stats["connections"], 1);
    let requests = client.get("/_localstore/requests").json();
    assert_eq!(requests[0]["target"], target);
    assert_eq!(client.call("POST", "/_localstore/stats/reset", &[], b"").status, 204);
    assert_eq!(client.get("/_localstore/stats").json()["requests"], json!({}));
}
