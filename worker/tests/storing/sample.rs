//! Sample events, and helpers of the tests.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{TimeZone, Utc};
use prometheus::TextEncoder;
use shared::{
    AcceptedEvent, EventType, Family, Program,
    database::Pool,
    envelope::Envelope,
    message::{Receipt, body_sha256},
    metrics::ServiceMetrics,
};
use sqlx::PgPool;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use worker::{
    metrics::Metrics,
    persistence::Persistence,
    problem,
    spool_reader::SpoolReader,
    work::{Source, Work},
};

/// The limit for every wait.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// An event with any body.
pub(crate) fn event(id: &str, body: impl Into<Vec<u8>>) -> AcceptedEvent {
    let body = body.into();
    AcceptedEvent {
        webhook_id: id.to_owned(),
        event_type: Envelope::parse(&body).map_or_else(|_| EventType::unknown(), |e| e.event_type),
        body_sha256: body_sha256(&body),
        body: body.into(),
        received_at: Utc.timestamp_opt(1_750_000_000, 0).unwrap(),
        attempted_at: Utc.timestamp_opt(1_749_999_999, 0).single(),
        secret_name: Some("current".to_owned()),
        secret_companies: None,
    }
}

/// A vendor event's body.
pub(crate) fn vendor_body(vendor: &str, name: &str, state: &str, updated_at: &str) -> String {
    format!(
        r#"{{"eventType":"v1.vendor.created","eventId":"e","data":{{"id":"{vendor}","companyId":"c1",
            "name":"{name}","state":"{state}","updatedAt":"{updated_at}"}}}}"#
    )
}

/// A vendor event, one vendor for each id.
pub(crate) fn vendor(id: &str) -> AcceptedEvent {
    event(
        id,
        vendor_body(id, "Acme", "DRAFT", "2025-02-21T10:05:43.530450712Z"),
    )
}

/// An export job event's body.
pub(crate) fn export_job_body(job: &str, status: &str, last_updated_at: &str) -> String {
    format!(
        r#"{{"eventType":"v1.export-job.created","data":{{"id":"{job}","companyId":"c1",
            "status":"{status}","numberOfItems":3,"lastUpdatedAt":"{last_updated_at}"}}}}"#
    )
}

/// The event as it comes from a queue.
pub(crate) fn work(event: AcceptedEvent) -> Work {
    Work {
        problem: problem::known_of(&event),
        event,
        receipt: Receipt::Recorded,
        attempts: 0,
        source: Source::Queue,
    }
}

/// A persistence for a family.
pub(crate) fn persistence(pool: &(impl Clone + Into<Pool>), family: Family) -> Arc<Persistence> {
    Arc::new(Persistence::new(pool.clone(), family, Metrics::new(family)))
}

/// Stores a batch, each event by its family's worker. It must not be abandoned.
pub(crate) async fn persist(pool: &PgPool, batch: impl IntoIterator<Item = AcceptedEvent>) {
    let mut by_family: BTreeMap<Family, Vec<Work>> = BTreeMap::new();
    for event in batch {
        let family = event.event_type.family();
        by_family.entry(family).or_default().push(work(event));
    }
    for (family, batch) in by_family {
        persistence(pool, family)
            .persist(batch, &CancellationToken::new())
            .await
            .expect("not abandoned");
    }
}

/// Reads the spool until stopped.
pub(crate) fn start_spool_reader(
    pool: &(impl Clone + Into<Pool>),
    family: Family,
) -> CancellationToken {
    let reader = SpoolReader {
        pool: pool.clone().into(),
        persistence: persistence(pool, family),
        family,
        batch_size: 100,
    };
    let stop = CancellationToken::new();
    tokio::spawn(reader.run(stop.clone(), stop.clone()));
    stop
}

/// A number from the database.
pub(crate) async fn count(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql)
        .fetch_one(pool)
        .await
        .expect("a count")
}

/// Waits until a query gives the expected number.
pub(crate) async fn until_count(pool: &PgPool, sql: &'static str, expected: i64) {
    let deadline = Instant::now() + 3 * SOON;
    loop {
        let found = count(pool, sql).await;
        if found == expected {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "still {found}, not {expected}: {sql}"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

/// Runs SQL statements.
pub(crate) async fn sql(pool: &PgPool, statements: &'static str) {
    sqlx::raw_sql(statements)
        .execute(pool)
        .await
        .expect("good SQL");
}

/// Metrics of a worker.
pub(crate) fn metrics() -> ServiceMetrics {
    ServiceMetrics::new(Program::Worker(Family::Other))
}

/// What a scrape of these metrics gets.
pub(crate) fn exposed(metrics: &ServiceMetrics) -> String {
    TextEncoder::new()
        .encode_to_string(&metrics.registry.gather())
        .expect("text")
}
