//! The programs that run as services.

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
    /// Not a binary: the account that the console uses for operators' actions.
    ConsoleOperator,
}

impl Program {
    /// The programs that handle events, in display order.
    pub const ALL: [Self; 4] = [
        Self::Ingest,
        Self::Worker(Family::ExportJob),
        Self::Worker(Family::Vendor),
        Self::Worker(Family::Other),
    ];

    /// As [`Program::ALL`], with the console. The other programs do not need it.
    pub const WITH_CONSOLE: [Self; 5] = {
        let [ingest, export_job, vendor, other] = Self::ALL;
        [ingest, export_job, vendor, other, Self::Console]
    };

    /// The programs that have an account in Postgres.
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

    /// The binary's file name. It is also the program's name in metrics and, after a prefix, the
    /// name of its accounts in the stores.
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

    /// The default private port. Each program has its own, so that they can share a host.
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
