//! All nodes of a cluster, and what each says about its cache: the labels that name models,
//! the annotation with numbers, and whether kubelet knows the driver.
//!
//! It comes from the API server alone, so no node is asked, and one that is down is shown
//! with what it said last.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::kubernetes::{ApiFailure, ApiServer, ListForm, path};
use crate::model::{LABEL_START, ModelSource, ModelUri, node_label};
use crate::node::CacheSummary;

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetNode {
    /// Its name.
    pub node: String,
    /// Whether kubelet knows the driver there.
    pub registered: bool,
    /// What it says about its cache; `None` if it says nothing.
    pub cache: Option<CacheSummary>,
    /// The models that its labels name, by name.
    pub models: Vec<LabelledModel>,
}

/// A model that a label names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelledModel {
    /// `NAME.HASH`, as [`node_label`] makes it.
    pub name: String,
    /// The key of the label.
    pub label: String,
    /// The first digits of the revision that was used last.
    pub revision: String,
}

/// Which models to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelFilter {
    /// This `NAME.HASH`.
    Exact(String),
    /// All of this NAME, whatever their prefixes.
    Name(String),
}

impl ModelFilter {
    /// Parses a URI with its namespace, `NAME.HASH` or NAME.
    ///
    /// # Errors
    /// `Invalid` for a URI that is malformed, or has no namespace: its label depends on it.
    pub fn parse(text: &str) -> Result<Self> {
        if text.starts_with("oci://") {
            let ModelUri { namespace, bucket, prefix } = ModelUri::parse(text)?;
            let namespace = namespace.ok_or_else(|| {
                Error::invalid(format!(
                    "{text} names no Object Storage namespace, and labels depend on it: write \
                     oci://BUCKET@NAMESPACE/PREFIX, as `cache ls` prints it"
                ))
            })?;
            let location = String::new();
            let label = node_label(&ModelSource { location, namespace, bucket, prefix });
            let name = label.strip_prefix(LABEL_START).unwrap_or(&label);
            return Ok(Self::Exact(name.to_owned()));
        }
        let hash = text.rsplit_once('.').map(|(_, hash)| hash);
        let is_hash = |hash: &str| hash.len() == 8 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        match hash.is_some_and(is_hash) {
            true => Ok(Self::Exact(text.to_owned())),
            false => Ok(Self::Name(text.to_owned())),
        }
    }

    /// Whether a model is to be shown.
    pub fn selects(&self, model: &LabelledModel) -> bool {
        match self {
            Self::Exact(name) => model.name == *name,
            Self::Name(name) => {
                model.name.rsplit_once('.').is_some_and(|(readable, _)| readable == name)
            }
        }
    }
}

/// The nodes of the cluster, by name.
///
/// # Errors
/// `Denied` if the caller may not list nodes and csinodes; `Unavailable` if the API server
/// does not answer.
pub async fn nodes(api: &ApiServer, driver: &str) -> Result<Vec<FleetNode>> {
    let nodes = api.list(&path(["api", "v1", "nodes"]), ListForm::Metadata).await;
    let nodes = nodes.map_err(|failure| failed("nodes", &failure))?;
    let csinodes = path(["apis", "storage.k8s.io", "v1", "csinodes"]);
    let csinodes = api.list(&csinodes, ListForm::Whole).await;
    let csinodes = csinodes.map_err(|failure| failed("csinodes", &failure))?;
    let registered: BTreeSet<&str> =
        csinodes.iter().filter(|one| has_driver(one, driver)).filter_map(name).collect();
    let mut fleet: Vec<FleetNode> = nodes
        .iter()
        .filter_map(|node| {
            let name = name(node)?;
            Some(FleetNode {
                node: name.to_owned(),
                registered: registered.contains(name),
                cache: summary(node, driver),
                models: models(node, driver),
            })
        })
        .collect();
    fleet.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(fleet)
}

fn failed(what: &str, failure: &ApiFailure) -> Error {
    match failure.is_forbidden() {
        true => Error::new(
            ErrorKind::Denied,
            format!(
                "listing {what}: {failure}; the chart lets the Controller do this if \
                 node.modelLabels is set, and `kubectl proxy` uses your own rights"
            ),
        ),
        false => Error::new(ErrorKind::Unavailable, format!("listing {what}: {failure}")),
    }
}

fn name(object: &Value) -> Option<&str> {
    object["metadata"]["name"].as_str()
}

fn has_driver(csinode: &Value, driver: &str) -> bool {
    let drivers = csinode["spec"]["drivers"].as_array();
    drivers.is_some_and(|drivers| drivers.iter().any(|one| one["name"] == driver))
}

fn summary(node: &Value, driver: &str) -> Option<CacheSummary> {
    let text = node["metadata"]["annotations"].get(CacheSummary::key(driver))?;
    CacheSummary::parse(text.as_str()?)
}

/// The models that the labels of a node name, by name.
fn models(node: &Value, driver: &str) -> Vec<LabelledModel> {
    let start = format!("{driver}/{LABEL_START}");
    let labels = node["metadata"]["labels"].as_object();
    let found: BTreeMap<&String, &Value> = labels.into_iter().flatten().collect();
    let model = |(label, revision): (&String, &Value)| {
        Some(LabelledModel {
            name: label.strip_prefix(&start)?.to_owned(),
            label: label.clone(),
            revision: revision.as_str()?.to_owned(),
        })
    };
    found.into_iter().filter_map(model).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn model(name: &str) -> LabelledModel {
        let label = format!("d/model.{name}");
        LabelledModel { name: name.to_owned(), label, revision: "r".to_owned() }
    }

    #[test]
    fn a_model_is_found_by_its_uri_its_label_or_its_name() {
        let uri = "oci://ai-model-cache@mytenancy/models/phi3-mini";
        let (phi3, other) = (model("phi3-mini.417203bd"), model("phi3-mini.00000000"));
        for (text, selects_other) in
            [(uri, false), ("phi3-mini.417203bd", false), ("phi3-mini", true)]
        {
            let filter = ModelFilter::parse(text).unwrap();
            assert!(filter.selects(&phi3), "{text}");
            assert_eq!(filter.selects(&other), selects_other, "{text}");
            assert!(!filter.selects(&model("phi3.417203bd")), "{text}");
        }
        let dotted = ModelFilter::parse("llama-3.1").unwrap();
        assert!(dotted.selects(&model("llama-3.1.12345678")));
        let error = ModelFilter::parse("oci://ai-model-cache/models/phi3-mini/").unwrap_err();
        assert!(error.message().contains("names no Object Storage namespace"), "{error}");
        assert!(ModelFilter::parse("oci://").is_err());
    }

    #[test]
    fn labels_and_annotations_of_others_are_ignored() {
        let node = json!({"metadata": {
            "name": "n",
            "labels": {"d/model.b.2": "r2", "d/model.a.1": "r1", "e/model.c.3": "r3", "d/x": "y"},
            "annotations": {"d/cache": "{\"version\": 7}", "e/cache": "{}"},
        }});
        let names: Vec<String> = models(&node, "d").into_iter().map(|model| model.name).collect();
        assert_eq!(names, ["a.1", "b.2"]);
        assert_eq!(summary(&node, "d"), None, "of a form that this version does not know");
        assert_eq!((models(&json!({}), "d"), summary(&json!({}), "d")), (Vec::new(), None));
    }
}
