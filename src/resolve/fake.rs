//! A few small objects behind a real socket, for unit tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{ClientPool, ResolveLimits, Resolver};
use crate::oci::{Environment, Settings, StorageConnector};
use crate::source::AuthMethod;

type Objects = Arc<Vec<(String, u64)>>;

/// A store that lists its objects in any bucket and answers 404 to everything else.
pub(crate) struct FakeStore {
    endpoint: String,
    listings: Arc<AtomicUsize>,
    open: watch::Sender<bool>,
}

impl FakeStore {
    /// Starts a store of objects with these names and sizes, in the order of their names.
    pub(crate) async fn start(objects: &[(&str, u64)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let objects: Objects =
            Arc::new(objects.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect());
        let listings = Arc::new(AtomicUsize::new(0));
        let (open, gate) = watch::channel(true);
        let count = Arc::clone(&listings);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (objects, count, gate) =
                    (Arc::clone(&objects), Arc::clone(&count), gate.clone());
                tokio::spawn(answer(stream, objects, count, gate));
            }
        });
        Self { endpoint, listings, open }
    }

    /// A resolver that asks this store.
    pub(crate) async fn resolver(&self) -> Resolver {
        let limits = ResolveLimits { max_objects: 100, max_bytes: None };
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        Resolver::new(self.pool().await, limits, &tasks, &shutdown)
    }

    /// The routes to this store.
    pub(crate) async fn pool(&self) -> ClientPool {
        let settings = Settings {
            endpoint: Some(self.endpoint.clone()),
            namespace: Some("mytenancy".to_owned()),
            environment: Environment::empty(),
            ..Settings::new(AuthMethod::None)
        };
        ClientPool::new(Arc::new(StorageConnector::connect(settings).await.unwrap()), Vec::new())
    }

    /// The number of listings so far.
    pub(crate) fn listings(&self) -> usize {
        self.listings.load(Ordering::SeqCst)
    }

    /// Answers requests, or keeps them waiting.
    pub(crate) fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

async fn answer(
    mut stream: TcpStream,
    objects: Objects,
    listings: Arc<AtomicUsize>,
    mut gate: watch::Receiver<bool>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap();
    let (status, body) = match target.split_once("/o?") {
        Some((_, query)) => {
            listings.fetch_add(1, Ordering::SeqCst);
            ("200 OK", listing(&objects, query))
        }
        None => ("404 Not Found", "{}".to_owned()),
    };
    if gate.wait_for(|open| *open).await.is_err() {
        return;
    }
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    // The test may have dropped the client.
    let _ = stream.write_all(answer.as_bytes()).await;
}

fn listing(objects: &Objects, query: &str) -> String {
    let prefix = query.split('&').find_map(|pair| pair.strip_prefix("prefix=")).unwrap_or("");
    let prefix = percent_encoding::percent_decode_str(prefix).decode_utf8().unwrap();
    let listed: Vec<_> = objects
        .iter()
        .filter(|(name, _)| name.starts_with(&*prefix))
        .map(|(name, size)| serde_json::json!({"name": name, "size": size, "etag": "e1"}))
        .collect();
    serde_json::json!({ "objects": listed }).to_string()
}
