//! Start, restart, files dropped by hand, TLS, the end.

use std::fs;
use std::net::TcpStream;
use std::time::Duration;

use localstore::{LocalStore, PutOptions, Source, StorageTier, synthetic_bytes};

use crate::client::{Client, at, open_store};

fn store_at(root: &std::path::Path) -> LocalStore {
    LocalStore::builder().root(root).verify_signatures(false).start().unwrap()
}

#[test]
fn objects_survive_a_restart_with_all_they_carry() {
    let root = tempfile::tempdir().unwrap();
    let fields = "b/o?fields=name%2Csize%2Cetag%2Cmd5%2CtimeCreated%2CtimeModified%2CstorageTier%2CarchivalState";
    let names = ["d/../x", "multi", "synthetic", "cold", "meta"];
    let heads = |store: &LocalStore| {
        let mut client = Client::new(store);
        names.map(|name| {
            let target = at(store, &format!("b/o/{name}"));
            let mut head = client.call("HEAD", &target, &[], b"").headers;
            head.retain(|name, _| name != "date" && name != "opc-request-id");
            head
        })
    };
    let store = store_at(root.path());
    store.put("b", "d/../x", b"plain bytes").unwrap();
    let parts = PutOptions { part_size: Some(4), crc32c: true, ..PutOptions::default() };
    store.put_with("b", "multi", b"123456789", parts).unwrap();
    let synthetic = Source::Synthetic { size: 5000, seed: 3 };
    store.put_with("b", "synthetic", synthetic, PutOptions::default()).unwrap();
    let cold = PutOptions { tier: StorageTier::Archive, ..PutOptions::default() };
    store.put_with("b", "cold", b"", cold).unwrap();
    Client::new(&store).call("PUT", &at(&store, "b/o/meta"), &[("opc-meta-k", "v")], b"m");
    let before = (Client::new(&store).get(&at(&store, fields)).json(), heads(&store));
    drop(store);

    let store = store_at(root.path());
    assert_eq!((Client::new(&store).get(&at(&store, fields)).json(), heads(&store)), before);
    let mut client = Client::new(&store);
    assert_eq!(client.get(&at(&store, "b/o/d/../x")).body, b"plain bytes");
    assert_eq!(client.get(&at(&store, "b/o/multi")).header("opc-content-crc32c"), Some("4waSgw=="));
    assert_eq!(client.get(&at(&store, "b/o/synthetic")).body, synthetic_bytes(3, 0..5000));
}

#[test]
fn overwritten_and_deleted_objects_leave_no_bytes_behind() {
    let root = tempfile::tempdir().unwrap();
    let store = store_at(root.path());
    for round in 0..3 {
        store.put("b", "x", format!("round {round}")).unwrap();
    }
    let data = root.path().join(".localstore/b/data");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
    store.delete("b", "x").unwrap();
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
    drop(store);
    fs::write(data.join("left by a killed server"), b"").unwrap();
    drop(store_at(root.path()));
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
}

#[test]
fn files_dropped_in_a_bucket_directory_are_objects() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("models/phi/sub");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("a.bin"), b"123456789").unwrap();
    let store = store_at(root.path());
    let mut client = Client::new(&store);
    let (listing, object) =
        (at(&store, "models/o?fields=md5%2Csize"), at(&store, "models/o/phi/sub/a.bin"));
    let listed = client.get(&listing).json()["objects"][0].clone();
    assert_eq!((&listed["name"], &listed["size"]), (&"phi/sub/a.bin".into(), &9.into()));
    assert_eq!(listed["md5"], "JfnnlDI7RTiF9RgfG2JNCw==");
    let first = client.get(&object);
    assert_eq!(
        (first.header("content-md5"), first.header("opc-content-crc32c")),
        (Some("JfnnlDI7RTiF9RgfG2JNCw=="), None)
    );
    let etag = first.header("etag").unwrap().to_owned();
    assert_eq!(store_at(root.path()).etag("models", "phi/sub/a.bin").unwrap(), etag);

    fs::write(dir.join("a.bin"), b"changed, and longer").unwrap();
    assert_ne!(store.etag("models", "phi/sub/a.bin").unwrap(), etag);
    assert_eq!(client.get(&object).body, b"changed, and longer");
    fs::write(dir.join("b.bin"), b"").unwrap();
    assert_eq!(client.get(&listing).json()["objects"].as_array().unwrap().len(), 2);
    fs::remove_file(dir.join("b.bin")).unwrap();
    assert_eq!(client.get(&listing).json()["objects"].as_array().unwrap().len(), 1);
    for outside in ["..%2F..%2Fsecret", "phi%2F..%2Fphi%2Fsub%2Fa.bin", "%2Fetc%2Fpasswd"] {
        assert_eq!(
            client.get(&at(&store, &format!("models/o/{outside}"))).status,
            404,
            "{outside}"
        );
    }

    assert_eq!(client.call("PUT", &object, &[], b"uploaded").status, 200);
    assert_eq!(client.get(&object).body, b"uploaded");
    assert!(!dir.join("a.bin").exists(), "the upload took its place");
}

#[test]
fn a_download_ends_with_the_version_it_began_with() {
    let store = open_store();
    let old = synthetic_bytes(8, 0..8_000_000);
    store.put("b", "x", &old).unwrap();
    let mut client = Client::new(&store);
    // The head goes out and the socket's buffers fill; the rest is read after the overwrite.
    client.send_head("GET", &at(&store, "b/o/x"), &[], 0).unwrap();
    while store.stats().bytes_of("b", "x") == 0 {
        std::thread::yield_now();
    }
    store.put("b", "x", b"new").unwrap();
    assert_eq!(client.receive("GET").unwrap().body, old);
    assert_eq!(Client::new(&store).get(&at(&store, "b/o/x")).body, b"new");
}

#[test]
fn addresses_that_others_reach_are_refused_unless_allowed() {
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let error = LocalStore::builder().listen(everywhere).start().unwrap_err().to_string();
    assert!(error.contains("--allow-non-loopback"), "{error}");
    let store = LocalStore::builder().listen(everywhere).allow_non_loopback(true).start().unwrap();
    assert!(store.endpoint().starts_with("http://127.0.0.1:"));
}

#[test]
fn dropping_ends_the_server_in_sync_and_async_code() {
    let address = open_store().address();
    assert!(TcpStream::connect(address).is_err());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let address = runtime.block_on(async { open_store().address() });
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn tls_serves_https_and_http_on_one_port() {
    let store = LocalStore::builder().tls(true).verify_signatures(false).start().unwrap();
    assert!(store.endpoint().starts_with("https://"));
    assert!(store.imds_base().starts_with("http://"));
    assert_eq!(Client::new(&store).get("/n").status, 200, "plain http");

    let pem = fs::read_to_string(store.ca_file().unwrap()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let ca = <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(pem.as_bytes());
    roots.add(ca.unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    for name in ["127.0.0.1", "localhost"] {
        use std::io::{Read as _, Write as _};
        let name = rustls::pki_types::ServerName::try_from(name).unwrap();
        let session = rustls::ClientConnection::new(std::sync::Arc::new(config.clone()), name);
        let socket = TcpStream::connect(store.address()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut stream = rustls::StreamOwned::new(session.unwrap(), socket);
        stream.write_all(b"GET /n HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
}
