//! The Controller service: volumes of StorageClasses. It stores nothing outside
//! its answers, and no call ever changes an object.

use std::collections::HashMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::proto::controller_server::Controller;
use super::proto::controller_service_capability::{Rpc, Type, rpc};
use super::proto::validate_volume_capabilities_response::Confirmed;
use super::proto::{
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse,
    ControllerServiceCapability, CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest,
    DeleteVolumeResponse, ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
    Volume,
};
use super::readiness::Readiness;
use super::rpc::{RpcCall, not_served};
use super::{capability, deadline, request, status};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;
use crate::text::shown;
use crate::volume::Provisioner;
use crate::{telemetry, trace};

/// Provisions volumes.
pub struct ControllerService {
    provisioner: Provisioner,
    readiness: Readiness,
    metrics: Arc<Metrics>,
}

impl ControllerService {
    /// Creates the service on top of `provisioner`.
    pub fn new(provisioner: Provisioner, readiness: Readiness, metrics: Arc<Metrics>) -> Self {
        Self { provisioner, readiness, metrics }
    }

    async fn create(&self, request: Request<CreateVolumeRequest>) -> Result<CreateVolumeResponse> {
        self.readiness.check()?;
        let wait = deadline::wait(request.metadata());
        let request = request.get_ref();
        let provision_request = request::provision(request).inspect_err(|error| {
            self.provisioner.record_refusal(&request.parameters, &request.name, error);
        })?;
        let created = tokio::time::timeout(wait, self.provisioner.create(provision_request)).await;
        let volume = created.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::InProgress,
                "looking up the model in Object Storage takes long; the lookup continues, and the \
                 call will be retried",
            ))
        })?;
        let volume = Volume {
            capacity_bytes: i64::try_from(volume.capacity_bytes).unwrap_or(i64::MAX),
            volume_id: volume.id,
            volume_context: volume.context.into_iter().collect(),
            content_source: None,
            accessible_topology: Vec::new(),
        };
        Ok(CreateVolumeResponse { volume: Some(volume) })
    }

    fn delete(&self, request: &DeleteVolumeRequest) -> Result<DeleteVolumeResponse> {
        self.readiness.check()?;
        self.provisioner.delete(request::volume_id(&request.volume_id)?)?;
        Ok(DeleteVolumeResponse {})
    }

    fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse> {
        self.readiness.check()?;
        let id = request::volume_id(&request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Error::invalid("volume_capabilities are missing"));
        }
        self.provisioner.find(id)?;
        let (parameters, context) = (&request.parameters, &request.volume_context);
        let supported = capability::check_all(&request.volume_capabilities)
            .and_then(|()| refuse_mutable(&request.mutable_parameters))
            .and_then(|()| self.provisioner.validate(id, parameters, context));
        match supported {
            Ok(()) => Ok(ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: HashMap::new(),
                }),
                message: String::new(),
            }),
            Err(error) if error.kind() == ErrorKind::Invalid => {
                let message = status::of(&error).message().to_owned();
                Ok(ValidateVolumeCapabilitiesResponse { confirmed: None, message })
            }
            Err(error) => Err(error),
        }
    }
}

fn refuse_mutable(parameters: &HashMap<String, String>) -> Result<()> {
    if parameters.is_empty() {
        return Ok(());
    }
    Err(Error::invalid("mutable parameters are not supported"))
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let call = RpcCall::begin(&self.metrics, "CreateVolume", &request.get_ref().name);
        let volume = shown(&request.get_ref().name, 128);
        let span = tracing::info_span!(
            target: trace::STEP, parent: None, "provision volume", volume
        );
        let created = self.create(request).instrument(span.clone()).await;
        let answer = call.answer(created.map_err(|error| status::of(&error)));
        let failure = answer.as_ref().err();
        let code = failure.map_or(tonic::Code::Ok, Status::code);
        telemetry::answered(&span, status::name(code), failure.map(Status::message));
        answer
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let request = request.into_inner();
        let call = RpcCall::begin(&self.metrics, "DeleteVolume", &request.volume_id);
        call.answer(self.delete(&request).map_err(|error| status::of(&error)))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let call = RpcCall::begin(&self.metrics, "ValidateVolumeCapabilities", &request.volume_id);
        call.answer(self.validate(request).map_err(|error| status::of(&error)))
    }

    async fn controller_get_capabilities(
        &self,
        _request: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let call = RpcCall::begin(&self.metrics, "ControllerGetCapabilities", "");
        let create_delete = rpc::Type::CreateDeleteVolume.into();
        let capability =
            ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: create_delete })) };
        call.answer(Ok(ControllerGetCapabilitiesResponse { capabilities: vec![capability] }))
    }

    not_served! {
        controller_publish_volume, "ControllerPublishVolume",
            ControllerPublishVolumeRequest => ControllerPublishVolumeResponse:
            "nothing is attached to a node (attachRequired: false)";
        controller_unpublish_volume, "ControllerUnpublishVolume",
            ControllerUnpublishVolumeRequest => ControllerUnpublishVolumeResponse:
            "nothing is attached to a node (attachRequired: false)";
        list_volumes, "ListVolumes", ListVolumesRequest => ListVolumesResponse:
            "the Kubernetes API lists the volumes";
        get_capacity, "GetCapacity", GetCapacityRequest => GetCapacityResponse:
            "a volume takes no capacity until a node caches its model";
        create_snapshot, "CreateSnapshot", CreateSnapshotRequest => CreateSnapshotResponse:
            "volumes are read-only; a revision pins a model";
        delete_snapshot, "DeleteSnapshot", DeleteSnapshotRequest => DeleteSnapshotResponse:
            "there are no snapshots";
        list_snapshots, "ListSnapshots", ListSnapshotsRequest => ListSnapshotsResponse:
            "there are no snapshots";
        get_snapshot, "GetSnapshot", GetSnapshotRequest => GetSnapshotResponse:
            "there are no snapshots";
        controller_expand_volume, "ControllerExpandVolume",
            ControllerExpandVolumeRequest => ControllerExpandVolumeResponse:
            "a volume is as large as its model";
        controller_get_volume, "ControllerGetVolume",
            ControllerGetVolumeRequest => ControllerGetVolumeResponse:
            "the Kubernetes API knows the volumes";
        controller_modify_volume, "ControllerModifyVolume",
            ControllerModifyVolumeRequest => ControllerModifyVolumeResponse:
            "a volume's parameters are fixed when it is created";
    }
}
