//! A client that treats the driver as kubelet does (Kubernetes
//! `pkg/volume/csi`): a connection and a two-minute deadline for each call,
//! the target's parent made and nothing else, a backoff between tries that
//! has no limit, and no unpublish after an error that is final.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use oci_model_csi::csi::proto::controller_client::ControllerClient;
use oci_model_csi::csi::proto::identity_client::IdentityClient;
use oci_model_csi::csi::proto::node_client::NodeClient;
use oci_model_csi::csi::proto::volume_capability::{
    AccessMode, AccessType, MountVolume, access_mode::Mode,
};
use oci_model_csi::csi::proto::{
    NodeGetInfoRequest, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// `csiTimeout`.
const DEADLINE: Duration = Duration::from_secs(120);

/// `initialDurationBeforeRetry` and `maxDurationBeforeRetry`.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(122);

/// Names of kubelet's files and keys.
const POD: &str = "csi.storage.k8s.io/pod";
const VOLUME_DATA: &str = "vol_data.json";

/// kubelet on this node; change its fields for shorter times.
#[derive(Debug, Clone)]
pub(crate) struct Kubelet {
    socket: PathBuf,
    directory: PathBuf,
    pub(crate) deadline: Duration,
    /// Whether the driver gets the deadline, as from gRPC clients.
    pub(crate) sends_deadline: bool,
    pub(crate) longest_backoff: Duration,
}

/// One volume of one pod.
#[derive(Debug)]
pub(crate) struct Volume {
    kubelet: Kubelet,
    pub(crate) id: String,
    pub(crate) pod: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) attributes: BTreeMap<String, String>,
    /// The content of the Secret that the volume names.
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) inline: bool,
    pub(crate) read_only: bool,
    pub(crate) capability: Option<VolumeCapability>,
    /// Used instead of kubelet's own path of the volume.
    pub(crate) other_target: Option<String>,
    calls: Mutex<Vec<Call>>,
}

/// The outcome of one NodePublishVolume.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) took: Duration,
}

/// A connection that says `localhost` as its authority, over a Unix socket.
async fn connect(socket: &Path) -> Result<Channel, Status> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    channel.map_err(|error| Status::unavailable(format!("connecting: {error}")))
}

pub(crate) async fn connect_identity(socket: &Path) -> Result<IdentityClient<Channel>, Status> {
    Ok(IdentityClient::new(connect(socket).await?))
}

/// The calls of kubelet when it registers the driver.
pub(crate) async fn register(socket: &Path) {
    let mut node = NodeClient::new(connect(socket).await.expect("a driver"));
    node.node_get_info(NodeGetInfoRequest {}).await.expect("the node");
}

/// `isFinalError`: whether kubelet assumes that no work is in progress.
pub(crate) fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

pub(crate) fn mount_capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// A broken connection is Unavailable for kubelet's client; tonic's says
/// Unknown, with the cause as its source.
fn as_grpc_go_says(status: Status) -> Status {
    let broken = status.code() == Code::Unknown && std::error::Error::source(&status).is_some();
    if broken { Status::unavailable(status.message()) } else { status }
}

impl Kubelet {
    pub(crate) fn new(socket: &Path, directory: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            directory: directory.to_owned(),
            deadline: DEADLINE,
            sends_deadline: true,
            longest_backoff: LONGEST_BACKOFF,
        }
    }

    /// The inline volume of a pod, with `readOnly: true`.
    pub(crate) fn inline(&self, pod: &str, attributes: &[(&str, &str)]) -> Volume {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Volume {
            kubelet: self.clone(),
            id: format!("csi-{pod:0>64}"),
            pod: pod.to_owned(),
            namespace: "team-a".to_owned(),
            uid: format!("00000000-0000-4000-8000-{pod:0>12}"),
            attributes: attributes.iter().map(owned).collect(),
            secrets: BTreeMap::new(),
            inline: true,
            read_only: true,
            capability: Some(mount_capability(Mode::SingleNodeWriter)),
            other_target: None,
            calls: Mutex::default(),
        }
    }

    /// A PersistentVolume in a pod.
    pub(crate) fn persistent(
        &self,
        volume_id: &str,
        pod: &str,
        attributes: &[(&str, &str)],
    ) -> Volume {
        let capability = Some(mount_capability(Mode::MultiNodeReaderOnly));
        let id = volume_id.to_owned();
        Volume { id, inline: false, capability, ..self.inline(pod, attributes) }
    }

    pub(crate) async fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(connect(&self.socket).await.expect("the driver's socket"))
    }

    /// One call with kubelet's deadline, sent along and kept.
    async fn call<Q, A>(
        &self,
        message: Q,
        send: impl AsyncFnOnce(NodeClient<Channel>, Request<Q>) -> Result<tonic::Response<A>, Status>,
    ) -> Result<A, Status> {
        let mut request = Request::new(message);
        if self.sends_deadline {
            request.set_timeout(self.deadline);
        }
        let called = async {
            let client = NodeClient::new(connect(&self.socket).await?);
            send(client, request).await
        };
        match tokio::time::timeout(self.deadline, called).await {
            Ok(answer) => answer.map(tonic::Response::into_inner).map_err(as_grpc_go_says),
            Err(_) => Err(Status::deadline_exceeded("kubelet gave up")),
        }
    }
}

impl Volume {
    pub(crate) fn target(&self) -> PathBuf {
        let own = || {
            let pod = self.kubelet.directory.join("pods").join(&self.uid);
            pod.join("volumes/kubernetes.io~csi/model/mount")
        };
        self.other_target.as_ref().map_or_else(own, PathBuf::from)
    }

    /// The outcomes of all publishes so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One NodePublishVolume, with kubelet's steps before and after it.
    pub(crate) async fn publish(&self) -> Result<(), Status> {
        let target = self.target();
        if self.other_target.is_none() {
            self.make_parent();
        }
        let started = Instant::now();
        let request = self.request();
        let answer = self
            .kubelet
            .call(request, async |mut client, request| client.node_publish_volume(request).await);
        let answer = answer.await.map(drop);
        let (code, message) = match &answer {
            Ok(()) => (Code::Ok, String::new()),
            Err(status) => (status.code(), status.message().to_owned()),
        };
        if is_final(code) && code != Code::Ok && self.other_target.is_none() {
            remove_mount_directory(&target);
        }
        let call = Call { code, message, took: started.elapsed() };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        answer
    }

    /// Publishes until it succeeds, with kubelet's backoff. Returns the number of calls.
    pub(crate) async fn mount(&self) -> usize {
        let mut backoff = FIRST_BACKOFF;
        let before = self.calls().len();
        while self.publish().await.is_err() {
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(self.kubelet.longest_backoff);
        }
        self.calls().len() - before
    }

    /// One publish that must fail. Returns its code, and the message as in the pod's
    /// event, since kubelet treats it as a format.
    pub(crate) async fn refused(&self) -> (Code, String) {
        match self.publish().await {
            Err(status) => (status.code(), status.message().replace("%%", "%")),
            Ok(()) => panic!("{} was published", self.target().display()),
        }
    }

    /// Publishes, with kubelet's backoff, until an error is final: the calls before it may still
    /// share a request that began during an outage.
    pub(crate) async fn finally_refused(&self) -> (Code, String) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let refusal = self.refused().await;
            if is_final(refusal.0) {
                return refusal;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(self.kubelet.longest_backoff);
        }
    }

    /// One NodeUnpublishVolume, and kubelet's removal of what it made itself.
    pub(crate) async fn unpublish(&self) -> Result<(), Status> {
        self.unpublish_only().await?;
        remove_mount_directory(&self.target());
        Ok(())
    }

    /// One NodeUnpublishVolume, without kubelet's steps after it.
    pub(crate) async fn unpublish_only(&self) -> Result<(), Status> {
        let target_path = self.target().to_str().expect("a UTF-8 path").to_owned();
        let request = NodeUnpublishVolumeRequest { volume_id: self.id.clone(), target_path };
        let answer = self
            .kubelet
            .call(request, async |mut client, request| client.node_unpublish_volume(request).await);
        answer.await.map(drop)
    }

    pub(crate) async fn stats(&self) -> Result<NodeGetVolumeStatsResponse, Status> {
        let volume_path = self.target().to_str().expect("a UTF-8 path").to_owned();
        let request = NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path,
            staging_target_path: String::new(),
        };
        let answer = self
            .kubelet
            .call(request, async |mut client, request| client.node_get_volume_stats(request).await);
        answer.await
    }

    fn request(&self) -> NodePublishVolumeRequest {
        let mut context: HashMap<String, String> = HashMap::new();
        let mut kubelets =
            |key: &str, value: &str| context.insert(key.to_owned(), value.to_owned());
        kubelets(&format!("{POD}.name"), &self.pod);
        kubelets(&format!("{POD}.namespace"), &self.namespace);
        kubelets(&format!("{POD}.uid"), &self.uid);
        kubelets("csi.storage.k8s.io/serviceAccount.name", "default");
        kubelets("csi.storage.k8s.io/ephemeral", if self.inline { "true" } else { "false" });
        context.extend(self.attributes.clone());
        NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: self.target().to_str().expect("a UTF-8 path").to_owned(),
            volume_capability: self.capability.clone(),
            readonly: self.read_only,
            volume_context: context,
            secrets: self.secrets.clone().into_iter().collect(),
            ..NodePublishVolumeRequest::default()
        }
    }

    /// kubelet creates the directory of the volume and its own record in it; the
    /// driver creates the target itself.
    fn make_parent(&self) {
        let target = self.target();
        let parent = target.parent().expect("a parent");
        fs::DirBuilder::new().recursive(true).mode(0o750).create(parent).expect("kubelet's parent");
        fs::write(parent.join(VOLUME_DATA), "{}").expect("kubelet's note");
    }
}

/// `removeMountDir`: never recursive, so that leftovers in a target are noticed.
#[track_caller]
fn remove_mount_directory(target: &Path) {
    let gone = |removed: io::Result<()>| {
        removed.is_ok() || removed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    let shown = target.display();
    assert!(gone(fs::remove_dir(target)), "{shown} cannot be removed: something is left in it");
    let parent = target.parent().expect("a parent");
    assert!(gone(fs::remove_file(parent.join(VOLUME_DATA))));
    assert!(gone(fs::remove_dir(parent)), "something is left beside {shown}");
}
