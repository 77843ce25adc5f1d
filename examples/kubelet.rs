//! Plays kubelet for one inline volume of one pod, to try the driver without
//! Kubernetes:
//!
//! ```text
//! cargo run --example kubelet -- publish   --pod vllm-0 --bucket ai-models --prefix tiny/
//! cargo run --example kubelet -- stats     --pod vllm-0
//! cargo run --example kubelet -- unpublish --pod vllm-0
//! ```
//!
//! Like kubelet, it gives each call a deadline, and retries after every answer
//! that is not final.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use hyper_util::rt::TokioIo;
use oci_model_csi::csi::proto::node_client::NodeClient;
use oci_model_csi::csi::proto::volume_capability::{
    AccessMode, AccessType, MountVolume, access_mode::Mode,
};
use oci_model_csi::csi::proto::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest,
    VolumeCapability, volume_usage::Unit,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// The pause between two attempts; kubelet begins with this and doubles it.
const PAUSE: Duration = Duration::from_millis(500);

/// Plays kubelet for one inline volume of one pod.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Publish a model for a pod; prints its directory
    Publish {
        #[command(flatten)]
        volume: Volume,
        /// Bucket of the model
        #[arg(long)]
        bucket: String,
        /// Prefix of the model's objects
        #[arg(long)]
        prefix: String,
        /// Another volumeAttribute, such as pullPolicy=Never. Repeatable
        #[arg(long, value_name = "KEY=VALUE")]
        attribute: Vec<String>,
        /// Deadline of each call, in seconds; kubelet's is two minutes
        #[arg(long, default_value_t = 120, value_name = "SECONDS")]
        deadline: u64,
        /// Give up after this many seconds; kubelet never does
        #[arg(long, default_value_t = 600, value_name = "SECONDS")]
        give_up: u64,
    },
    /// Unpublish the model
    Unpublish {
        #[command(flatten)]
        volume: Volume,
    },
    /// Print the volume's bytes and inodes
    Stats {
        #[command(flatten)]
        volume: Volume,
    },
}

#[derive(Debug, Args)]
struct Volume {
    /// Name of the pod; its UID is made from it
    #[arg(long)]
    pod: String,
    /// Namespace of the pod
    #[arg(long, default_value = "default")]
    pod_namespace: String,
    /// The driver's socket
    #[arg(long, default_value = "/csi/csi.sock")]
    socket: PathBuf,
    /// kubelet's root directory, the same as the driver's
    #[arg(long, default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Publish { volume, bucket, prefix, attribute, deadline, give_up } => {
            let mut attributes =
                HashMap::from([("bucket".to_owned(), bucket), ("prefix".to_owned(), prefix)]);
            for pair in attribute {
                let (key, value) = pair.split_once('=').context("--attribute takes KEY=VALUE")?;
                attributes.insert(key.to_owned(), value.to_owned());
            }
            let (deadline, give_up) = (Duration::from_secs(deadline), Duration::from_secs(give_up));
            volume.publish(attributes, deadline, give_up).await
        }
        Command::Unpublish { volume } => volume.unpublish().await,
        Command::Stats { volume } => volume.stats().await,
    }
}

impl Volume {
    async fn publish(
        &self,
        attributes: HashMap<String, String>,
        deadline: Duration,
        give_up: Duration,
    ) -> Result<()> {
        let target = self.target();
        let parent = target.parent().context("a target has a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        let request = self.publish_request(attributes)?;
        let started = Instant::now();
        loop {
            let mut call = Request::new(request.clone());
            call.set_timeout(deadline);
            let answer = connect(&self.socket).await?.node_publish_volume(call).await;
            let seconds = started.elapsed().as_secs_f64();
            match answer {
                Ok(_) => return say(&target.display().to_string()),
                Err(status) if is_final(status.code()) || started.elapsed() > give_up => {
                    bail!("{}", describe(&status));
                }
                Err(status) => {
                    writeln!(io::stderr(), "{seconds:5.1} s  {}", describe(&status))?;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn unpublish(&self) -> Result<()> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: self.volume_id(),
            target_path: text(&self.target())?,
        };
        let answer = connect(&self.socket).await?.node_unpublish_volume(request).await;
        answer.map_err(|status| anyhow::anyhow!("{}", describe(&status)))?;
        // kubelet made these directories, and removes only empty ones.
        let mut made = self.target();
        while made.pop() && made != self.kubelet_dir.join("pods") {
            fs::remove_dir(&made).with_context(|| format!("removing {}", made.display()))?;
        }
        Ok(())
    }

    async fn stats(&self) -> Result<()> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: self.volume_id(),
            volume_path: text(&self.target())?,
            staging_target_path: String::new(),
        };
        let answer = connect(&self.socket).await?.node_get_volume_stats(request).await;
        let stats = answer.map_err(|status| anyhow::anyhow!("{}", describe(&status)))?.into_inner();
        for usage in stats.usage {
            let unit = match usage.unit() {
                Unit::Bytes => "bytes",
                Unit::Inodes => "inodes",
                Unit::Unknown => "of an unknown unit",
            };
            say(&format!(
                "{} {unit}, {} used, {} available",
                usage.total, usage.used, usage.available
            ))?;
        }
        Ok(())
    }

    /// What kubelet sends for `readOnly: true` of a pod's `csi:` volume.
    fn publish_request(
        &self,
        attributes: HashMap<String, String>,
    ) -> Result<NodePublishVolumeRequest> {
        let uid = self.uid();
        let kubelets = [
            ("csi.storage.k8s.io/pod.name", self.pod.as_str()),
            ("csi.storage.k8s.io/pod.namespace", &self.pod_namespace),
            ("csi.storage.k8s.io/pod.uid", &uid),
            ("csi.storage.k8s.io/serviceAccount.name", "default"),
            ("csi.storage.k8s.io/ephemeral", "true"),
        ];
        let mut context = attributes;
        context.extend(kubelets.map(|(key, value)| (key.to_owned(), value.to_owned())));
        Ok(NodePublishVolumeRequest {
            volume_id: self.volume_id(),
            target_path: text(&self.target())?,
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            readonly: true,
            volume_context: context,
            ..NodePublishVolumeRequest::default()
        })
    }

    fn target(&self) -> PathBuf {
        let pod = self.kubelet_dir.join("pods").join(self.uid());
        pod.join("volumes/kubernetes.io~csi/model/mount")
    }

    fn uid(&self) -> String {
        format!("uid-of-{}", self.pod)
    }

    fn volume_id(&self) -> String {
        format!("csi-{}-{}", self.pod_namespace, self.pod)
    }
}

/// A connection whose authority is `localhost`: HTTP/2 servers in Rust refuse a
/// percent-encoded path there.
async fn connect(socket: &Path) -> Result<NodeClient<Channel>> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    Ok(NodeClient::new(channel.with_context(|| format!("connecting to {}", socket.display()))?))
}

/// kubelet's `isFinalError`: whether no work is running any more.
fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

/// Formats a status as kubelet's event does, with single percent signs.
fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message().replace("%%", "%"))
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}
