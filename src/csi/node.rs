//! The Node service: kubelet's calls for the volumes of pods on this node.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Notify;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;
use tracing::field::Empty;

use super::history::CallHistory;
use super::proto::node_server::Node;
use super::proto::node_service_capability::{Rpc, Type, rpc};
use super::proto::volume_usage::Unit;
use super::proto::{
    NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest,
    NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, VolumeCondition, VolumeUsage,
};
use super::publish_traces::PublishTraces;
use super::readiness::Readiness;
use super::request::WipedRequest;
use super::rpc::{RefusalLog, RpcCall, not_served};
use super::{deadline, request, status, target};
use crate::blocking::blocking;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::telemetry;
use crate::text::shown;
use crate::trace;
use crate::volume::{VolumeStats, Volumes};

/// The administrator's settings for this node.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// `--node-id`: the Kubernetes name of the node.
    pub node_id: String,
    /// `--kubelet-dir`: kubelet's root directory; `pods` is below it.
    pub kubelet_dir: PathBuf,
    /// Notified by every NodeGetInfo, which kubelet calls when it registers the driver.
    pub registered: Arc<Notify>,
    /// Gets the outcome of every call for a volume.
    pub history: CallHistory,
    /// `objectStorage.podSecrets`: whether pods may present Secrets.
    pub pod_secrets: bool,
}

/// Publishes and unpublishes volumes.
pub struct NodeService {
    volumes: Volumes,
    options: NodeOptions,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    refusals: RefusalLog,
    traces: PublishTraces,
}

impl NodeService {
    /// Creates the service of this node on top of `volumes`.
    pub fn new(
        volumes: Volumes,
        options: NodeOptions,
        readiness: Readiness,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (refusals, traces) = (RefusalLog::default(), PublishTraces::default());
        Self { volumes, options, readiness, metrics, refusals, traces }
    }

    async fn publish(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<NodePublishVolumeResponse> {
        let wait = deadline::wait(request.metadata());
        let request = WipedRequest::new(request.into_inner());
        self.readiness.check()?;
        let pod_secrets = self.options.pod_secrets;
        let incoming = self
            .parse_blocking(move |kubelet| request::publish(request.get(), kubelet, pod_secrets))
            .await?;
        self.volumes.publish(incoming, wait).await?;
        Ok(NodePublishVolumeResponse {})
    }

    async fn unpublish(
        &self,
        request: NodeUnpublishVolumeRequest,
    ) -> Result<NodeUnpublishVolumeResponse> {
        self.readiness.check()?;
        request::volume_id(&request.volume_id)?;
        let path = request.target_path;
        let target = self.parse_blocking(move |kubelet| target::confine(&path, kubelet)).await?;
        self.volumes.unpublish(&request.volume_id, &target.path).await?;
        Ok(NodeUnpublishVolumeResponse {})
    }

    async fn stats(
        &self,
        request: NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse> {
        self.readiness.check()?;
        let volume_id = request::volume_id(&request.volume_id)?;
        if request.volume_path.is_empty() {
            return Err(Error::invalid("volume_path is missing: set it to the volume's path"));
        }
        // Nothing is published at any other path: NotFound.
        let stats = self.volumes.stats(volume_id, Path::new(&request.volume_path)).await?;
        Ok(stats_response(stats))
    }

    /// Begins a call for a volume. Its outcome is recorded once the driver is ready: that
    /// calls are refused until then is no failure.
    fn begin(&self, method: &'static str, volume_id: &str, pod: Option<String>) -> RpcCall {
        let call = RpcCall::begin(&self.metrics, method, volume_id);
        let history = &self.options.history;
        history.record_kubelet();
        if self.readiness.is_ready() { call.recorded(history, pod) } else { call }
    }

    /// Runs a parser that accesses the disk, off the reactor.
    async fn parse_blocking<T: Send + 'static>(
        &self,
        parse: impl FnOnce(&Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let kubelet_dir = self.options.kubelet_dir.clone();
        blocking(move || parse(&kubelet_dir)).await
    }
}

/// Reports all bytes and inodes as used and none as available: a model cannot grow.
fn stats_response(stats: VolumeStats) -> NodeGetVolumeStatsResponse {
    let usage = |amount: u64, unit: Unit| {
        let total = i64::try_from(amount).unwrap_or(i64::MAX);
        VolumeUsage { available: 0, total, used: total, unit: unit.into() }
    };
    let abnormal = stats.abnormal.is_some();
    let message = stats.abnormal.unwrap_or_else(|| "the model is complete and mounted".to_owned());
    NodeGetVolumeStatsResponse {
        usage: vec![usage(stats.bytes, Unit::Bytes), usage(stats.inodes, Unit::Inodes)],
        volume_condition: Some(VolumeCondition { abnormal, message }),
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let volume_id = request.get_ref().volume_id.clone();
        let target = request.get_ref().target_path.clone();
        let whole = self.traces.enter(&volume_id, &target);
        let span = tracing::error_span!(
            parent: whole.id(),
            "publish",
            trace = telemetry::trace_id(&whole).unwrap_or_else(trace::id),
            volume = shown(&volume_id, 128),
            pod = Empty,
            model = Empty,
            flight = Empty
        );
        let publish = async {
            let pod = request::pod_of(&request.get_ref().volume_context);
            let call = self.begin("NodePublishVolume", &volume_id, pod);
            let result = self.publish(request).await.map_err(|error| status::of(&error));
            call.answer_logged_once(result, &self.refusals)
        };
        let answer = publish.instrument(span.clone()).await;
        self.traces.answered((&volume_id, &target), (&whole, &span), &answer);
        answer.map_err(|status| status::for_event(&status))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let volume_id = request.volume_id.clone();
        // A pod that ended before its volume was published.
        self.traces.end(&volume_id, &request.target_path);
        let span = tracing::error_span!(
            "unpublish",
            trace = Empty,
            volume = shown(&volume_id, 128),
            pod = Empty,
            model = Empty
        );
        span.record("trace", telemetry::trace_id(&span).unwrap_or_else(trace::id));
        let unpublish = async {
            let call = self.begin("NodeUnpublishVolume", &volume_id, None);
            let result = self.unpublish(request).await.map_err(|error| status::of(&error));
            call.answer_logged_once(result, &self.refusals)
        };
        let answer = unpublish.instrument(span.clone()).await;
        let failure = answer.as_ref().err();
        let code = failure.map_or(tonic::Code::Ok, Status::code);
        telemetry::answered(&span, status::name(code), failure.map(Status::message));
        answer
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let call = self.begin("NodeGetVolumeStats", &request.volume_id, None);
        call.answer(self.stats(request).await.map_err(|error| status::of(&error)))
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let call = RpcCall::begin(&self.metrics, "NodeGetCapabilities", "");
        let capabilities = [rpc::Type::GetVolumeStats, rpc::Type::VolumeCondition]
            .map(|can| NodeServiceCapability {
                r#type: Some(Type::Rpc(Rpc { r#type: can.into() })),
            })
            .to_vec();
        call.answer(Ok(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _request: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let call = RpcCall::begin(&self.metrics, "NodeGetInfo", "");
        self.options.registered.notify_one();
        self.options.history.record_kubelet();
        call.answer(Ok(NodeGetInfoResponse {
            node_id: self.options.node_id.clone(),
            // No limit on volumes, and every node can reach every bucket.
            max_volumes_per_node: 0,
            accessible_topology: None,
        }))
    }

    not_served! {
        node_stage_volume, "NodeStageVolume",
            NodeStageVolumeRequest => NodeStageVolumeResponse:
            "volumes are published without staging";
        node_unstage_volume, "NodeUnstageVolume",
            NodeUnstageVolumeRequest => NodeUnstageVolumeResponse:
            "volumes are published without staging";
        node_expand_volume, "NodeExpandVolume",
            NodeExpandVolumeRequest => NodeExpandVolumeResponse:
            "a volume is as large as its model";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_and_inodes_of_a_model_are_reported_as_used() {
        let response = stats_response(VolumeStats { bytes: 7, inodes: 3, abnormal: None });
        let reported: Vec<_> = response
            .usage
            .iter()
            .map(|usage| (usage.unit(), usage.total, usage.used, usage.available))
            .collect();
        assert_eq!(reported, [(Unit::Bytes, 7, 7, 0), (Unit::Inodes, 3, 3, 0)]);
        assert!(!response.volume_condition.unwrap().abnormal);

        let broken =
            VolumeStats { bytes: u64::MAX, inodes: 0, abnormal: Some("unmounted".to_owned()) };
        let response = stats_response(broken);
        assert_eq!(response.usage[0].total, i64::MAX);
        let condition = response.volume_condition.unwrap();
        assert_eq!((condition.abnormal, condition.message.as_str()), (true, "unmounted"));
    }
}
