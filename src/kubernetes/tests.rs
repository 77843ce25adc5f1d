//! The client against a server of the test's own.

use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// Answers each connection once, with the next of these answers; keeps the requests.
struct ApiServerStub {
    url: String,
    sent: Arc<Mutex<Vec<String>>>,
    account: tempfile::TempDir,
}

async fn server(answers: Vec<(u16, String)>) -> ApiServerStub {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let sent = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&sent);
    tokio::spawn(async move {
        for (status, body) in answers {
            let mut stream = listener.accept().await.unwrap().0;
            let mut request = Vec::new();
            let mut piece = [0; 4096];
            loop {
                let read = stream.read(&mut piece).await.unwrap();
                request.extend_from_slice(&piece[..read]);
                if read == 0 || is_whole(&request) {
                    break;
                }
            }
            log.lock().unwrap().push(String::from_utf8(request).unwrap());
            let head = format!(
                "HTTP/1.1 {status} Whatever\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            // A client that finds the answer too long hangs up.
            let _ = stream.write_all((head + &body).as_bytes()).await;
        }
    });
    let account = tempfile::tempdir().unwrap();
    std::fs::write(account.path().join("token"), "first\n").unwrap();
    ApiServerStub { url, sent, account }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_lowercase();
    let length = head
        .split("content-length: ")
        .nth(1)
        .map_or(0, |rest| rest.lines().next().unwrap().trim().parse().unwrap());
    body.len() >= length
}

impl ApiServerStub {
    fn api(&self) -> ApiServer {
        ApiServer::new(&Cluster::at(self.url.clone(), self.account.path())).unwrap()
    }

    fn sent(&self) -> Vec<String> {
        self.sent.lock().unwrap().clone()
    }
}

fn ok(body: &str) -> (u16, String) {
    (200, body.to_owned())
}

#[tokio::test]
async fn each_request_carries_the_token_that_is_in_the_file_at_that_time() {
    let server = server(vec![ok("{}"), ok("{}")]).await;
    let api = server.api();
    api.get("/api/v1/nodes/a").await.unwrap();
    std::fs::write(server.account.path().join("token"), "second\n").unwrap();
    api.get("/api/v1/nodes/a").await.unwrap();
    let sent = server.sent();
    assert!(sent[0].starts_with("GET /api/v1/nodes/a HTTP/1.1\r\n"), "{}", sent[0]);
    assert!(sent[0].contains("authorization: Bearer first\r\n"), "{}", sent[0]);
    assert!(sent[1].contains("authorization: Bearer second\r\n"), "{}", sent[1]);
    assert!(!sent[0].contains("content-type"), "nothing is sent with a GET: {}", sent[0]);
}

#[tokio::test]
async fn bodies_are_json_and_name_the_kind_of_their_patch() {
    let server = server(vec![ok("{\"n\": 1}"), ok("{\"n\": 2}"), ok("{\"n\": 3}")]).await;
    let api = server.api();
    let body = json!({"a": 1});
    assert_eq!(api.post("/x", &body).await.unwrap()["n"], 1);
    assert_eq!(api.patch("/x", &Patch::Merge(body.clone())).await.unwrap()["n"], 2);
    assert_eq!(api.patch("/x", &Patch::Json(json!([body]))).await.unwrap()["n"], 3);
    let expected = [
        ("POST", "application/json", "{\"a\":1}"),
        ("PATCH", "application/merge-patch+json", "{\"a\":1}"),
        ("PATCH", "application/json-patch+json", "[{\"a\":1}]"),
    ];
    for (sent, (method, kind, body)) in server.sent().iter().zip(expected) {
        assert!(sent.starts_with(method), "{sent}");
        assert!(sent.contains(&format!("content-type: {kind}\r\n")), "{sent}");
        assert!(sent.ends_with(&format!("\r\n\r\n{body}")), "{sent}");
    }
}

#[tokio::test]
async fn a_refusal_says_what_the_api_server_says() {
    let status = json!({"kind": "Status", "message": "nodes \"a\" is forbidden"}).to_string();
    let server =
        server(vec![(403, status), (404, "<html>".into()), (409, "x".repeat(5 << 20))]).await;
    let api = server.api();
    let forbidden = api.get("/x").await.unwrap_err();
    assert!(forbidden.is_forbidden());
    assert_eq!(
        forbidden.to_string(),
        "the API server answered 403 Forbidden: nodes \"a\" is forbidden"
    );
    let missing = api.get("/x").await.unwrap_err();
    assert!(missing.is_not_found());
    assert_eq!(missing.to_string(), "the API server answered 404 Not Found");
    let conflict = api.get("/x").await.unwrap_err();
    assert_eq!(conflict.status(), Some(StatusCode::CONFLICT), "however long its text is");
}

#[tokio::test]
async fn an_answer_that_is_too_long_or_not_json_is_refused() {
    let server = server(vec![ok(&" ".repeat(5 << 20)), ok("<html>")]).await;
    let api = server.api();
    for part in ["longer than 4194304 bytes", "not JSON"] {
        let failure = api.get("/x").await.unwrap_err();
        assert!(matches!(failure, ApiFailure::Unanswered(_)), "{failure:?}");
        assert!(failure.to_string().contains(part), "{failure}");
    }
}

#[tokio::test]
async fn an_absent_server_and_an_absent_token_have_different_errors() {
    let account = tempfile::tempdir().unwrap();
    let cluster = Cluster::at("http://127.0.0.1:9".to_owned(), account.path());
    let api = ApiServer::new(&cluster).unwrap();
    let failure = api.get("/x").await.unwrap_err();
    assert!(failure.to_string().contains("/token: No such file"), "{failure}");
    std::fs::write(account.path().join("token"), "t").unwrap();
    let failure = api.get("/x").await.unwrap_err();
    assert!(failure.to_string().starts_with("no connection: "), "{failure}");
    assert_eq!(failure.status(), None);
}

#[test]
fn a_name_in_a_path_stays_one_name() {
    assert_eq!(path(["api", "v1", "nodes", "10.0.0.7"]), "/api/v1/nodes/10.0.0.7");
    assert_eq!(path(["a/../b", "c?d#e%"]), "/a%2F..%2Fb/c%3Fd%23e%25");
}

#[test]
fn a_ca_that_cannot_be_read_says_what_it_was_for() {
    let account = tempfile::tempdir().unwrap();
    std::fs::write(account.path().join("ca.crt"), "no certificate").unwrap();
    let cluster = Cluster::at("https://127.0.0.1:9".to_owned(), account.path());
    let error = ApiServer::new(&cluster).unwrap_err();
    assert!(error.message().contains("ca.crt for the Kubernetes API: "), "{error}");
}
