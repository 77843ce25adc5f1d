//! Following the configuration file while the driver runs. Only the list of
//! models to be fetched ahead is followed; the rest is read at the start.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::blocking::blocking;
use crate::config::Config;
use crate::error::Error;
use crate::model::ModelUri;

/// Between two looks at the file. A ConfigMap's file changes by a link that is
/// exchanged, which watching the file would not notice.
const LOOK: Duration = Duration::from_secs(2);

/// Sends the new list whenever the file has one, until `shutdown`. A file that
/// is not valid or not there is told once; the last good list stays.
pub(super) async fn follow(
    file: PathBuf,
    started: Config,
    list: watch::Sender<Vec<ModelUri>>,
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
            Err(error) => {
                tracing::error!(%error, "the configuration changed and is not usable; the driver goes on as before");
            }
            Ok(mut config) => {
                let prefetch = std::mem::replace(&mut config.prefetch, started.prefetch.clone());
                if config != started {
                    tracing::warn!(
                        "the configuration changed; all but the prefetch list is used from the \
                         next start on"
                    );
                }
                let changed = *list.borrow() != prefetch;
                if changed {
                    tracing::info!(models = prefetch.len(), "the prefetch list changed");
                    list.send_replace(prefetch);
                }
            }
        }
    }
}

/// The text, or why it cannot be had.
async fn read(file: &std::path::Path) -> Result<String, String> {
    let file = file.to_owned();
    let read = blocking(move || Ok(std::fs::read_to_string(file).map_err(|e| e.to_string())));
    read.await.unwrap_or_else(|error| Err(error.to_string()))
}
