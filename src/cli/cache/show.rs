//! Output of the answers on stdout: tables for people, and JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

use crate::cache::{Imported, NotAdopted};
use crate::manage::{
    CacheListing, Collection, CommandAnswer, FileEntry, ModelEntry, Pins, PrefetchResult,
    PrefetchState, Removal, VerifyReport,
};
use crate::model::{counted, duration_text, size_text};
use crate::text::shown;

/// Pods of a model that a table names.
const NAMED: usize = 3;

/// Digits of keys and revisions in tables.
const DIGITS: usize = 12;

/// The answer as JSON, without the name of the command.
pub(super) fn json(answer: &CommandAnswer) -> String {
    let value = match answer {
        CommandAnswer::Ls(listing) => serde_json::to_value(listing),
        CommandAnswer::Inspect(models) => serde_json::to_value(models),
        CommandAnswer::Verify(found) => serde_json::to_value(found),
        CommandAnswer::Gc(collection) => serde_json::to_value(collection),
        CommandAnswer::Pin(pins) => serde_json::to_value(pins),
        CommandAnswer::Prefetch(models) => serde_json::to_value(models),
        CommandAnswer::Import(import) => serde_json::to_value(import),
        CommandAnswer::Purge(removal) => serde_json::to_value(removal),
    };
    value.unwrap_or_default().to_string()
}

pub(super) fn text(answer: &CommandAnswer) -> String {
    match answer {
        CommandAnswer::Ls(listing) => list(listing),
        CommandAnswer::Inspect(models) => models.iter().map(inspect).collect::<Vec<_>>().join("\n"),
        CommandAnswer::Verify(found) => verified(found),
        CommandAnswer::Gc(collection) => collected(collection),
        CommandAnswer::Pin(Pins { pinned, keys }) => {
            let done = if *pinned { "pinned" } else { "no longer pinned" };
            let lines = keys.iter().map(|key| format!("{} is {done}", short(key.as_str())));
            lines.collect::<Vec<_>>().join("\n")
        }
        CommandAnswer::Prefetch(models) => models.iter().map(prefetched).collect(),
        CommandAnswer::Import(import) => {
            let revision = &import.revision;
            format!(
                "{}revision {revision}\n{}",
                imported(&import.imported),
                warned(&import.warnings)
            )
        }
        CommandAnswer::Purge(Removal { models, bytes }) => {
            let models = counted(*models, "model");
            format!("removed the cache: {models}, {}\n", size_text(*bytes))
        }
    }
}

fn list(listing: &CacheListing) -> String {
    let cache = &listing.cache;
    let mut text =
        if listing.models.is_empty() { String::new() } else { model_table(&listing.models) };
    let _ = writeln!(
        text,
        "{}, {} of at most {} in {}; {} can be evicted, {} free on the disk",
        counted(listing.models.len(), "model"),
        size_text(cache.total_bytes),
        size_text(cache.limit_bytes),
        cache.directory.display(),
        size_text(cache.evictable_bytes),
        size_text(cache.free_bytes),
    );
    for aside in &listing.set_aside {
        let (name, size) = (shown(&aside.name, 100), size_text(aside.bytes));
        let usage = match aside.mounts.len() {
            0 => "unused: `cache gc --all` removes it".to_owned(),
            mounts => counted(mounts, "mount"),
        };
        let _ = writeln!(text, "{name}: {size} in an older layout, {usage}");
    }
    if !listing.prefetch.is_empty() {
        text.push_str("prefetch list:\n");
    }
    for entry in &listing.prefetch {
        let state = match entry.state {
            PrefetchState::Waiting => "waiting",
            PrefetchState::Running => "running",
            PrefetchState::Complete => "complete",
            PrefetchState::Failed => "failed",
            PrefetchState::NotSelected => "not selected",
            PrefetchState::LabelsUnknown => "labels unknown",
        };
        let error = entry.error.as_ref().map(|error| format!(": {}", shown(error, 300)));
        let uri = shown(&entry.uri, 200);
        let nodes = nodes(&entry.node_selector);
        let _ = writeln!(text, "  {state:14}  {uri}{nodes}{}", error.unwrap_or_default());
    }
    text
}

/// Which nodes an entry of the prefetch list is for; empty for all.
fn nodes(selector: &BTreeMap<String, String>) -> String {
    let labels: Vec<String> =
        selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    match labels.is_empty() {
        true => String::new(),
        false => format!(" on nodes with {}", shown(&labels.join(", "), 200)),
    }
}

fn model_table(models: &[ModelEntry]) -> String {
    let header = ["KEY", "MODEL", "REVISION", "SIZE", "SHARED", "LAST USED", "STATE", "PODS"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(models.iter().map(|model| {
        [
            short(model.key.as_str()).to_owned(),
            uri(model),
            model.revision.as_ref().map_or("-", |r| short(r.as_str())).to_owned(),
            size_text(model.bytes),
            match model.shared_bytes {
                0 => "-".to_owned(),
                bytes => size_text(bytes),
            },
            ago(&model.last_used),
            state(model),
            pods(model),
        ]
    }));
    table(&rows)
}

/// The pods that hold a model, by name.
fn pods(model: &ModelEntry) -> String {
    let mut names: Vec<String> = model
        .holders
        .iter()
        .take(NAMED)
        .map(|holder| shown(holder.pod.as_deref().unwrap_or(&holder.volume_id), 120))
        .collect();
    match model.holders.len() - names.len() {
        _ if names.is_empty() => return "-".to_owned(),
        0 => {}
        more => names.push(format!("{more} more")),
    }
    names.join(", ")
}

fn inspect(model: &ModelEntry) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:11} {value}");
    };
    line("model", uri(model));
    line("key", model.key.to_string());
    line("revision", model.revision.as_ref().map_or("-".to_owned(), ToString::to_string));
    line("location", model.location.clone().unwrap_or_else(|| "-".to_owned()));
    line("node label", model.node_label.clone().unwrap_or_else(|| "-".to_owned()));
    line(
        "shared with",
        match model.scope.as_str() {
            "" => "all pods".to_owned(),
            scope => format!("pods of {scope}"),
        },
    );
    line("state", state(model));
    let on_disk = (size_text(model.allocated_bytes), size_text(model.shared_bytes));
    line(
        "size",
        format!(
            "{}; {} on the disk, {} of it shared",
            size_text(model.bytes),
            on_disk.0,
            on_disk.1
        ),
    );
    line("last used", format!("{} ({})", model.last_used, ago(&model.last_used)));
    for holder in &model.holders {
        let pod = holder.pod.as_deref().unwrap_or("an unknown pod");
        let (volume, target) = (&holder.volume_id, holder.target.display());
        line("held by", format!("{pod}, volume {volume}, since {}, at {target}", holder.since));
    }
    for mount in &model.mounts {
        line("mounted at", mount.display().to_string());
    }
    if !model.files.is_empty() {
        text.push_str(&file_table(&model.files));
    }
    text
}

fn file_table(files: &[FileEntry]) -> String {
    let mut rows = vec![["SIZE", "FILE", "ETAG", "BLOB"].map(str::to_owned)];
    rows.extend(files.iter().map(|file| {
        [
            size_text(file.bytes),
            shown(&file.path, 300),
            shown(&file.etag, 60),
            short(file.blob.as_str()).to_owned(),
        ]
    }));
    table(&rows)
}

fn verified(found: &VerifyReport) -> String {
    let mut text = format!(
        "{}, {}, {} read: {}\n",
        counted(found.models, "model"),
        counted(found.blobs, "blob"),
        size_text(found.bytes),
        if found.damaged.is_empty() { "no damage found" } else { "damage found" }
    );
    for damage in &found.damaged {
        let _ =
            writeln!(text, "damaged: {}: {}", shown(&damage.what, 200), shown(&damage.why, 200));
        for model in &damage.models {
            let _ = writeln!(text, "  of {}", shown(model, 200));
        }
        for volume in &damage.volumes {
            let pod = volume.pod.as_deref().unwrap_or("an unknown pod");
            let _ = writeln!(text, "  mounted in {pod} at {}", volume.target.display());
        }
    }
    text
}

fn collected(collection: &Collection) -> String {
    let mut text = String::new();
    for model in &collection.models {
        let uri = model.uri.as_deref().map_or("-".to_owned(), |uri| shown(uri, 200));
        let (key, used) = (short(model.key.as_str()), ago(&model.last_used));
        let _ = writeln!(text, "{key}  {uri}  last used {used}");
    }
    let would = if collection.dry_run { "would free" } else { "freed" };
    let (models, bytes) = (counted(collection.models.len(), "model"), size_text(collection.bytes));
    let _ = writeln!(text, "{would} {bytes} and {} inodes: {models}", collection.inodes);
    text
}

fn prefetched(model: &PrefetchResult) -> String {
    let uri = shown(&model.uri, 200);
    let text = match (&model.error, &model.revision) {
        // Failures go to stderr.
        (Some(_), _) => String::new(),
        (None, Some(revision)) => {
            format!("{}: {uri}: {}, revision {revision}\n", model.result, size_text(model.bytes))
        }
        (None, None) => format!("{}: {uri}\n", model.result),
    };
    text + &warned(&model.warnings)
}

fn warned(warnings: &[String]) -> String {
    let mut text = String::new();
    for warning in warnings {
        let _ = writeln!(text, "warning: {}", shown(warning, 800));
    }
    text
}

fn imported(import: &Imported) -> String {
    let mut text = format!(
        "imported {} ({}, {} of it copied); downloaded {} ({}); cached before: {}\n",
        counted(import.adopted_files, "file"),
        size_text(import.adopted_bytes),
        size_text(import.copied_bytes),
        counted(import.downloaded_files, "file"),
        size_text(import.downloaded_bytes),
        counted(import.cached_files, "file"),
    );
    for NotAdopted { path, why } in &import.not_adopted {
        let (path, why) = (shown(path, 200), shown(why, 400));
        let _ = writeln!(text, "not imported, downloaded instead: {path}: {why}");
    }
    let more = import.not_adopted_files.saturating_sub(import.not_adopted.len());
    if more > 0 {
        let _ = writeln!(text, "not imported, downloaded instead: {more} more");
    }
    if import.left_files > 0 {
        let names: Vec<String> = import.left.iter().map(|name| shown(name, 100)).collect();
        let more = if import.left_files > names.len() { ", …" } else { "" };
        let _ = writeln!(
            text,
            "left in the directory, {}: {}{more}",
            counted(import.left_files, "file"),
            names.join(", ")
        );
    }
    text
}

fn uri(model: &ModelEntry) -> String {
    model.uri.as_deref().map_or("-".to_owned(), |uri| shown(uri, 200))
}

fn state(model: &ModelEntry) -> String {
    let mut text = model.state.clone();
    if let Some(done) = model.done_bytes.filter(|_| model.state == "downloading") {
        let percent = u128::from(done) * 100 / u128::from(model.bytes.max(1));
        let _ = write!(text, " {percent} %");
    }
    if model.pinned {
        text.push_str(", pinned");
    }
    if model.kept {
        text.push_str(", kept");
    }
    text
}

/// The first digits of an id, which are enough for people.
pub(in crate::cli) fn short(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..DIGITS).unwrap_or(digits)
}

fn ago(time: &str) -> String {
    let Ok(then) = humantime::parse_rfc3339(time) else { return "-".to_owned() };
    if then == SystemTime::UNIX_EPOCH {
        return "never".to_owned();
    }
    let age = SystemTime::now().duration_since(then).unwrap_or_default();
    match age.as_secs() / (24 * 3600) {
        0 => format!("{} ago", duration_text(age)),
        days => format!("{days}d ago"),
    }
}

/// Formats rows as columns, each as wide as its widest cell.
pub(in crate::cli) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
