//! The settings of a transaction. Each transaction sets them itself, so that the settings of a
//! database or a role neither break nor weaken it.

use std::{fmt::Write, time::Duration};

use super::schema::Schema;

/// What a commit waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The disk, and the synchronous standby if there is one. For every commit that an
    /// acknowledgement or a 2xx depends on.
    Replicated,
    /// The disk of this server. The commit does not hang while the standby is down, but a failover
    /// may lose it.
    Local,
    /// Nothing. A crash of Postgres may lose it.
    Relaxed,
}

impl Durability {
    /// The value of `synchronous_commit`.
    const fn synchronous_commit(self) -> &'static str {
        match self {
            Self::Replicated => "on",
            Self::Local => "local",
            Self::Relaxed => "off",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isolation {
    ReadCommitted,
    RepeatableRead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    ReadWrite,
    ReadOnly,
}

/// Isolation, access, durability and time limits of a transaction.
///
/// Everything is set with `set local`, so a pooler that shares connections between clients does not
/// leak a setting to the next transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionMode {
    isolation: Isolation,
    access: Access,
    durability: Durability,
    lock_timeout: Duration,
    statement_timeout: Duration,
    idle_timeout: Duration,
    by_index: bool,
}

/// Older servers have no `transaction_timeout`, which would end the session during a transaction.
const HAS_TRANSACTION_TIMEOUT: u32 = 170_000;

/// Planner settings for statements that read a few rows of many. The planner chooses by statistics
/// and by settings of the database or the role. If those are wrong, it may read and sort a whole
/// table.
const BY_INDEX: [(&str, &str); 9] = [
    ("enable_indexscan", "on"),
    ("enable_tidscan", "on"),
    ("enable_nestloop", "on"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    // What is off makes an estimate of the cost so high that Postgres compiles the statement, which takes
    // longer than to run it.
    ("jit", "off"),
];

impl TransactionMode {
    /// Read-write. Each statement sees what was committed before it.
    pub const fn write(durability: Durability) -> Self {
        Self {
            isolation: Isolation::ReadCommitted,
            access: Access::ReadWrite,
            durability,
            lock_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            by_index: false,
        }
    }

    /// Read-only. Each statement sees what was committed before it.
    pub const fn read() -> Self {
        Self {
            access: Access::ReadOnly,
            ..Self::write(Durability::Relaxed)
        }
    }

    /// All statements see one snapshot.
    pub const fn in_one_snapshot(self) -> Self {
        Self {
            isolation: Isolation::RepeatableRead,
            ..self
        }
    }

    /// How long a statement may wait for a lock.
    pub const fn lock_timeout(self, lock_timeout: Duration) -> Self {
        Self {
            lock_timeout,
            ..self
        }
    }

    /// How long a statement may take.
    pub const fn statement_timeout(self, statement_timeout: Duration) -> Self {
        Self {
            statement_timeout,
            ..self
        }
    }

    /// How long the transaction may be idle between two statements. The limit releases the locks of
    /// a frozen client.
    pub const fn idle_timeout(self, idle_timeout: Duration) -> Self {
        Self {
            idle_timeout,
            ..self
        }
    }

    /// Statements find their rows by an index, even with wrong statistics.
    pub const fn by_index(self) -> Self {
        Self {
            by_index: true,
            ..self
        }
    }

    /// What a commit waits for.
    pub const fn durability(&self) -> Durability {
        self.durability
    }

    /// The statements that begin the transaction in this schema, in one round trip. `server` is the
    /// server's version as a number, such as 150004, if it is known.
    ///
    /// The time limits are set first, because until then the session's own limits apply.
    pub fn begin(&self, schema: &Schema, server: Option<u32>) -> String {
        let mut sql = format!(
            "begin isolation level {} {}",
            match self.isolation {
                Isolation::ReadCommitted => "read committed",
                Isolation::RepeatableRead => "repeatable read",
            },
            match self.access {
                Access::ReadWrite => "read write",
                Access::ReadOnly => "read only",
            },
        );
        for (name, value) in self.settings() {
            write!(sql, "; set local {name} = {value}").expect("a string takes everything");
        }
        if server.is_some_and(|version| version >= HAS_TRANSACTION_TIMEOUT) {
            sql.push_str("; set local transaction_timeout = 0");
        }
        write!(sql, "; {}", schema.search()).expect("a string takes everything");
        for (name, value) in BY_INDEX.iter().filter(|_| self.by_index) {
            write!(sql, "; set local {name} = {value}").expect("a string takes everything");
        }
        sql
    }

    fn settings(&self) -> [(&'static str, String); 5] {
        let milliseconds = |limit: Duration| limit.as_millis().to_string();
        let durability = self.durability.synchronous_commit().to_owned();
        [
            ("statement_timeout", milliseconds(self.statement_timeout)),
            (
                "idle_in_transaction_session_timeout",
                milliseconds(self.idle_timeout),
            ),
            ("lock_timeout", milliseconds(self.lock_timeout)),
            ("synchronous_commit", durability),
            // With `off`, Postgres raises an error instead of filtering rows by a policy.
            ("row_security", "on".to_owned()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const WRITE: TransactionMode = TransactionMode::write(Durability::Replicated);

    #[rstest]
    #[case(
        WRITE,
        Some(169_999),
        "begin isolation level read committed read write; set local statement_timeout = 5000; \
         set local idle_in_transaction_session_timeout = 30000; set local lock_timeout = 2000; \
         set local synchronous_commit = on; set local row_security = on; \
         set local search_path = \"public\", pg_temp"
    )]
    #[case(
        TransactionMode::read()
            .in_one_snapshot()
            .lock_timeout(Duration::from_millis(1))
            .statement_timeout(Duration::from_millis(2))
            .idle_timeout(Duration::from_millis(3)),
        Some(170_000),
        "begin isolation level repeatable read read only; set local statement_timeout = 2; \
         set local idle_in_transaction_session_timeout = 3; set local lock_timeout = 1; \
         set local synchronous_commit = off; set local row_security = on; \
         set local transaction_timeout = 0; \
         set local search_path = \"public\", pg_temp"
    )]
    fn a_mode_is_rendered_whole(
        #[case] mode: TransactionMode,
        #[case] server: Option<u32>,
        #[case] sql: &str,
    ) {
        assert_eq!(mode.begin(&Schema::default(), server), sql);
    }

    #[rstest]
    #[case(Durability::Replicated, "synchronous_commit = on;")]
    #[case(Durability::Local, "synchronous_commit = local;")]
    #[case(Durability::Relaxed, "synchronous_commit = off;")]
    fn durability_decides_what_a_commit_waits_for(
        #[case] durability: Durability,
        #[case] expected: &str,
    ) {
        let sql = TransactionMode::write(durability).begin(&Schema::default(), None);
        assert!(sql.contains(expected), "{sql}");
    }
}
