//! PutObject, DeleteObject, RestoreObjects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;
use serde::Deserialize;

use crate::error::{ApiError, ApiResult};
use crate::objects::{
    Algorithm, Checksums, Content, DataFile, Described, Digests, Meta, Object, Precondition,
    StorageTier,
};
use crate::server::Call;
use crate::server::reply::{self, Handled, Reply};

/// The longest object name, in bytes of UTF-8.
const MAX_NAME: usize = 1024;

pub(super) async fn put(call: &mut Call) -> Handled {
    check_name(&call.target.object)?;
    require_length(call)?;
    let bucket = call.bucket()?;
    let condition = precondition(call)?;
    // Early, so that a client that waits for 100 Continue sends nothing in vain;
    // commit checks again.
    condition.check(bucket.get(&call.target.object).ok().as_deref())?;
    let algorithm = chosen_algorithm(call)?;
    let described = described(call)?;
    let path = bucket.side.new_data_path().map_err(ApiError::from)?;
    let digests = call.receive(&path, algorithm).await?;
    let meta =
        Meta::new(&call.target.object, digests.len, described, Checksums::of_whole(&digests));
    let content = Content::Files(vec![Arc::new(DataFile::new(path, digests.len))]);
    let object = bucket.commit(Object::new(meta, content), &condition)?;
    let mut reply = uploaded(&object.meta.etag, &digests);
    describe_version(&object, &mut reply);
    Ok(reply)
}

pub(super) fn delete(call: &Call) -> Handled {
    let bucket = call.bucket()?;
    let object = bucket.delete(&call.target.object, &precondition(call)?)?;
    let mut reply = reply::empty(StatusCode::NO_CONTENT);
    reply::set(&mut reply, "last-modified", &httpdate::fmt_http_date(SystemTime::now()));
    reply::set(&mut reply, "version-id", &object.meta.version_id);
    Ok(reply)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RestoreObjects {
    object_name: String,
}

/// Restoring takes an hour at OCI, and no time here.
pub(super) async fn restore(call: &mut Call) -> Handled {
    let wanted: RestoreObjects = call.read_json().await?;
    let bucket = call.bucket()?;
    let archived = bucket.get(&wanted.object_name)?.meta.archival_state() == Some("Archived");
    if archived {
        bucket.amend(&wanted.object_name, |meta| meta.restored = true)?;
    }
    Ok(reply::empty(if archived { StatusCode::ACCEPTED } else { StatusCode::OK }))
}

/// What PutObject and UploadPart answer alike.
pub(super) fn uploaded(etag: &str, digests: &Digests) -> Reply {
    let mut reply = reply::empty(StatusCode::OK);
    reply::set(&mut reply, "content-type", "application/json");
    reply::set(&mut reply, "etag", etag);
    reply::set(&mut reply, "opc-content-md5", &digests.md5_base64());
    if let Some((algorithm, value)) = digests.additional() {
        reply::set(&mut reply, algorithm.content_header(), &value);
    }
    reply
}

pub(super) fn describe_version(object: &Object, reply: &mut Reply) {
    reply::set(reply, "last-modified", &httpdate::fmt_http_date(object.meta.modified()));
    reply::set(reply, "version-id", &object.meta.version_id);
}

pub(super) fn check_name(name: &str) -> ApiResult<()> {
    if name.is_empty() || name.len() > MAX_NAME || name.contains(['\0', '\r', '\n']) {
        return Err(ApiError::bad_request(
            "InvalidObjectName",
            format!("Object names have 1 to {MAX_NAME} bytes without NUL, CR and LF"),
        ));
    }
    Ok(())
}

/// The service takes no chunked uploads.
pub(super) fn require_length(call: &Call) -> ApiResult<()> {
    match call.header("content-length") {
        Some(_) => Ok(()),
        None => Err(ApiError::new(
            StatusCode::LENGTH_REQUIRED,
            "ContentLengthRequired",
            "The Content-Length header is required",
        )),
    }
}

pub(super) fn precondition(call: &Call) -> ApiResult<Precondition> {
    let only_create = match call.header("if-none-match") {
        None => false,
        Some("*") => true,
        Some(other) => {
            return Err(ApiError::invalid_parameter(format!(
                "if-none-match is '{other}'; writes take only '*'"
            )));
        }
    };
    Ok(Precondition { if_match: call.header("if-match").map(str::to_owned), only_create })
}

/// The named algorithm, or that of whichever value is given.
pub(super) fn chosen_algorithm(call: &Call) -> ApiResult<Option<Algorithm>> {
    let given = [Algorithm::Crc32c, Algorithm::Sha256, Algorithm::Sha384]
        .into_iter()
        .find(|algorithm| call.header(algorithm.content_header()).is_some());
    Ok(Algorithm::parse(call.header("opc-checksum-algorithm"))?.or(given))
}

fn described(call: &Call) -> ApiResult<Described> {
    let text = |name: &str| call.header(name).filter(|value| !value.is_empty()).map(str::to_owned);
    let headers = Described::HEADERS
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), text(name)?)))
        .collect();
    let metadata = call.headers.iter().filter_map(|(name, value)| {
        let key = name.as_str().strip_prefix(Described::METADATA_PREFIX)?;
        Some((key.to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
    });
    Ok(Described {
        content_type: text("content-type").unwrap_or_else(|| Described::DEFAULT_TYPE.to_owned()),
        headers,
        metadata: metadata.collect::<BTreeMap<_, _>>(),
        tier: StorageTier::parse(call.header("storage-tier"))?,
    })
}
