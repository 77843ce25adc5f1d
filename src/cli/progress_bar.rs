//! The progress bar of commands that transfer a model.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Draws a progress bar until the future is dropped. Draws nothing without a terminal. `now` is
/// the number of bytes that are done, and of all (0 while unknown).
pub(super) async fn draw(now: impl Fn() -> (u64, u64)) {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = "{bar:30} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  \
                 {binary_bytes_per_sec}  {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let _guard = clear_on_drop(&bar);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        let (done, total) = now();
        if total > 0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

/// Returns a guard that clears the bar, so that only the result remains.
fn clear_on_drop(bar: &ProgressBar) -> impl Drop + use<> {
    struct Clear(ProgressBar);
    impl Drop for Clear {
        fn drop(&mut self) {
            self.0.finish_and_clear();
        }
    }
    Clear(bar.clone())
}
