//! What a drill needs to know of the place that it is held on, and of its faults.

use std::fmt::{Debug, Display};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::Result;

use crate::process::Process;

/// Something that goes wrong for a while.
pub trait AnyFault: Copy + Debug + Display {
    /// What a fault can hit.
    type Part: PartialEq;

    /// What it hits. Two faults at one time hit different parts.
    fn part(self) -> Self::Part;

    /// The shortest and longest time that it lasts in a random schedule, in seconds.
    fn lasts_s(self) -> RangeInclusive<u64>;
}

/// Running stores and services, and the faults that can be injected into them.
pub trait Site {
    /// Its faults.
    type Fault: AnyFault;

    /// The longest time from the end of an incident until everything works again.
    const RECOVERED_WITHIN: Duration;

    /// Whether the fault can be injected on this machine.
    fn can(&self, fault: Self::Fault) -> bool;

    /// Where events are posted to, one address for each replica of ingest.
    fn webhook_urls(&self) -> Vec<String>;

    /// `DATABASE_URL` of the owner, by a way that no fault touches.
    fn database_url(&self) -> String;

    /// Messages in all queues, delivered and unacknowledged ones included.
    fn queued(&self) -> impl Future<Output = Result<u64>>;

    /// The services that should be running now.
    fn services(&self) -> Vec<&Process>;

    /// What services did that they never should: ended by themselves, failed to stop in order,
    /// panicked.
    fn failures(&self) -> Vec<String>;

    /// Waits until every service says that it is ready.
    fn ready(&self, within: Duration) -> impl Future<Output = Result<()>>;

    /// Injects the fault. `alone` tells whether nothing else is wrong.
    fn begin(&mut self, fault: Self::Fault, alone: bool) -> impl Future<Output = Result<()>>;

    /// Ends the fault. The stores are up again when this returns; services may still be starting.
    fn end(&mut self, fault: Self::Fault) -> impl Future<Output = Result<()>>;

    /// Whether ingest cannot but refuse while these faults last together.
    fn must_refuse(&self, faults: &[Self::Fault]) -> bool;
}

/// Reads a fault by its name.
///
/// # Errors
/// With the names of all faults when there is none of that name.
pub(super) fn fault_named<F: AnyFault>(all: &[F], name: &str) -> Result<F> {
    match all.iter().find(|fault| fault.to_string() == name) {
        Some(fault) => Ok(*fault),
        None => {
            let names: Vec<String> = all.iter().map(F::to_string).collect();
            anyhow::bail!("no fault of that name; there are {}", names.join(", "))
        }
    }
}
