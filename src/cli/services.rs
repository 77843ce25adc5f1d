//! `oci-model-csi node|controller|all`: where everything is built, in the order
//! in which it depends on each other, and ended in the reverse order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::storage::{self, OkeArgs, StorageArgs};
use super::{options, reload};
use crate::admin::{Admin, Listener};
use crate::blocking::blocking;
use crate::cache::Cache;
use crate::config::Config;
use crate::csi::server::{self, Endpoint, SocketGuard};
use crate::csi::{
    ControllerService, IdentityService, NodeOptions, NodeService, Readiness, Services, serve,
};
use crate::download::Engine;
use crate::error::{Error, Result};
use crate::events::{Cluster, Events};
use crate::manage::{Manager, Remote};
use crate::metrics::Metrics;
use crate::oci::AuthMethod;
use crate::policy::Policy;
use crate::volume::{Chooser, Provisioner, Resolver, Volumes};

/// How long background work may take to end once the calls have.
const GRACE: Duration = Duration::from_secs(5);

/// Which services stand on the socket.
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
    csi_endpoint: Endpoint,
    /// Name of the CSI driver, as in the CSIDriver object
    #[arg(long, env = "OCI_MODEL_CSI_DRIVER_NAME", default_value = "oci-model-csi.dev")]
    driver_name: String,
    /// Name of this node, as Kubernetes has it [default: the host name]
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
    admin_endpoint: Option<Endpoint>,
    /// API server that pods' events are written to [default: that of the cluster the driver runs in]
    #[arg(long, env = "OCI_MODEL_CSI_KUBERNETES_API", value_name = "URL")]
    kubernetes_api: Option<String>,
    /// Directory of the driver's service account: token and ca.crt
    #[arg(
        long,
        env = "OCI_MODEL_CSI_SERVICE_ACCOUNT_DIR",
        value_name = "DIR",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    service_account_dir: PathBuf,
    /// Address of /metrics, /healthz and /readyz, such as 0.0.0.0:9090 [default: none]
    #[arg(long, env = "OCI_MODEL_CSI_METRICS_ADDRESS", value_name = "ADDRESS:PORT")]
    metrics_address: Option<SocketAddr>,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    oke: OkeArgs,
}

impl ServiceArgs {
    /// Events to the cluster that was named, or that this process runs in.
    fn events(&self, tasks: &TaskTracker, shutdown: &CancellationToken) -> Result<Events> {
        let url = self.kubernetes_api.clone().or_else(Cluster::own_url);
        let Some(url) = url else { return Ok(Events::default()) };
        let cluster = Cluster::at(url, &self.service_account_dir);
        Events::to(&cluster, &self.driver_name, &self.node_name(), tasks, shutdown)
    }

    fn node_name(&self) -> String {
        self.node_id.clone().unwrap_or_else(host_name)
    }
}

/// Serves until SIGTERM or SIGINT.
pub(super) fn run(args: ServiceArgs, mode: Mode, runtime: &Runtime) -> Result<()> {
    let config = load_config(args.config.as_deref())?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        ?mode,
        driver = args.driver_name,
        "starting"
    );
    runtime.block_on(start(args, &config, mode))
}

/// Reads the configuration and refuses what somebody would rely on in vain.
fn load_config(path: Option<&std::path::Path>) -> Result<Config> {
    let config = path.map_or_else(|| Ok(Config::default()), Config::load)?;
    for unsupported in config.unsupported() {
        if unsupported.refuse {
            return Err(Error::invalid(unsupported.sentence));
        }
        tracing::warn!("{}", unsupported.sentence);
    }
    Ok(config)
}

async fn start(args: ServiceArgs, config: &Config, mode: Mode) -> Result<()> {
    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    let metrics = Arc::new(Metrics::default());
    let readiness = Readiness::not_ready("opening the cache");

    // The socket first: kubelet's registrar gives it a second.
    let (listener, socket) = server::bind(&args.csi_endpoint).await?;

    let default_auth = AuthMethod::InstancePrincipal;
    let mut settings =
        args.storage.settings(Some(&config.object_storage), default_auth, &metrics)?;
    args.oke.settle(&mut settings, &args.service_account_dir);
    let stores = storage::stores(settings, &config.object_storage.buckets).await?;
    let limits = options::limits(&config.limits);
    let resolver = Resolver::new(stores, limits, &tasks, &shutdown);
    let node = match mode {
        Mode::Controller => None,
        Mode::Node | Mode::All => {
            Some(Node::build(&args, config, &resolver, &metrics, &tasks, &shutdown)?)
        }
    };

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
            let options =
                NodeOptions { node_id: args.node_name(), kubelet_dir: args.kubelet_dir.clone() };
            let volumes = node.volumes.clone();
            NodeService::new(volumes, options, readiness.clone(), Arc::clone(&metrics))
        }),
        controller: (mode != Mode::Node).then(|| {
            let provisioner = Provisioner::new(resolver, args.driver_name.clone());
            ControllerService::new(provisioner, readiness.clone(), Arc::clone(&metrics))
        }),
    };

    stop_at_signals(&tasks, &shutdown)?;
    let volumes =
        node.as_ref().map(|node| (node.cache.clone(), node.volumes.clone(), node.manager.clone()));
    let recovery = recover(volumes, &args, config, &readiness, &tasks, &shutdown);
    let (served, recovered) = tokio::join!(serve(listener, services, shutdown.clone()), recovery);

    // Calls have ended; now what they left running, then what that stood on.
    tracing::info!("stopping");
    shutdown.cancel();
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        tracing::warn!("background work is still running; it is left, its journals stand");
    }
    if let Some(node) = node {
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

/// What only a node has.
struct Node {
    cache: Cache,
    engine: Engine,
    volumes: Volumes,
    manager: Manager,
}

impl Node {
    fn build(
        args: &ServiceArgs,
        config: &Config,
        resolver: &Resolver,
        metrics: &Arc<Metrics>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<Self> {
        let options =
            options::cache(config, args.cache_dir.as_deref(), &args.kubelet_dir, metrics)?;
        let cache = Cache::open(options, Arc::clone(metrics), tasks, shutdown)?;
        let engine = Engine::new(options::engine(&config.download, true), Arc::clone(metrics))?;
        let chooser = Chooser::new(resolver.clone(), config.serve_stale_on_outage);
        let events = args.events(tasks, shutdown)?;
        let volumes = Volumes::new(
            cache.clone(),
            engine.clone(),
            chooser,
            Policy,
            events,
            Arc::clone(metrics),
        );
        let remote = Remote { engine: engine.clone(), resolver: resolver.clone() };
        let manager = Manager::of_driver(cache.clone(), remote, tasks, shutdown);
        Ok(Self { cache, engine, volumes, manager })
    }
}

/// The socket for commands: the one that is asked for, or for a node one in
/// its cache, where commands look first.
async fn admin_socket(
    args: &ServiceArgs,
    node: Option<&Node>,
) -> Result<Option<(UnixListener, SocketGuard)>> {
    if let Some(endpoint) = &args.admin_endpoint {
        return server::bind(endpoint).await.map(Some);
    }
    let Some(node) = node else { return Ok(None) };
    let bound = match options::admin_endpoint(node.cache.layout().root()) {
        Ok(endpoint) => server::bind(&endpoint).await,
        Err(error) => Err(error),
    };
    // Nobody asked for it, so nothing ends for want of it.
    Ok(bound.inspect_err(|error| tracing::warn!(%error, "no socket for commands")).ok())
}

/// Puts the cache in order while the socket answers already, then says ready.
async fn recover(
    node: Option<(Cache, Volumes, Manager)>,
    args: &ServiceArgs,
    config: &Config,
    readiness: &Readiness,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<()> {
    let Some((cache, volumes, manager)) = node else {
        readiness.ready();
        return Ok(());
    };
    readiness.doing("recovering the cache");
    let started = std::time::Instant::now();
    let pods = args.kubelet_dir.join("pods");
    let (recovering, there) = (cache.clone(), pods.clone());
    match blocking(move || recovering.recover(&there)).await {
        Ok(found) => {
            readiness.ready();
            let ends = shutdown.clone();
            tasks.spawn(async move { cache.keep_house(&pods, &ends).await });
            let (list, wanted) = watch::channel(config.prefetch.clone());
            tasks.spawn(async move { manager.keep_warm(wanted).await });
            if let Some(file) = args.config.clone() {
                tasks.spawn(reload::follow(file, config.clone(), list, shutdown.clone()));
            }
            if let Some(every) = config.cache.scrub_interval {
                let (rate, ends) = (config.cache.scrub_rate.as_u64(), shutdown.clone());
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
