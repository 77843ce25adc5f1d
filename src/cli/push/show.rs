//! The result of a push on stdout: as text, with the volume to paste, or as JSON.

use std::io::Write as _;

use super::PushArgs;
use crate::error::{Error, Result};
use crate::model::{counted, duration_text, size_text};
use crate::push::{PlannedFile, PushReport, command_line};
use crate::text::shown;

/// Names that one line lists.
const NAMED: usize = 5;

/// The command line of this process, to be pasted into a shell.
pub(super) fn same_command() -> String {
    let words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    command_line(words.iter().map(String::as_str))
}

pub(super) fn print(args: &PushArgs, report: &PushReport) -> Result<()> {
    let text = match (args.wants_json(), args.dry_run) {
        (true, _) => json(args, report),
        (false, true) => planned(args, report),
        (false, false) => done(args, report),
    };
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("writing the result", &e))
}

fn json(args: &PushArgs, report: &PushReport) -> String {
    let planned = |file: &PlannedFile| serde_json::json!({ "name": file.name, "bytes": file.size, "action": action(file) });
    let abort: Vec<String> =
        report.unfinished.iter().map(|upload| args.abort_command(upload)).collect();
    let mut object = serde_json::json!({
        "uri": report.uri.to_string(),
        "directory": args.dir,
        "revision": report.revision,
        "files": report.files,
        "bytes": report.bytes,
        "alreadyStored": report.kept,
        "sentBytes": report.sent,
        "seconds": report.elapsed.as_secs_f64(),
        "bucketCreated": report.bucket_created,
        "otherObjects": report.others,
        "deleted": report.deleted,
        "leftOut": report.left_out,
        "abort": abort,
        "warnings": report.warnings,
    });
    if args.dry_run {
        object["plan"] = report.planned.iter().map(planned).collect();
    }
    object.to_string()
}

/// What a push would do with a file, in one word.
fn action(file: &PlannedFile) -> &'static str {
    match file {
        PlannedFile { is_there: true, .. } => "keep",
        PlannedFile { continues: true, .. } => "continue",
        PlannedFile { replaces: true, .. } => "replace",
        _ => "send",
    }
}

fn planned(args: &PushArgs, report: &PushReport) -> String {
    let mut lines: Vec<String> = report
        .planned
        .iter()
        .map(|file| {
            format!("{:8} {} ({})", action(file), shown(&file.name, 200), size_text(file.size))
        })
        .collect();
    if args.delete {
        lines.extend(
            report.others.iter().map(|name| format!("{:8} {}", "delete", shown(name, 200))),
        );
    }
    let sent = report.planned.iter().filter(|file| !file.is_there);
    let bytes = sent.clone().map(|file| file.size).fold(0, u64::saturating_add);
    lines.push(format!(
        "nothing was sent: a push would send {} ({}) to {}",
        counted(sent.count(), "file"),
        size_text(bytes),
        report.uri
    ));
    lines.extend(remarks(args, report));
    lines.join("\n")
}

fn done(args: &PushArgs, report: &PushReport) -> String {
    let seconds = report.elapsed.as_secs_f64();
    let millis = report.elapsed.as_millis().max(1);
    let rate = u64::try_from(u128::from(report.sent) * 1000 / millis).unwrap_or(u64::MAX);
    let kept = match report.kept {
        0 => String::new(),
        kept => format!("; {kept} were there already"),
    };
    let mut lines = vec![format!(
        "{}, {} in {}: {} sent in {} ({}/s){kept}",
        counted(report.files, "file"),
        size_text(report.bytes),
        report.uri,
        size_text(report.sent),
        match report.elapsed.as_secs() {
            0..10 => format!("{seconds:.1}s"),
            _ => duration_text(report.elapsed),
        },
        size_text(rate),
    )];
    if let Some(revision) = &report.revision {
        lines.push(format!("revision {revision}"));
    }
    lines.extend(remarks(args, report));
    lines.push(String::new());
    lines.push(volume(args, report));
    lines.join("\n")
}

/// What else there is to know, one line each.
fn remarks(args: &PushArgs, report: &PushReport) -> Vec<String> {
    let mut lines = Vec::new();
    if report.bucket_created {
        let would = if args.dry_run { "would be" } else { "was" };
        lines.push(format!("bucket {} {would} created", report.uri.bucket));
    }
    if !report.left_out.is_empty() {
        lines.push(format!("left out by default: {}", named(&report.left_out)));
    }
    if !report.deleted.is_empty() {
        let count = counted(report.deleted.len(), "object");
        lines.push(format!("deleted {count} that DIR does not have: {}", named(&report.deleted)));
    } else if !report.others.is_empty() && !args.delete {
        let count = counted(report.others.len(), "object");
        let names = named(&report.others);
        lines.push(format!(
            "warning: {count} under the prefix are part of the model, and DIR does not have them: \
             {names}; --delete deletes them"
        ));
    }
    for upload in &report.unfinished {
        lines.push(format!(
            "warning: an unfinished upload of {} is stored and paid for; to remove it: {}",
            shown(&upload.object.name, 200),
            args.abort_command(upload)
        ));
    }
    lines.extend(report.warnings.iter().map(|warning| format!("warning: {warning}")));
    lines
}

fn named(names: &[String]) -> String {
    let listed = names.iter().take(NAMED).map(|name| shown(name, 120)).collect::<Vec<_>>();
    match names.len().saturating_sub(NAMED) {
        0 => listed.join(", "),
        more => format!("{} and {more} more", listed.join(", ")),
    }
}

/// The volume of a pod that mounts the model.
fn volume(args: &PushArgs, report: &PushReport) -> String {
    let mut attributes = vec![format!("bucket: {}", yaml(report.uri.bucket.as_str()))];
    // Without it, it is the driver's own tenancy's.
    if let Some(namespace) = report.uri.namespace.as_ref().filter(|_| args.names_namespace()) {
        attributes.push(format!("namespace: {}", yaml(namespace.as_str())));
    }
    attributes.push(format!("prefix: {}", yaml(report.uri.prefix.as_str())));
    if let Some(revision) = &report.revision {
        attributes.push(format!(
            "# exactly these files, whatever is pushed later:\n# revision: {revision}"
        ));
    }
    let attributes = attributes.join("\n").replace('\n', "\n      ");
    format!(
        "volumes:\n- name: model\n  csi:\n    driver: oci-model-csi.dev\n    readOnly: true\n    \
         volumeAttributes:\n      {attributes}"
    )
}

/// A string of YAML: plain where every parser takes it for a string.
fn yaml(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let words = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
        && !words.contains(&text.to_ascii_lowercase().as_str());
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_strings_for_every_yaml_parser() {
        for (text, expected) in [
            ("ai-model-cache", "ai-model-cache"),
            ("models/phi3-mini/", "models/phi3-mini/"),
            ("", "\"\""),
            ("no", "\"no\""),
            ("1.0", "\"1.0\""),
            ("a: b/", "\"a: b/\""),
            ("it's \"x\"/", "\"it's \\\"x\\\"/\""),
        ] {
            assert_eq!(yaml(text), expected);
        }
    }
}
