//! Tables that have grown for a long time.

use anyhow::Result;
use hookctl::sample::VENDOR;
use sqlx::PgPool;

use super::request::PREFIX;
use crate::progress::Progress;

/// The suffix of these rows' ids. Their prefix is that of the benchmark's events, so both are mixed: new
/// events are inserted into pages all over the indexes, as in old tables.
pub(super) const SUFFIX: &str = "_grown";

/// Rows per statement.
const CHUNK: i64 = 250_000;

/// Adds events with their receipts until there are `rows`, from the last weeks, with ids in random order.
pub(super) async fn grow(pool: &PgPool, from: u64, rows: u64, progress: Progress) -> Result<()> {
    let step = progress.step(format!("growing the tables to {rows} rows"));
    let (mut first, last) = (i64::try_from(from)?, i64::try_from(rows)?);
    while first < last {
        let next = (first + CHUNK).min(last);
        for sql in [
            "insert into events (webhook_id, event_id, event_type, company_id, resource_id,
                                 received_at, stored_at, payload, body_sha256, secret_name)
             select $4 || left(md5(n::text), 16) || $5, md5(n::text), 'v1.vendor.created', 'c', md5(n::text),
                    now() - interval '30 days' + n * interval '0.1 s',
                    now() - interval '30 days' + n * interval '0.1 s',
                    $3::jsonb, sha256(n::text::bytea), 'development'
               from generate_series($1, $2) n",
            "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
             select $4 || left(md5(n::text), 16) || $5, sha256(n::text::bytea),
                    now() - interval '30 days' + n * interval '0.1 s', now()
               from generate_series($1, $2) n where $3::text is not null",
        ] {
            sqlx::query(sql)
                .bind(first)
                .bind(next - 1)
                .bind(VENDOR.body)
                .bind(PREFIX)
                .bind(SUFFIX)
                .execute(pool)
                .await?;
        }
        first = next;
        step.update(format!("growing the tables: {first} of {rows} rows"));
    }
    for sql in ["vacuum (analyze) events, webhook_receipts", "checkpoint"] {
        sqlx::raw_sql(sql).execute(pool).await?;
    }
    step.done(&format!("the tables have {rows} rows"));
    Ok(())
}
