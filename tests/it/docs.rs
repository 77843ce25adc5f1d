//! The documents match the code: keys, flags, metrics, codes, messages, samples,
//! names of tests and links are compared with it.

mod commands;
mod figures;
mod habits;
mod language;
mod messages;
mod paths;
mod site;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use crate::support::documents::{files, quoted, read, root, shown, sources, table};
use serde_json::Value;

use oci_model_csi::ErrorKind;
use oci_model_csi::config::Config;
use oci_model_csi::csi::status;
use oci_model_csi::metrics::{EvictionReason, Metrics, PublishResult};
use oci_model_csi::model::{AttributeSource, parse_attributes};

const KINDS: [ErrorKind; 14] = [
    ErrorKind::InProgress,
    ErrorKind::Unavailable,
    ErrorKind::NoSpace,
    ErrorKind::Invalid,
    ErrorKind::NotFound,
    ErrorKind::Unauthenticated,
    ErrorKind::Denied,
    ErrorKind::Precondition,
    ErrorKind::Changed,
    ErrorKind::Conflict,
    ErrorKind::OutOfRange,
    ErrorKind::Corrupt,
    ErrorKind::Disk,
    ErrorKind::Internal,
];

#[test]
fn the_documented_metrics_are_those_that_are_served() {
    let metrics = Metrics::default();
    metrics.verified("md5", true);
    metrics.object_storage_request("GetObject", Some(206));
    metrics.published(PublishResult::Hit, 0.1);
    metrics.rpc("Probe", "OK", 0.1);
    metrics.evicted(EvictionReason::Space);
    metrics.model_warning("weights");
    metrics.trace_spans("exported", 1);
    metrics.cache_size("trash", 1);
    metrics.cache_models("pinned", 1);
    let text = metrics.to_text();
    let served = served_metrics(&text);
    // Its rows end with a semicolon; the version of the build is no row.
    let defs = read("crates/foundation/src/metrics/defs.rs");
    let (_, rows) = defs.split_once("\nmetrics! {\n").expect("the table of metrics");
    let rows = rows.split_once("\n}\n").expect("its end").0.matches("\";").count();
    assert_eq!(served.len(), rows + 1, "a metric with labels is not counted by this test");

    let documented: BTreeMap<String, (String, BTreeSet<String>)> =
        table("docs/metrics.md", "| Name |")
            .into_iter()
            .map(|cells| {
                let labels = quoted(&cells[2]).into_iter().collect();
                (quoted(&cells[0]).remove(0), (cells[1].clone(), labels))
            })
            .collect();
    assert_eq!(documented, served);
}

/// The name as it is scraped, the type, and the labels.
fn served_metrics(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut served = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let scraped = match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        };
        let sample = text.lines().find(|line| line.starts_with(name)).unwrap();
        let labels = sample.split_once('{').map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
        let labels = labels
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(label, _)| label.to_owned())
            .filter(|label| label != "le")
            .collect();
        served.insert(scraped, (kind.to_owned(), labels));
    }
    served
}

#[test]
fn the_documented_configuration_is_the_defaults_and_every_key() {
    let [sample] = &blocks("docs/configuration.md", "yaml")[..] else { panic!("one sample") };
    let config = Config::parse(sample, "docs/configuration.md").unwrap();
    assert_eq!(config, Config::default());

    let documented: BTreeSet<String> = table("docs/configuration.md", "| Key |")
        .into_iter()
        .map(|cells| quoted(&cells[0]).remove(0))
        .collect();
    let mut known = BTreeSet::new();
    for section in known_keys("") {
        match &known_keys(&section)[..] {
            [] => drop(known.insert(section)),
            keys => known.extend(keys.iter().map(|key| format!("{section}.{key}"))),
        }
    }
    assert_eq!(documented, known);
}

/// The keys of a section, as the error over an unknown one lists them.
fn known_keys(section: &str) -> Vec<String> {
    let text = match section {
        "" => "zzzzzzzz: 1".to_owned(),
        section => format!("{section}: {{zzzzzzzz: 1}}"),
    };
    let message = Config::parse(&text, "test").unwrap_err().to_string();
    let Some((_, keys)) = message.split_once("valid here: ") else { return Vec::new() };
    keys.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_messages_of_the_configuration_are_quoted_word_for_word() {
    let quoted = blocks("docs/configuration.md", "text").remove(0);
    let said = ["cache:\n  dir: /x\n  maxSzie: 50%\n", "cache:\n  maxSize: 500GB\n"]
        .map(|text| Config::parse(text, "/etc/oci-model-csi/config.yaml").unwrap_err().to_string());
    assert_eq!(quoted.lines().collect::<Vec<_>>(), said);
}

#[test]
fn configurations_in_documents_and_examples_start_a_driver() {
    let mut seen = 0;
    for (place, text) in manifests() {
        if text.starts_with("cache:") || text.starts_with("objectStorage:") {
            Config::parse(&text, &place).unwrap();
            seen += 1;
        }
    }
    assert!(seen >= 2, "{seen} configurations");
}

#[test]
fn attributes_in_documents_and_examples_are_accepted() {
    let mut seen = BTreeMap::<&str, usize>::new();
    for (place, text) in manifests() {
        for document in text.split("\n---\n") {
            let Ok(value) = serde_saphyr::from_str::<Value>(document) else {
                panic!("{place} is not YAML:\n{document}")
            };
            attributes_in(&value, &mut |kind, source, attributes| {
                let parsed = parse_attributes(&attributes, source);
                assert!(parsed.is_ok(), "{place}: {kind} {attributes:?}: {parsed:?}");
                *seen.entry(kind).or_default() += 1;
            });
        }
    }
    for kind in ["inline volume", "StorageClass", "PersistentVolume"] {
        assert!(seen.contains_key(kind), "no {kind} in {seen:?}");
    }
}

/// Finds the three places of attributes, wherever they are in a manifest.
fn attributes_in(
    value: &Value,
    found: &mut impl FnMut(&'static str, AttributeSource, HashMap<String, String>),
) {
    let strings = |value: &Value| -> HashMap<String, String> {
        let pairs = value.as_object().expect("attributes are a mapping").iter();
        pairs
            .map(|(key, value)| {
                let text = value.as_str().unwrap_or_else(|| panic!("{key} is no string"));
                // What the Controller replaces before it parses.
                let text = text.replace("${pvc.name}", "claim");
                let annotation = "${pvc.annotations['oci-model-csi.dev/model']}";
                (key.clone(), text.replace(annotation, "model"))
            })
            .collect()
    };
    if value["kind"] == "StorageClass" {
        assert_eq!(value["provisioner"], "oci-model-csi.dev");
        found("StorageClass", AttributeSource::Administrator, strings(&value["parameters"]));
    }
    if let Some(attributes) = value.pointer("/spec/csi/volumeAttributes") {
        let source = AttributeSource::Administrator;
        return found("PersistentVolume", source, strings(attributes));
    }
    if let Some(attributes) = value.pointer("/csi/volumeAttributes") {
        assert_eq!(value["csi"]["driver"], "oci-model-csi.dev");
        assert_eq!(value["csi"]["readOnly"], true, "an inline volume needs readOnly");
        return found("inline volume", AttributeSource::Pod, strings(attributes));
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| attributes_in(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| attributes_in(field, found)),
        _ => {}
    }
}

#[test]
fn every_attribute_is_documented_with_who_may_set_it() {
    let known = |source| -> BTreeSet<String> {
        let unknown = [("zzzzzzzz".to_owned(), String::new())].into();
        let message = parse_attributes(&unknown, source).unwrap_err().to_string();
        let (_, names) = message.split_once("known are ").unwrap();
        names.split(", ").map(str::to_owned).collect()
    };
    let rows = table("docs/attributes.md", "| Key |");
    let documented = |who: &[&str]| -> BTreeSet<String> {
        let rows = rows.iter().filter(|cells| who.contains(&cells[3].as_str()));
        rows.map(|cells| quoted(&cells[0]).remove(0)).collect()
    };
    assert_eq!(documented(&["all users"]), known(AttributeSource::Pod));
    let all = documented(&["all users", "administrators"]);
    assert_eq!(all, known(AttributeSource::Administrator));
}

#[test]
fn the_documented_codes_are_those_of_the_driver() {
    let documented: BTreeMap<String, bool> = table("docs/errors.md", "| Code |")
        .into_iter()
        .map(|cells| (quoted(&cells[0]).remove(0), cells[1] == "yes"))
        .collect();
    let answered: BTreeMap<String, bool> = KINDS
        .into_iter()
        .map(status::code)
        .map(|code| (status::name(code).to_owned(), status::is_final(code)))
        .collect();
    assert_eq!(documented, answered);
    let text = read("docs/errors.md");
    for code in answered.keys() {
        assert!(text.contains(&format!("\n## {code}\n")), "no section {code}");
    }
}

#[test]
fn alerts_and_panels_name_codes_that_the_driver_answers_with() {
    let answered: BTreeSet<&str> = KINDS.into_iter().map(status::code).map(status::name).collect();
    let mut seen = 0;
    for file in ["prometheusrule.yaml", "oci-model-csi.json"] {
        let text = read(&format!("deploy/helm/oci-model-csi/files/{file}")).replace("\\\"", "\"");
        for (at, matcher) in text.match_indices("{code=") {
            let value = text[at + matcher.len()..].trim_start_matches('~').strip_prefix('"');
            let codes = value.and_then(|value| value.split('"').next()).expect("a quoted value");
            for code in codes.split('|') {
                assert!(answered.contains(code), "{file} names {code}");
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "an alert names codes");
}

#[test]
fn every_test_that_a_document_names_exists() {
    let anywhere: String = sources()
        .into_iter()
        .chain(files("tests", "rs"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let mut seen = 0;
    for (place, text) in documents() {
        // `name`, `name` in `file`; `name`, `name`.
        for clause in without_blocks(&text).replace('\n', " ").split("; ").flat_map(sentences) {
            let words = quoted(&clause);
            let file = words.iter().find(|word| word.starts_with("tests/") && is_file(word));
            let there = match file {
                Some(file) if root().join(file).exists() => read(file),
                Some(file) => panic!("{place} names {file}, which is not there"),
                None => anywhere.clone(),
            };
            for name in words.iter().filter(|word| is_sentence(word)) {
                assert!(
                    there.contains(&format!("fn {name}(")),
                    "{place} names the test {name}, which is not in {file:?}"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "{seen} tests");
}

/// Parts of a list item: a name in bold, and clauses that end with a full stop.
fn sentences(clause: &str) -> Vec<String> {
    clause.split("**").flat_map(|part| part.split(". ")).map(str::to_owned).collect()
}

fn is_file(word: &str) -> bool {
    Path::new(word).extension().is_some_and(|extension| extension == "rs")
}

/// Whether a quoted word is the name of a test.
fn is_sentence(word: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    word.bytes().all(plain)
        && word.matches('_').count() >= 3
        && !word.starts_with("oci_model_csi_")
        && word != "oke_workload_identity"
}

#[test]
fn every_make_target_that_a_document_names_exists() {
    let makefile = read("Makefile");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.strip_prefix(".PHONY: "))
        .filter(|target| makefile.contains(&format!("\n{target}: ")))
        .collect();
    assert!(targets.len() > 10, "{targets:?}");
    let mut seen = BTreeSet::new();
    for (place, text) in documents() {
        // Lines of a block, and words of the text: `make rust`.
        let prose = without_blocks(&text).replace('\n', " ");
        let words = quoted(&prose).into_iter();
        let of_blocks = text.lines().map(str::to_owned);
        let named = words.chain(of_blocks).filter_map(|one| {
            one.strip_prefix("make ").map(|rest| rest.split_whitespace().next().map(str::to_owned))
        });
        for target in named.flatten() {
            assert!(targets.contains(target.as_str()), "{place}: make {target} is not a target");
            seen.insert(target);
        }
    }
    assert!(seen.len() > 8, "documents name only {seen:?}");
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for (place, text) in documents() {
        let prose = without_blocks(&text);
        for (at, _) in prose.match_indices("](") {
            let link = prose[at + 2..].split(')').next().unwrap();
            if link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let directory = Path::new(&place).parent().unwrap();
            let target = if file.is_empty() {
                root().join(&place)
            } else {
                root().join(directory).join(file)
            };
            assert!(target.exists(), "{place}: {link} leads nowhere");
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let mut anchors = text.lines().filter(|line| line.starts_with('#')).map(slug);
                assert!(anchors.any(|slug| slug == anchor), "{place}: no heading for {link}");
            }
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen} links");
}

/// A heading's anchor, as GitHub makes it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_block_of_code_has_a_language() {
    for (place, text) in documents() {
        let mut open = false;
        for (number, line) in text.lines().enumerate() {
            if let Some(language) = line.trim_start().strip_prefix("```") {
                let place = format!("{place}:{}", number + 1);
                assert!(open || !language.is_empty(), "{place}: a block without a language");
                open = !open;
            }
        }
        assert!(!open, "{place}: a block without an end");
    }
}

#[test]
fn the_csidriver_object_has_the_fields_that_the_driver_needs() {
    let object: Value =
        serde_saphyr::from_str(&read("deploy/kustomize/base/csidriver.yaml")).unwrap();
    assert_eq!(object["kind"], "CSIDriver");
    assert_eq!(object["metadata"]["name"], "oci-model-csi.dev");
    let expected = serde_json::json!({
        "attachRequired": false,
        "podInfoOnMount": true,
        "fsGroupPolicy": "None",
        "volumeLifecycleModes": ["Persistent", "Ephemeral"],
        "requiresRepublish": false,
        "storageCapacity": false,
        "seLinuxMount": false,
    });
    assert_eq!(object["spec"], expected);
}

/// Every manifest: the files of deploy/, and the YAML of the documents. The
/// chart's templates are no YAML yet; `make deploy-test` renders them.
fn manifests() -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = files("deploy", "yaml")
        .into_iter()
        .filter(|path| !shown(path).contains("/templates/"))
        .map(|path| (shown(&path), fs::read_to_string(&path).unwrap()))
        .collect();
    for (place, _) in documents() {
        for text in blocks(&place, "yaml") {
            found.push((place.clone(), text));
        }
    }
    found
}

/// The project's documents, by their path from its root.
fn documents() -> Vec<(String, String)> {
    let mut paths = ["docs", "deploy", "tests", "csi-sanity"].map(|of| files(of, "md")).concat();
    for entry in fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            paths.push(path);
        }
    }
    paths.iter().map(|path| (shown(path), fs::read_to_string(path).unwrap())).collect()
}

fn blocks(document: &str, language: &str) -> Vec<String> {
    let text = read(document);
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

fn without_blocks(text: &str) -> String {
    text.split("```").step_by(2).collect()
}
