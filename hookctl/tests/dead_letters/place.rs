//! Dead letters as a worker leaves them, and hookctl beside it.

use std::{collections::BTreeMap, process::Output, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::Value;
use shared::{
    AcceptedEvent, EventType, Family,
    envelope::Envelope,
    message::{Delivered, Receipt, body_sha256},
    spool::{self, SpoolEntry},
};
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use worker::{
    metrics::Metrics,
    persistence::Persistence,
    spool_reader::SpoolReader,
    work::{Source, Work},
};

/// How long anything may take that is waited for.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Time of receipt of every event.
pub(crate) const RECEIVED_AT: DateTime<Utc> =
    DateTime::from_timestamp(1_750_000_000, 0).expect("a time");

pub(crate) fn event(id: &str, body: impl Into<Vec<u8>>) -> AcceptedEvent {
    let body = body.into();
    AcceptedEvent {
        webhook_id: id.to_owned(),
        event_type: Envelope::parse(&body).map_or_else(|_| EventType::unknown(), |e| e.event_type),
        body_sha256: body_sha256(&body),
        body: body.into(),
        received_at: RECEIVED_AT,
        attempted_at: DateTime::from_timestamp(1_749_999_999, 0),
        secret_name: Some("current".to_owned()),
        secret_companies: None,
    }
}

/// A vendor as it was at a minute.
pub(crate) fn vendor_at(id: &str, vendor: &str, name: &str, minute: u8) -> AcceptedEvent {
    let data = format!(
        r#"{{"id":"{vendor}","companyId":"c1","name":"{name}","state":"DRAFT",
            "updatedAt":"2025-02-21T10:{minute:02}:00Z"}}"#
    );
    event(
        id,
        format!(r#"{{"eventType":"v1.vendor.created","eventId":"e","data":{data}}}"#),
    )
}

/// A vendor event, one vendor for each id.
pub(crate) fn vendor(id: &str) -> AcceptedEvent {
    vendor_at(id, id, "Acme", 1)
}

/// A vendor event whose vendor has no name.
pub(crate) fn nameless(id: &str) -> AcceptedEvent {
    event(
        id,
        format!(
            r#"{{"eventType":"v1.vendor.created","data":{{"id":"{id}","companyId":"c2","state":"DRAFT"}}}}"#
        ),
    )
}

pub(crate) fn work(event: AcceptedEvent) -> Work {
    Work {
        event,
        receipt: Receipt::Recorded,
        attempts: 0,
        problem: None,
        source: Source::Queue,
    }
}

/// An export job as it was at a minute.
pub(crate) fn job_at(id: &str, job: &str, minute: u8) -> AcceptedEvent {
    let data = format!(
        r#"{{"id":"{job}","companyId":"c1","status":"pending","createdAt":"2025-02-21T10:{minute:02}:00Z"}}"#
    );
    event(
        id,
        format!(r#"{{"eventType":"v1.export-job.created","data":{data}}}"#),
    )
}

/// Adds a row as a worker's account can: with any text in any column that no policy is about. A healthy
/// one has its body as JSON, any other one as bytes.
pub(crate) async fn forge(
    pool: &PgPool,
    event: &AcceptedEvent,
    event_type: &str,
    problem: Option<&str>,
) {
    sqlx::query(
        "insert into events (webhook_id, event_type, company_id, resource_id, received_at, payload, raw,
                             body_sha256, secret_name, problem, problem_kind)
         select $1, $2, b.body->'data'->>'companyId', b.body->'data'->>'id', $3,
                case when $4 is null then b.body end,
                case when $4 is not null then $5 end, sha256($5), 'stolen', $4,
                case when $4 is not null then 'wrong-data' end
           from (select convert_from($5, 'utf8')::jsonb as body) as b",
    )
    .bind(&event.webhook_id)
    .bind(event_type)
    .bind(event.received_at)
    .bind(problem)
    .bind(&event.body[..])
    .execute(pool)
    .await
    .expect("a row");
}

fn persistence(pool: &PgPool, family: Family) -> Arc<Persistence> {
    Arc::new(Persistence::new(pool.clone(), family, Metrics::new(family)))
}

/// Lets their families' workers store these.
pub(crate) async fn store(pool: &PgPool, works: impl IntoIterator<Item = Work>) {
    let mut by_family: BTreeMap<Family, Vec<Work>> = BTreeMap::new();
    for work in works {
        let family = work.event.event_type.family();
        by_family.entry(family).or_default().push(work);
    }
    for (family, works) in by_family {
        persistence(pool, family)
            .persist(works, &CancellationToken::new())
            .await
            .expect("not given up");
    }
}

/// Lets a worker store these.
pub(crate) async fn store_events(pool: &PgPool, events: impl IntoIterator<Item = AcceptedEvent>) {
    store(pool, events.into_iter().map(work)).await;
}

/// A message that ingest did not publish.
pub(crate) fn foreign(body: &str) -> Work {
    Delivered::from_message(
        &lapin::BasicProperties::default(),
        false,
        body.as_bytes().to_vec(),
        RECEIVED_AT,
    )
    .remove(0)
    .into()
}

/// Lets a worker give the event up: as left behind by two workers that died with its batch and three
/// that died with it alone.
pub(crate) async fn stop_worker(pool: &PgPool, event: &AcceptedEvent) {
    spool(pool, event, 0, 5).await;
    read_spool(pool).await;
}

/// Lets a worker give the event up that Postgres refuses, with five attempts spent.
pub(crate) async fn refuse(pool: &PgPool, event: &AcceptedEvent) {
    spool(pool, event, 5, 0).await;
    read_spool(pool).await;
}

pub(crate) async fn spool(pool: &PgPool, event: &AcceptedEvent, attempts: i32, claims: i32) {
    let entry = SpoolEntry {
        event,
        family: event.event_type.family(),
        receipt: Receipt::Recorded,
        attempts,
        claims,
        delay: Duration::ZERO,
        reason: "a test",
    };
    let mut connection = pool.acquire().await.expect("a connection");
    spool::insert(&mut connection, &[entry])
        .await
        .expect("an insert");
}

/// Runs a reader until the spool is empty.
pub(crate) async fn read_spool(pool: &PgPool) {
    let stop = CancellationToken::new();
    let readers: Vec<_> = Family::ALL
        .map(|family| {
            let reader = SpoolReader {
                pool: pool.clone().into(),
                persistence: persistence(pool, family),
                family,
                batch_size: 100,
            };
            tokio::spawn(reader.run(stop.clone(), stop.clone()))
        })
        .into();
    until(pool, "select not exists (select from webhook_spool)").await;
    stop.cancel();
    for reader in readers {
        reader.await.expect("no panic");
    }
}

/// Waits until a query is true.
pub(crate) async fn until(pool: &PgPool, sql: &str) {
    let deadline = Instant::now() + SOON;
    while !is(pool, sql).await {
        assert!(Instant::now() < deadline, "still not: {sql}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a query is true.
pub(crate) async fn is(pool: &PgPool, sql: &str) -> bool {
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(pool)
        .await
        .expect("a truth")
}

/// Runs statements as Postgres' owner.
pub(crate) async fn sql(pool: &PgPool, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements))
        .execute(pool)
        .await
        .expect("good SQL");
}

/// hookctl, with the test's database and nothing else in its environment.
pub(crate) fn hookctl(pool: &PgPool, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookctl"));
    command
        .env_clear()
        .env(
            "DATABASE_URL",
            pool.connect_options().to_url_lossy().as_str(),
        )
        .args(arguments)
        .kill_on_drop(true);
    command
}

/// Runs `hookctl dead-letters …`, which must end with this code.
pub(crate) async fn run(pool: &PgPool, arguments: &[&str], code: i32) -> Output {
    let arguments = [&["dead-letters"], arguments].concat();
    let output = hookctl(pool, &arguments)
        .output()
        .await
        .expect("hookctl runs");
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {}",
        text(&output)
    );
    output
}

/// The lines of JSON that a command prints.
pub(crate) async fn json(pool: &PgPool, arguments: &[&str], code: i32) -> Vec<Value> {
    let output = run(pool, &[arguments, &["--json"]].concat(), code).await;
    lines(&output)
}

pub(crate) fn lines(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

/// One field of each object, sorted.
pub(crate) fn sorted(rows: &[Value], field: &str) -> Vec<String> {
    let mut values: Vec<_> = rows
        .iter()
        .map(|row| row[field].as_str().unwrap_or("no text").to_owned())
        .collect();
    values.sort();
    values
}

/// Everything that was printed.
pub(crate) fn text(output: &Output) -> String {
    let bytes = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The role for the people on call that the documentation describes, and connections as it.
pub(crate) async fn documented_role(pool: &PgPool) -> (String, PgPool) {
    let documentation = include_str!("../../../docs/dead-letters.md");
    let (_, grants) = documentation.split_once("```sql\n").expect("the grants");
    let (grants, _) = grants.split_once("```").expect("their end");
    let role = format!("test_{:016x}", rand::random::<u64>());
    let grants = grants.replace("oncall", &role);
    sql(
        pool,
        &format!("{grants}; alter role {role} password 'test'"),
    )
    .await;
    let options = sqlx::postgres::PgConnectOptions::clone(&pool.connect_options());
    let theirs = PgPool::connect_with(options.username(&role).password("test"))
        .await
        .expect("it logs in");
    (role, theirs)
}
