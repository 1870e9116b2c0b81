//! Finds the sessions that hold a lock for which a migration, or another command of operators,
//! waits. Their queries are not shown, because they may contain a secret.

use std::{convert::Infallible, fmt, time::Duration};

use sqlx::PgConnection;
use tokio::time::sleep;

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A session that holds a lock, with what our role may see of it.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Blocker {
    /// The backend's process id; 0 for a prepared transaction.
    pub pid: i32,
    /// Its role.
    pub role: Option<String>,
    /// Its client's `application_name`.
    pub application: Option<String>,
    /// Its state, such as `active` or `idle in transaction`.
    pub state: Option<String>,
    /// When its transaction began, in UTC.
    pub transaction_since: Option<String>,
    /// When its last statement began, in UTC.
    pub query_since: Option<String>,
}

impl Blocker {
    /// The sessions that block a backend now. Other roles' states and times are visible only to
    /// members of `pg_read_all_stats`.
    async fn of(observer: &mut PgConnection, backend: i32) -> Result<Vec<Self>, sqlx::Error> {
        sqlx::query_as(
            "select distinct pid, usename::text as role,
                    coalesce(nullif(application_name, ''), backend_type) as application, state,
                    to_char(xact_start at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS')
                        as transaction_since,
                    to_char(query_start at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS')
                        as query_since
               from unnest(pg_blocking_pids($1)) as pid
               left join pg_stat_activity using (pid)
              order by pid",
        )
        .bind(backend)
        .fetch_all(observer)
        .await
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == 0 {
            return f.write_str("a prepared transaction (see pg_prepared_xacts)");
        }
        write!(f, "pid {}", self.pid)?;
        let known = [
            ("role", &self.role),
            ("application", &self.application),
            ("state", &self.state),
            ("transaction since", &self.transaction_since),
            ("query since", &self.query_since),
        ];
        for (what, value) in known {
            if let Some(value) = value {
                write!(f, ", {what} {value}")?;
            }
        }
        Ok(())
    }
}

/// Keeps `blockers` up to date with the sessions that block a backend, until it is cancelled.
/// `observer` is another connection.
pub async fn watch(
    observer: &mut PgConnection,
    backend: i32,
    blockers: &mut Vec<Blocker>,
) -> Infallible {
    loop {
        // If the query fails, no blocker is named, and the waiting work is not affected.
        if let Ok(found) = Blocker::of(observer, backend).await
            && !found.is_empty()
        {
            *blockers = found;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The end of a sentence about a lock: names the sessions that hold it, if they are known.
pub fn list(blockers: &[Blocker]) -> String {
    if blockers.is_empty() {
        return String::new();
    }
    let blockers: Vec<_> = blockers.iter().map(ToString::to_string).collect();
    format!(" that others hold: {}", blockers.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_lock_is_said_as_far_as_it_is_known() {
        let stranger = Blocker {
            pid: 4711,
            role: Some("alice".to_owned()),
            application: Some("psql".to_owned()),
            state: None,
            transaction_since: None,
            query_since: None,
        };
        let known = Blocker {
            state: Some("idle in transaction".to_owned()),
            transaction_since: Some("2026-01-01 10:00:00".to_owned()),
            query_since: Some("2026-01-01 10:00:01".to_owned()),
            ..stranger.clone()
        };
        let prepared = Blocker {
            pid: 0,
            ..stranger.clone()
        };
        assert_eq!(list(&[]), "");
        assert_eq!(
            list(&[stranger, known, prepared]),
            " that others hold: pid 4711, role alice, application psql; pid 4711, role alice, \
             application psql, state idle in transaction, transaction since 2026-01-01 10:00:00, \
             query since 2026-01-01 10:00:01; a prepared transaction (see pg_prepared_xacts)"
        );
    }
}
