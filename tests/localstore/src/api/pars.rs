//! CreatePreauthenticatedRequest, and the calls beside it.

use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::auth::{Par, WantedPar};
use crate::clock;
use crate::error::ApiError;
use crate::server::Call;
use crate::server::reply::{self, Handled};

/// What stays as it is in a name.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(super) async fn create(call: &mut Call) -> Handled {
    let wanted: WantedPar = call.read_json().await?;
    let bucket = call.bucket()?;
    let par = wanted.checked(&bucket.name, call.now())?;
    let mut shown = summary(&par);
    let uri = access_uri(&call.state.namespace, &par, &call.state.pars.add(par.clone()));
    let scheme = if call.state.tls { "https" } else { "http" };
    let host = call.header("host").unwrap_or_default();
    shown["fullPath"] = json!(format!("{scheme}://{host}{uri}"));
    shown["accessUri"] = json!(uri);
    Ok(reply::json(StatusCode::OK, &shown))
}

pub(super) fn list(call: &Call) -> Handled {
    let bucket = call.bucket()?;
    let all: Vec<Value> = call.state.pars.of(&bucket.name).iter().map(summary).collect();
    Ok(reply::json(StatusCode::OK, &all))
}

pub(super) fn get(call: &Call) -> Handled {
    let bucket = call.bucket()?;
    let all = call.state.pars.of(&bucket.name);
    let par = all.iter().find(|par| par.id == call.target.object);
    Ok(reply::json(StatusCode::OK, &summary(par.ok_or_else(ApiError::par_not_found)?)))
}

pub(super) fn delete(call: &Call) -> Handled {
    let bucket = call.bucket()?;
    call.state.pars.remove(&bucket.name, &call.target.object)?;
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

/// The path with the secret, which only the answer to its creation has. That of many objects
/// ends before their names.
pub(crate) fn access_uri(namespace: &str, par: &Par, token: &str) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, PLAIN).to_string();
    let object = if par.access.is_of_many() { String::new() } else { encoded(&par.object) };
    format!("/p/{token}/n/{}/b/{}/o/{object}", encoded(namespace), encoded(&par.bucket))
}

fn summary(par: &Par) -> Value {
    json!({
        "id": par.id,
        "name": par.name,
        "accessType": par.access,
        "objectName": (!par.object.is_empty()).then_some(&par.object),
        "bucketListingAction": if par.lists { "ListObjects" } else { "Deny" },
        "timeCreated": clock::rfc3339(par.created),
        "timeExpires": clock::rfc3339(par.expires),
    })
}
