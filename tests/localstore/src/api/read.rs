//! GetObject and HeadObject.

use std::sync::Arc;

use http::StatusCode;
use http::header::{CONTENT_LENGTH, HeaderValue};

use crate::error::ApiError;
use crate::faults::RangeFault;
use crate::objects::{Bucket, Content, Meta, Object, Precondition, etag_matches};
use crate::range::{ByteRange, RangeHeader};
use crate::server::reply::{self, Failure, Handled, Reply};
use crate::server::{Call, ObjectBody, ReplyBody};

pub(super) async fn head(call: &mut Call) -> Handled {
    let bucket = call.bucket()?;
    let object = find(call, &bucket)?;
    if let Some(reply) = conditions(call, &object)? {
        return Ok(reply);
    }
    let mut reply = reply::empty(StatusCode::OK);
    describe(call, &object, &mut reply);
    add_checksums(&object, &mut reply).await?;
    reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(object.meta.size));
    Ok(reply)
}

pub(super) async fn get(call: &mut Call) -> Handled {
    let bucket = call.bucket()?;
    let object = find(call, &bucket)?;
    if let Some(reply) = conditions(call, &object)? {
        return Ok(reply);
    }
    if call.effects.archived || object.meta.archival_state() == Some("Archived") {
        return Err(ApiError::not_restored(&object.meta.name).into());
    }
    let size = object.meta.size;
    let range = match call.header("range").and_then(RangeHeader::parse) {
        Some(header) if call.effects.range != RangeFault::Ignored => Some(header.resolve(size)?),
        _ => None,
    };
    let range = range.map(|range| match call.effects.range {
        RangeFault::Shifted => shifted(range, size),
        _ => range,
    });
    let reader = object.content.reader().map_err(ApiError::from)?;
    let body = ObjectBody::new(
        reader,
        range.unwrap_or(ByteRange { start: 0, end: size }),
        call.state.buffers.clone(),
        call.state.counters.sent_bytes(&bucket.name, &object.meta.name),
        std::mem::take(&mut call.effects.body),
        call.reset.clone(),
    );
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut reply = reply::empty(status);
    describe(call, &object, &mut reply);
    match range {
        // The service gives checksums of the whole only with the whole.
        None => add_checksums(&object, &mut reply).await?,
        Some(range) => reply::set(&mut reply, "content-range", &range.content_range(size)),
    }
    let len = range.map_or(size, ByteRange::len);
    reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(len));
    *reply.body_mut() = ReplyBody::object(body);
    Ok(reply)
}

/// The object, after a fault may have replaced it.
fn find(call: &Call, bucket: &Bucket) -> Result<Arc<Object>, Failure> {
    let object = bucket.get(&call.target.object)?;
    let Some(replacement) = call.effects.replace else { return Ok(object) };
    let meta = Meta::new(
        &object.meta.name,
        replacement.size.unwrap_or(object.meta.size),
        object.meta.described.clone(),
        crate::objects::Checksums::default(),
    );
    let content = Content::Synthetic { seed: replacement.seed };
    Ok(bucket.commit(Object::new(meta, content), &Precondition::default())?)
}

/// 412 as an error, 304 as an answer.
fn conditions(call: &Call, object: &Object) -> Result<Option<Reply>, Failure> {
    let etag = &object.meta.etag;
    if let Some(wanted) = call.header("if-match")
        && !etag_matches(wanted, etag)
    {
        return Err(ApiError::if_match_failed(wanted).into());
    }
    Ok(match call.header("if-none-match") {
        Some(known) if etag_matches(known, etag) => {
            let mut reply = reply::empty(StatusCode::NOT_MODIFIED);
            reply::set(&mut reply, "etag", etag);
            Some(reply)
        }
        _ => None,
    })
}

/// One byte further, or one byte before where the object ends.
fn shifted(range: ByteRange, size: u64) -> ByteRange {
    let ByteRange { start, end } = range;
    if end < size {
        ByteRange { start: start + 1, end: end + 1 }
    } else if start > 0 {
        ByteRange { start: start - 1, end: end - 1 }
    } else {
        ByteRange { start, end: end - 1 }
    }
}

/// The headers that HEAD, 200 and 206 share.
fn describe(call: &Call, object: &Object, reply: &mut Reply) {
    let meta = &object.meta;
    reply::set(reply, "etag", &meta.etag);
    reply::set(reply, "last-modified", &httpdate::fmt_http_date(meta.modified()));
    reply::set(reply, "content-type", &meta.described.content_type);
    reply::set(reply, "accept-ranges", "bytes");
    reply::set(reply, "version-id", &meta.version_id);
    let archived = call.effects.archived;
    let tier = if archived { "Archive" } else { meta.described.tier.as_str() };
    reply::set(reply, "storage-tier", tier);
    let state = if archived { Some("Archived") } else { meta.archival_state() };
    if let Some(state) = state {
        reply::set(reply, "archival-state", state);
    }
    for (name, value) in &meta.described.headers {
        reply::set(reply, name, value);
    }
    for (key, value) in &meta.described.metadata {
        reply::set(reply, &format!("opc-meta-{key}"), value);
    }
}

async fn add_checksums(object: &Arc<Object>, reply: &mut Reply) -> Result<(), Failure> {
    if object.meta.listed_only {
        return Ok(());
    }
    let checksums = if object.checksums_are_slow() {
        let object = Arc::clone(object);
        tokio::task::spawn_blocking(move || object.checksums())
            .await
            .map_err(|_| Failure::Aborted)?
    } else {
        object.checksums()
    };
    for (name, value) in checksums.headers() {
        reply::set(reply, name, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shifted_range_is_another_range_of_the_object() {
        for (start, end, expected) in [(0, 5, (1, 6)), (5, 10, (4, 9)), (0, 10, (0, 9))] {
            let range = shifted(ByteRange { start, end }, 10);
            assert_eq!((range.start, range.end), expected);
        }
    }
}
