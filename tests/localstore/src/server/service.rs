//! The path of a request: route, faults, authentication, handler, record.

use std::sync::Arc;

use http::{HeaderValue, Request};
use hyper::body::Incoming;

use super::call::Call;
use super::connection::ResetSwitch;
use super::reply::{self, Failure, Handled, Reply};
use crate::api;
use crate::auth::{Access, READING, Refusal, WITH_BODY};
use crate::error::{ApiError, ApiResult};
use crate::faults::{Facts, OpenConnection};
use crate::objects::PublicAccess;
use crate::range::RangeHeader;
use crate::route::{Operation, Target};
use crate::state::State;
use crate::stats::RequestRecord;

/// The connection ends without an answer.
#[derive(Debug)]
pub(crate) struct Aborted;

impl std::fmt::Display for Aborted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the request was aborted")
    }
}

impl std::error::Error for Aborted {}

pub(crate) async fn answer(
    state: Arc<State>,
    reset: ResetSwitch,
    connection: OpenConnection,
    request: Request<Incoming>,
) -> Result<Reply, Aborted> {
    let (parts, body) = request.into_parts();
    let path_and_query = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let (target, malformed) =
        match Target::parse(&parts.method, parts.uri.path(), parts.uri.query()) {
            Ok(target) => (target, None),
            Err(error) => (Target::unknown(parts.uri.path()), Some(error)),
        };
    // Requests of a test to the admin interface are not counted.
    let observed = target.operation != Operation::Admin;
    let in_flight = observed.then(|| state.counters.begin());
    let header = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let effects = state.faults.apply(&Facts {
        operation: target.operation,
        method: parts.method.as_str(),
        bucket: &target.bucket,
        object: &target.object,
        range: header("range").and_then(RangeHeader::parse),
        connection: &connection,
    });
    let mut record = RequestRecord {
        operation: target.operation,
        method: parts.method.to_string(),
        target: without_secret(path_and_query, &target),
        status: 0,
        range: header("range").map(str::to_owned),
        if_match: header("if-match").map(str::to_owned),
        caller: None,
    };
    let mut call = Call {
        raw_target: path_and_query.to_owned(),
        state,
        reset,
        method: parts.method,
        target,
        headers: parts.headers,
        effects,
        caller: None,
        signed_digest: None,
        body: Some(body),
    };
    let handled = match malformed {
        Some(error) => Err(error.into()),
        None => handle(&mut call).await,
    };
    let mut reply = match handled {
        Ok(_) if call.effects.lost_answer => {
            call.reset.set();
            return Err(Aborted);
        }
        Ok(reply) => reply,
        Err(Failure::Aborted) => return Err(Aborted),
        Err(Failure::Refused(error)) => {
            call.drain().await;
            reply::error(&error, call.method == http::Method::HEAD)
        }
    };
    add_common_headers(&mut reply, &call);
    record.status = reply.status().as_u16();
    record.caller = call.caller.take();
    tracing::debug!(method = %record.method, target = %record.target, status = record.status);
    if let Some(in_flight) = in_flight {
        call.state.counters.answered(record);
        reply.body_mut().hold(in_flight);
    }
    Ok(reply)
}

async fn handle(call: &mut Call) -> Handled {
    if !call.effects.latency.is_zero() {
        tokio::time::sleep(call.effects.latency).await;
    }
    if call.effects.disconnect {
        call.reset.set();
        return Err(Failure::Aborted);
    }
    if let Some(refusal) = call.effects.refusal.take() {
        return Err(refusal.into());
    }
    if let Some(code) = call.effects.page {
        return Ok(reply::page(code));
    }
    match call.target.operation {
        Operation::Imds => return api::imds::get(call),
        Operation::Federation => return api::federation::exchange(call).await,
        Operation::WorkloadIdentity => return api::cluster::exchange(call).await,
        Operation::Admin => return api::admin::handle(call).await,
        Operation::Unknown => return Err(ApiError::no_such_route().into()),
        _ => {}
    }
    authenticate(call)?;
    let namespace = &call.target.namespace;
    if !namespace.is_empty() && *namespace != call.state.namespace {
        return Err(ApiError::namespace_not_found(namespace).into());
    }
    let access = match call.target.operation {
        Operation::List | Operation::Head | Operation::HeadBucket | Operation::GetBucket => {
            Access::Inspect
        }
        Operation::Get => Access::ReadKnown,
        _ => Access::Read,
    };
    let keys = &call.state.keys;
    let (bucket, object) = (&call.target.bucket, &call.target.object);
    let withheld = |caller| access != Access::Inspect && keys.is_withheld(caller, bucket, object);
    if let Some(caller) = &call.caller
        && !bucket.is_empty()
        && (!keys.permits(caller, bucket, access) || withheld(caller))
    {
        return Err(ApiError::bucket_not_found(&call.target.bucket, namespace).into());
    }
    api::handle(call).await
}

/// The path and query without the secret of a pre-authenticated request.
fn without_secret(path_and_query: &str, target: &Target) -> String {
    match &target.par {
        Some(_) => {
            let rest = path_and_query.split_once("/n/").map_or("", |(_, rest)| rest);
            format!("/p/…/n/{rest}")
        }
        None => path_and_query.to_owned(),
    }
}

fn authenticate(call: &mut Call) -> ApiResult<()> {
    if let Some(secret) = &call.target.par {
        call.caller = Some(call.state.pars.check(secret, &call.target, call.now())?);
        return Ok(());
    }
    if !call.state.verify || is_public(call) {
        return Ok(());
    }
    let required = match call.target.operation {
        operation if operation.carries_object_bytes() => READING,
        _ if matches!(call.method.as_str(), "POST" | "PUT" | "PATCH") => WITH_BODY,
        _ => READING,
    };
    let now = call.now();
    let verify = || {
        let request = call.signed_request();
        let signature = request.signature()?;
        let key = call.state.keys.find(&signature.key_id, now)?;
        let digest = request.check(&signature, required, now, &key.key)?;
        Ok::<_, Refusal>((key.caller.clone(), digest))
    };
    match verify() {
        Ok((caller, digest)) => {
            call.caller = Some(caller);
            call.signed_digest = digest;
            Ok(())
        }
        Err(refusal) => Err(call.refuse(&refusal)),
    }
}

/// Whether this is an unsigned request to a bucket that allows it.
fn is_public(call: &Call) -> bool {
    let access =
        || call.bucket().map_or(PublicAccess::NoPublicAccess, |bucket| bucket.info().public_access);
    !call.headers.contains_key(http::header::AUTHORIZATION)
        && match call.target.operation {
            Operation::Get | Operation::Head => access() != PublicAccess::NoPublicAccess,
            Operation::List => access() == PublicAccess::ObjectRead,
            _ => false,
        }
}

fn add_common_headers(reply: &mut Reply, call: &Call) {
    reply::set(reply, "date", &httpdate::fmt_http_date(call.now()));
    reply::set(reply, "opc-request-id", &format!("local-1:{}", uuid::Uuid::new_v4().simple()));
    reply::set(reply, "x-api-id", "native");
    if let Some(id) = call.header("opc-client-request-id") {
        reply::set(reply, "opc-client-request-id", id);
    }
    if call.effects.proxied {
        reply::through_a_proxy(reply);
    }
    for (name, value) in &call.effects.headers {
        match value {
            Some(value) => reply::set(reply, name, value),
            None => drop(reply.headers_mut().remove(name)),
        }
    }
}
