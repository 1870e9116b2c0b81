//! Events that wait for an operator or a worker.

use std::time::Duration;

use sqlx::PgConnection;

use super::finding::Finding;
use crate::age;

pub(super) async fn dead_letters(postgres: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let (count, oldest): (i64, Option<f64>) = sqlx::query_as(
        "select count(*), extract(epoch from now() - min(stored_at))::float8 from dead_letters",
    )
    .fetch_one(postgres)
    .await?;
    Ok(vec![match oldest {
        Some(oldest) => Finding::warning(
            "dead letters",
            format!("{count}, the oldest for {}", age::words(oldest)),
            "see what they are with `hookctl dead-letters list --summary`",
        ),
        None => Finding::ok("dead letters", "none"),
    }])
}

pub(super) async fn spool(
    postgres: &mut PgConnection,
    overdue: Duration,
) -> Result<Vec<Finding>, sqlx::Error> {
    let rows: Vec<(String, i64, f64)> = sqlx::query_as(
        "select family, count(*), extract(epoch from now() - min(due_at))::float8
           from webhook_spool
          where due_at < now() - make_interval(secs => $1)
          group by family
          order by family",
    )
    .bind(overdue.as_secs_f64())
    .fetch_all(postgres)
    .await?;
    if rows.is_empty() {
        return Ok(vec![Finding::ok("spool", "nothing overdue")]);
    }
    Ok(rows
        .into_iter()
        .map(|(family, count, oldest)| {
            Finding::warning(
                format!("spool of {family}"),
                format!("{count} overdue, for up to {}", age::words(oldest)),
                format!(
                    "see why the {family} worker does not take them: is one running and ready?"
                ),
            )
        })
        .collect())
}
