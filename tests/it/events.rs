//! What `kubectl describe pod` shows of a model on its way to the pod.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::api_server::ApiServer;
use crate::support::driver::{Driver, Setup};
use crate::support::models::{BUCKET, MIB, PHI3, put_large, store_with_phi3};
use crate::support::run::{end_to_end, eventually, figure};
use localstore::{Action, LocalStore, Operation, PutOptions, Rule};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tonic::Code;

/// How long the driver tries to connect to the API server before it gives up.
const CONNECT: Duration = Duration::from_secs(5);

async fn driver_with(scratch: &Path, store: &LocalStore, api: &str) -> Driver {
    let account = scratch.join("account");
    fs::create_dir(&account).unwrap();
    fs::write(account.join("token"), "a-token").unwrap();
    let mut setup = Setup::new(scratch, store);
    let account = account.to_str().unwrap();
    let arguments = ["--kubernetes-api", api, "--service-account-dir", account];
    setup.arguments.extend(arguments.map(str::to_owned));
    setup.start().await
}

async fn event_message(api: &ApiServer, reason: &str) -> String {
    let message =
        eventually(reason, Duration::from_secs(10), async || api.message_of(reason)).await;
    figure(format_args!("event {reason}: {message}"));
    message
}

#[test]
fn the_events_of_a_pod_show_the_progress_of_its_model() {
    end_to_end(async |scratch| {
        let store = LocalStore::builder().start().unwrap();
        put_large(&store, "model.bin", 24 * MIB, 1, PutOptions::default());
        let slow = Action::Bandwidth { bytes_per_sec: 8 * MIB };
        store.faults().add(Rule::new(slow).operation(Operation::Get));
        let api = ApiServer::start().await;
        let driver = driver_with(scratch, &store, &api.url).await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        let pulling = event_message(&api, "ModelPulling").await;
        assert!(pulling.starts_with("downloading models/phi3-mini/ from ai-model-cache: "));
        let pulled = event_message(&api, "ModelPulled").await;
        assert!(pulled.contains("(24 MiB) was downloaded and verified"), "{pulled}");
        kubelet.inline("2", &PHI3).publish().await.unwrap();
        assert!(event_message(&api, "ModelCacheHit").await.contains("was in this node's cache"));
        let pulling = api.reported().iter().filter(|(reason, _)| reason == "ModelPulling").count();
        assert_eq!(pulling, 1, "at most once a minute");
    });
}

#[test]
fn the_events_of_a_pod_say_why_its_model_is_missing() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        let driver = driver_with(scratch, &store, &api.url).await;
        let wrong = driver.kubelet().inline("1", &[("bucket", BUCKET), ("prefix", "models/phi4/")]);
        for _ in 0..3 {
            assert_eq!(wrong.refused().await.0, Code::NotFound);
        }
        let failed = event_message(&api, "ModelPullFailed").await;
        assert!(failed.contains("the nearest prefixes are models/phi3-mini/"), "{failed}");
        assert_eq!(
            api.reported().len(),
            1,
            "the same error is reported once: {:?}",
            api.reported()
        );
    });
}

#[test]
fn the_events_of_a_pod_say_that_its_model_may_be_old() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        let driver = driver_with(scratch, &store, &api.url).await;
        let kubelet = driver.kubelet();
        kubelet.inline("1", &PHI3).publish().await.unwrap();
        store.faults().add(Rule::new(Action::Disconnect));
        let volume = kubelet.inline("2", &PHI3);
        volume.publish().await.unwrap();
        let stale = event_message(&api, "ModelServedStale").await;
        let words = [
            "models/phi3-mini/",
            "newest revision in this node's cache, sha256:",
            "serveStaleOnOutage",
        ];
        assert!(words.iter().all(|word| stale.contains(word)), "{stale}");
        let events = api.events();
        let event = events.iter().find(|event| event["reason"] == "ModelServedStale").unwrap();
        assert_eq!(
            (&event["type"], &event["involvedObject"]["uid"]),
            (&"Warning".into(), &volume.uid.as_str().into())
        );
    });
}

#[test]
fn the_events_of_a_pod_show_mistakes_in_its_volume_too() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = ApiServer::start().await;
        let driver = driver_with(scratch, &store, &api.url).await;
        let kubelet = driver.kubelet();
        let misspelt = [PHI3.as_slice(), &[("prefx", "models/")]].concat();
        let unknown = kubelet.inline("1", &misspelt);
        let mut writable = kubelet.inline("2", &PHI3);
        writable.read_only = false;
        for (count, (volume, word)) in
            [(&unknown, "prefx"), (&writable, "readOnly: true")].iter().enumerate()
        {
            let (code, message) = volume.refused().await;
            assert_eq!(code, Code::InvalidArgument);
            let event = eventually("the event", Duration::from_secs(10), async || {
                api.events().get(count).cloned()
            })
            .await;
            assert_eq!(event["reason"], "ModelPullFailed");
            assert_eq!(event["involvedObject"]["uid"], volume.uid.as_str());
            let note = event["message"].as_str().unwrap();
            assert!(note.contains(word) && message.contains(note), "{note:?} and {message:?}");
        }
    });
}

/// An API server that accepts requests and never answers. Counts the requests
/// about events, and those of them that their sender has given up.
#[derive(Default)]
struct Silent {
    asked: AtomicUsize,
    given_up: AtomicUsize,
}

impl Silent {
    async fn start() -> (String, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let silent = Arc::new(Self::default());
        let counts = Arc::clone(&silent);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counts = Arc::clone(&counts);
                tokio::spawn(async move {
                    let mut lines = BufReader::new(stream).lines();
                    let first = lines.next_line().await.ok().flatten().unwrap_or_default();
                    if !first.contains("/events") {
                        // The node's taint, for example; also held open.
                        while matches!(lines.next_line().await, Ok(Some(_))) {}
                        return;
                    }
                    counts.asked.fetch_add(1, Ordering::SeqCst);
                    while matches!(lines.next_line().await, Ok(Some(_))) {}
                    counts.given_up.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        (url, silent)
    }

    fn given_up(&self) -> usize {
        self.given_up.load(Ordering::SeqCst)
    }

    /// Waits until it got more than this many requests.
    async fn asked_after(&self, before: usize) -> usize {
        eventually("a request", Duration::from_secs(30), async || {
            Some(self.asked.load(Ordering::SeqCst)).filter(|asked| *asked > before)
        })
        .await
    }
}

#[test]
fn an_api_server_that_never_answers_delays_no_publish() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let (url, api) = Silent::start().await;
        let mut driver = driver_with(scratch, &store, &url).await;
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        assert_eq!(api.given_up(), 0, "it returned while its event still waits for an answer");
        let asked = api.asked_after(0).await;
        // A new process asks again, whatever the old one still waits for.
        driver.restart_to(None).await;
        let given_up =
            eventually("the old process's requests", Duration::from_secs(10), async || {
                Some(api.given_up()).filter(|given_up| *given_up == asked)
            })
            .await;
        driver.kubelet().inline("2", &PHI3).publish().await.unwrap();
        assert_eq!(api.given_up(), given_up, "a hit neither");
        assert_eq!(driver.metric("publish_total{result=\"hit\"}").await, 1);
        api.asked_after(asked).await;
    });
}

/// An address where connecting takes until the client gives up, as of a machine that is
/// switched off: the listener's backlog is full, and the kernel drops what comes then.
struct Unreachable {
    url: String,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Unreachable {
    async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) =
            tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await
        {
            waiting.push(stream.unwrap());
            assert!(waiting.len() < 100, "the backlog has no end");
        }
        Self { url: format!("http://{address}"), _listener: listener, _waiting: waiting }
    }
}

#[test]
fn an_unreachable_api_server_delays_no_publish() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let api = Unreachable::new().await;
        let driver = driver_with(scratch, &store, &api.url).await;
        let kubelet = driver.kubelet();
        let mut took = Vec::new();
        for pod in ["1", "2", "3"] {
            let volume = kubelet.inline(pod, &PHI3);
            volume.publish().await.unwrap();
            took.extend(volume.calls().iter().map(|call| call.took));
        }
        // A publish that waits for the API server takes this long at least, each time.
        let fastest = took.iter().min().unwrap();
        assert!(*fastest < CONNECT, "{took:?}");
        figure(format_args!("publishes beside an API server that is not there: {took:?}"));
    });
}
