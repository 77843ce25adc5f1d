//! `oci-model-csi node|controller|all`: builds all parts in the order of their
//! dependencies, and stops them in the reverse order.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cache_dir;
use super::process_limits;
use super::reload::{self, ConfigWatcher};
use super::service_args::ServiceArgs;
use crate::admin::{Admin, Listener};
use crate::blocking::blocking;
use crate::cache::Cache;
use crate::config::Config;
use crate::csi::{
    CallHistory, ControllerService, IdentityService, NodeOptions, NodeService, Readiness, Services,
    serve,
};
use crate::download::Engine;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::kubernetes;
use crate::manage::{Manager, PrefetchModel, Remote};
use crate::metrics::Metrics;
use crate::model::ModelRequest;
use crate::node::PublicModels;
use crate::policy::Policy;
use crate::resolve::{ClientPool, Resolver, RevisionSelector};
use crate::socket::{self, SocketGuard};
use crate::volume::{ClaimReader, PageWarmer, Provisioner, VolumeParts, Volumes, is_for_every_pod};
use crate::weights::WeightsChecker;

/// How long background work may take to stop after the last call has ended.
const GRACE: Duration = Duration::from_secs(5);

/// The services on the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Node,
    Controller,
    All,
}

/// Serves until SIGTERM or SIGINT.
pub(super) fn run(
    args: ServiceArgs,
    mode: Mode,
    runtime: &Runtime,
    metrics: Arc<Metrics>,
) -> Result<()> {
    let (config, text) = args.read_config()?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        ?mode,
        driver = args.driver_name,
        "starting"
    );
    if let Err(error) = process_limits::raise_descriptors() {
        tracing::warn!(%error, "the driver may run out of file descriptors under load");
    }
    if let Some(bytes) = args.heap_limit {
        process_limits::limit_heap(bytes)?;
    }
    runtime.block_on(async {
        let app = App::build(args, config, &text, mode, metrics).await?;
        app.run().await
    })
}

/// The driver: all of its parts, built and not started yet.
struct App {
    args: ServiceArgs,
    config: Config,
    shared: SharedParts,
    node: Option<NodeParts>,
    listener: UnixListener,
    services: Services,
    admin: Admin,
    admin_listeners: Vec<Listener>,
    watcher: ConfigWatcher,
    prefetch: watch::Receiver<Vec<PrefetchModel>>,
    /// Remove the sockets when the driver ends.
    sockets: Vec<SocketGuard>,
}

/// What all services share.
struct SharedParts {
    resolver: Resolver,
    policy: watch::Receiver<Policy>,
    kubernetes: Option<kubernetes::ApiServer>,
    events: Events,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    history: CallHistory,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// The parts that only a node plugin has.
struct NodeParts {
    cache: Cache,
    engine: Engine,
    volumes: Volumes,
    manager: Manager,
    registered: Arc<Notify>,
}

impl App {
    /// Builds every part, in the order of their dependencies, and binds the sockets.
    async fn build(
        args: ServiceArgs,
        config: Config,
        text: &str,
        mode: Mode,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        // The socket comes first: kubelet's registrar waits for it only one second.
        let (listener, socket) = socket::bind(&args.csi_endpoint).await?;
        let mut sockets = vec![socket];

        let (mut watcher, updates) = ConfigWatcher::new(&config, text, &metrics);
        let shared = SharedParts::build(&args, &config, mode, updates.policy, metrics).await?;
        let node = match mode {
            Mode::Controller => None,
            Mode::Node | Mode::All => Some(NodeParts::build(&args, &config, &shared)?),
        };
        let cache = node.as_ref().map(|node| node.cache.clone());
        watcher.check_against_recorded(cache.clone(), &config, args.config.as_deref()).await?;

        let admin = Admin {
            metrics: Arc::clone(&shared.metrics),
            readiness: shared.readiness.clone(),
            history: shared.history.clone(),
            cache,
            manager: node.as_ref().map(|node| node.manager.clone()),
        };
        let admin_listeners = bind_admin(&args, node.as_ref(), &mut sockets).await?;
        let services = services(&args, &config, mode, &shared, node.as_ref());
        let prefetch = updates.prefetch;
        Ok(Self {
            args,
            config,
            shared,
            node,
            listener,
            services,
            admin,
            admin_listeners,
            watcher,
            prefetch,
            sockets,
        })
    }

    /// Starts the servers and the background tasks, waits for the end, and stops all parts.
    async fn run(self) -> Result<()> {
        let Self { args, config, shared, node, .. } = self;
        let SharedParts { tasks, shutdown, .. } = &shared;
        stop_at_signals(tasks, shutdown)?;
        for listener in self.admin_listeners {
            tasks.spawn(self.admin.clone().serve(listener, shutdown.clone()));
        }
        if let Some(file) = args.config.clone() {
            let watching = reload::watch_file(file, config.clone(), self.watcher, shutdown.clone());
            tasks.spawn(watching);
        }
        let serving = serve(self.listener, self.services, shutdown.clone());
        let starting = async {
            match &node {
                Some(node) => node.start(&args, &config, self.prefetch, &shared).await,
                None => {
                    shared.readiness.ready();
                    Ok(())
                }
            }
        };
        let (served, started) = tokio::join!(serving, starting);

        // Calls have ended. Stop their background work first, then what that work uses.
        tracing::info!("stopping");
        shutdown.cancel();
        tasks.close();
        if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
            tracing::warn!(
                "background work is still running; exiting without it, journals are kept"
            );
        }
        if let Some(node) = node {
            node.stop().await?;
        }
        drop(self.sockets);
        served.and(started)
    }
}

impl SharedParts {
    async fn build(
        args: &ServiceArgs,
        config: &Config,
        mode: Mode,
        policy: watch::Receiver<Policy>,
        metrics: Arc<Metrics>,
    ) -> Result<Self> {
        let tasks = TaskTracker::new();
        let shutdown = CancellationToken::new();
        let connector = args.connect(config, mode != Mode::Controller, &metrics).await?;
        let pool = ClientPool::new(connector, config.object_storage.buckets.clone());
        let resolver = Resolver::new(pool, (&config.limits).into(), &tasks, &shutdown);
        let kubernetes = args.kubernetes()?;
        let events = kubernetes.clone().map_or_else(Events::default, |server| {
            Events::to(server, &args.driver_name, &args.node_name(), &tasks, &shutdown)
        });
        let readiness = Readiness::not_ready("opening the cache");
        let history = CallHistory::default();
        Ok(Self {
            resolver,
            policy,
            kubernetes,
            events,
            metrics,
            readiness,
            history,
            tasks,
            shutdown,
        })
    }
}

impl SharedParts {
    /// Says which models every pod of the cluster may mount, by the present rules.
    fn public_models(&self) -> PublicModels {
        let (policy, resolver) = (self.policy.clone(), self.resolver.clone());
        Arc::new(move |source| {
            let (policy, resolver) = (policy.clone(), resolver.clone());
            async move {
                let request =
                    ModelRequest::of(Some(source.namespace), source.bucket, source.prefix);
                is_for_every_pod(&policy, &resolver, &request).await
            }
            .boxed()
        })
    }
}

impl NodeParts {
    fn build(args: &ServiceArgs, config: &Config, shared: &SharedParts) -> Result<Self> {
        let SharedParts { resolver, metrics, tasks, shutdown, .. } = shared;
        let options =
            cache_dir::options(config, args.cache_dir.as_deref(), &args.kubelet_dir, metrics)?;
        let grace = options.abandon_after;
        let cache = Cache::open(options, Arc::clone(metrics), tasks, shutdown)?;
        let engine = Engine::new(config.download.engine(true), Arc::clone(metrics))?;
        let weights = WeightsChecker::new(config.check_safetensors, grace, tasks, shutdown);
        let volumes = Volumes::new(VolumeParts {
            cache: cache.clone(),
            kubelet: args.kubelet_dir.clone(),
            engine: engine.clone(),
            selector: RevisionSelector::new(resolver.clone(), config.serve_stale_on_outage),
            weights: weights.clone(),
            policy: shared.policy.clone(),
            events: shared.events.clone(),
            warmer: PageWarmer::start(config.cache.warm_page_cache, &cache, tasks, shutdown),
            metrics: Arc::clone(metrics),
        });
        let remote = Remote { engine: engine.clone(), resolver: resolver.clone(), weights };
        let manager = Manager::of_driver(cache.clone(), remote, tasks, shutdown);
        Ok(Self { cache, engine, volumes, manager, registered: Arc::default() })
    }

    /// Recovers the cache while the socket already answers, then marks the driver ready
    /// and starts the background tasks.
    async fn start(
        &self,
        args: &ServiceArgs,
        config: &Config,
        prefetch: watch::Receiver<Vec<PrefetchModel>>,
        shared: &SharedParts,
    ) -> Result<()> {
        shared.readiness.set_activity("recovering the cache");
        let started = Instant::now();
        let pods = args.kubelet_dir.join("pods");
        let recovering = self.cache.clone();
        let pods_dir = pods.clone();
        let found = blocking(move || recovering.recover(&pods_dir))
            .await
            .inspect_err(|_| shared.shutdown.cancel())
            .map_err(|error| error.context("recovering the cache"))?;
        shared.readiness.ready();
        self.start_background_tasks(args, config, pods, prefetch, shared);
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

    fn start_background_tasks(
        &self,
        args: &ServiceArgs,
        config: &Config,
        pods: PathBuf,
        prefetch: watch::Receiver<Vec<PrefetchModel>>,
        shared: &SharedParts,
    ) {
        let SharedParts { tasks, shutdown, .. } = shared;
        if let Some(api) = &shared.kubernetes {
            let (state, is_public) = (args.node_state(), shared.public_models());
            state.follow(api, &self.cache, is_public, &self.registered, tasks, shutdown);
        }
        let cache = self.cache.clone();
        let end = shutdown.clone();
        tasks.spawn(async move { cache.run_maintenance(&pods, &end).await });
        let manager = self.manager.clone();
        let labels = args.own_labels(shared.kubernetes.as_ref(), tasks, shutdown);
        tasks.spawn(async move { manager.run_prefetch(prefetch, labels).await });
        if let Some(every) = config.cache.scrub_interval {
            let volumes = self.volumes.clone();
            let rate = config.cache.scrub_rate;
            let end = shutdown.clone();
            tasks.spawn(async move { volumes.scrub(every, rate, &end).await });
        }
    }

    /// Stops what outlives the tasks: the sync of the disk, and the download threads.
    async fn stop(self) -> Result<()> {
        if tokio::time::timeout(GRACE, self.cache.wait_until_synced()).await.is_err() {
            tracing::warn!(
                "the disk is slow; files that are not durable yet are checked at the next start"
            );
        }
        let engine = self.engine;
        blocking(move || {
            engine.stop(GRACE);
            Ok(())
        })
        .await
    }
}

/// The CSI services of this mode.
fn services(
    args: &ServiceArgs,
    config: &Config,
    mode: Mode,
    shared: &SharedParts,
    node: Option<&NodeParts>,
) -> Services {
    let SharedParts { readiness, metrics, .. } = shared;
    let pod_secrets = config.object_storage.pod_secrets;
    let has_controller = mode != Mode::Node;
    let driver = args.driver_name.clone();
    let identity = IdentityService::new(
        driver.clone(),
        has_controller,
        readiness.clone(),
        Arc::clone(metrics),
    );
    let node = node.map(|node| {
        let options = NodeOptions {
            node_id: args.node_name(),
            kubelet_dir: args.kubelet_dir.clone(),
            registered: Arc::clone(&node.registered),
            history: shared.history.clone(),
            pod_secrets,
        };
        NodeService::new(node.volumes.clone(), options, readiness.clone(), Arc::clone(metrics))
    });
    let controller = has_controller.then(|| {
        let provisioner = Provisioner::new(
            shared.resolver.clone(),
            shared.policy.clone(),
            ClaimReader::of(shared.kubernetes.clone()),
            shared.events.clone(),
            driver,
        )
        .with_pod_secrets(pod_secrets);
        ControllerService::new(provisioner, readiness.clone(), Arc::clone(metrics))
    });
    Services { identity, node, controller }
}

/// Binds the socket for commands, and the address of the metrics.
async fn bind_admin(
    args: &ServiceArgs,
    node: Option<&NodeParts>,
    sockets: &mut Vec<SocketGuard>,
) -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    let bound = match (&args.admin_endpoint, node) {
        (Some(endpoint), _) => Some(socket::bind(endpoint).await?),
        (None, Some(node)) => bind_default_admin_socket(node.cache.layout().root()).await,
        (None, None) => None,
    };
    if let Some((listener, guard)) = bound {
        listeners.push(Listener::Unix(listener));
        sockets.push(guard);
    }
    if let Some(address) = args.metrics_address {
        listeners.push(Listener::tcp(address).await?);
    }
    Ok(listeners)
}

/// Binds the socket in the cache, which is the default of the commands. It is optional:
/// the driver serves without it.
async fn bind_default_admin_socket(cache: &Path) -> Option<(UnixListener, SocketGuard)> {
    let bound = match cache_dir::admin_endpoint(cache) {
        Ok(endpoint) => socket::bind(&endpoint).await,
        Err(error) => Err(error),
    };
    let warn = |error: &Error| tracing::warn!(%error, "the socket for commands is not available");
    bound.inspect_err(warn).ok()
}

fn stop_at_signals(tasks: &TaskTracker, shutdown: &CancellationToken) -> Result<()> {
    let listen = |kind| signal(kind).map_err(|e| Error::io("listening for signals", &e));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
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
