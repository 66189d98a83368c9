//! How far long work is, on standard error if that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that goes away when it is dropped. Without a terminal nothing is shown.
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar for counting `unit`, for instance "pages"; `what` says what is done.
    pub fn new(what: &'static str, unit: &'static str) -> Self {
        let bar = ProgressBar::no_length();
        let template = format!("{what} [{{wide_bar}}] {{pos}}/{{len}} {unit}, {{eta}} left");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// So much is done, of so much.
    pub fn at(&mut self, done: u64, all: u64) {
        self.0.set_length(all);
        self.0.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
