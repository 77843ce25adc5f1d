//! Events against a server that answers as the API server does.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

use super::*;
use crate::kubernetes::Cluster;

/// One request: method, path, bearer, body.
type Seen = Arc<Mutex<Vec<(Method, String, String, Value)>>>;

struct EventsServer {
    seen: Seen,
    status: Arc<AtomicU16>,
    /// The next answers.
    says: Arc<Mutex<Value>>,
    events: Events,
    _account: tempfile::TempDir,
    shutdown: CancellationToken,
}

async fn server() -> EventsServer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (seen, status) = (Seen::default(), Arc::new(AtomicU16::new(201)));
    let says = Arc::new(Mutex::new(serde_json::json!({})));
    let (log, answer, text) = (Arc::clone(&seen), Arc::clone(&status), Arc::clone(&says));
    let shutdown = CancellationToken::new();
    let ends = shutdown.clone();
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ends.cancelled() => return,
            };
            let (log, answer, text) = (Arc::clone(&log), Arc::clone(&answer), Arc::clone(&text));
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (log, answer, text) =
                    (Arc::clone(&log), Arc::clone(&answer), Arc::clone(&text));
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let bearer = head.headers["authorization"].to_str().unwrap().to_owned();
                    let body = serde_json::from_slice(&body).unwrap();
                    log.lock().unwrap().push((
                        head.method,
                        head.uri.path().to_owned(),
                        bearer,
                        body,
                    ));
                    let mut response =
                        Response::new(Full::new(Bytes::from(text.lock().unwrap().to_string())));
                    *response.status_mut() =
                        StatusCode::from_u16(answer.load(Ordering::Relaxed)).unwrap();
                    Ok::<_, Infallible>(response)
                }
            });
            let stream = TokioIo::new(accepted.unwrap().0);
            tokio::spawn(http1::Builder::new().serve_connection(stream, service));
        }
    });
    let account = tempfile::tempdir().unwrap();
    std::fs::write(account.path().join("token"), "secret-token\n").unwrap();
    let api = kubernetes::ApiServer::new(&Cluster::at(url, account.path())).unwrap();
    let tasks = TaskTracker::new();
    let events = Events::to(api, "oci-model-csi.dev", "node-1", &tasks, &shutdown);
    EventsServer { seen, status, says, events, _account: account, shutdown }
}

impl EventsServer {
    async fn until_seen(&self, count: usize) -> Vec<(Method, String, String, Value)> {
        for _ in 0..500 {
            if self.seen.lock().unwrap().len() >= count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for EventsServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn pod(name: &str) -> InvolvedObject {
    let owned = str::to_owned;
    InvolvedObject {
        kind: ObjectKind::Pod,
        namespace: owned("team-a"),
        name: owned(name),
        uid: format!("uid-of-{name}"),
    }
}

#[tokio::test]
async fn an_event_names_its_pod_so_that_kubectl_describe_shows_it() {
    let server = server().await;
    server.events.record(pod("vllm-0"), Reason::PullFailed, "no such bucket");
    let seen = server.until_seen(1).await;
    let (method, path, bearer, body) = &seen[0];
    assert_eq!((method, path.as_str()), (&Method::POST, "/api/v1/namespaces/team-a/events"));
    assert_eq!(bearer, "Bearer secret-token");
    assert_eq!(body["involvedObject"]["uid"], "uid-of-vllm-0");
    assert_eq!(body["involvedObject"]["kind"], "Pod");
    assert_eq!((&body["reason"], &body["type"]), (&"ModelPullFailed".into(), &"Warning".into()));
    assert_eq!(body["message"], "no such bucket");
    assert_eq!(body["source"]["host"], "node-1");
    assert!(body["metadata"]["name"].as_str().unwrap().starts_with("vllm-0."));
    let time = body["firstTimestamp"].as_str().unwrap();
    assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
}

#[tokio::test]
async fn the_same_news_is_recorded_once_and_other_news_counts_up() {
    let server = server().await;
    for _ in 0..20 {
        server.events.record(pod("a"), Reason::PullFailed, "no space");
        server.events.record(pod("a"), Reason::Pulling, "1 %");
        server.events.record(pod("a"), Reason::Pulling, "2 %");
    }
    server.events.record(pod("a"), Reason::PullFailed, "no bucket");
    server.events.record(pod("b"), Reason::PullFailed, "no space");
    let seen = server.until_seen(4).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(server.seen.lock().unwrap().len(), 4, "{seen:?}");
    let patch = &seen[2];
    assert_eq!(patch.0, Method::PATCH);
    let name = seen[0].3["metadata"]["name"].as_str().unwrap();
    assert!(patch.1.ends_with(name), "{patch:?}");
    assert_eq!((&patch.3["count"], &patch.3["message"]), (&2.into(), &"no bucket".into()));
}

#[tokio::test]
async fn an_event_that_expired_is_created_again() {
    let server = server().await;
    server.events.record(pod("a"), Reason::PullFailed, "one");
    server.until_seen(1).await;
    server.status.store(404, Ordering::Relaxed);
    server.events.record(pod("a"), Reason::PullFailed, "two");
    let seen = server.until_seen(3).await;
    let methods: Vec<_> = seen.iter().map(|one| one.0.clone()).collect();
    assert_eq!(methods, [Method::POST, Method::PATCH, Method::POST]);
}

#[tokio::test]
async fn a_driver_that_may_not_write_events_does_not_keep_trying() {
    let server = server().await;
    server.status.store(403, Ordering::Relaxed);
    for n in 0..10 {
        server.events.record(pod(&n.to_string()), Reason::CacheHit, "hit");
    }
    server.until_seen(1).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(server.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_namespace_that_is_being_deleted_silences_no_other() {
    let server = server().await;
    server.status.store(403, Ordering::Relaxed);
    // As Kubernetes' admission plugin NamespaceLifecycle answers.
    *server.says.lock().unwrap() = serde_json::json!({
        "kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403,
        "message": "events \"a.1\" is forbidden: unable to create new content in namespace team-a \
                    because it is being terminated",
        "details": {"name": "a.1", "kind": "events", "causes": [{
            "reason": "NamespaceTerminating", "field": "metadata.namespace",
            "message": "namespace team-a is being terminated",
        }]},
    });
    server.events.record(pod("a"), Reason::Pulling, "1 %");
    server.until_seen(1).await;
    server.status.store(201, Ordering::Relaxed);
    server.events.record(pod("b"), Reason::CacheHit, "hit");
    let seen = server.until_seen(2).await;
    assert_eq!(seen[1].3["involvedObject"]["name"], "b");
}

#[tokio::test]
async fn recording_never_waits_however_many_events_there_are() {
    let tasks = TaskTracker::new();
    let shutdown = CancellationToken::new();
    let cluster = Cluster::at("http://127.0.0.1:9".to_owned(), Path::new("/nonexistent"));
    let api = kubernetes::ApiServer::new(&cluster).unwrap();
    let events = Events::to(api, "d", "n", &tasks, &shutdown);
    for n in 0..10_000 {
        events.record(pod(&n.to_string()), Reason::Damaged, "damaged");
    }
    Events::default().record(pod("a"), Reason::Damaged, "damaged");
    shutdown.cancel();
    tasks.close();
    tasks.wait().await;
}
