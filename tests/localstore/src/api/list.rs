//! ListObjects.

use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;

use crate::clock;
use crate::error::{ApiError, ApiResult};
use crate::objects::{ListQuery, Object, Page};
use crate::route::Query;
use crate::server::Call;
use crate::server::reply::{self, Failure, Handled};

/// The most entries of a page of the real service, and its default.
pub(crate) const MAX_PAGE: usize = 1000;

/// What a summary shows beside the name; without `fields` nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Fields {
    size: bool,
    etag: bool,
    md5: bool,
    time_created: bool,
    time_modified: bool,
    storage_tier: bool,
    archival_state: bool,
}

/// Fields that were not asked for are absent.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    md5: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_modified: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_tier: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    archival_state: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    objects: Vec<Summary>,
    prefixes: Vec<String>,
    next_start_with: Option<String>,
}

pub(super) async fn list(call: &mut Call) -> Handled {
    let query = parse_query(&call.target.query, call.state.max_page)?;
    let fields = Fields::parse(call.target.query.get("fields"))?;
    let bucket = call.bucket()?;
    let state = Arc::clone(&call.state);
    if let Some(answer) = state.faults.listing_of(&bucket.name) {
        return Ok(reply::raw_json(answer));
    }
    // Walking a directory and computing MD5s of plain files block.
    let listing = tokio::task::spawn_blocking(move || {
        let Page { objects, prefixes, next_start_with } = bucket.list(&query);
        let summarize = |object: &Arc<Object>| {
            let archived = state.faults.archives(&bucket.name, &object.meta.name);
            fields.summarize(object, archived)
        };
        Listing { objects: objects.iter().map(summarize).collect(), prefixes, next_start_with }
    });
    let listing = listing.await.map_err(|_| Failure::Aborted)?;
    Ok(reply::json(StatusCode::OK, &listing))
}

fn parse_query(query: &Query, max_page: usize) -> ApiResult<ListQuery> {
    let text = |name| query.get(name).filter(|value| !value.is_empty()).map(str::to_owned);
    let limit = match query.get("limit") {
        None => max_page,
        Some(limit) => match limit.parse() {
            Ok(limit) if limit > 0 => max_page.min(limit),
            _ => {
                return Err(ApiError::invalid_parameter(format!(
                    "limit is '{limit}'; it is a number from 1 to {MAX_PAGE}"
                )));
            }
        },
    };
    let delimited = match query.get("delimiter") {
        None | Some("") => false,
        Some("/") => true,
        Some(other) => {
            return Err(ApiError::invalid_parameter(format!(
                "delimiter is '{other}'; only '/' is supported"
            )));
        }
    };
    Ok(ListQuery {
        prefix: text("prefix").unwrap_or_default(),
        start: text("start"),
        start_after: text("startAfter"),
        end: text("end"),
        delimited,
        limit,
    })
}

impl Fields {
    fn parse(value: Option<&str>) -> ApiResult<Self> {
        let mut fields = Self::default();
        for name in value.unwrap_or_default().split(',').map(str::trim) {
            match name.to_ascii_lowercase().as_str() {
                "" | "name" => {}
                "size" => fields.size = true,
                "etag" => fields.etag = true,
                "md5" => fields.md5 = true,
                "timecreated" => fields.time_created = true,
                "timemodified" => fields.time_modified = true,
                "storagetier" => fields.storage_tier = true,
                "archivalstate" => fields.archival_state = true,
                _ => {
                    return Err(ApiError::invalid_parameter(format!(
                        "fields names '{name}', which is not a field of objects"
                    )));
                }
            }
        }
        Ok(fields)
    }

    fn summarize(self, object: &Object, archived_by_fault: bool) -> Summary {
        let meta = &object.meta;
        let tier = if archived_by_fault { "Archive" } else { meta.described.tier.as_str() };
        let state = if archived_by_fault { Some("Archived") } else { meta.archival_state() };
        let md5 = || object.checksums().listed_md5().map(str::to_owned);
        let created = || clock::rfc3339(clock::from_unix_millis(meta.created_millis));
        Summary {
            name: meta.name.clone(),
            size: self.size.then_some(meta.size),
            etag: self.etag.then(|| meta.etag.clone()),
            md5: self.md5.then(md5).flatten(),
            time_created: self.time_created.then(created),
            time_modified: self.time_modified.then(|| clock::rfc3339(meta.modified())),
            storage_tier: self.storage_tier.then_some(tier),
            archival_state: state.filter(|_| self.archival_state),
        }
    }
}
