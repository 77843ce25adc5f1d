//! Output of `nodes`: tables for people, and JSON.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::cli::cache::show::table;
use crate::fleet::{FleetNode, LabelledModel, ModelFilter};
use crate::model::{counted, size_text};
use crate::text::shown;

/// The longest list of models in a cell, in characters.
const MODELS: usize = 400;

/// The nodes that have a model that the filter selects, or all nodes, with these models.
fn selected<'a>(
    nodes: &'a [FleetNode],
    filter: Option<&ModelFilter>,
) -> Vec<(&'a FleetNode, Vec<&'a LabelledModel>)> {
    let wanted = |model: &&LabelledModel| filter.is_none_or(|filter| filter.selects(model));
    let models = |node: &'a FleetNode| node.models.iter().filter(wanted).collect::<Vec<_>>();
    let all = nodes.iter().map(|node| (node, models(node)));
    all.filter(|(_, models)| filter.is_none() || !models.is_empty()).collect()
}

pub(super) fn json(nodes: &[FleetNode], filter: Option<&ModelFilter>) -> String {
    let only = |(node, models): (&FleetNode, Vec<&LabelledModel>)| {
        let models = models.into_iter().cloned().collect();
        FleetNode { models, ..node.clone() }
    };
    let nodes: Vec<FleetNode> = selected(nodes, filter).into_iter().map(only).collect();
    serde_json::to_string_pretty(&nodes).unwrap_or_default()
}

pub(super) fn text(nodes: &[FleetNode], filter: Option<&ModelFilter>) -> String {
    let shown_nodes = selected(nodes, filter);
    let mut text = match filter {
        None => all(&shown_nodes),
        Some(_) => with_model(&shown_nodes),
    };
    if filter.is_some() {
        let (found, nodes) = (shown_nodes.len(), counted(nodes.len(), "node"));
        let _ = writeln!(text, "{found} of {nodes} with this model");
        return text;
    }
    let with_driver = nodes.iter().filter(|node| node.registered).count();
    let models: BTreeSet<&str> =
        nodes.iter().flat_map(|node| &node.models).map(|model| model.name.as_str()).collect();
    let (count, models) = (counted(nodes.len(), "node"), counted(models.len(), "model"));
    let _ = writeln!(text, "{count}, {with_driver} with the driver; {models}");
    if nodes.iter().all(|node| node.models.is_empty() && node.cache.is_none()) {
        text.push_str(
            "no node names its models: set node.modelLabels of the chart (--model-labels)\n",
        );
    }
    text
}

fn all(nodes: &[(&FleetNode, Vec<&LabelledModel>)]) -> String {
    let mut rows = vec![["NODE", "DRIVER", "CACHE", "AVAILABLE", "MODELS"].map(str::to_owned)];
    rows.extend(nodes.iter().map(|(node, models)| {
        let mut names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
        let unnamed = node.cache.as_ref().map_or(0, |cache| cache.models);
        if let Some(more @ 1..) = unnamed.checked_sub(names.len()) {
            names.push(format!("{more} more"));
        }
        [
            shown(&node.node, 100),
            driver(node),
            size(node, |cache| cache.bytes),
            size(node, |cache| cache.available_bytes),
            if names.is_empty() { "-".to_owned() } else { shown(&names.join(", "), MODELS) },
        ]
    }));
    table(&rows)
}

fn with_model(nodes: &[(&FleetNode, Vec<&LabelledModel>)]) -> String {
    let mut rows = vec![["NODE", "DRIVER", "AVAILABLE", "MODEL", "REVISION"].map(str::to_owned)];
    for (node, models) in nodes {
        rows.extend(models.iter().map(|model| {
            [
                shown(&node.node, 100),
                driver(node),
                size(node, |cache| cache.available_bytes),
                shown(&model.name, 100),
                shown(&model.revision, 100),
            ]
        }));
    }
    table(&rows)
}

/// The driver of a node: its version, and whether kubelet knows it.
fn driver(node: &FleetNode) -> String {
    match (&node.cache, node.registered) {
        (Some(cache), true) => shown(&cache.version, 30),
        (Some(cache), false) => format!("{}, not registered", shown(&cache.version, 30)),
        (None, true) => "registered".to_owned(),
        (None, false) => "-".to_owned(),
    }
}

fn size(node: &FleetNode, of: fn(&crate::node::CacheSummary) -> u64) -> String {
    node.cache.as_ref().map_or("-".to_owned(), |cache| size_text(of(cache)))
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::node::CacheSummary;

    fn node(name: &str, registered: bool, models: &[(&str, &str)]) -> FleetNode {
        let model = |(name, revision): &(&str, &str)| LabelledModel {
            name: (*name).to_owned(),
            label: format!("oci-model-csi.dev/model.{name}"),
            revision: (*revision).to_owned(),
        };
        let models = models.iter().map(model).collect();
        FleetNode { node: name.to_owned(), registered, cache: None, models }
    }

    fn fleet() -> Vec<FleetNode> {
        let summary = |models, bytes| {
            let version = "0.1.0".to_owned();
            Some(CacheSummary { version, models, bytes, available_bytes: 300 << 30 })
        };
        let phi3 = ("phi3-mini.417203bd", "3f1c0a9be2d4");
        let llama = ("llama3-8b.0a1b2c3d", "aaaaaaaaaaaa");
        vec![
            FleetNode { cache: summary(4, 1 << 40), ..node("gpu-1", true, &[llama, phi3]) },
            FleetNode { cache: summary(1, 7 << 30), ..node("gpu-2", false, &[phi3]) },
            FleetNode { cache: summary(0, 0), ..node("gpu-3", true, &[]) },
            node("old-1", true, &[("phi3-mini.99999999", "bbbbbbbbbbbb")]),
            node("virtual-1", false, &[]),
        ]
    }

    #[test]
    fn all_nodes_are_a_table_with_one_line_each() {
        assert_snapshot!(text(&fleet(), None));
    }

    #[test]
    fn the_nodes_with_a_model_are_a_table_with_its_revisions() {
        let by_name = text(&fleet(), Some(&ModelFilter::parse("phi3-mini").unwrap()));
        let exact = text(&fleet(), Some(&ModelFilter::parse("phi3-mini.417203bd").unwrap()));
        let none = text(&fleet(), Some(&ModelFilter::parse("gemma").unwrap()));
        assert_snapshot!([by_name, exact, none].join("\n"));
    }

    #[test]
    fn json_has_the_same_nodes_and_models() {
        let filter = ModelFilter::parse("phi3-mini.417203bd").unwrap();
        let found: serde_json::Value =
            serde_json::from_str(&json(&fleet(), Some(&filter))).unwrap();
        let found = found.as_array().unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0]["models"].as_array().unwrap().len(), 1);
        assert_eq!(found[0]["models"][0]["revision"], "3f1c0a9be2d4");
        assert_eq!(found[0]["cache"]["availableBytes"], 300_u64 << 30);
        let all: serde_json::Value = serde_json::from_str(&json(&fleet(), None)).unwrap();
        assert_eq!(all.as_array().unwrap().len(), 5);
        assert_eq!(all[4]["cache"], serde_json::Value::Null);
    }

    #[test]
    fn a_cluster_without_labels_says_how_to_get_them() {
        let text = text(&[node("a", true, &[]), node("b", false, &[])], None);
        assert!(text.ends_with("set node.modelLabels of the chart (--model-labels)\n"), "{text}");
    }
}
