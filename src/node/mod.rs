//! What the driver says of its node in the Kubernetes API: that pods may come,
//! by taking a startup taint away, and which models stand in its cache, by labels.
//!
//! Both are looked after by tasks of their own that nothing waits for. An API
//! server that cannot be reached, or a role that lacks a right, costs a warning
//! and no publish.

mod labels;
mod taint;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::Cache;
use crate::kubernetes::{ApiFailure, ApiServer, path};

/// After a 403, until it is tried again: a role may be mended.
const FORBIDDEN: Duration = Duration::from_secs(10 * 60);

/// The longest pause between tries that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is said of which node.
#[derive(Debug, Clone)]
pub struct NodeState {
    /// The Node object.
    pub node: String,
    /// The CSI driver, as CSINode objects and labels name it.
    pub driver: String,
    /// Key of the taint that goes once kubelet knows the driver; `None` leaves taints alone.
    pub startup_taint: Option<String>,
    /// Labels for cached models at most; 0 writes none.
    pub model_labels: usize,
}

impl NodeState {
    /// Starts what is wanted; to be called once the driver is ready.
    /// `registered` is told whenever kubelet has asked the driver for its node.
    pub fn follow(
        self,
        api: &ApiServer,
        cache: &Cache,
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
            let (api, registered) = (api.clone(), Arc::clone(registered));
            let (node, driver) = (self.node.clone(), self.driver.clone());
            until(Box::pin(async move {
                taint::keep_off(&api, &node, &driver, &taint, &registered).await;
            }));
        }
        if self.model_labels > 0 {
            let (api, cache) = (api.clone(), cache.clone());
            until(Box::pin(async move {
                labels::keep_in_step(&api, &self.node, &self.driver, self.model_labels, &cache)
                    .await;
            }));
        }
    }
}

fn node_path(node: &str) -> String {
    path(["api", "v1", "nodes", node])
}

/// Tries that fail: when the next one is, and what of it is worth a line.
#[derive(Debug, Default)]
struct RetryState {
    failed: u32,
    /// The last line was about this: forbidden or not.
    told: Option<bool>,
}

impl RetryState {
    /// Notes that a try did what it should.
    fn over(&mut self) {
        *self = Self::default();
    }

    /// Tells of a failure, once for each kind of it, and says how long to wait.
    fn met(&mut self, failure: &ApiFailure, what: &str, needs: &str) -> Duration {
        let forbidden = failure.is_forbidden();
        if self.told == Some(forbidden) {
            tracing::debug!(%failure, "{what} failed again");
        } else if forbidden {
            tracing::warn!(%failure, "{what} is not allowed: the role has to have {needs}");
        } else {
            tracing::warn!(%failure, "{what} failed; it is tried again");
        }
        self.told = Some(forbidden);
        if forbidden {
            return FORBIDDEN;
        }
        self.failed = self.failed.saturating_add(1);
        Duration::from_secs(1 << self.failed.min(6)).min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn tries_that_fail_come_less_and_less_often() {
        let mut trouble = RetryState::default();
        let gone = ApiFailure::Unanswered("no connection".to_owned());
        let pauses: Vec<_> =
            (0..7).map(|_| trouble.met(&gone, "looking", "get").as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 30, 30, 30]);
        trouble.over();
        assert_eq!(trouble.met(&gone, "looking", "get").as_secs(), 2);
        let no = ApiFailure::Answered {
            status: StatusCode::FORBIDDEN,
            message: String::new(),
            ending: false,
        };
        assert_eq!(trouble.met(&no, "looking", "get"), FORBIDDEN);
    }
}
