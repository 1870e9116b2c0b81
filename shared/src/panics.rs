//! Panics as log lines, in the log's own format, and counted.
//!
//! A panic is a bug. Where it happens in a task it ends that task alone, and the service goes on. Rust
//! prints it as plain text, which a collector of JSON lines cannot read, and nothing counts it.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    panic::PanicHookInfo,
    sync::LazyLock,
    thread,
};

use prometheus::IntCounter;
use tracing::error;

static COUNTER: LazyLock<IntCounter> = LazyLock::new(|| {
    IntCounter::new("pleo_panics_total", "Panics; each is a bug")
        .expect("the metric's name is valid")
});

/// Panics of this process.
pub(crate) fn counter() -> IntCounter {
    COUNTER.clone()
}

/// Logs panics from now on, in place of Rust's own message.
pub(crate) fn log() {
    std::panic::set_hook(Box::new(report));
}

fn report(panic: &PanicHookInfo<'_>) {
    COUNTER.inc();
    let thread = thread::current();
    let backtrace = Backtrace::capture();
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    error!(
        reason = reason(panic.payload()),
        location = panic.location().map(ToString::to_string),
        thread = thread.name(),
        backtrace,
        "a task panicked; this is a bug"
    );
}

fn reason(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "of an unknown kind"
    }
}
