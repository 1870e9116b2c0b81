//! The system that a drill runs on, and its faults.

use std::fmt::{Debug, Display};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::Result;

use crate::process::Process;

/// A temporary fault.
pub trait AnyFault: Copy + Debug + Display {
    /// A part of the system that a fault can hit.
    type Part: PartialEq;

    /// The part that it hits. Two simultaneous faults hit different parts.
    fn part(self) -> Self::Part;

    /// The shortest and longest time that it lasts in a random schedule, in seconds.
    fn lasts_s(self) -> RangeInclusive<u64>;
}

/// Running stores and services, and the faults that can be injected into them.
pub trait System {
    /// Its faults.
    type Fault: AnyFault;

    /// The longest time from the end of an incident until everything works again.
    const RECOVERED_WITHIN: Duration;

    /// Whether the fault can be injected on this machine.
    fn can(&self, fault: Self::Fault) -> bool;

    /// The webhook addresses, one for each replica of ingest.
    fn webhook_urls(&self) -> Vec<String>;

    /// `DATABASE_URL` of the owner, on a path that no fault affects.
    fn database_url(&self) -> String;

    /// Messages in all queues, including unacked ones.
    fn queued(&self) -> impl Future<Output = Result<u64>>;

    /// The services that should be running now.
    fn services(&self) -> Vec<&Process>;

    /// Unexpected behaviour of services: they ended by themselves, failed to stop in order, or panicked.
    fn failures(&self) -> Vec<String>;

    /// Waits until every service says that it is ready.
    fn ready(&self, within: Duration) -> impl Future<Output = Result<()>>;

    /// Injects the fault. `alone` is true if there is no other fault.
    fn begin(&mut self, fault: Self::Fault, alone: bool) -> impl Future<Output = Result<()>>;

    /// Ends the fault. The stores are up again when this returns; services may still be starting.
    fn end(&mut self, fault: Self::Fault) -> impl Future<Output = Result<()>>;

    /// Ends what the site does by itself beside the drill's events, and says what that was, a line for each.
    ///
    /// # Errors
    /// When it went wrong.
    fn close(&self) -> impl Future<Output = Result<Vec<String>>> {
        async { Ok(Vec::new()) }
    }

    /// Whether ingest has to refuse events while these faults last together.
    fn must_refuse(&self, faults: &[Self::Fault]) -> bool;
}

/// Finds a fault by its name.
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
