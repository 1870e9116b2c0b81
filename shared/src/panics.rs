//! Logs panics in the log's own format and counts them.
//!
//! A panic is a bug. In a task it ends only that task, and the service continues. By default Rust
//! prints it as plain text, which collectors of JSON logs cannot read, and does not count it.

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

pub(crate) fn counter() -> IntCounter {
    COUNTER.clone()
}

/// Installs the panic hook that replaces Rust's own message.
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
