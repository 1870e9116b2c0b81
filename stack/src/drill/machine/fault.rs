//! The faults of one machine, as data.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use anyhow::Error;
use shared::{Family, Program};

use super::super::system::{AnyFault, fault_named};

/// A process of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// One of two replicas.
    Ingest1,
    /// The other replica.
    Ingest2,
    /// The only replica of its family's worker.
    ExportJobWorker,
    /// One of two replicas.
    VendorWorker1,
    /// The other replica.
    VendorWorker2,
    /// The only replica of its family's worker.
    OtherWorker,
    /// The console.
    Console,
    /// The broker.
    RabbitMq,
    /// The database.
    Postgres,
}

impl Part {
    /// All processes.
    pub const ALL: [Self; 9] = [
        Self::Ingest1,
        Self::Ingest2,
        Self::ExportJobWorker,
        Self::VendorWorker1,
        Self::VendorWorker2,
        Self::OtherWorker,
        Self::Console,
        Self::RabbitMq,
        Self::Postgres,
    ];

    /// The name in reports and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingest1 => "ingest-1",
            Self::Ingest2 => "ingest-2",
            Self::ExportJobWorker => "export-job-worker",
            Self::VendorWorker1 => "vendor-worker-1",
            Self::VendorWorker2 => "vendor-worker-2",
            Self::OtherWorker => "other-worker",
            Self::Console => "console",
            Self::RabbitMq => "rabbitmq",
            Self::Postgres => "postgres",
        }
    }

    /// The service that it runs; `None` for a store.
    pub fn program(self) -> Option<Program> {
        match self {
            Self::Ingest1 | Self::Ingest2 => Some(Program::Ingest),
            Self::ExportJobWorker => Some(Program::Worker(Family::ExportJob)),
            Self::VendorWorker1 | Self::VendorWorker2 => Some(Program::Worker(Family::Vendor)),
            Self::OtherWorker => Some(Program::Worker(Family::Other)),
            Self::Console => Some(Program::Console),
            Self::RabbitMq | Self::Postgres => None,
        }
    }
}

/// A store, as the services reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    /// The broker.
    RabbitMq,
    /// The database.
    Postgres,
}

/// A resource whose alarm makes RabbitMQ block publishers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// The memory watermark.
    Memory,
    /// The limit of free disk space.
    Disk,
}

/// A temporary fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The process is killed with SIGKILL, and later started again.
    Kill(Part),
    /// The process is asked to stop, and later started again.
    Stop(Part),
    /// The process is frozen with SIGSTOP, and later continues.
    Pause(Part),
    /// Connections to the store are cut and new ones refused.
    Cut(Store),
    /// Connections to the store stay open and carry no data.
    HalfOpen(Store),
    /// RabbitMQ accepts no messages.
    Alarm(Alarm),
    /// Postgres has no free connection.
    NoConnections,
    /// The disk of Postgres is full.
    DiskFull,
    /// A user holds a lock on the row of a vendor that keeps changing.
    RowLock,
    /// Commits wait for a synchronous standby that is away.
    StandbyAway,
    /// The round trip to Postgres is long; connections are cut at the beginning.
    SlowLink(RoundTrip),
}

/// The round-trip time to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RoundTrip {
    /// 120 ms: another continent.
    Long,
    /// 250 ms: the other side of the earth.
    Longest,
}

impl RoundTrip {
    /// In milliseconds.
    pub fn ms(self) -> u64 {
        match self {
            Self::Long => 120,
            Self::Longest => 250,
        }
    }
}

impl Fault {
    /// All faults, also those that this machine cannot simulate.
    pub fn all() -> Vec<Self> {
        let stores = [Store::RabbitMq, Store::Postgres];
        let mut all: Vec<Self> = Vec::new();
        all.extend(Part::ALL.map(Self::Kill));
        all.extend(Part::ALL.map(Self::Stop));
        all.extend(Part::ALL.map(Self::Pause));
        all.extend(stores.map(Self::Cut));
        all.extend(stores.map(Self::HalfOpen));
        all.extend([Alarm::Memory, Alarm::Disk].map(Self::Alarm));
        all.extend([Self::NoConnections, Self::DiskFull]);
        all.extend([Self::RowLock, Self::StandbyAway]);
        all.extend([RoundTrip::Long, RoundTrip::Longest].map(Self::SlowLink));
        all
    }
}

impl AnyFault for Fault {
    type Part = Part;

    fn part(self) -> Part {
        match self {
            Self::Kill(part) | Self::Stop(part) | Self::Pause(part) => part,
            Self::Cut(Store::RabbitMq) | Self::HalfOpen(Store::RabbitMq) | Self::Alarm(_) => {
                Part::RabbitMq
            }
            Self::Cut(Store::Postgres)
            | Self::HalfOpen(Store::Postgres)
            | Self::NoConnections
            | Self::DiskFull
            | Self::RowLock
            | Self::StandbyAway
            | Self::SlowLink(_) => Part::Postgres,
        }
    }

    fn lasts_s(self) -> RangeInclusive<u64> {
        match self {
            // Long enough to exceed every deadline, lease and heartbeat in the services.
            Self::Pause(_) => 20..=20,
            Self::Kill(part) | Self::Stop(part) if part.program().is_some() => 0..=5,
            Self::Kill(_) | Self::Stop(_) => 1..=15,
            Self::Cut(_) => 1..=10,
            Self::HalfOpen(_) => 5..=20,
            Self::Alarm(_) | Self::NoConnections | Self::DiskFull => 5..=15,
            // Longer than the services' deadlines for a transaction.
            Self::RowLock | Self::StandbyAway => 20..=40,
            // Long enough to connect again after the cut.
            Self::SlowLink(_) => 15..=30,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store = |store: Store| match store {
            Store::RabbitMq => "rabbitmq",
            Store::Postgres => "postgres",
        };
        match *self {
            Self::Kill(part) => write!(f, "kill:{}", part.name()),
            Self::Stop(part) => write!(f, "stop:{}", part.name()),
            Self::Pause(part) => write!(f, "pause:{}", part.name()),
            Self::Cut(to) => write!(f, "cut:{}", store(to)),
            Self::HalfOpen(to) => write!(f, "half-open:{}", store(to)),
            Self::Alarm(Alarm::Memory) => f.write_str("memory-alarm:rabbitmq"),
            Self::Alarm(Alarm::Disk) => f.write_str("disk-alarm:rabbitmq"),
            Self::NoConnections => f.write_str("no-connections:postgres"),
            Self::DiskFull => f.write_str("disk-full:postgres"),
            Self::RowLock => f.write_str("row-lock:postgres"),
            Self::StandbyAway => f.write_str("standby-away:postgres"),
            Self::SlowLink(round_trip) => write!(f, "slow-link-{}ms:postgres", round_trip.ms()),
        }
    }
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        fault_named(&Self::all(), text)
    }
}
