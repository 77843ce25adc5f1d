//! The flags of `oci-model-csi node|controller|all`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::process_limits::parse_heap_limit;
use super::storage::{self, StorageArgs};
use crate::config::Config;
use crate::error::Result;
use crate::kubernetes::{self, Cluster};
use crate::metrics::Metrics;
use crate::node::{NodeLabels, NodeState, OwnLabels};
use crate::socket::SocketEndpoint;
use crate::source::{AuthMethod, SourceConnector};

/// Prefix of taints by which cluster-autoscaler recognizes a node that is still
/// starting. It ignores them in its simulations (its utils/taints/taints.go, since 1.29).
const STARTUP_TAINT: &str = "startup-taint.cluster-autoscaler.kubernetes.io/";

#[derive(Debug, Args)]
pub(super) struct ServiceArgs {
    /// Socket of the CSI services: unix:///path
    #[arg(long, env = "OCI_MODEL_CSI_CSI_ENDPOINT", default_value = "unix:///csi/csi.sock")]
    pub(super) csi_endpoint: SocketEndpoint,
    /// Name of the CSI driver, as in the CSIDriver object
    #[arg(long, env = "OCI_MODEL_CSI_DRIVER_NAME", default_value = "oci-model-csi.dev")]
    pub(super) driver_name: String,
    /// Kubernetes name of this node [default: the host name]
    #[arg(long, env = "OCI_MODEL_CSI_NODE_ID")]
    node_id: Option<String>,
    /// The driver's configuration, YAML
    #[arg(long, env = "OCI_MODEL_CSI_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Directory of the cache [default: cache.dir of the configuration, /var/lib/oci-model-csi]
    #[arg(long, env = "OCI_MODEL_CSI_CACHE_DIR", value_name = "DIR")]
    pub(super) cache_dir: Option<PathBuf>,
    /// kubelet's root directory; volumes are published below its pods/
    #[arg(
        long,
        env = "OCI_MODEL_CSI_KUBELET_DIR",
        value_name = "DIR",
        default_value = "/var/lib/kubelet"
    )]
    pub(super) kubelet_dir: PathBuf,
    /// Socket for `oci-model-csi cache` and the node's administrator [default: admin.sock in the
    /// cache; none for controller]
    #[arg(long, env = "OCI_MODEL_CSI_ADMIN_ENDPOINT", value_name = "unix:///path")]
    pub(super) admin_endpoint: Option<SocketEndpoint>,
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
    pub(super) service_account_dir: PathBuf,
    /// Taint to remove from this node once the driver is registered with kubelet; an empty value
    /// leaves taints alone [default: startup-taint.cluster-autoscaler.kubernetes.io/DRIVER-not-ready]
    #[arg(long, env = "OCI_MODEL_CSI_STARTUP_TAINT", value_name = "KEY")]
    startup_taint: Option<String>,
    /// Maximum number of node labels that name cached models; 0 writes none
    #[arg(long, env = "OCI_MODEL_CSI_MODEL_LABELS", value_name = "NUMBER", default_value_t = 0)]
    model_labels: usize,
    /// Address of /metrics, /healthz and /readyz, such as 0.0.0.0:9090 [default: none]
    #[arg(long, env = "OCI_MODEL_CSI_METRICS_ADDRESS", value_name = "ADDRESS:PORT")]
    pub(super) metrics_address: Option<SocketAddr>,
    /// Memory that the driver itself may allocate, such as 2GiB; the page cache, in which models
    /// stay, does not count [default: no limit]
    #[arg(
        long,
        env = "OCI_MODEL_CSI_HEAP_LIMIT",
        value_name = "SIZE",
        value_parser = parse_heap_limit
    )]
    pub(super) heap_limit: Option<u64>,
    #[command(flatten)]
    pub(super) storage: StorageArgs,
}

impl ServiceArgs {
    /// Reads the configuration. Also returns its text; without `--config` both are empty.
    pub(super) fn read_config(&self) -> Result<(Config, String)> {
        let Some(file) = &self.config else { return Ok((Config::default(), String::new())) };
        let text = Config::read(file)?;
        let config = Config::parse(&text, &file.display().to_string())?;
        Ok((config, text))
    }

    /// Connects the source of models, with the driver's own identity and those of pods.
    pub(super) async fn connect(
        &self,
        config: &Config,
        is_on_node: bool,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<dyn SourceConnector>> {
        let default_auth = AuthMethod::InstancePrincipal;
        let section = Some(&config.object_storage);
        let mut settings = self.storage.settings(section, default_auth, metrics)?;
        // The Controller shares the file, and is not where the nodes' addresses are.
        if is_on_node {
            settings = settings.coming_from(&config.download);
        }
        let settings = settings.with_service_account(&self.service_account_dir);
        storage::connect(settings, metrics).await
    }

    /// The API server of `--kubernetes-api`, or of the cluster that this process runs in.
    pub(super) fn kubernetes(&self) -> Result<Option<kubernetes::ApiServer>> {
        let url = self.kubernetes_api.clone().or_else(Cluster::own_url);
        url.map(|url| kubernetes::ApiServer::new(&Cluster::at(url, &self.service_account_dir)))
            .transpose()
    }

    pub(super) fn node_state(&self) -> NodeState {
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

    /// The labels of this node, as they change.
    pub(super) fn own_labels(
        &self,
        api: Option<&kubernetes::ApiServer>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> OwnLabels {
        match api {
            Some(api) => OwnLabels::follow(api, self.node_name(), tasks, shutdown),
            None => {
                let why = "the driver has no API server: it does not run in a cluster, and \
                           --kubernetes-api is not set";
                OwnLabels::fixed(NodeLabels::Unknown(why.to_owned()))
            }
        }
    }

    pub(super) fn node_name(&self) -> String {
        self.node_id.clone().unwrap_or_else(host_name)
    }
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .map_or_else(|_| "localhost".to_owned(), |name| name.to_string_lossy().into_owned())
}
