//! Buckets and the namespace.

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock;
use crate::objects::{Bucket, PublicAccess};
use crate::server::reply::{self, Handled, Reply};
use crate::server::{Call, ReplyBody};

pub(super) fn namespace_metadata(call: &Call) -> Reply {
    let compartment = &call.state.identity.instance.compartment;
    reply::json(
        StatusCode::OK,
        &json!({
            "namespace": call.state.namespace,
            "defaultS3CompartmentId": compartment,
            "defaultSwiftCompartmentId": compartment,
        }),
    )
}

pub(super) fn list(call: &Call) -> Handled {
    call.target.query.required("compartmentId")?;
    let summary = |bucket: &Bucket| {
        let info = bucket.info();
        json!({
            "namespace": call.state.namespace,
            "name": bucket.name,
            "compartmentId": info.compartment_id,
            "createdBy": call.state.identity.instance.tenancy,
            "timeCreated": clock::rfc3339(clock::from_unix_millis(info.created_millis)),
            "etag": info.etag,
        })
    };
    let buckets: Vec<Value> =
        call.state.catalog.buckets().iter().map(|bucket| summary(bucket)).collect();
    Ok(reply::json(StatusCode::OK, &buckets))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateBucket {
    name: String,
    compartment_id: String,
    #[serde(default)]
    public_access_type: Option<PublicAccess>,
}

pub(super) async fn create(call: &mut Call) -> Handled {
    let wanted: CreateBucket = call.read_json().await?;
    let bucket = call.state.catalog.create_bucket(
        &wanted.name,
        &wanted.compartment_id,
        wanted.public_access_type.unwrap_or_default(),
    )?;
    let mut reply = describe(call, &bucket);
    let location = format!("/n/{}/b/{}", call.state.namespace, bucket.name);
    reply::set(&mut reply, "location", &location);
    Ok(reply)
}

pub(super) fn get(call: &Call) -> Handled {
    let mut reply = describe(call, &*call.bucket()?);
    if call.method == Method::HEAD {
        *reply.body_mut() = ReplyBody::empty();
    }
    Ok(reply)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpdateBucket {
    #[serde(default)]
    public_access_type: Option<PublicAccess>,
}

pub(super) async fn update(call: &mut Call) -> Handled {
    let wanted: UpdateBucket = call.read_json().await?;
    let bucket = call.bucket()?;
    bucket.update_info(|info| {
        info.public_access = wanted.public_access_type.unwrap_or(info.public_access);
    })?;
    Ok(describe(call, &bucket))
}

pub(super) fn delete(call: &Call) -> Handled {
    call.state.catalog.delete_bucket(&call.target.bucket)?;
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

fn describe(call: &Call, bucket: &Bucket) -> Reply {
    let info = bucket.info();
    let mut body = json!({
        "namespace": call.state.namespace,
        "name": bucket.name,
        "compartmentId": info.compartment_id,
        "metadata": {},
        "createdBy": call.state.identity.instance.tenancy,
        "timeCreated": clock::rfc3339(clock::from_unix_millis(info.created_millis)),
        "etag": info.etag,
        "publicAccessType": info.public_access,
        "storageTier": "Standard",
        "objectEventsEnabled": false,
        "freeformTags": {},
        "definedTags": {},
        "kmsKeyId": info.kms_key_id,
        "replicationEnabled": false,
        "isReadOnly": false,
        "id": format!("ocid1.bucket.oc1..{}", bucket.name),
        "versioning": "Disabled",
        "autoTiering": "Disabled",
    });
    let fields = call.target.query.get("fields").unwrap_or_default();
    if fields.contains("approximateCount") || fields.contains("approximateSize") {
        let (count, size) = bucket.totals();
        body["approximateCount"] = json!(count);
        body["approximateSize"] = json!(size);
    }
    let mut reply = reply::json(StatusCode::OK, &body);
    reply::set(&mut reply, "etag", &info.etag);
    reply
}
