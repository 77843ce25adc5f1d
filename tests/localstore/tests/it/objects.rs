//! Objects: names, ranges, conditions, listings, tiers, metadata.

use localstore::{PutOptions, Source, StorageTier, synthetic_bytes};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::client::{Client, at, open_store};

#[test]
fn any_utf8_name_is_kept_as_it_is() {
    let store = open_store();
    store.create_bucket("b").unwrap();
    let mut client = Client::new(&store);
    let long = "x".repeat(300);
    let names = [
        "a",
        "a/b",
        "a//b",
        "/lead",
        "trail/",
        "a/../b",
        "..",
        ".",
        "we ird+name%20#?&=~(x)'!*",
        "ünï/日本",
        "\u{1}",
        &long,
    ];
    for (index, name) in names.iter().enumerate() {
        let encoded = utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
        let target = at(&store, &format!("b/o/{encoded}"));
        let body = index.to_string();
        let put = client.call("PUT", &target, &[], body.as_bytes());
        assert_eq!(put.status, 200, "{name}");
        assert_eq!(client.get(&target).body, body.as_bytes(), "{name}");
    }
    let listing = client.get(&at(&store, "b/o?fields=name")).json();
    let mut listed: Vec<&str> = listing["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["name"].as_str().unwrap())
        .collect();
    assert!(listed.is_sorted());
    let mut expected = names.to_vec();
    expected.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, expected);
    assert_eq!(client.get(&at(&store, "b/o/a/../b")).body, b"5", "slashes as they are");
}

#[test]
fn ranges_around_a_part_boundary_are_exact() {
    const PART: u64 = 300_000;
    let store = open_store();
    let mut client = Client::new(&store);
    for size in [1, PART - 1, PART, PART + 1, 2 * PART + 1] {
        let name = size.to_string();
        let source = Source::Synthetic { size, seed: 5 };
        let options = PutOptions { part_size: Some(PART), crc32c: true, ..PutOptions::default() };
        store.put_with("b", &name, source, options).unwrap();
        let target = at(&store, &format!("b/o/{name}"));
        let whole = client.get(&target);
        assert_eq!((whole.status, &whole.body), (200, &synthetic_bytes(5, 0..size)));
        assert!(whole.header("opc-multipart-md5").unwrap().contains("==-"));
        assert!(whole.header("opc-content-crc32c").is_some());
        for start in (0..size).step_by(usize::try_from(PART).unwrap()) {
            let part = client.get_range(&target, &format!("bytes={start}-{}", start + PART - 1));
            let end = size.min(start + PART);
            assert_eq!(part.status, 206);
            assert_eq!(part.body, synthetic_bytes(5, start..end), "{start} of {size}");
            let expected = format!("bytes {start}-{}/{size}", end - 1);
            assert_eq!(part.header("content-range"), Some(expected.as_str()));
            assert_eq!(part.header("opc-multipart-md5"), None, "no checksums with a range");
            assert_eq!(part.header("opc-content-crc32c"), None);
        }
        let beyond = client.get_range(&target, &format!("bytes={size}-"));
        assert_eq!((beyond.status, beyond.code().as_str()), (416, "InvalidRange"));
        assert_eq!(beyond.header("content-range"), Some(format!("bytes */{size}").as_str()));
    }
}

#[test]
fn an_empty_object_has_no_range() {
    let store = open_store();
    store.put("b", "empty", b"").unwrap();
    let mut client = Client::new(&store);
    let target = at(&store, "b/o/empty");
    let whole = client.get(&target);
    assert_eq!((whole.status, whole.header("content-length")), (200, Some("0")));
    assert_eq!(whole.header("content-md5"), Some("1B2M2Y8AsgTpgAmY7PhCfg=="));
    assert_eq!(client.get_range(&target, "bytes=0-0").status, 416);
}

#[test]
fn head_returns_everything_but_the_bytes() {
    let store = open_store();
    let etag = store.put("b", "x", b"123456789").unwrap();
    let mut client = Client::new(&store);
    let head = client.call("HEAD", &at(&store, "b/o/x"), &[("opc-client-request-id", "me")], b"");
    assert_eq!((head.status, head.header("content-length")), (200, Some("9")));
    assert_eq!(head.header("etag"), Some(etag.as_str()));
    assert_eq!(head.header("storage-tier"), Some("Standard"));
    assert_eq!(head.header("opc-content-crc32c"), None, "not chosen at upload");
    assert_eq!(head.header("opc-client-request-id"), Some("me"));
    assert!(head.header("opc-request-id").is_some());
    let missing = client.call("HEAD", &at(&store, "b/o/y"), &[], b"");
    assert_eq!((missing.status, missing.body.len()), (404, 0));
    // The connection is still in step: the next answer is the next request's.
    assert_eq!(client.get(&at(&store, "b/o/x")).body, b"123456789");
}

#[test]
fn conditions_on_reads_and_writes() {
    let store = open_store();
    let etag = store.put("b", "x", b"1").unwrap();
    let mut client = Client::new(&store);
    let target = at(&store, "b/o/x");
    let quoted = format!("\"{etag}\"");
    for (header, value, method, status) in [
        ("if-match", etag.as_str(), "GET", 200),
        ("if-match", &quoted, "GET", 200),
        ("if-match", "other", "GET", 412),
        ("if-match", "other", "HEAD", 412),
        ("if-none-match", &etag, "GET", 304),
        ("if-none-match", "other", "GET", 200),
        ("if-none-match", "*", "PUT", 412),
        ("if-match", "other", "PUT", 412),
        ("if-match", "other", "DELETE", 412),
        ("if-match", &etag, "PUT", 200),
        ("if-match", &etag, "PUT", 412),
    ] {
        let answer = client.call(method, &target, &[(header, value)], b"");
        assert_eq!(answer.status, status, "{method} {header}: {value}");
    }
    assert_eq!(
        client.call("PUT", &target, &[("if-none-match", "*")], b"").code(),
        "IfNoneMatchFailed"
    );
    assert_eq!(client.call("DELETE", &target, &[], b"").status, 204);
    assert_eq!(client.call("DELETE", &target, &[], b"").code(), "ObjectNotFound");
}

#[test]
fn an_upload_that_does_not_match_its_headers_is_refused_and_leaves_nothing() {
    let store = open_store();
    store.put("b", "x", b"old").unwrap();
    let mut client = Client::new(&store);
    let target = at(&store, "b/o/x");
    for (header, value, code) in [
        ("content-md5", "AAAA", "UnmatchedContentMD5"),
        ("opc-content-crc32c", "AAAAAA==", "UnmatchedContentCRC32C"),
        ("opc-checksum-algorithm", "CRC64", "InvalidParameter"),
        ("storage-tier", "Warm", "InvalidParameter"),
    ] {
        let answer = client.call("PUT", &target, &[(header, value)], b"123456789");
        assert_eq!((answer.status, answer.code().as_str()), (400, code));
    }
    assert_eq!(client.get(&target).body, b"old");
    let headers = [("opc-checksum-algorithm", "CRC32C"), ("opc-content-crc32c", "4waSgw==")];
    let right = client.call("PUT", &target, &headers, b"123456789");
    assert_eq!(right.header("opc-content-crc32c"), Some("4waSgw=="));
    let head = client.call("HEAD", &target, &[], b"");
    assert_eq!(head.header("opc-content-crc32c"), Some("4waSgw=="));
    let empty = client.call("PUT", &target, &[("opc-checksum-algorithm", "")], b"123456789");
    assert_eq!((empty.status, empty.header("opc-content-crc32c")), (200, None), "rclone's form");
}

#[test]
fn an_upload_waits_for_100_continue_and_needs_a_length() {
    let store = open_store();
    store.create_bucket("b").unwrap();
    let mut client = Client::new(&store);
    let target = at(&store, "b/o/x");
    client.send_head("PUT", &target, &[("expect", "100-continue")], 3).unwrap();
    assert_eq!(client.receive("PUT").unwrap().status, 100);
    client.send_body(b"abc").unwrap();
    assert_eq!(client.receive("PUT").unwrap().status, 200);
    assert_eq!(client.get(&target).body, b"abc");

    client.send_head("PUT", &target, &[("transfer-encoding", "chunked")], 0).unwrap();
    client.send_body(b"0\r\n\r\n").unwrap();
    let chunked = client.receive("PUT").unwrap();
    assert_eq!((chunked.status, chunked.code().as_str()), (411, "ContentLengthRequired"));
}

#[test]
fn a_refused_upload_leaves_the_connection_in_step() {
    let store = open_store();
    let mut client = Client::new(&store);
    let answer = client.call("PUT", &at(&store, "nobucket/o/x"), &[], &vec![7; 3_000_000]);
    assert_eq!((answer.status, answer.code().as_str()), (404, "BucketNotFound"));
    let namespace = client.get("/n").json();
    assert_eq!(namespace.as_str(), Some(store.namespace()));
}

#[test]
fn metadata_and_headers_come_back() {
    let store = open_store();
    store.create_bucket("b").unwrap();
    let mut client = Client::new(&store);
    let target = at(&store, "b/o/x");
    let headers = [
        ("content-type", "text/x"),
        ("cache-control", "no-store"),
        ("opc-meta-mtime", "1.5"),
        ("content-encoding", "gzip"),
    ];
    client.call("PUT", &target, &headers, b"x");
    let head = client.call("HEAD", &target, &[], b"");
    for (name, value) in headers {
        assert_eq!(head.header(name), Some(value), "{name}");
    }
}

#[test]
fn listings_show_the_fields_that_were_asked_for() {
    let store = open_store();
    store.put("b", "d/x", b"123456789").unwrap();
    store.put("b", "y", b"").unwrap();
    let mut client = Client::new(&store);
    let names = client.get(&at(&store, "b/o")).json();
    assert_eq!(names["objects"][0], serde_json::json!({"name": "d/x"}));
    assert_eq!(names["nextStartWith"], Value::Null);
    let all = "fields=NAME%2Csize%2Cetag%2Cmd5%2CtimeCreated%2CtimeModified%2CstorageTier%2CarchivalState";
    let all = client.get(&at(&store, &format!("b/o?{all}&delimiter=%2F"))).json();
    let y = &all["objects"][0];
    assert_eq!((&y["name"], &y["size"]), (&"y".into(), &0.into()));
    assert_eq!(y["md5"], "1B2M2Y8AsgTpgAmY7PhCfg==");
    assert!(y["timeModified"].as_str().unwrap().ends_with('Z'));
    assert_eq!(all["prefixes"], serde_json::json!(["d/"]));
    for (query, code) in [
        ("fields=colour", "InvalidParameter"),
        ("limit=0", "InvalidParameter"),
        ("delimiter=x", "InvalidParameter"),
    ] {
        assert_eq!(client.get(&at(&store, &format!("b/o?{query}"))).code(), code, "{query}");
    }
    assert_eq!(client.get(&at(&store, "none/o")).code(), "BucketNotFound");
    assert_eq!(client.get("/n/elsewhere/b/b/o").code(), "NamespaceNotFound");
}

#[test]
fn pages_are_followed_by_next_start_with() {
    let store = open_store();
    for index in 0..25 {
        store.put("b", &format!("p/{index:02}"), b"").unwrap();
    }
    let mut client = Client::new(&store);
    let (mut names, mut start) = (Vec::new(), String::new());
    for page in 0..3 {
        let listing = client.get(&at(&store, &format!("b/o?prefix=p%2F&limit=10{start}"))).json();
        let objects = listing["objects"].as_array().unwrap();
        names.extend(objects.iter().map(|object| object["name"].as_str().unwrap().to_owned()));
        let next = listing["nextStartWith"].as_str().map(|next| next.replace('/', "%2F"));
        assert_eq!(next.is_none(), page == 2);
        start = format!("&start={}", next.unwrap_or_default());
    }
    assert_eq!(names, (0..25).map(|index| format!("p/{index:02}")).collect::<Vec<_>>());
}

#[test]
fn an_archived_object_is_read_after_it_was_restored() {
    let store = open_store();
    let options = PutOptions { tier: StorageTier::Archive, ..PutOptions::default() };
    store.put_with("b", "x", b"cold", options).unwrap();
    let mut client = Client::new(&store);
    let target = at(&store, "b/o/x");
    let refused = client.get(&target);
    assert_eq!((refused.status, refused.code().as_str()), (409, "NotRestored"));
    let fields = at(&store, "b/o?fields=storageTier%2CarchivalState");
    let listed = client.get(&fields).json()["objects"][0].clone();
    assert_eq!(
        (&listed["storageTier"], &listed["archivalState"]),
        (&"Archive".into(), &"Archived".into())
    );
    let restore = at(&store, "b/actions/restoreObjects");
    for status in [202, 200] {
        let answer = client.call("POST", &restore, &[], br#"{"objectName": "x"}"#);
        assert_eq!(answer.status, status);
    }
    assert_eq!(client.get(&target).body, b"cold");
}

#[test]
fn buckets_are_created_listed_and_deleted_when_empty() {
    let store = open_store();
    let mut client = Client::new(&store);
    let buckets = format!("/n/{}/b", store.namespace());
    let body = br#"{"name": "models", "compartmentId": "ocid1.compartment.oc1..x"}"#;
    assert_eq!(client.call("POST", &buckets, &[], body).json()["name"], "models");
    let again = client.call("POST", &buckets, &[], body);
    assert_eq!((again.status, again.code().as_str()), (409, "BucketAlreadyExists"));
    for name in ["..", ".localstore", "a/b", ""] {
        let body = format!(r#"{{"name": "{name}", "compartmentId": "c"}}"#);
        let refused = client.call("POST", &buckets, &[], body.as_bytes());
        assert_eq!(refused.code(), "InvalidBucketName", "{name}");
    }
    assert_eq!(client.get(&buckets).code(), "MissingParameter");
    let listed = client.get(&format!("{buckets}?compartmentId=c")).json();
    assert_eq!(listed[0]["name"], "models");
    let head = client.call("HEAD", &format!("{buckets}/models"), &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    store.put("models", "x", b"").unwrap();
    let full = client.call("DELETE", &format!("{buckets}/models"), &[], b"");
    assert_eq!((full.status, full.code().as_str()), (409, "BucketNotEmpty"));
    store.delete("models", "x").unwrap();
    assert_eq!(client.call("DELETE", &format!("{buckets}/models"), &[], b"").status, 204);
    assert_eq!(client.get(&format!("{buckets}/models")).status, 404);
}
