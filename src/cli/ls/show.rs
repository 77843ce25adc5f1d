//! Output of `ls` on stdout: tables for people, and JSON.

use std::fmt::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::browse::{BucketModel, BucketObject, ModelProblem, ObjectsSum};
use crate::cli::cache::show::{short, table};
use crate::error::Error;
use crate::model::{ModelSource, counted, size_text};
use crate::text::shown;

/// The heads of the columns of [`object`].
pub(super) const OBJECT_HEADER: &str =
    "SIZE        CRC-32C   MD5                           CHANGED           OBJECT";

/// Models as a table, or below each other where the terminal has too few columns for that.
pub(super) fn models(models: &[BucketModel], columns: Option<usize>) -> String {
    let header = ["MODEL", "OBJECTS", "SIZE", "REVISION", "CHANGED", "PROBLEMS"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(models.iter().map(|model| {
        let summaries: Vec<String> = model.problems.iter().map(ModelProblem::summary).collect();
        [
            name(model),
            model.objects.to_string(),
            size_text(model.bytes),
            short(model.revision.as_str()).to_owned(),
            minute(model.newest_change.as_deref()),
            if summaries.is_empty() { "-".to_owned() } else { summaries.join(", ") },
        ]
    }));
    let mut text = table(&rows);
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or_default();
    if columns.is_some_and(|columns| columns < widest) {
        text = models.iter().map(record).collect();
    }
    for model in models {
        for problem in &model.problems {
            let _ = writeln!(text, "{}: {}", name(model), problem.text());
        }
    }
    text
}

/// A model in lines, for narrow terminals.
fn record(model: &BucketModel) -> String {
    format!(
        "{}\n  {}\n  {}\n  {}\n  {}\n",
        name(model),
        counted(model.objects, "object"),
        size_text(model.bytes),
        short(model.revision.as_str()),
        minute(model.newest_change.as_deref()),
    )
}

fn name(model: &BucketModel) -> String {
    match model.prefix.as_str() {
        "" => "/".to_owned(),
        prefix => shown(prefix, 300),
    }
}

/// The time to the minute, of RFC 3339.
fn minute(time: Option<&str>) -> String {
    let text = time.and_then(|time| time.get(..16));
    text.map_or_else(|| "-".to_owned(), |text| shown(&text.replace('T', " "), 16))
}

/// The models as JSON; docs/commands.md has the keys.
pub(super) fn models_json(source: &ModelSource, models: &[BucketModel]) -> String {
    let problem = |problem: &ModelProblem| {
        json!({
            "kind": problem.kind.name(),
            "objects": problem.objects,
            "example": problem.example,
            "text": problem.text(),
        })
    };
    let model = |model: &BucketModel| {
        json!({
            "uri": format!("oci://{}@{}/{}", source.bucket, source.namespace, model.prefix),
            "prefix": model.prefix,
            "objects": model.objects,
            "bytes": model.bytes,
            "revision": model.revision,
            "newestChange": model.newest_change,
            "problems": model.problems.iter().map(problem).collect::<Vec<_>>(),
        })
    };
    let models: Vec<Value> = models.iter().map(model).collect();
    json!({ "uri": source.to_string(), "models": models }).to_string()
}

/// One object as a line.
pub(super) fn object(object: &BucketObject) -> String {
    format!(
        "{:10}  {:8}  {:28}  {:16}  {}{}",
        size_text(object.bytes),
        object.crc32c.map_or_else(|| "-".to_owned(), base64_of),
        object.md5.as_deref().map_or_else(|| "-".to_owned(), |md5| shown(md5, 40)),
        minute(object.changed.as_deref()),
        shown(&object.name, 1100),
        if object.is_archived { " (archived)" } else { "" }
    )
}

/// One object as JSON.
pub(super) fn object_json(object: &BucketObject) -> Value {
    json!({
        "name": object.name,
        "bytes": object.bytes,
        "etag": object.etag,
        "md5": object.md5,
        "crc32c": object.crc32c.map(base64_of),
        "changed": object.changed,
        "archived": object.is_archived,
    })
}

/// The last line of a list of objects.
pub(super) fn sum(sum: &ObjectsSum) -> String {
    let (objects, bytes) = (counted(sum.objects, "object"), size_text(sum.bytes));
    format!("{objects}, {bytes}, revision {}", sum.revision)
}

/// The beginning of objects as JSON; then come the objects, with commas between them.
pub(super) fn objects_head(source: &ModelSource) -> String {
    format!("{{\"uri\":{},\"objects\":[", json!(source.to_string()))
}

/// The end of objects as JSON: their sum.
pub(super) fn objects_tail(sum: &ObjectsSum) -> String {
    format!("],\"revision\":{},\"bytes\":{}}}", json!(sum.revision), sum.bytes)
}

/// The end of objects as JSON, when the others could not be listed.
pub(super) fn objects_broken_off(error: &Error) -> String {
    let (text, kind) = (json!(error.message()), json!(format!("{:?}", error.kind())));
    format!("],\"error\":{text},\"kind\":{kind}}}")
}

/// A CRC-32C as Object Storage writes it.
fn base64_of(crc32c: u32) -> String {
    BASE64.encode(crc32c.to_be_bytes())
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
