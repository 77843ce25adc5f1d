//! The instance metadata service, version 2.

use http::StatusCode;
use serde_json::json;

use crate::error::ApiError;
use crate::server::Call;
use crate::server::reply::{self, Handled};

/// Every request needs this; browsers and SSRF cannot set it.
const AUTHORIZATION: &str = "Bearer Oracle";

/// The shape of the instance.
const SHAPE: &str = "VM.GPU.A10.1";

pub(crate) fn get(call: &Call) -> Handled {
    if call.header("authorization") != Some(AUTHORIZATION) {
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "NotAuthenticated",
            "The metadata service needs the header 'Authorization: Bearer Oracle'",
        )
        .into());
    }
    let identity = &call.state.identity;
    let instance = &identity.instance;
    let internal = |error: anyhow::Error| ApiError::internal(&error);
    let path = call.target.path.trim_end_matches('/');
    Ok(match path.strip_prefix("/opc/v2").unwrap_or_default() {
        "/instance/region" => reply::text(&instance.region_key),
        "/instance/canonicalRegionName" => reply::text(&instance.region),
        "/instance/id" => reply::text(&instance.id),
        "/instance/compartmentId" => reply::text(&instance.compartment),
        "/instance/shape" => reply::text(SHAPE),
        "/instance/regionInfo" => reply::json(
            StatusCode::OK,
            &json!({
                "realmKey": "oc1",
                "realmDomainComponent": "oraclecloud.com",
                "regionKey": instance.region_key.to_ascii_uppercase(),
                "regionIdentifier": instance.region,
            }),
        ),
        "/instance" => reply::json(
            StatusCode::OK,
            &json!({
                "id": instance.id,
                "compartmentId": instance.compartment,
                "shape": SHAPE,
                "tenantId": instance.tenancy,
                "region": instance.region_key,
                "canonicalRegionName": instance.region,
            }),
        ),
        "/identity/cert.pem" => {
            reply::text(&identity.leaf_for_fetch().map_err(internal)?.certificate_pem)
        }
        "/identity/key.pem" => reply::text(&identity.leaf().map_err(internal)?.key_pem),
        "/identity/intermediate.pem" => reply::text(identity.intermediate_pem().map_err(internal)?),
        _ => return Err(ApiError::no_such_route().into()),
    })
}
