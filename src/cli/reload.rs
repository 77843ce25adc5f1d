//! Following the configuration file while the driver runs: the policy, and the
//! list of models to be fetched ahead. The rest is read at the start.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::options;
use crate::blocking::blocking;
use crate::config::Config;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::model::ModelUri;
use crate::policy::Policy;

/// Between two looks at the file. A ConfigMap's file changes by a link that is
/// exchanged, which watching the file would not notice.
const LOOK: Duration = Duration::from_secs(2);

/// What is followed: each is replaced as a whole, or not at all.
pub(super) struct Followed {
    policy: watch::Sender<Policy>,
    prefetch: watch::Sender<Vec<ModelUri>>,
    metrics: Arc<Metrics>,
}

/// What changes under those who use it.
pub(super) struct Changing {
    pub(super) policy: watch::Receiver<Policy>,
    pub(super) prefetch: watch::Receiver<Vec<ModelUri>>,
}

impl Followed {
    /// As the start has read it.
    pub(super) fn new(config: &Config, metrics: &Arc<Metrics>) -> (Self, Changing) {
        let (policy, policy_now) = watch::channel(options::policy(&config.policy));
        let (prefetch, prefetch_now) = watch::channel(config.prefetch.clone());
        let metrics = Arc::clone(metrics);
        let followed = Self { policy, prefetch, metrics };
        followed.in_use();
        (followed, Changing { policy: policy_now, prefetch: prefetch_now })
    }

    fn in_use(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.metrics.config_valid.set(1);
        self.metrics.config_read.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }

    /// Takes over what is followed; the rest waits for the next start.
    fn take(&self, mut config: Config, started: &Config) {
        let policy = options::policy(&config.policy);
        if replace(&self.policy, policy) {
            tracing::info!(rules = self.policy.borrow().rules(), "the policy changed");
        }
        if replace(&self.prefetch, std::mem::take(&mut config.prefetch)) {
            tracing::info!(models = self.prefetch.borrow().len(), "the prefetch list changed");
        }
        config.policy.clone_from(&started.policy);
        config.prefetch.clone_from(&started.prefetch);
        if config != *started {
            tracing::warn!(
                "the configuration changed; all but the policy and the prefetch list is used from \
                 the next start on"
            );
        }
        self.in_use();
    }
}

fn replace<T: PartialEq>(place: &watch::Sender<T>, value: T) -> bool {
    place.send_if_modified(|now| {
        let changed = *now != value;
        *now = value;
        changed
    })
}

/// Takes over what the file has whenever it changes, until `shutdown`. A file
/// that is not usable or not there is told once, and the last good one stays.
pub(super) async fn follow(
    file: PathBuf,
    started: Config,
    followed: Followed,
    shutdown: CancellationToken,
) {
    // The first look compares with what the start has read.
    let mut seen = None;
    let mut turns = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = turns.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let now = read(&file).await;
        if seen.as_ref() == Some(&now) {
            continue;
        }
        let parsed = match &now {
            Ok(text) => Config::parse(text, &file.display().to_string()),
            Err(said) => Err(Error::invalid(format!("reading {}: {said}", file.display()))),
        };
        seen = Some(now);
        match parsed {
            Ok(config) => followed.take(config, &started),
            Err(error) => {
                followed.metrics.config_valid.set(0);
                tracing::error!(%error, "the configuration changed and is not usable; the driver goes on as before");
            }
        }
    }
}

/// The text, or why it cannot be had.
async fn read(file: &Path) -> Result<String, String> {
    let file = file.to_owned();
    let read = blocking(move || Ok(std::fs::read_to_string(file).map_err(|e| e.to_string())));
    read.await.unwrap_or_else(|error| Err(error.to_string()))
}
