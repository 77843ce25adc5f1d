//! Reloads the configuration file while the driver runs: the policy and the
//! prefetch list. All other settings are read at the start.
//!
//! Rules that restrict pods are never lost by accident, neither while the driver
//! runs nor across a restart: see [`RecordedConfig`]. A ConfigMap changes by
//! replacing a symbolic link. Each poll opens the file once, so it reads one
//! version of it. Only a file that is written in place can be read half written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::blocking::blocking;
use crate::cache::Cache;
use crate::config::{Config, RecordedConfig};
use crate::error::{Error, Result};
use crate::manage::PrefetchModel;
use crate::metrics::Metrics;
use crate::policy::Policy;

/// How often the file is read. Watching the file would miss a ConfigMap's change,
/// which replaces a symbolic link.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Publishes the settings that can change. Each is replaced as a whole, or not at all.
pub(super) struct ConfigWatcher {
    policy: watch::Sender<Policy>,
    prefetch: watch::Sender<Vec<PrefetchModel>>,
    metrics: Arc<Metrics>,
    in_force: RecordedConfig,
    /// Where the configuration is recorded; `None` in the Controller, which has no disk.
    cache: Option<Cache>,
}

/// The settings that can change, for the parts that use them.
pub(super) struct ConfigUpdates {
    pub(super) policy: watch::Receiver<Policy>,
    pub(super) prefetch: watch::Receiver<Vec<PrefetchModel>>,
}

impl ConfigWatcher {
    /// Creates a watcher of the configuration that the start read from `text`.
    pub(super) fn new(
        config: &Config,
        text: &str,
        metrics: &Arc<Metrics>,
    ) -> (Self, ConfigUpdates) {
        let (policy, policy_now) = watch::channel(Policy::new(config.policy.rules.clone()));
        let (prefetch, prefetch_now) = watch::channel(config.prefetch.clone());
        let metrics = Arc::clone(metrics);
        let in_force = RecordedConfig::new(config, text);
        let watcher = Self { policy, prefetch, metrics, in_force, cache: None };
        watcher.update_metrics();
        (watcher, ConfigUpdates { policy: policy_now, prefetch: prefetch_now })
    }

    /// Compares the configuration with the one that was in force before this start,
    /// and records it in the cache. Must run before anything is served.
    ///
    /// # Errors
    /// Those of [`RecordedConfig::check`]; the driver must not start then.
    pub(super) async fn check_against_recorded(
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
        let reading = cache.clone();
        let now = self.in_force.clone();
        let config = config.clone();
        blocking(move || match read_recorded(&reading)? {
            Some(before) => before.check(&config, now.text(), &name),
            None => Ok(()),
        })
        .await?;
        self.cache = Some(cache);
        self.record(None).await;
        Ok(())
    }

    fn update_metrics(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.metrics.config_valid.set(1);
        self.metrics.config_read.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let rules = i64::try_from(self.policy.borrow().rules()).unwrap_or(i64::MAX);
        self.metrics.policy_rules.set(rules);
    }

    /// Records the configuration in force if it, or the one `before`, restricts pods.
    /// A failed write is logged and changes nothing in force.
    async fn record(&self, before: Option<&RecordedConfig>) {
        let cache = self.cache.clone();
        let now = self.in_force.clone();
        let Some(cache) = cache else { return };
        let needed = now.restricts() || before.is_some_and(RecordedConfig::restricts);
        let written = blocking(move || {
            let json = serde_json::to_vec(&now).map_err(|e| {
                Error::internal(format!("writing the configuration in force: {e}")).caused_by(e)
            })?;
            match cache.config_in_force()? {
                Some(recorded) if recorded == json => Ok(()),
                None if !needed => Ok(()),
                _ => cache.set_config_in_force(&json),
            }
        });
        if let Err(error) = written.await {
            tracing::error!(
                %error,
                "the policy.rules in force could not be recorded; until they are, a restart with a \
                 truncated configuration may lose them"
            );
        }
    }

    /// Applies the policy and the prefetch list; the rest waits for the next start.
    ///
    /// # Errors
    /// Those of [`RecordedConfig::check`]; nothing is applied then.
    async fn apply(
        &mut self,
        mut config: Config,
        text: &str,
        file: &str,
        started: &Config,
    ) -> Result<()> {
        self.in_force.check(&config, text, file)?;
        let before = std::mem::replace(&mut self.in_force, RecordedConfig::new(&config, text));
        // Rules are recorded before they apply.
        self.record(Some(&before)).await;
        let policy = Policy::new(config.policy.rules.clone());
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
                "the configuration changed; all settings but the policy and the prefetch list \
                 apply at the next start"
            );
        }
        self.update_metrics();
        Ok(())
    }
}

/// Reads the configuration that was in force before this start. Blocks.
fn read_recorded(cache: &Cache) -> Result<Option<RecordedConfig>> {
    let Some(bytes) = cache.config_in_force()? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|error| {
        Error::invalid(format!(
            "config-in-force.json in the cache cannot be read ({error}), so the driver cannot know \
             whether this configuration loses rules; check that the configuration is as intended, \
             then remove that file"
        ))
    })
}

fn replace<T: PartialEq>(sender: &watch::Sender<T>, value: T) -> bool {
    sender.send_if_modified(|now| {
        let changed = *now != value;
        *now = value;
        changed
    })
}

/// Applies the file whenever it changes, until `shutdown`. A file that is invalid
/// or missing is logged once, and the last good configuration stays in force.
pub(super) async fn watch_file(
    file: PathBuf,
    started: Config,
    mut watcher: ConfigWatcher,
    shutdown: CancellationToken,
) {
    let name = file.display().to_string();
    // The first poll compares the file with the configuration of the start.
    let mut seen = None;
    let mut polls = tokio::time::interval(POLL_INTERVAL);
    loop {
        tokio::select! {
            _ = polls.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let reading = file.clone();
        let now = blocking(move || Config::read(&reading)).await;
        if seen.as_ref() == Some(&now) {
            continue;
        }
        let applied = match &now {
            Ok(text) => match Config::parse(text, &name) {
                Ok(config) => watcher.apply(config, text, &name, &started).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error.clone()),
        };
        seen = Some(now);
        if let Err(error) = applied {
            watcher.metrics.config_valid.set(0);
            tracing::error!(%error, "the changed configuration is invalid; keeping the previous one");
        }
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
