//! Progress bars on stderr, one line per task. None without a terminal.

use std::collections::HashMap;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::super::progress_bar;
use crate::manage::CommandProgress;
use crate::sync::lock;

/// In fewer columns, a bar leaves too little of the message.
const NARROW: usize = 60;

/// The progress bars of one command.
#[derive(Default)]
pub(super) struct Bars {
    screen: MultiProgress,
    lines: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    pub(super) fn update(&self, progress: &CommandProgress) {
        if !progress_bar::is_wanted() {
            return;
        }
        let mut lines = lock(&self.lines);
        let line = lines.entry(progress.subject.clone()).or_insert_with(|| {
            let line = self.screen.add(ProgressBar::no_length());
            // The message takes the columns that are left, and is cut there.
            let template = match progress_bar::columns() {
                0..NARROW => "{percent:>3} % {wide_msg}",
                _ => "{bar:20} {wide_msg}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                line.set_style(style);
            }
            line
        });
        // A bar without a length would be drawn full.
        line.set_length(progress.total.max(1));
        line.set_position(if progress.total == 0 { 0 } else { progress.done });
        line.set_message(progress.text.clone());
    }

    /// Removes the bars, so that only the result remains.
    pub(super) fn clear(&self) {
        let mut lines = lock(&self.lines);
        for (_, line) in lines.drain() {
            line.finish_and_clear();
        }
        // The bars are gone in any case; at worst, empty lines remain.
        let _ = self.screen.clear();
    }
}
