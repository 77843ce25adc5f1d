//! The admin interface, `/_localstore/…`: faults, statistics, objects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use crate::auth::{AccountToken, from_pem};
use crate::error::ApiError;
use crate::faults::Rule;
use crate::objects::{PutOptions, Source, StorageTier, put};
use crate::server::Call;
use crate::server::reply::{self, Failure, Handled};

pub(crate) async fn handle(call: &mut Call) -> Handled {
    let path = call.target.path.clone();
    let path = path.strip_prefix("/_localstore/").unwrap_or_default();
    let (get, post) = (call.method == Method::GET, call.method == Method::POST);
    let done = reply::empty(StatusCode::NO_CONTENT);
    let state = Arc::clone(&call.state);
    Ok(match path {
        "faults" if get => reply::json(StatusCode::OK, &state.faults.list()),
        "faults" if post => {
            let rule: Rule = call.read_json().await?;
            reply::json(StatusCode::CREATED, &json!({ "id": state.faults.add(rule) }))
        }
        "faults" if call.method == Method::DELETE => {
            state.faults.clear();
            done
        }
        "stats" if get => reply::json(StatusCode::OK, &state.counters.snapshot()),
        "stats/reset" if post => {
            state.counters.reset();
            done
        }
        "requests" if get => reply::json(StatusCode::OK, &state.counters.records()),
        "objects" if post => create_object(call).await?,
        "tokens/expire" if post => {
            state.keys.expire_tokens();
            done
        }
        "tokens/service-account" if post => {
            let wanted: ServiceAccount = call.read_json().await?;
            let wanted = AccountToken {
                namespace: &wanted.namespace,
                name: &wanted.name,
                pod_uid: wanted.pod_uid.as_deref(),
                audience: wanted.audience.as_deref(),
                ttl: Duration::from_secs(wanted.seconds),
            };
            let token = state.cluster.issue(wanted, SystemTime::now());
            let token = token.map_err(|error| ApiError::internal(&error))?;
            reply::json(StatusCode::CREATED, &json!({ "token": token }))
        }
        "tokens/session" if post => {
            let SessionKey { subject, public_key, seconds } = call.read_json().await?;
            let ttl = Duration::from_secs(seconds);
            let token = from_pem(&public_key).context("no PEM block in the public key");
            let token = token.and_then(|(_, spki)| state.issue_token(&subject, &spki, ttl));
            let token = token.map_err(|error| ApiError::internal(&error))?;
            reply::json(StatusCode::CREATED, &json!({ "token": token }))
        }
        "imds/rotate" if post => {
            state.identity.rotate().map_err(|error| ApiError::internal(&error))?;
            done
        }
        other => match other.strip_prefix("faults/").and_then(|id| id.parse().ok()) {
            Some(id) if call.method == Method::DELETE && state.faults.remove(id) => done,
            _ => return Err(ApiError::no_such_route().into()),
        },
    })
}

/// The service account of the requested token, its audience, and its lifetime.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceAccount {
    namespace: String,
    name: String,
    #[serde(default)]
    pod_uid: Option<String>,
    #[serde(default)]
    audience: Option<String>,
    seconds: u64,
}

/// The owner and the key (PEM) of the requested session, and its lifetime.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionKey {
    subject: String,
    public_key: String,
    seconds: u64,
}

/// A synthetic object; the bucket is created when there is none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateObject {
    bucket: String,
    name: String,
    size: u64,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    crc32c: bool,
    #[serde(default)]
    part_size: Option<u64>,
    #[serde(default)]
    no_checksums: bool,
    #[serde(default)]
    tier: StorageTier,
    #[serde(default)]
    content_type: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

async fn create_object(call: &mut Call) -> Handled {
    let wanted: CreateObject = call.read_json().await?;
    let state = Arc::clone(&call.state);
    // Checksums of a large object take a while.
    let etag = tokio::task::spawn_blocking(move || {
        let bucket = state.bucket_or_create(&wanted.bucket)?;
        let options = PutOptions {
            crc32c: wanted.crc32c,
            part_size: wanted.part_size,
            listed_only: false,
            no_checksums: wanted.no_checksums,
            tier: wanted.tier,
            content_type: wanted.content_type,
            metadata: wanted.metadata,
        };
        let source = Source::Synthetic { size: wanted.size, seed: wanted.seed };
        put(&bucket, &wanted.name, &source, options)
    });
    let etag = etag.await.map_err(|_| Failure::Aborted)??;
    Ok(reply::json(StatusCode::CREATED, &json!({ "etag": etag })))
}
