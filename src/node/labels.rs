//! Labels of the node that name the models in its cache, for pods that prefer
//! a node that has theirs.
//!
//! `DRIVER/model.NAME.HASH: REVISION`, where the part behind the slash is
//! [`node_label`] and the value the first digits of the revision. All labels
//! that begin with `DRIVER/model.` belong to the driver; it touches no others. With the
//! labels comes the annotation `DRIVER/cache`, a [`CacheSummary`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{CacheSummary, RetryState, node_path};
use crate::blocking::blocking;
use crate::cache::{Cache, ModelState};
use crate::error::Result;
use crate::kubernetes::{ApiFailure, ApiServer, Patch};
use crate::model::{LABEL_START, ModelSource, node_label};

/// Between two patches: models that come or go together are one patch.
const PAUSE: Duration = Duration::from_secs(10);

/// The labels are compared again this often: an administrator may have edited them.
const COMPARE: Duration = Duration::from_secs(10 * 60);

/// Digits of the revision in a label's value.
const DIGITS: usize = 12;

type Labels = BTreeMap<String, String>;

/// Says whether every pod of the cluster may mount a model: any user who can read nodes, or write
/// an affinity, finds out about labels.
pub type PublicModels = Arc<dyn Fn(ModelSource) -> BoxFuture<'static, bool> + Send + Sync>;

/// Keeps at most `most` labels in sync with the cache. Never returns.
pub(super) async fn sync_labels(
    api: &ApiServer,
    node: &str,
    driver: &str,
    most: usize,
    cache: &Cache,
    is_public: &PublicModels,
) {
    let mut retry = RetryState::default();
    // Subscribed before the cache is read, so that no change is missed.
    let mut models = cache.model_changes();
    loop {
        models.mark_unchanged();
        let pause = match wanted_labels(cache, driver, most, is_public).await {
            Ok((wanted, summary)) => match patch_node(api, node, driver, &wanted, &summary).await {
                Ok(()) => {
                    retry.reset();
                    let _ = timeout(COMPARE, models.changed()).await;
                    PAUSE
                }
                Err(failure) => {
                    let needs = "get and patch of nodes; or switch it off with --model-labels=0";
                    retry.failed(&failure, "labelling the node", needs)
                }
            },
            Err(error) => {
                tracing::debug!(%error, "the cache could not be listed for labels");
                PAUSE
            }
        };
        tokio::time::sleep(pause.max(PAUSE)).await;
    }
}

async fn wanted_labels(
    cache: &Cache,
    driver: &str,
    most: usize,
    is_public: &PublicModels,
) -> Result<(Labels, CacheSummary)> {
    let cache = cache.clone();
    let report = blocking(move || cache.report()).await?;
    let mut labels = Labels::new();
    for model in &report.models {
        let Some(summary) = &model.summary else { continue };
        let complete = matches!(model.state, ModelState::Complete | ModelState::Unchecked);
        if !complete || !summary.scope.is_empty() {
            continue;
        }
        let key = format!("{driver}/{}", node_label(&summary.source));
        // Of several revisions the one that was used last, and of the models those.
        let is_new = labels.len() < most && !labels.contains_key(&key);
        if is_new && is_public(summary.source.clone()).await {
            let revision = summary.revision.as_str().trim_start_matches("sha256:");
            labels.insert(key, revision.get(..DIGITS).unwrap_or(revision).to_owned());
        }
    }
    Ok((labels, CacheSummary::of(&report)))
}

async fn patch_node(
    api: &ApiServer,
    node: &str,
    driver: &str,
    wanted: &Labels,
    summary: &CacheSummary,
) -> Result<(), ApiFailure> {
    let found = api.get(&node_path(node)).await?;
    let labels = changes(&found, driver, wanted);
    let annotations = annotation(&found, driver, summary);
    if labels.is_none() && annotations.is_none() {
        return Ok(());
    }
    let is_new = labels.is_some();
    let mut metadata = serde_json::Map::new();
    metadata.extend(labels.map(|changes| ("labels".to_owned(), changes)));
    metadata.extend(annotations.map(|changes| ("annotations".to_owned(), changes)));
    api.patch(&node_path(node), &Patch::Merge(json!({"metadata": metadata}))).await?;
    if is_new {
        let labels: Vec<&str> = wanted.keys().map(String::as_str).collect();
        tracing::info!(node, labels = labels.join(" "), "the node's labels name its models");
    }
    Ok(())
}

/// The annotation to set, unless the node has it.
fn annotation(node: &Value, driver: &str, summary: &CacheSummary) -> Option<Value> {
    let key = CacheSummary::key(driver);
    let there = node["metadata"]["annotations"][&key].as_str().and_then(CacheSummary::parse);
    let text = serde_json::to_string(summary).ok()?;
    (there.as_ref() != Some(summary)).then(|| json!({key: text}))
}

/// What a merge patch must set, and with `null` remove; `None` if nothing.
fn changes(node: &Value, driver: &str, wanted: &Labels) -> Option<Value> {
    let start = format!("{driver}/{LABEL_START}");
    let mut changes = serde_json::Map::new();
    let empty = serde_json::Map::new();
    let there = node["metadata"]["labels"].as_object().unwrap_or(&empty);
    for (key, value) in wanted {
        if there.get(key).and_then(Value::as_str) != Some(value) {
            changes.insert(key.clone(), value.clone().into());
        }
    }
    for key in there.keys().filter(|key| key.starts_with(&start)) {
        if !wanted.contains_key(key) {
            changes.insert(key.clone(), Value::Null);
        }
    }
    (!changes.is_empty()).then_some(Value::Object(changes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_labels_that_changed_are_patched() {
        let wanted: Labels = [("d/model.a.1", "r1"), ("d/model.b.2", "r2"), ("d/model.c.3", "r3")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let node = json!({"metadata": {"labels": {
            "kubernetes.io/hostname": "n", "d/zone": "x", "e/model.a.1": "y",
            "d/model.a.1": "r1", "d/model.b.2": "old", "d/model.gone.4": "r4",
        }}});
        let expected = json!({"d/model.b.2": "r2", "d/model.c.3": "r3", "d/model.gone.4": null});
        assert_eq!(changes(&node, "d", &wanted), Some(expected));
        let node = json!({"metadata": {"labels": wanted}});
        assert_eq!(changes(&node, "d", &wanted), None);
        assert_eq!(changes(&json!({"metadata": {}}), "d", &Labels::new()), None);
    }

    #[test]
    fn the_annotation_is_written_only_when_it_changes() {
        let summary =
            CacheSummary { version: "1.2.3".to_owned(), models: 2, bytes: 3, available_bytes: 4 };
        let text = r#"{"version":"1.2.3","models":2,"bytes":3,"availableBytes":4}"#;
        assert_eq!(annotation(&json!({}), "d", &summary), Some(json!({"d/cache": text})));
        let node = |value: &str| json!({"metadata": {"annotations": {"d/cache": value}}});
        assert_eq!(annotation(&node(text), "d", &summary), None);
        for other in ["", "{", &text.replace('3', "5"), &"x".repeat(5000)] {
            assert!(annotation(&node(other), "d", &summary).is_some(), "{other}");
        }
    }
}
