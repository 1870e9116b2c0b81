//! How far a long command has come.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar for so many events, shown on a terminal only.
pub fn bar(events: u64) -> ProgressBar {
    let style = "{bar:30} {pos}/{len} {per_sec} {eta} left";
    ProgressBar::new(events)
        .with_style(ProgressStyle::with_template(style).expect("the template is valid"))
}
