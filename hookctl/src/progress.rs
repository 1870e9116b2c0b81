//! The progress of a long command.

use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar for this many events, shown only on a terminal.
pub fn bar(events: u64) -> ProgressBar {
    let style = "{bar:30} {pos}/{len} {per_sec} {eta} left";
    ProgressBar::new(events)
        .with_style(ProgressStyle::with_template(style).expect("the template is valid"))
}
