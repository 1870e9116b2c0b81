//! The programs that run as services, one process a replica.

use std::fmt;

use crate::Family;

/// A service's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// Receives webhooks.
    Ingest,
    /// Stores a family's events.
    Worker(Family),
    /// Shows the events in a browser.
    Console,
    /// No binary of its own: the account under which the console acts for operators.
    ConsoleOperator,
}

impl Program {
    /// Those that events go through, in the order in which they are shown.
    pub const ALL: [Self; 4] = [
        Self::Ingest,
        Self::Worker(Family::ExportJob),
        Self::Worker(Family::Vendor),
        Self::Worker(Family::Other),
    ];

    /// As [`Program::ALL`], and the console, which only looks and which the others do not need.
    pub const WITH_CONSOLE: [Self; 5] = {
        let [ingest, export_job, vendor, other] = Self::ALL;
        [ingest, export_job, vendor, other, Self::Console]
    };

    /// Those that have an account in Postgres.
    pub const ACCOUNTS: [Self; 6] = {
        let [ingest, export_job, vendor, other, console] = Self::WITH_CONSOLE;
        [
            ingest,
            export_job,
            vendor,
            other,
            console,
            Self::ConsoleOperator,
        ]
    };

    /// The binary's file name. It is also the program's name in metrics and, after a prefix, that
    /// of its accounts in the stores.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Worker(Family::ExportJob) => "export-job-worker",
            Self::Worker(Family::Vendor) => "vendor-worker",
            Self::Worker(Family::Other) => "other-worker",
            Self::Console => "console",
            Self::ConsoleOperator => "console-operator",
        }
    }

    /// The private port where none is configured: each its own, so that one of each can share a
    /// host.
    pub const fn default_private_port(self) -> u16 {
        match self {
            Self::Ingest => 9100,
            Self::Worker(Family::ExportJob) => 9101,
            Self::Worker(Family::Vendor) => 9102,
            Self::Worker(Family::Other) => 9103,
            Self::Console | Self::ConsoleOperator => 9104,
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn there_is_a_worker_for_every_family_with_a_name_and_a_port_of_its_own() {
        for family in Family::ALL {
            assert!(Program::ALL.contains(&Program::Worker(family)));
        }
        let programs = Program::WITH_CONSOLE;
        let names: HashSet<_> = programs.map(Program::name).into();
        let ports: HashSet<_> = programs.map(Program::default_private_port).into();
        assert_eq!((names.len(), ports.len()), (programs.len(), programs.len()));
    }
}
