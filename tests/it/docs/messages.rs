//! Messages and their pages, compared in both directions: each message of the code has a row in
//! `docs/errors.md`, each finding of `doctor` one there or in `docs/doctor.md`, and each message that
//! a row quotes is in the code.
//!
//! A message is any sentence in a string literal of the sources. Literals that are not messages are left
//! out by the call that they are an argument of, by file, or by name, each with a reason.

use std::collections::BTreeSet;

use crate::support::documents::{production, quoted, read};
use crate::support::literals::{Literal, literals};

/// Calls whose arguments are not messages.
const OTHER_CALLS: [(&str, &str); 19] = [
    ("debug!", "the log"),
    ("info!", "the log"),
    ("warn!", "the log"),
    ("error!", "the log"),
    ("warn", "the log, of SELinux labels"),
    ("expect", "a bug"),
    ("assert!", "a bug"),
    ("assert_eq!", "a bug"),
    ("debug_assert!", "a bug"),
    ("unreachable!", "a bug"),
    ("panic!", "a bug"),
    ("Error::internal", "a bug; one row covers all"),
    ("ErrorKind::Internal", "a bug; one row covers all"),
    ("Error::io", "what was attempted; the system's answer to it is the message"),
    ("Endpoint::parse", "the name of the endpoint that is wrong"),
    ("Endpoint::parse_bare", "the name of the endpoint that is wrong"),
    ("register", "the help of a metric"),
    ("write_str", "what a parser expects"),
    ("RequestDigest::of_fields", "the domain of a digest"),
];

/// Files and directories without messages.
const OTHER_FILES: [(&str, &str); 17] = [
    ("crates/foundation/src/metrics/", "names and help of metrics"),
    ("src/node/", "only logged"),
    ("src/telemetry/", "only logged"),
    ("src/volume/event_recorder.rs", "events, which docs/events.md has"),
    ("src/cli/cache/show.rs", "output of commands that succeed"),
    ("src/cli/ls/show.rs", "output of a command that succeeds"),
    ("src/cli/nodes/show.rs", "output of a command that succeeds"),
    ("src/cli/push/show.rs", "output of commands that succeed"),
    ("crates/object-storage/src/oci/sdk_signer.rs", "disagreement of two signers, a bug"),
    // Those of keys and values name the file, the line, the key and what is valid there.
    ("src/config/amount.rs", "values of the configuration"),
    ("src/config/fields.rs", "values of the configuration"),
    ("src/config/mod.rs", "values of the configuration"),
    ("src/config/prefetch.rs", "values of the configuration"),
    ("src/config/report.rs", "keys of the configuration"),
    ("crates/object-storage/src/transport/range.rs", "values of the configuration"),
    ("src/config/size.rs", "values of the configuration and of flags"),
    ("src/policy/rule.rs", "values of the configuration"),
];

/// Literals that no user meets as a message, or that are parts of one whose cause has a row.
const OTHER_LITERALS: [(&str, &str); 39] = [
    ("oci-model-csi journal 1", "the first line of a file"),
    ("oci-model-csi cache ", "the first line of a file"),
    ("version https://git-lfs.github.com/spec/", "the first line of a file"),
    ("oci-model-csi revision", "the domain of a digest"),
    ("oci-model-csi blob", "the domain of a digest"),
    ("oci-model-csi content", "the domain of a digest"),
    ("oci-model-csi model", "the domain of a digest"),
    ("oci-model-csi request", "the domain of a digest"),
    ("application/openmetrics-text; version=1.0.0; charset=utf-8", "a header"),
    ("text/plain; version=0.0.4; charset=utf-8", "a header"),
    (
        "Signature version=\"1\",keyId=\"{key_id}\",algorithm=\"rsa-sha256\",\
         headers=\"{headers}\",signature=\"{signature}\"",
        "a header",
    ),
    ("the disk is almost full, and the cache has no model: other files fill the disk", "the log"),
    (
        "the disk is almost full, and no model in the cache can be evicted: pods use them, or \
         they are pinned",
        "the log",
    ),
    ("ENCRYPTED PRIVATE KEY", "a marker of PEM"),
    ("RSA PRIVATE KEY", "a marker of PEM"),
    (
        "Kubernetes CSI driver: AI models from OCI Object Storage as shared, verified, \
         read-only volumes",
        "help",
    ),
    ("Remove the whole cache of this node? [y/N] ", "a question"),
    ("a request is removed only after its caller left", "a bug"),
    ("no part is being hashed", "a bug"),
    ("{path} names no mount", "a bug"),
    ("it cannot be written", "a bug"),
    ("its sizes do not add up", "a damaged manifest, which is built again"),
    ("it is not whole", "a damaged manifest, which is built again"),
    ("it has a field that is not known", "a damaged manifest, which is built again"),
    ("{text:?} is not an id of 64 hex digits", "a damaged manifest, which is built again"),
    ("the start without --config", "a placeholder for the file's name"),
    ("an unknown pod", "a placeholder for the pod's name"),
    ("the identity service", "a placeholder for the host's name"),
    ("an open file", "a placeholder for the file's name"),
    ("none was chosen", "a bug"),
    ("this source of objects knows no identities of pods", "a bug"),
    ("dynamic-group <the resource's group>", "a part of a statement"),
    ("dynamic-group <the nodes' group>", "a part of a statement"),
    ("its size", "a placeholder for the field's name"),
    ("its etag", "a placeholder for the field's name"),
    ("no reason is known", "a placeholder for the reason"),
    ("an unknown number of", "a placeholder for a number"),
    ("the socket for commands in the cache", "the beginning of a message"),
    ("{name} has {len} bytes, and no object's name has so many", "never leaves the parser"),
];

/// Where findings of `doctor` and their parts are made, which `docs/doctor.md` explains.
const FINDINGS: [&str; 5] = [
    "src/doctor/",
    "src/cli/doctor",
    "src/browse/problem.rs",
    "crates/object-storage/src/oci/diagnosis.rs",
    "crates/object-storage/src/oci/object_storage/connect.rs",
];

/// The beginning of the tables of findings in `docs/doctor.md`.
const FINDINGS_TABLE: &str = "| Check, severity |";

/// Ends and beginnings that are not worth a row, since they explain themselves.
const PARTS: [&str; 15] = [
    " (opc-request-id {id})",
    ", after {attempts} attempts in {:.1} s",
    "after {n} attempts in {spent} s",
    "oci-model-csi: {error}",
    "oci-model-csi: warning: {error}",
    "the disk of {}",
    "oci os multipart abort {}",
    "to give up instead: {abort}",
    "{} is on {} ({}, mounted at {}), which",
    ", may not mount {}: ",
    "a part of it",
    "before rule {number} of",
    "- {{namespaces: [{}], serviceAccounts: [{}], objectStorageNamespaces: [{}], buckets: [{}], \
     prefixes: [{}], allow: true}}",
    "a regular file",
    "a special file",
];

#[test]
fn every_message_of_the_code_has_a_row() {
    let (errors, findings) = (rows(), finding_rows());
    let (mut seen, mut missing) = (0, Vec::new());
    let others = || OTHER_LITERALS.iter().map(|(text, _)| *text).chain(PARTS);
    let mut met = BTreeSet::new();
    for (place, literal) in literals_by_file() {
        let text = literal.text.as_str();
        if !is_message(&literal) || OTHER_FILES.iter().any(|(area, _)| place.starts_with(area)) {
            continue;
        }
        if let Some(other) = others().find(|other| *other == text) {
            met.insert(other);
            continue;
        }
        seen += 1;
        let is_finding = FINDINGS.iter().any(|area| place.starts_with(area));
        let is_there = has_row(text, &errors) || is_finding && has_row(text, &findings);
        if !is_there {
            missing.push(format!("{place}:{}: {text:?}", literal.line));
        }
    }
    assert!(seen > 400, "{seen} messages: are they made in another way now?");
    assert!(missing.is_empty(), "the pages have no row for\n{}", missing.join("\n"));
    let gone: Vec<&str> = others().filter(|other| !met.contains(other)).collect();
    assert!(gone.is_empty(), "the lists name literals that no source has any more: {gone:?}");
}

#[test]
fn every_quoted_message_exists_in_the_code() {
    let said: Vec<String> =
        literals_by_file().iter().map(|(_, literal)| plain(&literal.text)).collect();
    let findings = finding_rows();
    assert!(findings.len() > 150, "{} texts of findings", findings.len());
    let rows = [rows(), findings].concat();
    let is_said = |part: &&str| said.iter().any(|text| text.contains(part));
    let unsaid: Vec<String> = rows
        .iter()
        .flat_map(|row| fixed(row).into_iter().map(move |part| (row, part)))
        .filter(|(_, part)| !is_said(part))
        .map(|(row, part)| format!("{part:?} of {row:?}"))
        .collect();
    assert!(unsaid.is_empty(), "no string literal of the sources has\n{}", unsaid.join("\n"));
    assert!(rows.len() > 250, "{} messages", rows.len());
}

#[test]
fn a_message_is_found_in_every_form_of_call() {
    let source = r#"
        fn one() { Error::invalid("it is plain text"); }
        Error::new(ErrorKind::Denied, format!("a {} \"b c\" {c}", x));
        let text = format!(
            "over two \
             lines of text"
        );
        return refuse("contains '//'");
        let why = "nothing is there";
        #[error("made by an attribute: {why}")]
        // Not these:
        Error::new(ErrorKind::Internal, "a bug of ours");
        Error::io(format!("looking for {x} here"), &e);
        tracing::warn!("this is logged only");
        #[allow(dead_code, reason = "this is a reason")]
        let quote = '"'; let words = "two words"; let lines = "these are\nthree lines";
    "#;
    let found: Vec<String> =
        literals(source).into_iter().filter(is_message).map(|literal| literal.text).collect();
    let expected = [
        "it is plain text",
        "a {} \"b c\" {c}",
        "over two lines of text",
        "contains '//'",
        "nothing is there",
        "made by an attribute: {why}",
    ];
    assert_eq!(found, expected);
    assert_eq!(holes("a {} b {c:?} {{d}}"), "a … b … …d…");
}

#[test]
fn a_row_speaks_only_of_messages_that_have_its_words() {
    let rows = ["model … is not here: …".to_owned(), "is full".to_owned()];
    assert!(has_row("model {key} is not here: {why}; try again", &rows));
    assert!(has_row("is not here: {why}", &rows));
    assert!(!has_row("model {key} is there", &rows));
    assert!(!has_row("the disk is full and nothing helps", &rows));
}

/// The sentences of the production code that users see.
fn is_message(literal: &Literal) -> bool {
    let text = literal.text.as_str();
    let calls = &literal.calls;
    let is_other = |call: &String| {
        call.starts_with("tracing::") || OTHER_CALLS.iter().any(|(other, _)| other == call)
    };
    let in_attribute = calls.iter().any(|call| call.starts_with('#'));
    if calls.iter().any(is_other) || in_attribute && !calls.iter().any(|call| call == "error") {
        return false;
    }
    // Parts of an error may be short; elsewhere two words are a name.
    let makers = ["Error::", "refuse", "not_found", "missing", "with_remedy"];
    let makes_error = calls.iter().any(|call| makers.iter().any(|maker| call.starts_with(maker)));
    let own = without_holes(text);
    let words = own.split(|c: char| !c.is_alphabetic() && c != '\'');
    let words = words.filter(|word| !word.is_empty()).count();
    // `reading the file` says what was attempted; the cause follows it.
    let first = text.split_whitespace().next().unwrap_or_default();
    let is_attempt =
        first.ends_with("ing") && !first.ends_with("thing") && !own.contains([';', ':']);
    // Help and pages of output have several lines.
    !text.contains('\n')
        && text.trim().contains(' ')
        && words >= if makes_error { 2 } else { 3 }
        && !is_attempt
}

/// Whether a row has this message: all of the row's words are the message's, or the longest
/// part of the message is the row's.
fn has_row(message: &str, rows: &[String]) -> bool {
    let said = plain(message);
    let holed = holes(message);
    let longest = fixed(&holed).into_iter().max_by_key(|part| part.len());
    rows.iter().any(|row| {
        let parts = fixed(row);
        let says_enough = parts.iter().map(|part| part.len()).sum::<usize>() >= 10;
        says_enough && parts.iter().all(|part| said.contains(part))
            || longest.is_some_and(|longest| row.contains(longest))
    })
}

/// The messages that the page quotes: all of the first cells of its rows.
fn rows() -> Vec<String> {
    read("docs/errors.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .flat_map(quoted)
        // The table of codes has a word in each row.
        .filter(|message| message.trim().contains(' '))
        .collect()
}

/// The texts of findings that the page of `doctor` quotes: what they say, and their fixes.
fn finding_rows() -> Vec<String> {
    let page = read("docs/doctor.md");
    let tables = page.split(FINDINGS_TABLE).skip(1);
    let lines =
        tables.flat_map(|table| table.lines().take_while(|line| line.starts_with(['|', ' '])));
    lines
        .flat_map(|line| {
            let cells: Vec<&str> = line.split(" | ").collect();
            let cell = |at: usize| cells.get(at).copied().unwrap_or_default();
            [quoted(cell(1)), quoted(cell(3))].concat()
        })
        .filter(|text| text.trim().contains(' '))
        .collect()
}

/// The literals of the sources, without those of its tests, by file.
fn literals_by_file() -> Vec<(String, Literal)> {
    let of_file = |(place, source): (String, String)| {
        literals(&source)
            .into_iter()
            .map(move |literal| (place.clone(), literal))
            .collect::<Vec<_>>()
    };
    production().into_iter().flat_map(of_file).collect()
}

/// A format as users see it, without its arguments.
fn plain(format: &str) -> String {
    format.replace("{{", "{").replace("}}", "}")
}

/// A format with `…` in place of its arguments and braces.
fn holes(format: &str) -> String {
    replace_holes(&format.replace("{{", "…").replace("}}", "…"), "…")
}

fn without_holes(format: &str) -> String {
    replace_holes(&format.replace("{{", "").replace("}}", ""), "")
}

fn replace_holes(format: &str, by: &str) -> String {
    let mut text = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('{') {
        text.push_str(&rest[..at]);
        text.push_str(by);
        rest = rest[at..].split_once('}').map_or("", |(_, rest)| rest);
    }
    text + rest
}

/// The text without what differs from one message to the next.
fn fixed(text: &str) -> Vec<&str> {
    text.split('…').map(str::trim).filter(|part| part.len() > 3).collect()
}
