//! The accounts that the services run under: one for each service, with the same name in both stores.

use anyhow::ensure;
use shared::{Program, topology::Topology};

/// Postgres truncates longer names, so two accounts could end up with the same one.
const MAX_NAME_LEN: usize = 63;

/// An account's permissions in RabbitMQ: a regular expression of names for each kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Configure: what it may declare, delete and change.
    pub configure: String,
    /// Write: where it may publish to.
    pub write: String,
    /// Read: what it may consume and purge.
    pub read: String,
}

/// What a service uses in RabbitMQ. No service declares anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uses {
    /// The exchanges that it publishes to.
    pub(crate) write: Vec<String>,
    /// The queues that it consumes.
    pub(crate) read: Vec<String>,
}

/// What a service uses in RabbitMQ.
pub(crate) fn uses(program: Program, topology: &Topology) -> Uses {
    match program {
        Program::Ingest => Uses {
            write: vec![topology.events_exchange(), topology.probe()],
            read: Vec::new(),
        },
        Program::Worker(family) => Uses {
            write: Vec::new(),
            read: vec![topology.queue(family)],
        },
        // It has no account there.
        Program::Console | Program::ConsoleOperator => Uses {
            write: Vec::new(),
            read: Vec::new(),
        },
    }
}

/// The name of a service's account in both stores.
pub fn name(program: Program, prefix: &str) -> String {
    format!("{prefix}-{program}")
}

/// The tag of a service's account in RabbitMQ; empty means none. With `management` a worker can see in the
/// HTTP API what policies do to its queue. The tag gives no right to change anything there, or to read
/// messages of other queues.
pub(crate) const fn tag(program: Program) -> &'static str {
    match program {
        Program::Worker(_) => "management",
        Program::Ingest | Program::Console | Program::ConsoleOperator => "",
    }
}

/// The command that sets the tag.
pub(crate) fn tag_command(program: Program, account: &str) -> String {
    let command = format!("rabbitmqctl set_user_tags '{account}' {}", tag(program));
    command.trim_end().to_owned()
}

/// A service's permissions in RabbitMQ. There are no topic permissions: ingest publishes events of every
/// type, including types that Pleo adds later.
pub fn permissions(program: Program, topology: &Topology) -> Permissions {
    let Uses { write, read } = uses(program, topology);
    Permissions {
        configure: pattern(&[]),
        write: pattern(&write),
        read: pattern(&read),
    }
}

impl Permissions {
    /// The command that sets the permissions.
    pub(crate) fn command(&self, vhost: &str, account: &str) -> String {
        format!(
            "rabbitmqctl set_permissions -p '{vhost}' '{account}' '{}' '{}' '{}'",
            self.configure, self.write, self.read
        )
    }
}

/// The command that limits the account's connections to RabbitMQ.
pub(crate) fn limit_command(account: &str, connections: u32) -> String {
    format!("rabbitmqctl set_user_limits '{account}' '{{\"max-connections\": {connections}}}'")
}

/// A regular expression that matches these names only.
fn pattern(names: &[String]) -> String {
    let escaped: Vec<_> = names.iter().map(|name| escape(name)).collect();
    match &escaped[..] {
        [] => "^$".to_owned(),
        [one] => format!("^{one}$"),
        several => format!("^({})$", several.join("|")),
    }
}

/// Quotes a name with any characters for SQL.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Refuses a prefix that would make the accounts' names too long.
pub fn check_prefix(prefix: &str) -> anyhow::Result<()> {
    let longest = Program::ACCOUNTS.map(|program| name(program, "").len());
    let longest = longest.into_iter().max().unwrap_or(0);
    ensure!(
        prefix.len() + longest <= MAX_NAME_LEN,
        "TOPOLOGY_PREFIX is too long for names of accounts: at most {} characters",
        MAX_NAME_LEN - longest
    );
    Ok(())
}

/// A regular expression that matches only this text.
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
    use shared::Family;

    use super::*;

    #[test]
    fn patterns_match_one_name_even_where_the_prefix_has_dots() {
        let topology = Topology::new("a.b-c_d");
        let ingest = permissions(Program::Ingest, &topology);
        assert_eq!(ingest.write, r"^(a\.b-c_d\.events|a\.b-c_d\.probe)$");
        assert_eq!((&*ingest.configure, &*ingest.read), ("^$", "^$"));
        let worker = permissions(Program::Worker(Family::ExportJob), &topology);
        assert_eq!(worker.read, r"^a\.b-c_d\.export-job$");
        assert_eq!((&*worker.configure, &*worker.write), ("^$", "^$"));
    }

    #[test]
    fn a_prefix_that_postgres_would_cut_off_is_refused() {
        check_prefix(&"p".repeat(45)).expect("63 bytes in all");
        check_prefix(&"p".repeat(46)).expect_err("one more");
    }
}
