//! What one pod or claim can find out by one request: its answer by channel, in a form in which
//! the answers about two models can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use localstore::{LocalStore, RequestRecord};
use oci_model_csi::csi::proto::CreateVolumeRequest;
use oci_model_csi::csi::proto::volume_capability::access_mode::Mode;
use serde_json::json;

use super::api_server::ApiServer;
use super::driver::{Driver, Setup};
use super::kubelet::{Volume, mount_capability};
use super::run::eventually;
use super::workloads;

/// The Node object of the drivers.
const NODE: &str = "/api/v1/nodes/node-1";

/// How long an event may take.
const SOON: Duration = Duration::from_secs(10);

/// The channels by which a pod's or a claim's author may learn something.
pub(crate) const CHANNELS: [&str; 5] = ["status", "event", "requests", "metrics", "stats"];

/// An answer: what each of [`CHANNELS`] shows, and how long it took.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) shown: [String; CHANNELS.len()],
    pub(crate) took: Duration,
}

/// A request about a model: whose texts have to be alike apart from these names.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) bucket: String,
    pub(crate) prefix: String,
    pub(crate) more: Vec<(String, String)>,
}

/// A driver with its store and its API server.
pub(crate) struct World {
    pub(crate) store: LocalStore,
    pub(crate) driver: Driver,
    pub(crate) api: ApiServer,
    /// Objects of downloads that run meanwhile: requests for them are not the pod's.
    pub(crate) elsewhere: &'static str,
    /// What the pods of these Kubernetes namespaces read with, in place of their accounts.
    pub(crate) secrets: BTreeMap<&'static str, TeamSecret>,
    pods: AtomicU32,
}

/// The Secret of a namespace's pods, and the caller of the requests that are sent with it.
#[derive(Debug, Clone)]
pub(crate) struct TeamSecret {
    pub(crate) content: BTreeMap<String, String>,
    pub(crate) caller: String,
}

impl World {
    /// Starts the driver of `setup`, with an API server and labels for models.
    pub(crate) async fn start(store: LocalStore, mut setup: Setup, scratch: &Path) -> Self {
        let api = ApiServer::start().await;
        api.put(
            NODE,
            json!({"metadata": {"name": "node-1", "labels": {}}, "spec": {"taints": []}}),
        );
        let account = scratch.join("account");
        fs::create_dir_all(&account).expect("a directory for the token");
        fs::write(account.join("token"), "a-token").expect("a token");
        let account = account.to_str().expect("a UTF-8 path").to_owned();
        let arguments =
            ["--kubernetes-api", &api.url, "--service-account-dir", &account, "--model-labels=32"];
        setup.arguments.extend(arguments.map(str::to_owned));
        let driver = setup.start().await;
        let (elsewhere, secrets, pods) = ("/elsewhere", BTreeMap::new(), AtomicU32::new(1));
        Self { store, driver, api, elsewhere, secrets, pods }
    }

    /// A new pod of this Kubernetes namespace that asks the question.
    pub(crate) fn pod(&self, team: &str, question: &Question) -> Volume {
        let n = self.pods.fetch_add(1, Ordering::Relaxed).to_string();
        let mut kubelet = self.driver.kubelet();
        // Long enough for a refusal that is retried, and short for those that wait.
        kubelet.deadline = Duration::from_secs(30);
        let volume = kubelet.inline(&n, &question.attributes());
        let mut volume = workloads::of_team(volume, &self.store, team);
        if let Some(secret) = self.secrets.get(team) {
            volume.secrets.clone_from(&secret.content);
        }
        volume
    }

    /// The answer to a pod of this namespace.
    pub(crate) async fn answer(&self, team: &str, question: &Question) -> Answer {
        let volume = self.pod(team, question);
        let uid = volume.uid.clone();
        let before = counters(&self.driver.metrics().await);
        self.store.reset_stats();
        let published = volume.publish().await;
        let took = volume.calls().pop().expect("a call").took;
        let status = match &published {
            Ok(()) => "mounted".to_owned(),
            Err(status) => format!("{:?}: {}", status.code(), status.message().replace("%%", "%")),
        };
        let event = self.event_about(&uid, &status).await;
        let requests = self.requests(question, team);
        let metrics = changed(&before, &counters(&self.driver.metrics().await));
        let stats = match volume.stats().await {
            Ok(stats) => format!("{stats:?}"),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        if published.is_ok() {
            volume.unpublish().await.expect("an unpublish");
        }
        let own = [volume.target().display().to_string(), volume.id.clone(), uid];
        let plain = |text: String| question.without_names(&text, &own);
        Answer { shown: [status, event, requests, metrics, stats].map(plain), took }
    }

    /// The answer to a claim in this namespace, whose StorageClass names the bucket.
    pub(crate) async fn answer_to_claim(&self, team: &str, question: &Question) -> Answer {
        let n = self.pods.fetch_add(1, Ordering::Relaxed);
        let uid = format!("0f3c2a1e-7d55-4c0b-9a51-{n:012}");
        let own = [
            ("csi.storage.k8s.io/pvc/name".to_owned(), format!("claim-{n}")),
            ("csi.storage.k8s.io/pvc/namespace".to_owned(), team.to_owned()),
        ];
        let asked = question.attributes().into_iter();
        let asked = asked.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let request = CreateVolumeRequest {
            name: format!("pvc-{uid}"),
            volume_capabilities: vec![mount_capability(Mode::MultiNodeReaderOnly)],
            parameters: asked.chain(own).collect(),
            ..CreateVolumeRequest::default()
        };
        let before = counters(&self.driver.metrics().await);
        self.store.reset_stats();
        let started = Instant::now();
        let made = self.driver.kubelet().controller().await.create_volume(request).await;
        let took = started.elapsed();
        let status = match made {
            Ok(made) => format!("{:?}", made.into_inner().volume.map(|one| one.capacity_bytes)),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        let event = self.event_about(&uid, &status).await;
        let requests = self.requests(question, team);
        let metrics = changed(&before, &counters(&self.driver.metrics().await));
        let own = [uid, format!("claim-{n}")];
        let plain = |text: String| question.without_names(&text, &own);
        Answer { shown: [status, event, requests, metrics, String::new()].map(plain), took }
    }

    /// Reasons and messages of the events about this UID, once there is one. Answers that are not
    /// final cause none.
    async fn event_about(&self, uid: &str, status: &str) -> String {
        let about = || {
            let events = self.api.events().into_iter();
            let own = events.filter(|event| event["involvedObject"]["uid"] == uid);
            own.map(|event| format!("{}: {}", event["reason"], event["message"])).collect()
        };
        if status.starts_with("Aborted") || status.starts_with("Some(") {
            return String::new();
        }
        eventually("an event", SOON, async || {
            let found: Vec<String> = about();
            (!found.is_empty()).then(|| found.join("; "))
        })
        .await
    }

    /// What Object Storage was asked for this pod: each kind of request once, with its status.
    fn requests(&self, question: &Question, team: &str) -> String {
        let secret = self.secrets.get(team).map(|secret| secret.caller.clone());
        let own = secret.or_else(|| Some(workloads::caller(team)));
        let of_pod =
            |one: &RequestRecord| !one.target.contains(self.elsewhere) || one.caller == own;
        let sent = self.store.requests().into_iter().filter(of_pod);
        let kinds: BTreeSet<String> =
            sent.map(|one| format!("{:?} {}", one.operation, one.status)).collect();
        question.without_names(&kinds.into_iter().collect::<Vec<_>>().join(", "), &[])
    }

    /// Names of the node's labels for models.
    pub(crate) fn labels(&self) -> Vec<String> {
        let node = self.api.object(NODE);
        let labels = node["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        labels.into_iter().map(|(key, _)| key).filter(|key| key.contains("/model.")).collect()
    }

    /// How often the driver has compared the node's labels with its cache.
    pub(crate) fn label_checks(&self) -> usize {
        let path = format!("GET {NODE}");
        self.api.requests().iter().filter(|request| **request == path).count()
    }
}

impl Question {
    pub(crate) fn new(bucket: &str, prefix: &str, more: &[(&str, &str)]) -> Self {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
        Self { bucket, prefix, more: more.iter().map(owned).collect() }
    }

    fn attributes(&self) -> Vec<(&str, &str)> {
        let more = self.more.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        [("bucket", self.bucket.as_str()), ("prefix", self.prefix.as_str())]
            .into_iter()
            .chain(more)
            .collect()
    }

    /// A text without what the question itself names, and without what differs between any two
    /// requests.
    fn without_names(&self, text: &str, own: &[String]) -> String {
        let mut text = without_request_ids(text);
        for name in own {
            text = text.replace(name.as_str(), "OWN");
        }
        let prefix = self.prefix.trim_end_matches('/');
        if !prefix.is_empty() {
            text = text.replace(&format!("{prefix}/"), "PREFIX").replace(prefix, "PREFIX");
        }
        for (key, value) in &self.more {
            text = text.replace(value.as_str(), &key.to_uppercase());
        }
        text.replace(&self.bucket, "BUCKET")
    }
}

fn without_request_ids(text: &str) -> String {
    let mut parts = text.split("(opc-request-id ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + "(opc-request-id" + part.find(')').map_or("", |end| &part[end..])
    })
}

/// The counters of a page of metrics: of histograms, how many values they have. Left out is what
/// other downloads change meanwhile, and what is counted after an event has arrived.
fn counters(metrics: &str) -> BTreeMap<String, String> {
    let series = metrics.lines().filter_map(|line| line.rsplit_once(' '));
    series
        .filter(|(name, _)| {
            let base = name.split('{').next().unwrap_or_default();
            let is_of_others = base.contains("_download_bytes") || base.contains("_events");
            (base.ends_with("_total") || base.ends_with("_count")) && !is_of_others
        })
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The series that differ. By how much they do says how many directories a model has, of those
/// that its reader may read.
fn changed(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> String {
    let differs = |(name, value): &(&String, &String)| before.get(*name) != Some(*value);
    let names = after.iter().filter(differs).map(|(name, _)| name.as_str());
    names.collect::<Vec<_>>().join(" ")
}
