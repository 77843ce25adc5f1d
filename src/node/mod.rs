//! The driver's own node in the Kubernetes API: the driver removes the startup
//! taint once pods may come, labels the node with the models in its cache, and reads
//! the labels that others set.
//!
//! Tasks of their own do all of this, and no publish waits for them. An API server that
//! cannot be reached, or a role that lacks a right, costs a warning and no
//! publish.

mod labels;
mod own_labels;
mod summary;
mod taint;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use labels::PublicModels;
pub use own_labels::{NodeLabels, NodeSelection, OwnLabels};
pub use summary::CacheSummary;

use crate::cache::Cache;
use crate::kubernetes::{ApiFailure, ApiServer, path};
use crate::log_throttle::LogThrottle;
use crate::retry::Backoff;

/// Pause after a 403: an administrator may have to extend a role.
const FORBIDDEN: Duration = Duration::from_secs(10 * 60);

/// How long the same failure is not logged again.
const REPEAT_AFTER: Duration = Duration::from_secs(60 * 60);

/// Between other failed attempts.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(30));

/// What to write to which node.
#[derive(Debug, Clone)]
pub struct NodeState {
    /// The Node object.
    pub node: String,
    /// The CSI driver, as CSINode objects and labels name it.
    pub driver: String,
    /// Key of the taint to remove once kubelet knows the driver; `None` leaves taints alone.
    pub startup_taint: Option<String>,
    /// The most labels for cached models; 0 writes none.
    pub model_labels: usize,
}

impl NodeState {
    /// Starts the tasks that are configured. Call it once the driver is ready.
    /// `registered` is notified whenever kubelet has asked the driver for its node. Labels name
    /// only models for which `is_public` holds.
    pub fn follow(
        self,
        api: &ApiServer,
        cache: &Cache,
        is_public: PublicModels,
        registered: &Arc<Notify>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        let until = |work: futures_util::future::BoxFuture<'static, ()>| {
            let shutdown = shutdown.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = work => {}
                    () = shutdown.cancelled() => {}
                }
            });
        };
        if let Some(taint) = self.startup_taint.clone() {
            let api = api.clone();
            let registered = Arc::clone(registered);
            let node = self.node.clone();
            let driver = self.driver.clone();
            until(Box::pin(async move {
                taint::remove_taint(&api, &node, &driver, &taint, &registered).await;
            }));
        }
        if self.model_labels > 0 {
            let api = api.clone();
            let cache = cache.clone();
            until(Box::pin(async move {
                let (node, driver, most) = (&self.node, &self.driver, self.model_labels);
                labels::sync_labels(&api, node, driver, most, &cache, &is_public).await;
            }));
        }
    }
}

fn node_path(node: &str) -> String {
    path(["api", "v1", "nodes", node])
}

/// The state of failed attempts: when to try again, and whether to log it.
#[derive(Debug, Default)]
struct RetryState {
    failed: u32,
    /// Statements about each task: whether it is forbidden.
    log: LogThrottle<&'static str, bool>,
}

impl RetryState {
    /// Records that an attempt succeeded.
    fn reset(&mut self) {
        *self = Self::default();
    }

    /// Logs a failure, once an hour for each kind of it, and returns how long to wait.
    fn failed(&mut self, failure: &ApiFailure, what: &'static str, needs: &str) -> Duration {
        let forbidden = failure.is_forbidden();
        if !self.log.admits(what, forbidden, REPEAT_AFTER) {
            tracing::debug!(%failure, "{what} failed again");
        } else if forbidden {
            tracing::warn!(%failure, "{what} is not allowed: the role needs {needs}");
        } else {
            tracing::warn!(%failure, "{what} failed; it will be tried again");
        }
        if forbidden {
            return FORBIDDEN;
        }
        self.failed = self.failed.saturating_add(1);
        BACKOFF.pause(self.failed, None)
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn failed_attempts_are_repeated_less_and_less_often() {
        let mut retry = RetryState::default();
        let gone = ApiFailure::Unanswered("no connection".to_owned());
        let longest = |retry: &mut RetryState, most| {
            let pause = retry.failed(&gone, "looking", "get");
            assert!(pause <= Duration::from_secs(most), "{pause:?}");
        };
        for most in [2, 4, 8, 16, 30, 30, 30] {
            longest(&mut retry, most);
        }
        retry.reset();
        longest(&mut retry, 2);
        let no = ApiFailure::Answered {
            status: StatusCode::FORBIDDEN,
            message: String::new(),
            ending: false,
        };
        assert_eq!(retry.failed(&no, "looking", "get"), FORBIDDEN);
    }
}
