//! How an end-to-end test runs, waits, and reports measurements.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;

use super::namespace::{forward, name_of_caller, run_with_mounts, run_with_network};

/// The time limit of a test, unless it sets its own.
const LIMIT: Duration = Duration::from_secs(150);

/// The pause between two checks of a state that is waited for.
const LOOK: Duration = Duration::from_millis(20);

/// Runs `body` with real mounts, in a namespace and an empty directory of its
/// own. To be called by the test function itself, as
/// `end_to_end(async |scratch| { … })`: the closure's type has its name.
pub(crate) fn end_to_end(body: impl AsyncFnOnce(&Path)) {
    end_to_end_within(LIMIT, body);
}

/// As [`end_to_end`], for a test that takes long on purpose.
pub(crate) fn end_to_end_within<F: AsyncFnOnce(&Path)>(limit: Duration, body: F) {
    let test = name_of_caller::<F>();
    run_with_mounts(&test, |scratch| block_on(limit, body(scratch)));
}

/// As [`end_to_end`], in a network of its own: only the loopback interface, with all ports free.
pub(crate) fn end_to_end_in_a_network<F: AsyncFnOnce(&Path)>(body: F) {
    let test = name_of_caller::<F>();
    run_with_network(&test, |scratch| block_on(LIMIT, body(scratch)));
}

fn block_on(limit: Duration, body: impl Future<Output = ()>) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let outcome = tokio::time::timeout(limit, body).await;
        assert!(outcome.is_ok(), "the test was not through after {limit:?}");
    });
}

/// Waits until `look` finds something.
///
/// # Panics
/// After `bound`, with `what` in the message.
pub(crate) async fn eventually<T>(
    what: &str,
    bound: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < bound, "{what}: not within {bound:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Reports a measurement as `figure: …`, also in a test that passes.
pub(crate) fn figure(text: fmt::Arguments<'_>) {
    forward(format!("figure: {text}\n").as_bytes());
}

/// `part / whole` with three decimals, for figures and their comparison.
pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    let thousandths = u128::from(part) * 1000 / u128::from(whole.max(1));
    f64::from(u32::try_from(thousandths).expect("a ratio below four million")) / 1000.0
}
