//! The accounts that the services run under: one each, with the same name in both stores.

use anyhow::ensure;
use shared::{Family, topology::Topology};

/// Postgres cuts longer names off, and two accounts could then become one.
const MAX_NAME_LEN: usize = 63;

/// The account of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// Of ingest.
    Ingest,
    /// Of a family's worker.
    Worker(Family),
}

/// What an account may do in RabbitMQ: a regular expression of names for each kind of right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// What it may declare, delete and change.
    pub configure: String,
    /// Where it may publish to.
    pub write: String,
    /// What it may consume and purge.
    pub read: String,
}

impl Account {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 4] = [
        Self::Ingest,
        Self::Worker(Family::ExportJob),
        Self::Worker(Family::Vendor),
        Self::Worker(Family::Other),
    ];

    /// The service that runs under it, as its binary is named.
    pub fn service(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Worker(Family::ExportJob) => "export-job-worker",
            Self::Worker(Family::Vendor) => "vendor-worker",
            Self::Worker(Family::Other) => "other-worker",
        }
    }

    /// The name in both stores.
    pub fn name(self, prefix: &str) -> String {
        format!("{prefix}-{}", self.service())
    }

    /// What it may do in RabbitMQ. There are no topic permissions: ingest publishes events of every
    /// type, also of those that Pleo invents later.
    pub fn permissions(self, topology: &Topology) -> Permissions {
        let nothing = || "^$".to_owned();
        let only = |name: &str| format!("^{}$", escape(name));
        match self {
            Self::Ingest => Permissions {
                configure: nothing(),
                write: only(&topology.events_exchange()),
                read: nothing(),
            },
            Self::Worker(family) => Permissions {
                configure: nothing(),
                write: nothing(),
                read: only(&topology.queue(family)),
            },
        }
    }
}

/// Refuses a prefix whose accounts would have too long names.
pub fn check_prefix(prefix: &str) -> anyhow::Result<()> {
    let longest = Account::ALL.map(|account| account.name("").len());
    let longest = longest.into_iter().max().unwrap_or(0);
    ensure!(
        prefix.len() + longest <= MAX_NAME_LEN,
        "TOPOLOGY_PREFIX is too long for names of accounts: at most {} characters",
        MAX_NAME_LEN - longest
    );
    Ok(())
}

/// A regular expression that matches this text only.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() && !matches!(c, '-' | '_') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_one_name_even_where_the_prefix_has_dots() {
        let topology = Topology::new("a.b-c_d");
        let ingest = Account::Ingest.permissions(&topology);
        assert_eq!(ingest.write, r"^a\.b-c_d\.events$");
        assert_eq!((&*ingest.configure, &*ingest.read), ("^$", "^$"));
        let worker = Account::Worker(Family::ExportJob).permissions(&topology);
        assert_eq!(worker.read, r"^a\.b-c_d\.export-job$");
        assert_eq!((&*worker.configure, &*worker.write), ("^$", "^$"));
    }

    #[test]
    fn a_prefix_that_postgres_would_cut_off_is_refused() {
        check_prefix(&"p".repeat(45)).expect("63 bytes in all");
        check_prefix(&"p".repeat(46)).expect_err("one more");
    }
}
