//! Multipart uploads.

use std::collections::BTreeMap;

use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::write::{
    check_name, chosen_algorithm, describe_version, precondition, require_length, uploaded,
};
use crate::clock;
use crate::error::{ApiError, ApiResult};
use crate::objects::{Algorithm, DataFile, Described, PartToCommit, StorageTier, Upload};
use crate::server::Call;
use crate::server::reply::{self, Handled};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreateUpload {
    object: String,
    #[serde(default)]
    content_type: Option<String>,
    #[serde(default)]
    content_language: Option<String>,
    #[serde(default)]
    content_encoding: Option<String>,
    #[serde(default)]
    content_disposition: Option<String>,
    #[serde(default)]
    cache_control: Option<String>,
    #[serde(default)]
    storage_tier: Option<String>,
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
}

impl CreateUpload {
    fn described(self) -> ApiResult<Described> {
        let values = [
            self.content_language,
            self.content_encoding,
            self.content_disposition,
            self.cache_control,
        ];
        let headers = Described::HEADERS
            .into_iter()
            .zip(values)
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect();
        // rclone sends the keys with the prefix, the Python SDK without.
        let bare = |key: String| match key.strip_prefix(Described::METADATA_PREFIX) {
            Some(bare) => bare.to_owned(),
            None => key,
        };
        let metadata = self.metadata.unwrap_or_default();
        Ok(Described {
            content_type: self.content_type.unwrap_or_else(|| Described::DEFAULT_TYPE.to_owned()),
            headers,
            metadata: metadata.into_iter().map(|(key, value)| (bare(key), value)).collect(),
            tier: StorageTier::parse(self.storage_tier.as_deref())?,
        })
    }
}

pub(super) async fn create(call: &mut Call) -> Handled {
    let wanted: CreateUpload = call.read_json().await?;
    let object = wanted.object.clone();
    check_name(&object)?;
    let bucket = call.bucket()?;
    precondition(call)?.check(bucket.get(&object).ok().as_deref())?;
    let algorithm = Algorithm::parse(call.header("opc-checksum-algorithm"))?;
    let upload = bucket.uploads.create(&object, wanted.described()?, algorithm);
    let mut reply = reply::json(StatusCode::OK, &summary(call, &upload));
    let location = format!(
        "/n/{}/b/{}/u/{}?uploadId={}",
        call.state.namespace,
        bucket.name,
        utf8_percent_encode(&object, NON_ALPHANUMERIC),
        upload.id
    );
    reply::set(&mut reply, "location", &location);
    Ok(reply)
}

fn summary(call: &Call, upload: &Upload) -> Value {
    json!({
        "namespace": call.state.namespace,
        "bucket": call.target.bucket,
        "object": upload.object,
        "uploadId": upload.id,
        "timeCreated": clock::rfc3339(upload.created),
        "storageTier": upload.described.tier,
    })
}

pub(super) fn list_uploads(call: &Call) -> Handled {
    let uploads: Vec<Value> =
        call.bucket()?.uploads.all().iter().map(|upload| summary(call, upload)).collect();
    page_of(call, uploads)
}

/// One page of a listing. The token of the next one is where it begins.
fn page_of(call: &Call, entries: Vec<Value>) -> Handled {
    let query = &call.target.query;
    let number = |name: &'static str, text: &str| {
        let wrong = || ApiError::invalid_parameter(format!("{name} is '{text}', not a number"));
        text.parse::<usize>().map_err(|_| wrong())
    };
    let start = query.get("page").map_or(Ok(0), |text| number("page", text))?;
    let most = call.state.max_page;
    let limit = query.get("limit").map_or(Ok(most), |text| number("limit", text))?.clamp(1, most);
    let end = start.saturating_add(limit);
    let is_last = end >= entries.len();
    let page: Vec<Value> = entries.into_iter().skip(start).take(limit).collect();
    let mut reply = reply::json(StatusCode::OK, &page);
    if !is_last {
        reply::set(&mut reply, "opc-next-page", &end.to_string());
    }
    Ok(reply)
}

pub(super) async fn upload_part(call: &mut Call) -> Handled {
    require_length(call)?;
    let bucket = call.bucket()?;
    let upload =
        bucket.uploads.get(call.target.query.required("uploadId")?, &call.target.object)?;
    let number = call.target.query.required("uploadPartNum")?;
    let number = number.parse().ok().filter(|number| (1..=Upload::MAX_PART).contains(number));
    let number = number.ok_or_else(|| {
        ApiError::invalid_parameter(format!(
            "uploadPartNum is a number from 1 to {}",
            Upload::MAX_PART
        ))
    })?;
    let algorithm = upload.algorithm.or(chosen_algorithm(call)?);
    let path = bucket.side.new_data_path().map_err(ApiError::from)?;
    let digests = call.receive(&path, algorithm).await?;
    let file = DataFile::new(path, digests.len);
    let etag = upload.add_part(number, file, digests.clone());
    Ok(uploaded(&etag, &digests))
}

pub(super) fn list_parts(call: &Call) -> Handled {
    let id = call.target.query.required("uploadId")?;
    let upload = call.bucket()?.uploads.get(id, &call.target.object)?;
    let parts: Vec<Value> = upload
        .parts()
        .iter()
        .map(|(number, part)| {
            json!({
                "partNumber": number,
                "etag": part.etag,
                "md5": part.digests.md5_base64(),
                "size": part.digests.len,
            })
        })
        .collect();
    page_of(call, parts)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Commit {
    parts_to_commit: Vec<PartToCommit>,
    #[serde(default)]
    parts_to_exclude: Option<Vec<u32>>,
}

pub(super) async fn commit(call: &mut Call) -> Handled {
    let wanted: Commit = call.read_json().await?;
    let bucket = call.bucket()?;
    let id = call.target.query.required("uploadId")?;
    let upload = bucket.uploads.get(id, &call.target.object)?;
    let condition = precondition(call)?;
    condition.check(bucket.get(&upload.object).ok().as_deref())?;
    let exclude = wanted.parts_to_exclude.unwrap_or_default();
    let object = upload.assemble(&wanted.parts_to_commit, &exclude)?;
    bucket.uploads.close(id)?;
    let object = bucket.commit(object, &condition)?;
    let mut reply = reply::empty(StatusCode::OK);
    reply::set(&mut reply, "content-type", "application/json");
    reply::set(&mut reply, "etag", &object.meta.etag);
    describe_version(&object, &mut reply);
    for (name, value) in object.checksums().headers() {
        reply::set(&mut reply, name, value);
    }
    Ok(reply)
}

pub(super) fn abort(call: &Call) -> Handled {
    let id = call.target.query.required("uploadId")?;
    call.bucket()?.uploads.abort(id, &call.target.object)?;
    Ok(reply::empty(StatusCode::NO_CONTENT))
}
