//! The kinds of problems that a worker of an earlier version has stored without one, after the migration that
//! gave all others their kind. The schema's function `kind_of_old_problem` knows how they begin.

use crate::database::{CHANGING, Connection};

/// Fills in the kinds of one batch, which is small so that it holds no lock for long. It leaves out rows that
/// another session has locked, so that it never waits for a replay.
pub(super) const STATEMENT: &str = "
with letters as materialized (
    select webhook_id as id from events
     where problem is not null and problem_kind is null
     limit 1000 for update skip locked)
update events set problem_kind = kind_of_old_problem(problem)
  from letters where webhook_id = id";

/// Fills in all kinds that are missing. It can be stopped and repeated.
pub(super) async fn fill(connection: &mut Connection) -> anyhow::Result<()> {
    loop {
        let filled = connection
            .change(&CHANGING, async |connection| {
                let done = sqlx::query(STATEMENT).execute(connection).await?;
                Ok(done.rows_affected())
            })
            .await?;
        if filled == 0 {
            return Ok(());
        }
    }
}
