//! Dead letters without a problem any more, in the tables.

use std::collections::HashSet;

use shared::Family;
use sqlx::{AssertSqlSafe, PgConnection};
use worker::{
    families::{self, Text},
    problem::Kind,
    record::{Body, Record},
};

use super::letter::Letter;

/// One without a problem any more, and what it becomes.
pub(super) type Mended = (Letter, Box<Record>);

/// Makes them healthy events, as a worker would have stored them. Where any company was believed, a
/// rebuild is to believe it as well. What was healthy before it was distrusted gets its columns back as
/// they are: the JSON that is left of it has only the last of doubled keys.
pub(super) async fn clear(
    connection: &mut PgConnection,
    mended: &[Mended],
    any_company: bool,
) -> Result<(), sqlx::Error> {
    fn column<'m, T>(mended: &'m [Mended], pick: impl Fn(&'m Letter, &'m Record) -> T) -> Vec<T> {
        mended.iter().map(|(l, r)| pick(l, r)).collect()
    }
    if mended.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update events e
            set problem = null, replayed_problem = e.problem, replayed_at = now(),
                event_id = case when m.was_healthy then e.event_id else m.event_id end,
                event_type = case when m.was_healthy then e.event_type else m.event_type end,
                company_id = case when m.was_healthy then e.company_id else m.company_id end,
                resource_id = case when m.was_healthy then e.resource_id else m.resource_id end,
                payload = coalesce(e.payload, m.payload::jsonb),
                raw = case when e.payload is null and m.payload is null then e.raw end,
                secret_companies = case when not $7 then e.secret_companies end
           from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                       $8::bool[])
             as m (webhook_id, event_id, event_type, company_id, resource_id, payload, was_healthy)
          where e.webhook_id = m.webhook_id",
    )
    .bind(column(mended, |_, r| r.webhook_id.as_str()))
    .bind(column(mended, |_, r| Text::as_optional(&r.event_id)))
    .bind(column(mended, |_, r| r.event_type.as_str()))
    .bind(column(mended, |_, r| Text::as_optional(&r.company_id)))
    .bind(column(mended, |_, r| Text::as_optional(&r.resource_id)))
    .bind(column(mended, |letter, r| match &r.body {
        Body::Json(json) if !letter.has_json => Some(json.as_str()),
        Body::Json(_) | Body::Raw(_) => None,
    }))
    .bind(any_company)
    .bind(column(mended, |letter, _| {
        // One with a problem before has the bytes of its body.
        !letter.has_bytes && letter.kind == Some(Kind::Distrusted)
    }))
    .execute(connection)
    .await?;
    Ok(())
}

/// Those that have set their resource's row.
pub(super) async fn newest(
    connection: &mut PgConnection,
    mended: &[Mended],
) -> Result<HashSet<String>, sqlx::Error> {
    let typed = || mended.iter().filter(|(_, record)| record.typed.is_some());
    let resources: Vec<_> = typed()
        .filter_map(|(_, record)| Text::as_optional(&record.resource_id))
        .collect();
    let events: Vec<_> = typed().map(|(_, r)| r.webhook_id.as_str()).collect();
    if events.is_empty() {
        return Ok(HashSet::new());
    }
    let mut newest = HashSet::new();
    for table in Family::ALL.into_iter().filter_map(families::table) {
        let set: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
            "select webhook_id from {table} where id = any($1) and webhook_id = any($2)"
        )))
        .bind(&resources)
        .bind(&events)
        .fetch_all(&mut *connection)
        .await?;
        newest.extend(set);
    }
    Ok(newest)
}
