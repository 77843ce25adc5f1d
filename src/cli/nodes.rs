//! `oci-model-csi nodes`

mod show;

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use tokio::runtime::Runtime;

use super::fetch::Output;
use crate::error::{Error, Result};
use crate::fleet::{self, ModelFilter};
use crate::kubernetes::{ApiServer, Cluster};

const AFTER_HELP: &str = "\
In the cluster, with the rights of the Controller:
  kubectl -n oci-model-csi exec deploy/oci-model-csi-controller -c driver -- oci-model-csi nodes

Elsewhere, with your own rights:
  kubectl proxy --port 8001 &
  oci-model-csi nodes --kubernetes-api http://127.0.0.1:8001

Nodes name their models in labels only if the driver's --model-labels (node.modelLabels of the \
chart) is set.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct NodesArgs {
    /// Only nodes with this model: oci://BUCKET@NAMESPACE/PREFIX, or a name as this command
    /// prints it, with or without the digits behind it
    #[arg(long, env = "OCI_MODEL_CSI_MODEL", value_name = "URI|NAME")]
    model: Option<String>,
    /// Format of the result on stdout
    #[arg(long, env = "OCI_MODEL_CSI_OUTPUT", value_enum, default_value = "text")]
    output: Output,
    /// Name of the CSI driver, as in the CSIDriver object
    #[arg(long, env = "OCI_MODEL_CSI_DRIVER_NAME", default_value = "oci-model-csi.dev")]
    driver_name: String,
    /// API server, or `kubectl proxy` [default: the API server of the cluster that this runs in]
    #[arg(long, env = "OCI_MODEL_CSI_KUBERNETES_API", value_name = "URL")]
    kubernetes_api: Option<String>,
    /// Directory of a service account, with token and ca.crt; without a token none is sent to
    /// --kubernetes-api
    #[arg(
        long,
        env = "OCI_MODEL_CSI_SERVICE_ACCOUNT_DIR",
        value_name = "DIR",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    service_account_dir: PathBuf,
}

impl NodesArgs {
    pub(super) fn wants_json(&self) -> bool {
        self.output == Output::Json
    }

    fn cluster(&self) -> Result<Cluster> {
        let has_token = self.service_account_dir.join("token").exists();
        match (&self.kubernetes_api, Cluster::own_url()) {
            (Some(url), _) if !has_token => Ok(Cluster::open(url.clone())),
            (Some(url), _) => Ok(Cluster::at(url.clone(), &self.service_account_dir)),
            (None, Some(url)) => Ok(Cluster::at(url, &self.service_account_dir)),
            (None, None) => Err(Error::invalid(
                "no API server is known: run this in the Controller's pod, or start `kubectl proxy \
                 --port 8001` and name it with --kubernetes-api http://127.0.0.1:8001",
            )),
        }
    }
}

pub(super) fn run(args: &NodesArgs, runtime: &Runtime) -> Result<()> {
    let filter = args.model.as_deref().map(ModelFilter::parse).transpose()?;
    let api = ApiServer::new(&args.cluster()?)?;
    let nodes = runtime.block_on(fleet::nodes(&api, &args.driver_name))?;
    let text = match args.wants_json() {
        true => show::json(&nodes, filter.as_ref()),
        false => show::text(&nodes, filter.as_ref()),
    };
    let written = writeln!(std::io::stdout(), "{}", text.trim_end());
    written.map_err(|e| Error::io("writing the result", &e))
}
