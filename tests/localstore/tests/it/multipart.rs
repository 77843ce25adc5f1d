//! Multipart uploads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use localstore::{LocalStore, synthetic_bytes};
use md5::{Digest as _, Md5};
use serde_json::json;

use crate::client::{Answer, Client, at, open_store};

struct Upload<'a> {
    store: &'a LocalStore,
    client: Client,
    id: String,
}

impl<'a> Upload<'a> {
    fn begin(store: &'a LocalStore, algorithm: &str) -> Self {
        store.create_bucket("b").unwrap();
        let mut client = Client::new(store);
        let body = json!({"object": "d/x", "metadata": {"opc-meta-mtime": "1", "k": "v"}});
        let headers = [("opc-checksum-algorithm", algorithm)];
        let target = at(store, "b/u");
        let created = client.call("POST", &target, &headers, body.to_string().as_bytes()).json();
        let id = created["uploadId"].as_str().unwrap().to_owned();
        Self { store, client, id }
    }

    fn target(&self) -> String {
        at(self.store, &format!("b/u/d%2Fx?uploadId={}", self.id))
    }

    fn part(&mut self, number: u32, bytes: &[u8]) -> String {
        let target = format!("{}&uploadPartNum={number}", self.target());
        let answer = self.client.call("PUT", &target, &[], bytes);
        assert_eq!(answer.status, 200);
        answer.header("etag").unwrap().to_owned()
    }

    fn commit(&mut self, parts: &[(u32, &str)], exclude: &[u32]) -> Answer {
        let parts: Vec<_> =
            parts.iter().map(|(number, etag)| json!({"partNum": number, "etag": etag})).collect();
        let body = json!({"partsToCommit": parts, "partsToExclude": exclude}).to_string();
        let target = self.target();
        self.client.call("POST", &target, &[], body.as_bytes())
    }
}

#[test]
fn parts_in_any_order_make_the_object_in_order() {
    let store = open_store();
    let mut upload = Upload::begin(&store, "CRC32C");
    let whole = synthetic_bytes(3, 0..700_000);
    let parts: Vec<&[u8]> = whole.chunks(300_000).collect();
    upload.part(2, b"replaced below");
    let third = upload.part(3, parts[2]);
    let first = upload.part(1, parts[0]);
    let second = upload.part(2, parts[1]);
    let target = upload.target();
    let listed = upload.client.get(&target).json();
    assert_eq!((&listed[1]["partNumber"], &listed[1]["size"]), (&2.into(), &300_000.into()));
    let committed = upload.commit(&[(3, &third), (1, &first), (2, &second)], &[]);
    assert_eq!(committed.status, 200);

    let digests: Vec<u8> = parts.iter().flat_map(|part| Md5::digest(part).to_vec()).collect();
    let expected = format!("{}-3", BASE64.encode(Md5::digest(&digests)));
    let crc = BASE64.encode(crc32c::crc32c(&whole).to_be_bytes());
    let object = upload.client.get(&at(&store, "b/o/d/x"));
    for answer in [&committed, &object] {
        assert_eq!(answer.header("opc-multipart-md5"), Some(expected.as_str()));
        assert_eq!(answer.header("opc-content-crc32c"), Some(crc.as_str()), "of the whole");
        assert_eq!(answer.header("content-md5"), None);
    }
    assert_eq!(object.body, whole);
    assert_eq!(
        (object.header("opc-meta-mtime"), object.header("opc-meta-k")),
        (Some("1"), Some("v"))
    );
    let range = upload.client.get_range(&at(&store, "b/o/d/x"), "bytes=299990-600010");
    assert_eq!(range.body, whole[299_990..=600_010], "across parts");
    let listing = upload.client.get(&at(&store, "b/o?fields=md5")).json();
    assert_eq!(listing["objects"][0]["md5"], expected);
}

#[test]
fn a_commit_names_every_part_once_with_its_present_etag() {
    let store = open_store();
    let mut upload = Upload::begin(&store, "");
    let first = upload.part(1, b"a");
    let stale = upload.part(2, b"b");
    let second = upload.part(2, b"c");
    for (parts, exclude) in [
        (vec![(1, first.as_str())], vec![]),
        (vec![(1, &first), (2, &stale)], vec![]),
        (vec![(1, &first), (2, &second), (3, &second)], vec![]),
        (vec![(1, &first), (2, &second)], vec![2]),
        (vec![(1, &first), (1, &first), (2, &second)], vec![]),
        (vec![(1, &first), (2, &second)], vec![9]),
        (vec![], vec![1, 2]),
    ] {
        let refused = upload.commit(&parts, &exclude);
        assert_eq!((refused.status, refused.code().as_str()), (400, "InvalidUploadPart"));
    }
    assert_eq!(upload.commit(&[(2, &second)], &[1]).status, 200);
    assert_eq!(upload.client.get(&at(&store, "b/o/d/x")).body, b"c");
    assert_eq!(upload.commit(&[(2, &second)], &[1]).code(), "UploadNotFound");
}

#[test]
fn an_aborted_upload_is_gone() {
    let store = open_store();
    let mut upload = Upload::begin(&store, "");
    upload.part(1, b"a");
    let uploads = upload.client.get(&at(&store, "b/u")).json();
    assert_eq!(uploads[0]["uploadId"], upload.id);
    let target = upload.target();
    for number in ["0", "10001", "x"] {
        let part = format!("{target}&uploadPartNum={number}");
        assert_eq!(upload.client.call("PUT", &part, &[], b"").code(), "InvalidParameter");
    }
    let other_object = target.replace("d%2Fx", "d%2Fy");
    assert_eq!(upload.client.get(&other_object).code(), "UploadNotFound");
    assert_eq!(upload.client.call("DELETE", &target, &[], b"").status, 204);
    assert_eq!(upload.client.get(&target).code(), "UploadNotFound");
    assert_eq!(upload.client.get(&at(&store, "b/u")).json(), json!([]));
}

#[test]
fn of_two_commits_at_once_one_makes_the_object() {
    let root = tempfile::tempdir().unwrap();
    let start =
        || LocalStore::builder().root(root.path()).verify_signatures(false).start().unwrap();
    let store = start();
    for _ in 0..20 {
        let mut first = Upload::begin(&store, "");
        let etag = first.part(1, b"bytes");
        let mut second =
            Upload { store: &store, client: Client::new(&store), id: first.id.clone() };
        let mut statuses = std::thread::scope(|scope| {
            let commits = [&mut first, &mut second]
                .map(|upload| scope.spawn(|| upload.commit(&[(1, &etag)], &[]).status));
            commits.map(|commit| commit.join().unwrap())
        });
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 404]);
    }
    drop(store);
    let store = start();
    assert_eq!(Client::new(&store).get(&at(&store, "b/o/d/x")).body, b"bytes");
}
