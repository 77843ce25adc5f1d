//! Labels of the node that name the models in its cache, for pods that prefer
//! a node that has theirs.
//!
//! `DRIVER/model.NAME.HASH: REVISION`, where the part behind the slash is
//! [`node_label`] and the value the first digits of the revision. All labels
//! that begin with `DRIVER/model.` belong to the driver; it touches no others.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{RetryState, node_path};
use crate::blocking::blocking;
use crate::cache::{Cache, ModelReport, ModelState};
use crate::error::Result;
use crate::kubernetes::{ApiFailure, ApiServer, Patch};
use crate::model::{LABEL_START, node_label};

/// Between two patches: models that come or go together are one patch.
const PAUSE: Duration = Duration::from_secs(10);

/// The labels are compared again this often: an administrator may have edited them.
const COMPARE: Duration = Duration::from_secs(10 * 60);

/// Digits of the revision in a label's value.
const DIGITS: usize = 12;

type Labels = BTreeMap<String, String>;

/// Keeps at most `most` labels in sync with the cache. Never returns.
pub(super) async fn sync_labels(
    api: &ApiServer,
    node: &str,
    driver: &str,
    most: usize,
    cache: &Cache,
) {
    let mut retry = RetryState::default();
    // Subscribed before the cache is read, so that no change is missed.
    let mut models = cache.model_changes();
    loop {
        models.mark_unchanged();
        let pause = match wanted_labels(cache, driver, most).await {
            Ok(wanted) => match patch_labels(api, node, driver, &wanted).await {
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

async fn wanted_labels(cache: &Cache, driver: &str, most: usize) -> Result<Labels> {
    let cache = cache.clone();
    let models = blocking(move || cache.report()).await?.models;
    Ok(labels(&models, driver, most))
}

/// The labels for the models that were used last. Only complete models that
/// every pod may mount count.
fn labels(models: &[ModelReport], driver: &str, most: usize) -> Labels {
    let mut labels = Labels::new();
    for model in models {
        let Some(summary) = &model.summary else { continue };
        let complete = matches!(model.state, ModelState::Complete | ModelState::Unchecked);
        if !complete || !summary.scope.is_empty() {
            continue;
        }
        let key = format!("{driver}/{}", node_label(&summary.source));
        if labels.len() == most && !labels.contains_key(&key) {
            continue;
        }
        let revision = summary.revision.as_str().trim_start_matches("sha256:");
        let digits = revision.get(..DIGITS).unwrap_or(revision);
        // Of several revisions the one that was used last.
        labels.entry(key).or_insert_with(|| digits.to_owned());
    }
    labels
}

async fn patch_labels(
    api: &ApiServer,
    node: &str,
    driver: &str,
    wanted: &Labels,
) -> Result<(), ApiFailure> {
    let found = api.get(&node_path(node)).await?;
    let Some(changes) = changes(&found, driver, wanted) else { return Ok(()) };
    let patch = json!({"metadata": {"labels": changes}});
    api.patch(&node_path(node), &Patch::Merge(patch)).await?;
    let labels: Vec<&str> = wanted.keys().map(String::as_str).collect();
    tracing::info!(node, labels = labels.join(" "), "the node's labels name its models");
    Ok(())
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
}
