use super::*;
use std::sync::Barrier;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn endpoint(text: &str) -> SocketEndpoint {
    text.parse().unwrap()
}

fn in_dir(dir: &TempDir) -> SocketEndpoint {
    endpoint(dir.path().join("csi.sock").to_str().unwrap())
}

fn leave_a_stale_socket(endpoint: &SocketEndpoint) {
    drop(StdUnixListener::bind(endpoint.path()).unwrap());
    assert!(endpoint.path().exists());
}

async fn refused(endpoint: &SocketEndpoint, kind: ErrorKind) -> String {
    let error = bind(endpoint).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.message().contains(endpoint.path().to_str().unwrap()), "{error}");
    error.message().to_owned()
}

#[test]
fn every_spelling_of_a_unix_endpoint_is_parsed() {
    for (text, path) in [
        ("unix:///csi/csi.sock", "/csi/csi.sock"),
        ("unix:/csi/csi.sock", "/csi/csi.sock"),
        ("unix://csi/csi.sock", "csi/csi.sock"),
        ("unix:csi.sock", "csi.sock"),
        ("UNIX:///csi/csi.sock", "/csi/csi.sock"),
        ("/csi/csi.sock", "/csi/csi.sock"),
        ("/csi/with:colon", "/csi/with:colon"),
        ("csi.sock", "csi.sock"),
    ] {
        assert_eq!(endpoint(text).path(), Path::new(path), "{text}");
    }
    assert_eq!(endpoint("unix:///a/b").to_string(), "unix:/a/b");
    let longest = format!("/{}", "x".repeat(MAX_PATH_BYTES - 1));
    assert_eq!(endpoint(&longest).path(), Path::new(&longest));
}

#[test]
fn anything_else_is_refused_with_the_expected_spelling() {
    let long = format!("unix:///{}", "x".repeat(MAX_PATH_BYTES));
    for text in [
        "",
        "unix:",
        "unix://",
        "unix:///",
        "/",
        "/csi/",
        "/csi/..",
        "tcp://127.0.0.1:10000",
        "127.0.0.1:10000",
        "http://localhost/csi.sock",
        "unix-abstract:csi",
        "unix:@csi",
        "unix:///a\0b",
        &long,
    ] {
        let error = text.parse::<SocketEndpoint>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().contains("unix:///path/to/csi.sock"), "{error}");
    }
}

#[tokio::test]
async fn a_client_is_served_on_a_socket_only_its_owner_may_use() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = in_dir(&dir);
    let (listener, guard) = bind(&endpoint).await.unwrap();
    assert_eq!(guard.path(), endpoint.path());
    let metadata = fs::symlink_metadata(endpoint.path()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);

    let mut client = UnixStream::connect(endpoint.path()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = in_dir(&dir);
    leave_a_stale_socket(&endpoint);
    let (listener, guard) = bind(&endpoint).await.unwrap();
    UnixStream::connect(endpoint.path()).await.unwrap();
    listener.accept().await.unwrap();
    drop(guard);
}

#[tokio::test]
async fn a_live_socket_is_never_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = in_dir(&dir);
    // A program that does not use the lock.
    let other = StdUnixListener::bind(endpoint.path()).unwrap();
    let before = identity(endpoint.path()).unwrap();
    assert!(refused(&endpoint, ErrorKind::Conflict).await.contains("stop it first"));
    assert_eq!(identity(endpoint.path()).unwrap(), before);
    drop(other);
    bind(&endpoint).await.unwrap();
}

#[tokio::test]
async fn a_second_driver_is_refused_even_when_the_first_one_lost_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = in_dir(&dir);
    let first = bind(&endpoint).await.unwrap();
    refused(&endpoint, ErrorKind::Conflict).await;
    fs::remove_file(endpoint.path()).unwrap();
    refused(&endpoint, ErrorKind::Conflict).await;
    drop(first);
    bind(&endpoint).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_of_several_drivers_that_start_together_binds() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = in_dir(&dir);
    leave_a_stale_socket(&endpoint);
    let start = Barrier::new(8);
    let runtime = tokio::runtime::Handle::current();
    let results: Vec<_> = std::thread::scope(|scope| {
        let start_one = || {
            start.wait();
            runtime.block_on(bind(&endpoint))
        };
        let starters: Vec<_> = (0..8).map(|_| scope.spawn(start_one)).collect();
        starters.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|one| one.is_ok()).count(), 1);
    UnixStream::connect(endpoint.path()).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_not_a_socket_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = in_dir(&dir);
    fs::write(endpoint.path(), "data").unwrap();
    assert!(refused(&endpoint, ErrorKind::Conflict).await.contains("not a socket"));
    assert_eq!(fs::read_to_string(endpoint.path()).unwrap(), "data");

    fs::remove_file(endpoint.path()).unwrap();
    let real = dir.path().join("real.sock");
    drop(StdUnixListener::bind(&real).unwrap());
    std::os::unix::fs::symlink(&real, endpoint.path()).unwrap();
    refused(&endpoint, ErrorKind::Conflict).await;
    assert!(real.exists() && endpoint.path().is_symlink());
}

#[tokio::test]
async fn a_missing_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absent/csi.sock");
    let message = refused(&endpoint(path.to_str().unwrap()), ErrorKind::Invalid).await;
    assert!(message.contains("absent does not exist"), "{message}");
    assert!(!dir.path().join("absent").exists());
}

#[tokio::test]
async fn dropping_the_guard_removes_the_socket_file() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = in_dir(&dir);
    let (listener, guard) = bind(&endpoint).await.unwrap();
    drop(listener);
    drop(guard);
    let left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(left, [".csi.sock.lock"]);
}

#[tokio::test]
async fn a_socket_file_of_another_process_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = in_dir(&dir);
    let (listener, guard) = bind(&endpoint).await.unwrap();
    // Created before the first one's inode is free, so that its number differs.
    let other = dir.path().join("other.sock");
    let _other = StdUnixListener::bind(&other).unwrap();
    fs::rename(&other, endpoint.path()).unwrap();
    drop(listener);
    drop(guard);
    UnixStream::connect(endpoint.path()).await.unwrap();
}

#[tokio::test]
async fn leftovers_of_a_killed_driver_do_not_block_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = in_dir(&dir);
    let private_dir = dir.path().join(".csi.sock.new");
    fs::create_dir(&private_dir).unwrap();
    drop(StdUnixListener::bind(private_dir.join("s")).unwrap());
    fs::write(dir.path().join(".csi.sock.lock"), "").unwrap();
    bind(&endpoint).await.unwrap();
    assert!(!private_dir.exists());
}

#[tokio::test]
async fn the_longest_path_that_clients_can_use_works() {
    let dir = tempfile::tempdir().unwrap();
    let room = MAX_PATH_BYTES - dir.path().as_os_str().len() - 1;
    let path = dir.path().join("s".repeat(room));
    let (listener, _guard) = bind(&endpoint(path.to_str().unwrap())).await.unwrap();
    UnixStream::connect(&path).await.unwrap();
    listener.accept().await.unwrap();
}
