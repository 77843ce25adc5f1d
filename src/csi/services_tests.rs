//! The services over a real socket, as kubelet and the sidecars use them.

use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::*;
use crate::cache::{Cache, CacheLimits, CacheOptions};
use crate::csi::capability::tests::mount_capability;
use crate::csi::proto::controller_client::ControllerClient;
use crate::csi::proto::identity_client::IdentityClient;
use crate::csi::proto::node_client::NodeClient;
use crate::csi::proto::node_service_capability::rpc::Type as NodeRpc;
use crate::csi::proto::volume_capability::access_mode::Mode;
use crate::csi::proto::*;
use crate::csi::{CallHistory, NodeOptions, Readiness};
use crate::download::{Concurrency, Engine, EngineOptions, Verify};
use crate::events::Events;
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::resolve::{Resolver, RevisionSelector};
use crate::source::RetryPolicy;
use crate::volume::{ClaimReader, PageWarmer, Provisioner, VolumeParts, Volumes, WarmPageCache};
use crate::weights::{SafetensorsCheck, WeightsChecker};
use oci_model_csi_fake_source::FakeSource;

const BOUND: Duration = Duration::from_secs(20);

/// A driver in the mode `all` with a store of one model, `models/phi3/`.
struct Driver {
    dir: TempDir,
    store: FakeSource,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<()>>,
}

impl Driver {
    fn start(grace: Duration) -> Self {
        Self::start_within(Bounds { grace, connections: MAX_CONNECTIONS })
    }

    fn start_within(bounds: Bounds) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = FakeSource::new(&[("models/phi3/weights", 10)]);
        let (metrics, shutdown) = (Arc::new(Metrics::default()), CancellationToken::new());
        let readiness = Readiness::not_ready("recovering the cache");
        let node = NodeService::new(
            volumes(dir.path(), &store, &metrics, &shutdown),
            NodeOptions {
                node_id: "node-1".to_owned(),
                kubelet_dir: dir.path().join("kubelet"),
                registered: Arc::default(),
                history: CallHistory::default(),
                pod_secrets: false,
            },
            readiness.clone(),
            Arc::clone(&metrics),
        );
        let policy = watch::channel(Policy::default()).1;
        let (claims, events) = (ClaimReader::default(), Events::default());
        let resolver = Resolver::of_fake(&store);
        let provisioner = Provisioner::new(resolver, policy, claims, events, "oci-model-csi.dev");
        let controller =
            ControllerService::new(provisioner, readiness.clone(), Arc::clone(&metrics));
        let identity = IdentityService::new(
            "oci-model-csi.dev",
            true,
            readiness.clone(),
            Arc::clone(&metrics),
        );
        let services = Services { identity, node: Some(node), controller: Some(controller) };
        let listener = UnixListener::bind(dir.path().join("csi.sock")).unwrap();
        let serving = tokio::spawn(serve_within(listener, services, shutdown.clone(), bounds));
        Self { dir, store, readiness, metrics, shutdown, serving }
    }

    fn ready() -> Self {
        let driver = Self::start(GRACE);
        driver.readiness.ready();
        driver
    }

    async fn channel(&self) -> Channel {
        let path = self.dir.path().join("csi.sock");
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
    }

    fn target(&self) -> String {
        let place = "kubelet/pods/uid-1/volumes/kubernetes.io~csi/model/mount";
        self.dir.path().join(place).to_str().unwrap().to_owned()
    }
}

fn volumes(
    dir: &Path,
    store: &FakeSource,
    metrics: &Arc<Metrics>,
    shutdown: &CancellationToken,
) -> Volumes {
    let options = CacheOptions {
        dir: dir.join("cache"),
        require_mount: false,
        limits: CacheLimits { min_free: 0, min_free_inodes: 0, max_size: None },
        idle_ttl: None,
        max_models: 1,
        abandon_after: Duration::from_secs(60),
        keep_revisions: Vec::new(),
    };
    let engine = EngineOptions {
        concurrency: Concurrency::Fixed(1),
        bandwidth: None,
        range_size: 1 << 20,
        verify: Verify::Always,
        write_back: false,
        retry: RetryPolicy::default(),
    };
    let tasks = TaskTracker::new();
    let grace = options.abandon_after;
    let cache = Cache::open(options, Arc::clone(metrics), &tasks, shutdown).unwrap();
    cache.recover(&dir.join("kubelet/pods")).unwrap();
    let warmer = PageWarmer::start(WarmPageCache::Never, &cache, &tasks, shutdown);
    Volumes::new(VolumeParts {
        cache,
        kubelet: dir.join("kubelet"),
        engine: Engine::new(engine, Arc::clone(metrics)).unwrap(),
        selector: RevisionSelector::new(Resolver::of_fake(store), false),
        weights: WeightsChecker::new(SafetensorsCheck::Refuse, grace, &tasks, shutdown),
        policy: watch::channel(Policy::default()).1,
        events: Events::default(),
        warmer,
        metrics: Arc::clone(metrics),
    })
}

fn publish_request(driver: &Driver) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: "volume".to_owned(),
        target_path: driver.target(),
        volume_capability: Some(mount_capability(Mode::SingleNodeWriter, &[])),
        volume_context: [("bucket", "b"), ("prefix", "models/phi3/")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..NodePublishVolumeRequest::default()
    }
}

fn create_request(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![mount_capability(Mode::MultiNodeReaderOnly, &[])],
        parameters: [("bucket", "b"), ("prefix", "models/phi3/")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..CreateVolumeRequest::default()
    }
}

#[track_caller]
fn code<T>(answer: Result<tonic::Response<T>, Status>) -> Code {
    answer.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test]
async fn until_recovery_is_done_only_calls_that_describe_the_driver_succeed() {
    let driver = Driver::start(GRACE);
    let channel = driver.channel().await;
    let mut identity = IdentityClient::new(channel.clone());
    let mut node = NodeClient::new(channel.clone());
    let mut controller = ControllerClient::new(channel);

    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, "oci-model-csi.dev");
    assert_eq!(info.vendor_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(false));
    identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    let info = node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("node-1", 0));
    node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap();
    controller.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await.unwrap();

    let status = node.node_publish_volume(publish_request(&driver)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("recovering the cache"), "{status}");
    for refused in [
        code(node.node_unpublish_volume(NodeUnpublishVolumeRequest::default()).await),
        code(node.node_get_volume_stats(NodeGetVolumeStatsRequest::default()).await),
        code(controller.create_volume(create_request("a")).await),
        code(controller.delete_volume(DeleteVolumeRequest::default()).await),
        code(
            controller
                .validate_volume_capabilities(ValidateVolumeCapabilitiesRequest::default())
                .await,
        ),
    ] {
        assert_eq!(refused, Code::Unavailable);
    }
    assert_eq!(driver.store.listings(), 0);

    driver.readiness.ready();
    assert_eq!(identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
    controller.create_volume(create_request("a")).await.unwrap();
}

#[tokio::test]
async fn only_implemented_capabilities_are_announced() {
    let driver = Driver::ready();
    let channel = driver.channel().await;
    let plugin = IdentityClient::new(channel.clone())
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await
        .unwrap()
        .into_inner();
    let service = plugin_capability::Service {
        r#type: plugin_capability::service::Type::ControllerService.into(),
    };
    let expected = Some(plugin_capability::Type::Service(service));
    assert_eq!(plugin.capabilities, [PluginCapability { r#type: expected }]);

    let node = NodeClient::new(channel.clone())
        .node_get_capabilities(NodeGetCapabilitiesRequest {})
        .await
        .unwrap()
        .into_inner();
    let announced = node.capabilities.iter().filter_map(|capability| {
        capability.r#type.map(|node_service_capability::Type::Rpc(rpc)| rpc.r#type())
    });
    assert_eq!(announced.collect::<Vec<_>>(), [NodeRpc::GetVolumeStats, NodeRpc::VolumeCondition]);

    let mut node = NodeClient::new(channel.clone());
    let status = node.node_stage_volume(NodeStageVolumeRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("NodeStageVolume is not implemented: "), "{status}");
    let mut controller = ControllerClient::new(channel);
    for refused in [
        code(controller.list_volumes(ListVolumesRequest::default()).await),
        code(controller.get_capacity(GetCapacityRequest::default()).await),
        code(controller.controller_publish_volume(ControllerPublishVolumeRequest::default()).await),
        code(controller.create_snapshot(CreateSnapshotRequest::default()).await),
    ] {
        assert_eq!(refused, Code::Unimplemented);
    }
    let text = driver.metrics.to_text();
    assert!(text.contains("method=\"ListVolumes\",code=\"Unimplemented\"} 1"), "{text}");
}

#[tokio::test]
async fn unpublish_and_stats_answer_wrong_requests_with_the_right_code() {
    let driver = Driver::ready();
    let mut node = NodeClient::new(driver.channel().await);
    let unpublish = |volume_id: &str, target_path: &str| NodeUnpublishVolumeRequest {
        volume_id: volume_id.to_owned(),
        target_path: target_path.to_owned(),
    };
    for (request, expected) in [
        (unpublish("", &driver.target()), Code::InvalidArgument),
        (unpublish("v", ""), Code::InvalidArgument),
        (unpublish("v", "/etc"), Code::InvalidArgument),
        (unpublish("v", &driver.target()), Code::Ok),
    ] {
        assert_eq!(code(node.node_unpublish_volume(request).await), expected);
    }
    let stats = |volume_id: &str, volume_path: &str| NodeGetVolumeStatsRequest {
        volume_id: volume_id.to_owned(),
        volume_path: volume_path.to_owned(),
        ..NodeGetVolumeStatsRequest::default()
    };
    for (request, expected) in [
        (stats("", "some/path"), Code::InvalidArgument),
        (stats("v", ""), Code::InvalidArgument),
        (stats("v", "some/path"), Code::NotFound),
        (stats("v", &driver.target()), Code::NotFound),
    ] {
        assert_eq!(code(node.node_get_volume_stats(request).await), expected);
    }
}

#[tokio::test]
async fn a_publish_waits_and_answers_before_its_callers_deadline() {
    let driver = Driver::ready();
    driver.store.set_open(false);
    let mut node = NodeClient::new(driver.channel().await);
    let mut request = Request::new(publish_request(&driver));
    request.set_timeout(Duration::from_secs(2));
    let status = node.node_publish_volume(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    assert!(status.message().contains("models/phi3/"), "{status}");
    assert!(!Path::new(&driver.target()).exists());
}

#[tokio::test]
async fn a_volume_is_created_validated_and_deleted() {
    let driver = Driver::ready();
    let mut controller = ControllerClient::new(driver.channel().await);
    let volume = controller.create_volume(create_request("pvc-1")).await.unwrap().into_inner();
    let volume = volume.volume.unwrap();
    assert_eq!(volume.capacity_bytes, 10);
    assert_eq!(volume.volume_context["prefix"], "models/phi3/");

    let validate = |volume_id: &str, modes: &[Mode]| ValidateVolumeCapabilitiesRequest {
        volume_id: volume_id.to_owned(),
        volume_capabilities: modes.iter().map(|mode| mount_capability(*mode, &[])).collect(),
        volume_context: volume.volume_context.clone(),
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    let good = validate(&volume.volume_id, &[Mode::SingleNodeWriter, Mode::MultiNodeReaderOnly]);
    let wanted = good.volume_capabilities.clone();
    let answer = controller.validate_volume_capabilities(good).await.unwrap().into_inner();
    assert_eq!(answer.confirmed.unwrap().volume_capabilities, wanted);

    let mixed = validate(&volume.volume_id, &[Mode::SingleNodeWriter, Mode::MultiNodeMultiWriter]);
    let answer = controller.validate_volume_capabilities(mixed).await.unwrap().into_inner();
    assert_eq!(answer.confirmed, None);
    assert!(answer.message.contains("MULTI_NODE_MULTI_WRITER"), "{}", answer.message);

    for (request, expected) in [
        (validate("", &[Mode::SingleNodeWriter]), Code::InvalidArgument),
        (validate(&volume.volume_id, &[]), Code::InvalidArgument),
        (validate("another-form", &[Mode::SingleNodeWriter]), Code::NotFound),
    ] {
        assert_eq!(code(controller.validate_volume_capabilities(request).await), expected);
    }
    for (id, expected) in [
        ("", Code::InvalidArgument),
        ("another-form", Code::Ok),
        (volume.volume_id.as_str(), Code::Ok),
        (volume.volume_id.as_str(), Code::Ok),
    ] {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        assert_eq!(code(controller.delete_volume(request).await), expected);
    }
}

#[tokio::test]
async fn a_slow_store_aborts_create_volume_before_the_callers_deadline() {
    let driver = Driver::ready();
    driver.store.set_open(false);
    let mut controller = ControllerClient::new(driver.channel().await);
    let mut request = Request::new(create_request("pvc-1"));
    request.set_timeout(Duration::from_secs(2));
    assert_eq!(code(controller.create_volume(request).await), Code::Aborted);
    driver.store.set_open(true);
    controller.create_volume(create_request("pvc-1")).await.unwrap();
}

#[tokio::test]
async fn a_shutdown_waits_for_running_calls_and_then_stops_serving() {
    let driver = Driver::ready();
    driver.store.set_open(false);
    let mut controller = ControllerClient::new(driver.channel().await);
    let call = tokio::spawn(async move { controller.create_volume(create_request("pvc-1")).await });
    wait_for_a_listing(&driver.store).await;
    driver.shutdown.cancel();
    driver.store.set_open(true);
    call.await.unwrap().unwrap();
    tokio::time::timeout(BOUND, driver.serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_call_that_never_ends_does_not_keep_the_driver_running() {
    let driver = Driver::start(Duration::from_millis(50));
    driver.readiness.ready();
    driver.store.set_open(false);
    let mut controller = ControllerClient::new(driver.channel().await);
    let _call =
        tokio::spawn(async move { controller.create_volume(create_request("pvc-1")).await });
    wait_for_a_listing(&driver.store).await;
    assert!(!driver.serving.is_finished());
    driver.shutdown.cancel();
    tokio::time::timeout(BOUND, driver.serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_beyond_the_limit_waits_and_running_calls_are_not_cut() {
    let driver = Driver::start_within(Bounds { grace: GRACE, connections: 2 });
    driver.readiness.ready();
    driver.store.set_open(false);
    // One connection with a call that runs, one that is idle.
    let mut working = ControllerClient::new(driver.channel().await);
    let call = tokio::spawn(async move { working.create_volume(create_request("pvc-1")).await });
    wait_for_a_listing(&driver.store).await;
    let mut idle = IdentityClient::new(driver.channel().await);
    idle.probe(ProbeRequest {}).await.unwrap();

    let mut waiting = IdentityClient::new(driver.channel().await);
    let mut probe = Box::pin(waiting.probe(ProbeRequest {}));
    // Every call on the idle connection is answered, and the third connection waits.
    for _ in 0..20 {
        idle.probe(ProbeRequest {}).await.unwrap();
        assert!(futures_util::poll!(&mut probe).is_pending());
    }
    drop(idle);
    tokio::time::timeout(BOUND, probe).await.expect("a permit was free").unwrap();
    driver.store.set_open(true);
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn messages_and_headers_beyond_their_size_are_refused_and_the_largest_secret_is_not() {
    let driver = Driver::ready();
    let mut node = NodeClient::new(driver.channel().await);
    let with_secret = |bytes: usize| NodePublishVolumeRequest {
        secrets: [("key".to_owned(), "s".repeat(bytes))].into(),
        target_path: "/etc".to_owned(),
        ..publish_request(&driver)
    };
    let status = node.node_publish_volume(with_secret(1 << 20)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "it was read: {status}");
    let status = node.node_publish_volume(with_secret(MAX_MESSAGE_BYTES)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(status.message().contains(&MAX_MESSAGE_BYTES.to_string()), "{status}");

    let mut request = Request::new(ProbeRequest {});
    let long = "h".repeat(usize::try_from(MAX_HEADER_BYTES).unwrap());
    request.metadata_mut().insert("x-long", long.parse().unwrap());
    let mut identity = IdentityClient::new(driver.channel().await);
    identity.probe(request).await.unwrap_err();
    // The connection and the driver still work.
    identity.probe(ProbeRequest {}).await.unwrap();
}

async fn wait_for_a_listing(store: &FakeSource) {
    let asked = async {
        while store.listings() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, asked).await.expect("the store was asked");
}
