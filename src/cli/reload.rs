//! Following the configuration file while the driver runs: the policy, and the
//! list of models to be fetched ahead. The rest is read at the start.
//!
//! What restricts pods is not lost by accident, neither while the driver runs
//! nor over a restart: see [`RecordedConfig`]. A ConfigMap changes by a link that is
//! exchanged; the file is opened once for each look, so a look sees one version
//! of it. Nothing but a file that is written in place can be seen half written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::options;
use crate::blocking::blocking;
use crate::cache::Cache;
use crate::config::{Config, RecordedConfig};
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::model::ModelUri;
use crate::policy::Policy;

/// Between two looks at the file. A ConfigMap's file changes by a link that is
/// exchanged, which watching the file would not notice.
const LOOK: Duration = Duration::from_secs(2);

/// What is followed: each is replaced as a whole, or not at all.
pub(super) struct ConfigWatcher {
    policy: watch::Sender<Policy>,
    prefetch: watch::Sender<Vec<ModelUri>>,
    metrics: Arc<Metrics>,
    in_force: RecordedConfig,
    /// Where that is remembered; the Controller has no disk.
    cache: Option<Cache>,
}

/// What changes under those who use it.
pub(super) struct ConfigUpdates {
    pub(super) policy: watch::Receiver<Policy>,
    pub(super) prefetch: watch::Receiver<Vec<ModelUri>>,
}

impl ConfigWatcher {
    /// As the start has read it, from this text.
    pub(super) fn new(
        config: &Config,
        text: &str,
        metrics: &Arc<Metrics>,
    ) -> (Self, ConfigUpdates) {
        let (policy, policy_now) = watch::channel(options::policy(&config.policy));
        let (prefetch, prefetch_now) = watch::channel(config.prefetch.clone());
        let metrics = Arc::clone(metrics);
        let in_force = RecordedConfig::new(config, text);
        let followed = Self { policy, prefetch, metrics, in_force, cache: None };
        followed.in_use();
        (followed, ConfigUpdates { policy: policy_now, prefetch: prefetch_now })
    }

    /// Compares what the start has read with what was in force before it, and
    /// remembers it in the cache. Before anything is served.
    ///
    /// # Errors
    /// Those of [`RecordedConfig::check`], so that the driver does not start.
    pub(super) async fn compare(
        &mut self,
        cache: Option<Cache>,
        config: &Config,
        file: Option<&Path>,
    ) -> Result<()> {
        let Some(cache) = cache else { return Ok(()) };
        let name = match file {
            Some(file) => file.display().to_string(),
            None => "the start without --config".to_owned(),
        };
        let (reading, now, config) = (cache.clone(), self.in_force.clone(), config.clone());
        blocking(move || match recall(&reading)? {
            Some(before) => before.check(&config, now.text(), &name),
            None => Ok(()),
        })
        .await?;
        self.cache = Some(cache);
        self.remember(None).await;
        Ok(())
    }

    fn in_use(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.metrics.config_valid.set(1);
        self.metrics.config_read.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let rules = i64::try_from(self.policy.borrow().rules()).unwrap_or(i64::MAX);
        self.metrics.policy_rules.set(rules);
    }

    /// Remembers what is in force now, where that or what was `before` restricts
    /// anything. A disk that does not take it changes nothing in what is in force.
    async fn remember(&self, before: Option<&RecordedConfig>) {
        let (cache, now) = (self.cache.clone(), self.in_force.clone());
        let Some(cache) = cache else { return };
        let needed = now.restricts() || before.is_some_and(RecordedConfig::restricts);
        let written = blocking(move || {
            let json = serde_json::to_vec(&now)
                .map_err(|e| Error::internal(format!("writing the configuration in force: {e}")))?;
            match cache.config_in_force()? {
                Some(there) if there == json => Ok(()),
                None if !needed => Ok(()),
                _ => cache.set_config_in_force(&json),
            }
        });
        if let Err(error) = written.await {
            tracing::error!(
                %error,
                "that policy.rules are in force could not be remembered; until it is, a restart \
                 with a configuration that was cut off may lose them"
            );
        }
    }

    /// Takes over what is followed; the rest waits for the next start.
    ///
    /// # Errors
    /// Those of [`RecordedConfig::check`]; then nothing is taken over.
    async fn take(
        &mut self,
        mut config: Config,
        text: &str,
        file: &str,
        started: &Config,
    ) -> Result<()> {
        self.in_force.check(&config, text, file)?;
        let before = std::mem::replace(&mut self.in_force, RecordedConfig::new(&config, text));
        // Rules are remembered before they hold.
        self.remember(Some(&before)).await;
        let policy = options::policy(&config.policy);
        if replace(&self.policy, policy) {
            match self.policy.borrow().rules() {
                0 => tracing::warn!(
                    rules = 0,
                    "the policy changed: policy.rules is empty, so every pod may mount what the \
                     driver can read"
                ),
                rules => tracing::info!(rules, "the policy changed"),
            }
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
        Ok(())
    }
}

/// What was in force before this start. Blocks.
fn recall(cache: &Cache) -> Result<Option<RecordedConfig>> {
    let Some(bytes) = cache.config_in_force()? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|error| {
        Error::invalid(format!(
            "config-in-force.json of the cache cannot be read ({error}), so it is not known \
             whether this configuration loses rules; compare it with what was meant, then remove \
             that file"
        ))
    })
}

fn replace<T: PartialEq>(place: &watch::Sender<T>, value: T) -> bool {
    place.send_if_modified(|now| {
        let changed = *now != value;
        *now = value;
        changed
    })
}

/// Takes over what the file has whenever it changes, until `shutdown`. A file
/// that is not usable or not there is logged once, and the last good one stays.
pub(super) async fn follow(
    file: PathBuf,
    started: Config,
    mut followed: ConfigWatcher,
    shutdown: CancellationToken,
) {
    let name = file.display().to_string();
    // The first look compares with what the start has read.
    let mut seen = None;
    let mut turns = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = turns.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let reading = file.clone();
        let now = blocking(move || Config::read(&reading)).await;
        if seen.as_ref() == Some(&now) {
            continue;
        }
        let taken = match &now {
            Ok(text) => match Config::parse(text, &name) {
                Ok(config) => followed.take(config, text, &name, &started).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error.clone()),
        };
        seen = Some(now);
        if let Err(error) = taken {
            followed.metrics.config_valid.set(0);
            tracing::error!(%error, "the configuration changed and is not usable; the driver goes on as before");
        }
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
