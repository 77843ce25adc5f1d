//! The Identity service. It answers at any time, even while the driver recovers.

use std::collections::HashMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::proto::identity_server::Identity;
use super::proto::plugin_capability::{Service, Type, service};
use super::proto::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
};
use super::readiness::Readiness;
use super::rpc::RpcCall;
use crate::metrics::Metrics;

/// Reports the driver's name, its capabilities, and whether it is ready.
pub struct IdentityService {
    driver_name: String,
    serves_controller: bool,
    readiness: Readiness,
    metrics: Arc<Metrics>,
}

impl IdentityService {
    /// Creates the service for a driver of this name. `serves_controller` is whether
    /// the Controller service is on the same socket.
    pub fn new(
        driver_name: impl Into<String>,
        serves_controller: bool,
        readiness: Readiness,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { driver_name: driver_name.into(), serves_controller, readiness, metrics }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let call = RpcCall::begin(&self.metrics, "GetPluginInfo", "");
        call.answer(Ok(GetPluginInfoResponse {
            name: self.driver_name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let call = RpcCall::begin(&self.metrics, "GetPluginCapabilities", "");
        let controller = PluginCapability {
            r#type: Some(Type::Service(Service {
                r#type: service::Type::ControllerService.into(),
            })),
        };
        let capabilities = self.serves_controller.then_some(controller).into_iter().collect();
        call.answer(Ok(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(
        &self,
        _request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        let call = RpcCall::begin(&self.metrics, "Probe", "");
        call.answer(Ok(ProbeResponse { ready: Some(self.readiness.is_ready()) }))
    }
}
