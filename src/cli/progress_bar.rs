//! The progress bar of commands that transfer a model: one line, as wide as the terminal at most.

use std::io::IsTerminal;
use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::model::{duration_text, size_text};

/// The widest bar, in columns; more would not show more.
const WIDEST: usize = 30;

/// A narrower bar shows too little to be worth its columns.
const NARROWEST: usize = 6;

/// Whether progress is drawn: stderr is a terminal that can overwrite a line.
pub(super) fn is_wanted() -> bool {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !dumb
}

/// Columns of the terminal at stderr.
pub(super) fn columns() -> usize {
    usize::from(Term::stderr().size().1)
}

/// Draws a progress bar until the future is dropped. Draws nothing without a terminal. `now` is
/// the number of bytes that are done, and of all (0 while unknown).
pub(super) async fn draw(now: impl Fn() -> (u64, u64)) {
    if !is_wanted() {
        return std::future::pending().await;
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg}") {
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
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
            let rate = bar.per_sec() as u64;
            bar.set_message(line(columns(), (done, total), rate, bar.eta()));
        }
    }
}

/// The line of a transfer: a bar, the percentage, the bytes that are done, the rate in bytes per
/// second and the time left. What does not fit is left out, beginning with the bar; what remains
/// when little fits is the percentage.
fn line(columns: usize, (done, total): (u64, u64), rate: u64, left: Duration) -> String {
    let done = done.min(total);
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let percent = format!("{percent:>3} %");
    let amounts = format!("{} of {}", size_text(done), size_text(total));
    // Nothing was received for a while: the time left is unknown.
    let (rate, left) = match rate {
        0 => (String::new(), String::new()),
        rate => (format!("{}/s", size_text(rate)), format!("{} left", duration_text(left))),
    };
    let mut shown = [Some(&percent), None, None, None];
    let mut free = columns.saturating_sub(percent.len());
    for (place, text) in [(3, &left), (2, &rate), (1, &amounts)] {
        let needed = text.len() + 2;
        if text.is_empty() {
            continue;
        }
        if needed > free {
            break;
        }
        shown[place] = Some(text);
        free -= needed;
    }
    let facts: Vec<&str> = shown.into_iter().flatten().map(String::as_str).collect();
    let facts = facts.join("  ");
    match free.saturating_sub(1).min(WIDEST) {
        0..NARROWEST => facts,
        width => {
            let width_done = u128::from(done) * width as u128 / u128::from(total.max(1));
            let full = usize::try_from(width_done).unwrap_or(width);
            format!("{}{} {facts}", "█".repeat(full), "░".repeat(width - full))
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(columns: usize) -> String {
        line(columns, (41 * MIB, 140 * MIB), 3 * MIB / 2, Duration::from_secs(90))
    }

    #[test]
    fn a_narrow_terminal_gets_what_matters_most() {
        let facts = " 29 %  41 MiB of 140 MiB  1.5 MiB/s  1m30s left";
        assert_eq!(at(100), format!("████████░░░░░░░░░░░░░░░░░░░░░░ {facts}"));
        assert_eq!(at(60), format!("███░░░░░░░░░ {facts}"));
        assert_eq!(at(50), facts);
        assert_eq!(at(40), "███░░░░░░░░  29 %  1.5 MiB/s  1m30s left");
        assert_eq!(at(20), " 29 %  1m30s left");
        assert_eq!(at(10), " 29 %");
        assert_eq!(at(0), " 29 %", "an unknown width");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let sizes = [0, 1, 999, MIB, 1023 * MIB, 140 << 30, u64::MAX];
        let times = [0, 59, 3599, 86_400 * 400].map(Duration::from_secs);
        for columns in 5..200 {
            for (done, total) in sizes.iter().flat_map(|done| sizes.map(|total| (*done, total))) {
                for left in times {
                    let line = line(columns, (done, total), total / 3, left);
                    assert!(line.chars().count() <= columns, "{columns}: {line}");
                }
            }
        }
    }

    #[test]
    fn a_transfer_that_stalls_has_no_time_left() {
        assert_eq!(line(20, (1, 3), 0, Duration::ZERO), " 33 %  1 B of 3 B");
    }
}
