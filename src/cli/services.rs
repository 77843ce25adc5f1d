//! `oci-model-csi node|controller|all`: builds all parts in the order of their
//! dependencies, and stops them in the reverse order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cache_dir;
use super::descriptors;
use super::reload::{self, ConfigWatcher};
use super::storage::{self, OkeArgs, StorageArgs};
use crate::admin::{Admin, Listener};
use crate::blocking::blocking;
use crate::cache::Cache;
use crate::config::Config;
use crate::csi::{
    ControllerService, IdentityService, NodeOptions, NodeService, Readiness, Services, serve,
};
use crate::download::Engine;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::kubernetes::{self, Cluster};
use crate::manage::{Manager, Remote};
use crate::metrics::{CredentialState, Metrics};
use crate::model::ModelUri;
use crate::node::NodeState;
use crate::policy::Policy;
use crate::resolve::{ClientPool, Resolver, RevisionSelector};
use crate::socket::{self, SocketEndpoint, SocketGuard};
use crate::source::AuthMethod;
use crate::volume::{ClaimReader, Provisioner, VolumeParts, Volumes};
use crate::weights::WeightsChecker;

/// How long background work may take to stop after the last call has ended.
const GRACE: Duration = Duration::from_secs(5);

/// Prefix of taints by which cluster-autoscaler recognizes a node that is still
/// starting. It ignores them in its simulations (its utils/taints/taints.go, since 1.29).
const STARTUP_TAINT: &str = "startup-taint.cluster-autoscaler.kubernetes.io/";

/// The services on the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Node,
    Controller,
    All,
}

#[derive(Debug, Args)]
pub(super) struct ServiceArgs {
    /// Socket of the CSI services: unix:///path
    #[arg(long, env = "OCI_MODEL_CSI_CSI_ENDPOINT", default_value = "unix:///csi/csi.sock")]
    csi_endpoint: SocketEndpoint,
    /// Name of the CSI driver, as in the CSIDriver object
    #[arg(long, env = "OCI_MODEL_CSI_DRIVER_NAME", default_value = "oci-model-csi.dev")]
    driver_name: String,
    /// Kubernetes name of this node [default: the host name]
    #[arg(long, env = "OCI_MODEL_CSI_NODE_ID")]
    node_id: Option<String>,
    /// The driver's configuration, YAML
    #[arg(long, env = "OCI_MODEL_CSI_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the cache [default: cache.dir of the configuration, /var/lib/oci-model-csi]
    #[arg(long, env = "OCI_MODEL_CSI_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// kubelet's root directory; volumes are published below its pods/
    #[arg(
        long,
        env = "OCI_MODEL_CSI_KUBELET_DIR",
        value_name = "DIR",
        default_value = "/var/lib/kubelet"
    )]
    kubelet_dir: PathBuf,
    /// Socket for `oci-model-csi cache` and the node's administrator [default: admin.sock in the
    /// cache; none for controller]
    #[arg(long, env = "OCI_MODEL_CSI_ADMIN_ENDPOINT", value_name = "unix:///path")]
    admin_endpoint: Option<SocketEndpoint>,
    /// API server for events, claims, and the node's taint and labels [default: the API server of
    /// the cluster that the driver runs in]
    #[arg(long, env = "OCI_MODEL_CSI_KUBERNETES_API", value_name = "URL")]
    kubernetes_api: Option<String>,
    /// Directory of the driver's service account, with token and ca.crt
    #[arg(
        long,
        env = "OCI_MODEL_CSI_SERVICE_ACCOUNT_DIR",
        value_name = "DIR",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    service_account_dir: PathBuf,
    /// Taint to remove from this node once the driver is registered with kubelet; an empty value
    /// leaves taints alone [default: startup-taint.cluster-autoscaler.kubernetes.io/DRIVER-not-ready]
    #[arg(long, env = "OCI_MODEL_CSI_STARTUP_TAINT", value_name = "KEY")]
    startup_taint: Option<String>,
    /// Maximum number of node labels that name cached models; 0 writes none
    #[arg(long, env = "OCI_MODEL_CSI_MODEL_LABELS", value_name = "NUMBER", default_value_t = 0)]
    model_labels: usize,
    /// Address of /metrics, /healthz and /readyz, such as 0.0.0.0:9090 [default: none]
    #[arg(long, env = "OCI_MODEL_CSI_METRICS_ADDRESS", value_name = "ADDRESS:PORT")]
    metrics_address: Option<SocketAddr>,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    oke: OkeArgs,
}

impl ServiceArgs {
    /// The API server of `--kubernetes-api`, or of the cluster that this process runs in.
    fn kubernetes(&self) -> Result<Option<kubernetes::ApiServer>> {
        let url = self.kubernetes_api.clone().or_else(Cluster::own_url);
        url.map(|url| kubernetes::ApiServer::new(&Cluster::at(url, &self.service_account_dir)))
            .transpose()
    }

    fn node_state(&self) -> NodeState {
        let driver = self.driver_name.clone();
        let taint = self.startup_taint.clone();
        let taint = taint.unwrap_or_else(|| format!("{STARTUP_TAINT}{driver}-not-ready"));
        NodeState {
            node: self.node_name(),
            driver,
            startup_taint: Some(taint).filter(|taint| !taint.is_empty()),
            model_labels: self.model_labels,
        }
    }

    fn node_name(&self) -> String {
        self.node_id.clone().unwrap_or_else(host_name)
    }
}

/// Serves until SIGTERM or SIGINT.
pub(super) fn run(args: ServiceArgs, mode: Mode, runtime: &Runtime) -> Result<()> {
    let file = args.config.as_deref();
    let text = file.map_or_else(|| Ok(String::new()), Config::read)?;
    let config = match file {
        Some(file) => Config::parse(&text, &file.display().to_string())?,
        None => Config::default(),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        ?mode,
        driver = args.driver_name,
        "starting"
    );
    if let Err(error) = descriptors::raise_limit() {
        tracing::warn!(%error, "the driver may run out of file descriptors under load");
    }
    runtime.block_on(start(args, &config, &text, mode))
}

async fn start(args: ServiceArgs, config: &Config, text: &str, mode: Mode) -> Result<()> {
    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    let metrics = Arc::new(Metrics::default());
    let readiness = Readiness::not_ready("opening the cache");

    // The socket comes first: kubelet's registrar waits for it only one second.
    let (listener, socket) = socket::bind(&args.csi_endpoint).await?;

    let default_auth = AuthMethod::InstancePrincipal;
    let mut settings =
        args.storage.settings(Some(&config.object_storage), default_auth, &metrics)?;
    args.oke.apply(&mut settings, &args.service_account_dir);
    let connector = storage::connect(settings).await?;
    if let Some(identity) = connector.identity().cloned() {
        metrics.watch_credential(move || CredentialState {
            refresh_failures: identity.refresh_failures(),
            expires_at: identity.expires_at(),
        });
    }
    let pool = ClientPool::new(connector, config.object_storage.buckets.clone());
    let (mut watcher, updates) = ConfigWatcher::new(config, text, &metrics);
    let resolver = Resolver::new(pool, (&config.limits).into(), &tasks, &shutdown);
    let kubernetes = args.kubernetes()?;
    let events = kubernetes.clone().map_or_else(Events::default, |server| {
        Events::to(server, &args.driver_name, &args.node_name(), &tasks, &shutdown)
    });
    let shared = ServiceContext {
        policy: updates.policy,
        kubernetes,
        events,
        metrics: Arc::clone(&metrics),
        tasks: tasks.clone(),
        shutdown: shutdown.clone(),
    };
    let node = match mode {
        Mode::Controller => None,
        Mode::Node | Mode::All => Some(Node::build(&args, config, &resolver, &shared)?),
    };

    let cache = node.as_ref().map(|node| node.cache.clone());
    watcher.check_against_recorded(cache, config, args.config.as_deref()).await?;

    let admin_socket = admin_socket(&args, node.as_ref()).await?;
    let admin = Admin {
        metrics: Arc::clone(&metrics),
        readiness: readiness.clone(),
        cache: node.as_ref().map(|node| node.cache.clone()),
        manager: node.as_ref().map(|node| node.manager.clone()),
    };
    if let Some(address) = args.metrics_address {
        let listener = Listener::tcp(address).await?;
        tasks.spawn(admin.clone().serve(listener, shutdown.clone()));
    }
    let admin_guard = admin_socket.map(|(listener, guard)| {
        tasks.spawn(admin.serve(Listener::Unix(listener), shutdown.clone()));
        guard
    });

    let services = Services {
        identity: IdentityService::new(
            args.driver_name.clone(),
            mode != Mode::Node,
            readiness.clone(),
            Arc::clone(&metrics),
        ),
        node: node.as_ref().map(|node| {
            let options = NodeOptions {
                node_id: args.node_name(),
                kubelet_dir: args.kubelet_dir.clone(),
                registered: Arc::clone(&node.registered),
            };
            let volumes = node.volumes.clone();
            NodeService::new(volumes, options, readiness.clone(), Arc::clone(&metrics))
        }),
        controller: (mode != Mode::Node).then(|| {
            let ServiceContext { policy, kubernetes, events, .. } = shared;
            let claims = ClaimReader::of(kubernetes);
            let driver = args.driver_name.clone();
            let provisioner = Provisioner::new(resolver, policy, claims, events, driver);
            ControllerService::new(provisioner, readiness.clone(), Arc::clone(&metrics))
        }),
    };

    stop_at_signals(&tasks, &shutdown)?;
    if let Some(file) = args.config.clone() {
        tasks.spawn(reload::watch_file(file, config.clone(), watcher, shutdown.clone()));
    }
    let (recovering, list) = (node.clone(), updates.prefetch);
    let recovery = recover(recovering, &args, config, list, &readiness, &tasks, &shutdown);
    let (served, recovered) = tokio::join!(serve(listener, services, shutdown.clone()), recovery);

    // Calls have ended. Stop their background work first, then what that work uses.
    tracing::info!("stopping");
    shutdown.cancel();
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        tracing::warn!("background work is still running; exiting without it, journals are kept");
    }
    if let Some(node) = node {
        if tokio::time::timeout(GRACE, node.cache.wait_until_synced()).await.is_err() {
            tracing::warn!(
                "the disk is slow; files that are not durable yet are checked at the next start"
            );
        }
        let engine = node.engine;
        blocking(move || {
            engine.stop(GRACE);
            Ok(())
        })
        .await?;
    }
    drop((socket, admin_guard));
    served.and(recovered)
}

/// What all services share.
struct ServiceContext {
    policy: watch::Receiver<Policy>,
    kubernetes: Option<kubernetes::ApiServer>,
    events: Events,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// The parts that only a node plugin has.
#[derive(Clone)]
struct Node {
    cache: Cache,
    engine: Engine,
    volumes: Volumes,
    manager: Manager,
    kubernetes: Option<kubernetes::ApiServer>,
    registered: Arc<Notify>,
}

impl Node {
    fn build(
        args: &ServiceArgs,
        config: &Config,
        resolver: &Resolver,
        shared: &ServiceContext,
    ) -> Result<Self> {
        let ServiceContext { metrics, tasks, shutdown, .. } = shared;
        let options =
            cache_dir::options(config, args.cache_dir.as_deref(), &args.kubelet_dir, metrics)?;
        let cache = Cache::open(options, Arc::clone(metrics), tasks, shutdown)?;
        let engine = Engine::new(config.download.engine(true), Arc::clone(metrics))?;
        let selector = RevisionSelector::new(resolver.clone(), config.serve_stale_on_outage);
        let grace = config.download.abandon_after;
        let weights = WeightsChecker::new(config.check_safetensors, grace, tasks, shutdown);
        let volumes = Volumes::new(VolumeParts {
            cache: cache.clone(),
            kubelet: args.kubelet_dir.clone(),
            engine: engine.clone(),
            selector,
            weights: weights.clone(),
            policy: shared.policy.clone(),
            events: shared.events.clone(),
            metrics: Arc::clone(metrics),
        });
        let remote = Remote { engine: engine.clone(), resolver: resolver.clone(), weights };
        let manager = Manager::of_driver(cache.clone(), remote, tasks, shutdown);
        let kubernetes = shared.kubernetes.clone();
        Ok(Self { cache, engine, volumes, manager, kubernetes, registered: Arc::default() })
    }
}

/// Binds the socket for commands: the one of `--admin-endpoint`, or for a node the
/// one in its cache, which is the default of the commands.
async fn admin_socket(
    args: &ServiceArgs,
    node: Option<&Node>,
) -> Result<Option<(UnixListener, SocketGuard)>> {
    if let Some(endpoint) = &args.admin_endpoint {
        return socket::bind(endpoint).await.map(Some);
    }
    let Some(node) = node else { return Ok(None) };
    let bound = match cache_dir::admin_endpoint(node.cache.layout().root()) {
        Ok(endpoint) => socket::bind(&endpoint).await,
        Err(error) => Err(error),
    };
    // The default socket is optional: the driver serves without it.
    let warn = |error: &Error| tracing::warn!(%error, "the socket for commands is not available");
    Ok(bound.inspect_err(warn).ok())
}

/// Recovers the cache while the socket already answers, then marks the driver ready
/// and starts the background tasks.
async fn recover(
    node: Option<Node>,
    args: &ServiceArgs,
    config: &Config,
    list: watch::Receiver<Vec<ModelUri>>,
    readiness: &Readiness,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<()> {
    let Some(Node { cache, volumes, manager, kubernetes, registered, .. }) = node else {
        readiness.ready();
        return Ok(());
    };
    readiness.set_activity("recovering the cache");
    let started = std::time::Instant::now();
    let pods = args.kubelet_dir.join("pods");
    let (recovering, pods_dir) = (cache.clone(), pods.clone());
    match blocking(move || recovering.recover(&pods_dir)).await {
        Ok(found) => {
            readiness.ready();
            if let Some(api) = kubernetes {
                args.node_state().follow(&api, &cache, &registered, tasks, shutdown);
            }
            let ends = shutdown.clone();
            tasks.spawn(async move { cache.run_maintenance(&pods, &ends).await });
            tasks.spawn(async move { manager.run_prefetch(list).await });
            if let Some(every) = config.cache.scrub_interval {
                let (rate, ends) = (config.cache.scrub_rate, shutdown.clone());
                tasks.spawn(async move { volumes.scrub(every, rate, &ends).await });
            }
            tracing::info!(
                resumable = found.resumable,
                leftovers = found.leftovers,
                leases = found.leases,
                void_leases = found.void_leases,
                elapsed = ?started.elapsed(),
                "ready"
            );
            Ok(())
        }
        Err(error) => {
            shutdown.cancel();
            Err(error.context("recovering the cache"))
        }
    }
}

fn stop_at_signals(tasks: &TaskTracker, shutdown: &CancellationToken) -> Result<()> {
    let listen = |kind| signal(kind).map_err(|e| Error::io("listening for signals", &e));
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let shutdown = shutdown.clone();
    tasks.spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
            () = shutdown.cancelled() => {}
        }
        shutdown.cancel();
    });
    Ok(())
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .map_or_else(|_| "localhost".to_owned(), |name| name.to_string_lossy().into_owned())
}
