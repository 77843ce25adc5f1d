//! Reads the labels of the driver's own Node object, for settings that hold on some nodes.
//!
//! They are read only while they are wanted, and again about every minute and a half, or
//! at once when what needs them changes: a change of labels needs no restart. The pauses differ, so that a thousand nodes do
//! not ask at the same time, and the API server answers from its memory
//! (`resourceVersion=0`). Labels that were read once count until newer ones are read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{RetryState, node_path};
use crate::kubernetes::{ApiFailure, ApiServer};
use crate::random;

/// The shortest pause between two reads.
const PERIOD: Duration = Duration::from_secs(60);

/// By how much a pause may be longer.
const SPREAD: Duration = Duration::from_secs(60);

/// What is known of the labels of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeLabels {
    /// They are about to be read.
    Unread,
    /// They could not be read: why.
    Unknown(String),
    /// The labels.
    Known(BTreeMap<String, String>),
}

/// Whether a selector selects this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeSelection {
    /// The node has all labels of the selector.
    Selected,
    /// It lacks one, or has it with another value.
    NotSelected,
    /// That will be known soon.
    Pending,
    /// The labels of the node are unknown: why.
    Unknown(String),
}

impl NodeLabels {
    /// Compares a selector with these labels. An empty one selects every node, even one
    /// whose labels are unknown.
    pub fn selection(&self, selector: &BTreeMap<String, String>) -> NodeSelection {
        if selector.is_empty() {
            return NodeSelection::Selected;
        }
        match self {
            Self::Unread => NodeSelection::Pending,
            Self::Unknown(why) => NodeSelection::Unknown(why.clone()),
            Self::Known(labels) => {
                match selector.iter().all(|(key, value)| labels.get(key) == Some(value)) {
                    true => NodeSelection::Selected,
                    false => NodeSelection::NotSelected,
                }
            }
        }
    }
}

/// The labels of this node, as they change.
#[derive(Debug, Clone)]
pub struct OwnLabels {
    wanted: Arc<watch::Sender<bool>>,
    /// Ends the pause between two reads.
    again: Arc<Notify>,
    labels: watch::Receiver<NodeLabels>,
}

impl OwnLabels {
    /// Labels that never change.
    pub fn fixed(labels: NodeLabels) -> Self {
        let wanted = Arc::new(watch::Sender::new(false));
        Self { wanted, again: Arc::default(), labels: watch::channel(labels).1 }
    }

    /// Follows the labels of a node until `shutdown`.
    pub fn follow(
        api: &ApiServer,
        node: String,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let (sender, labels) = watch::channel(NodeLabels::Unread);
        let wanted = Arc::new(watch::Sender::new(false));
        let again = Arc::<Notify>::default();
        let (wants, asked) = (wanted.subscribe(), Arc::clone(&again));
        let (api, shutdown) = (api.clone(), shutdown.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = follow(&api, &node, wants, &asked, &sender) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Self { wanted, again, labels }
    }

    /// Says whether the labels are needed; they are not read otherwise.
    pub fn want(&self, wanted: bool) {
        self.wanted.send_if_modified(|now| std::mem::replace(now, wanted) != wanted);
    }

    /// Reads them again soon, if they are wanted.
    pub fn read_again(&self) {
        self.again.notify_one();
    }

    /// What is known now.
    pub fn now(&mut self) -> NodeLabels {
        self.labels.borrow_and_update().clone()
    }

    /// Waits until [`OwnLabels::now`] would return something else. Cancellation safe.
    pub async fn changed(&mut self) {
        if self.labels.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Reads the labels while they are wanted. Returns only when nothing can want them.
async fn follow(
    api: &ApiServer,
    node: &str,
    mut wanted: watch::Receiver<bool>,
    again: &Notify,
    labels: &watch::Sender<NodeLabels>,
) {
    let mut retry = RetryState::default();
    while wanted.wait_for(|wanted| *wanted).await.is_ok() {
        let pause = match read(api, node).await {
            Ok(found) => {
                retry.reset();
                update(labels, NodeLabels::Known(found));
                PERIOD + random::up_to(SPREAD)
            }
            Err(failure) => {
                if !matches!(*labels.borrow(), NodeLabels::Known(_)) {
                    let why = format!("reading node {node}: {failure}");
                    update(labels, NodeLabels::Unknown(why));
                }
                retry.failed(&failure, "reading the node's labels", "get of nodes")
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = again.notified() => {}
        }
    }
}

fn update(labels: &watch::Sender<NodeLabels>, found: NodeLabels) {
    labels.send_if_modified(|now| {
        let changed = *now != found;
        *now = found;
        changed
    });
}

async fn read(api: &ApiServer, node: &str) -> Result<BTreeMap<String, String>, ApiFailure> {
    let found = api.get(&format!("{}?resourceVersion=0", node_path(node))).await?;
    let labels = found["metadata"]["labels"].as_object();
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    Ok(labels.into_iter().flatten().filter_map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_node_is_selected_by_all_labels_of_the_selector_and_by_none() {
        let node = NodeLabels::Known(labels(&[("pool", "gpu"), ("zone", "a")]));
        for (selector, expected) in [
            (labels(&[]), NodeSelection::Selected),
            (labels(&[("pool", "gpu")]), NodeSelection::Selected),
            (labels(&[("pool", "gpu"), ("zone", "a")]), NodeSelection::Selected),
            (labels(&[("pool", "cpu")]), NodeSelection::NotSelected),
            (labels(&[("pool", "gpu"), ("rack", "7")]), NodeSelection::NotSelected),
            (labels(&[("pool", "")]), NodeSelection::NotSelected),
        ] {
            assert_eq!(node.selection(&selector), expected, "{selector:?}");
        }
    }

    #[test]
    fn unknown_labels_select_only_what_needs_none() {
        let unknown = NodeLabels::Unknown("why".to_owned());
        assert_eq!(unknown.selection(&labels(&[])), NodeSelection::Selected);
        let selector = labels(&[("pool", "gpu")]);
        assert_eq!(unknown.selection(&selector), NodeSelection::Unknown("why".to_owned()));
        assert_eq!(NodeLabels::Unread.selection(&selector), NodeSelection::Pending);
    }
}
