//! Logging, set up once by each binary.

use clap::ValueEnum;
use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::panics;

/// How log lines are written to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// Starts logging, including panics. `filter` is a `tracing` filter such as `info` or
/// `info,worker=debug`.
pub fn init(filter: EnvFilter, format: LogFormat) {
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match format {
        LogFormat::Text => layer.with_ansi(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // Both filters apply to the whole subscriber. A filter on one layer would lose events: when
    // code asks whether a level is enabled, as sqlx does, the answer is kept for the thread's next
    // event.
    tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(shows_no_content))
        .with(layer)
        .init();
    panics::log();
}

/// lapin logs whole frames at trace level and returned messages as warnings, both with bodies, so
/// neither is ever enabled.
fn shows_no_content(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let frames = *metadata.level() == Level::TRACE && target.starts_with("lapin");
    !frames && !target.starts_with("lapin::returned_messages")
}
