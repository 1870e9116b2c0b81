//! Events in `webhook_spool`. Only the body tells what they are about, so each row is read as a worker
//! does.

use std::collections::HashSet;

use serde_json::json;
use shared::{AcceptedEvent, EventType, message::Receipt};
use sqlx::{PgConnection, Row as _, postgres::PgRow};
use worker::{
    due_rows::ISOLATE_AFTER,
    record::Record,
    work::{Source, Work},
};

use super::matching::Subject;
use crate::{
    actions::Run,
    database::{CHANGING, Connection, READING},
};

/// The most rows of one transaction. Their bodies have to fit into memory.
const BATCH: usize = 200;

/// The key of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Key {
    webhook_id: String,
    body_sha256: Vec<u8>,
}

/// What was found.
pub(super) struct Matches {
    /// Rows about the subject.
    pub(super) rows: Vec<Key>,
    /// How many may be poison messages. Reading them could crash this program as well.
    pub(super) unread: i64,
}

/// Searches the whole spool.
pub(super) async fn find(
    connection: &mut Connection,
    subject: &Subject,
) -> anyhow::Result<Matches> {
    let mut matches = Matches {
        rows: Vec::new(),
        unread: 0,
    };
    let mut last = Key::default();
    loop {
        let mut transaction = connection.begin(&READING).await?;
        let page = page(&mut transaction, &last).await?;
        let Some((end, _)) = page.last() else {
            matches.unread = match subject {
                // Its webhook id is enough; the body is not read.
                Subject::Event(_) => 0,
                Subject::Company(_) | Subject::Resource(_) => {
                    sqlx::query_scalar("select count(*) from webhook_spool where claims >= $1")
                        .bind(ISOLATE_AFTER)
                        .fetch_one(&mut *transaction)
                        .await?
                }
            };
            return Ok(matches);
        };
        last = end.clone();
        let about_it = page.into_iter().filter(|(key, work)| match subject {
            Subject::Event(_) => subject.is_named_by(&key.webhook_id),
            Subject::Company(_) | Subject::Resource(_) => {
                (work.as_ref()).is_some_and(|work| subject.includes(&Record::new(work)))
            }
        });
        matches.rows.extend(about_it.map(|(key, _)| key));
    }
}

/// The next rows, with the bodies that can be read safely.
async fn page(
    connection: &mut PgConnection,
    after: &Key,
) -> Result<Vec<(Key, Option<Work>)>, sqlx::Error> {
    let rows = sqlx::query(
        "select webhook_id, body_sha256, event_type, received_at, claims,
                case when claims < $4 then body end as body
           from webhook_spool
          where (webhook_id, body_sha256) > ($1, $2)
          order by webhook_id, body_sha256
          limit $3",
    )
    .bind(&after.webhook_id)
    .bind(&after.body_sha256)
    .bind(i64::try_from(BATCH).unwrap_or(i64::MAX))
    .bind(ISOLATE_AFTER)
    .fetch_all(connection)
    .await?;
    rows.iter().map(read).collect()
}

fn read(row: &PgRow) -> Result<(Key, Option<Work>), sqlx::Error> {
    let key = Key {
        webhook_id: row.try_get("webhook_id")?,
        body_sha256: row.try_get("body_sha256")?,
    };
    let Some(body) = row.try_get::<Option<Vec<u8>>, _>("body")? else {
        return Ok((key, None));
    };
    let event_type: &str = row.try_get("event_type")?;
    let event = AcceptedEvent {
        webhook_id: key.webhook_id.clone(),
        event_type: EventType::parse(event_type).unwrap_or_else(EventType::unknown),
        body_sha256: key.body_sha256.clone().try_into().unwrap_or_default(),
        body: body.into(),
        received_at: row.try_get("received_at")?,
        attempted_at: None,
        secret_name: None,
        secret_companies: None,
    };
    let work = Work {
        event,
        receipt: Receipt::Recorded,
        attempts: 0,
        problem: None,
        source: Source::Spool,
    };
    Ok((key, Some(work)))
}

/// Which of `$1`, `$2` would be stored as second bodies, because another body under the id stays in the
/// spool that arrived earlier, is due earlier, or is claimed by a worker already.
const PRECEDED: &str = "
    select s.webhook_id, s.body_sha256
      from webhook_spool s
      join unnest($1::text[], $2::bytea[]) as key (webhook_id, body_sha256)
        on s.webhook_id = key.webhook_id and s.body_sha256 = key.body_sha256
     where not exists (select from events e where e.webhook_id = s.webhook_id)
       and exists (select from webhook_spool o
                    where o.webhook_id = s.webhook_id and o.body_sha256 <> s.body_sha256
                      and ((o.received_at, o.body_sha256) < (s.received_at, s.body_sha256)
                           or o.due_at < s.due_at or o.claims > s.claims)
                      and not exists (select from unnest($1::text[], $2::bytea[]) as k (id, hash)
                                       where k.id = o.webhook_id and k.hash = o.body_sha256))";

/// Claims these, so that workers leave them alone. Rows that a worker has claimed are left out: it may be
/// storing them under their first id at this moment, and the row of a second body would not prevent that.
const KEEP: &str = "
    select webhook_id, body_sha256 from webhook_spool s
     where (webhook_id, body_sha256) in (select * from unnest($1::text[], $2::bytea[]))
       and not (claims > 0 and due_at > now())
     order by webhook_id, body_sha256 for update skip locked";

/// In the order in which a worker stores: the first body under an id leaves its row under that id, each
/// other one under the id that a worker would give it. Then the spool rows are deleted. `$3` says which are
/// second bodies of others that are not stored yet.
const STATEMENTS: [&str; 3] = [
    "insert into events (webhook_id, event_type, body_sha256, received_at, attempted_at, raw,
                         erased_at)
     select s.webhook_id, 'erased', s.body_sha256, s.received_at, s.attempted_at, '', now()
       from webhook_spool s
       join unnest($1::text[], $2::bytea[], $3::bool[]) as key (webhook_id, body_sha256, is_second)
         on s.webhook_id = key.webhook_id and s.body_sha256 = key.body_sha256
      where not is_second
      order by s.webhook_id, s.received_at, s.body_sha256
     on conflict (webhook_id) do nothing",
    "insert into events (webhook_id, event_type, body_sha256, received_at, attempted_at, raw,
                         erased_at)
     select s.webhook_id || '#conflict-' || left(encode(s.body_sha256, 'hex'), 16) as id, 'erased',
            s.body_sha256, s.received_at, s.attempted_at, '', now()
       from webhook_spool s
       join unnest($1::text[], $2::bytea[], $3::bool[]) as key (webhook_id, body_sha256, is_second)
         on s.webhook_id = key.webhook_id and s.body_sha256 = key.body_sha256
      where is_second or exists (select from events e
                                  where e.webhook_id = s.webhook_id
                                    and e.body_sha256 <> s.body_sha256)
      order by id
     on conflict (webhook_id) do nothing",
    "delete from webhook_spool s
      using unnest($1::text[], $2::bytea[], $3::bool[]) as key (webhook_id, body_sha256, is_second)
      where s.webhook_id = key.webhook_id and s.body_sha256 = key.body_sha256",
];

/// Erases these before they are stored. If a worker has claimed one of them, it finds the id taken, and
/// stores nothing.
pub(super) async fn erase(
    connection: &mut Connection,
    rows: &[Key],
    run: &Run,
) -> anyhow::Result<()> {
    for some in rows.chunks(BATCH) {
        let erased = connection.change(&CHANGING, async |connection| {
            Ok(erase_some(connection, some, run).await?)
        });
        erased.await?;
    }
    Ok(())
}

async fn erase_some(
    connection: &mut PgConnection,
    some: &[Key],
    run: &Run,
) -> Result<(), sqlx::Error> {
    let preceded = select(connection, PRECEDED, some.iter()).await?;
    let kept = select(connection, KEEP, preceded.iter()).await?;
    let erased: Vec<&Key> = (some.iter())
        .filter(|key| !preceded.contains(key) || kept.contains(key))
        .collect();
    let (ids, hashes) = columns(erased.iter().copied());
    let are_second: Vec<bool> = erased.iter().map(|key| kept.contains(key)).collect();
    for statement in STATEMENTS {
        sqlx::query(statement)
            .bind(&ids)
            .bind(&hashes)
            .bind(&are_second)
            .execute(&mut *connection)
            .await?;
    }
    let changes = erased.iter().map(|key| {
        let webhook_id = &key.webhook_id;
        json!({"table": "webhook_spool", "webhook_id": webhook_id, "after": null})
    });
    run.record(connection, changes.collect()).await
}

/// The rows that a statement selects.
async fn select<'k>(
    connection: &mut PgConnection,
    statement: &'static str,
    keys: impl Iterator<Item = &'k Key>,
) -> Result<HashSet<Key>, sqlx::Error> {
    let (ids, hashes) = columns(keys);
    let query = sqlx::query_as(statement).bind(ids).bind(hashes);
    let found: Vec<(String, Vec<u8>)> = query.fetch_all(connection).await?;
    let key = |(webhook_id, body_sha256)| Key {
        webhook_id,
        body_sha256,
    };
    Ok(found.into_iter().map(key).collect())
}

fn columns<'k>(keys: impl Iterator<Item = &'k Key>) -> (Vec<&'k str>, Vec<&'k [u8]>) {
    keys.map(|key| (&*key.webhook_id, &*key.body_sha256))
        .unzip()
}
