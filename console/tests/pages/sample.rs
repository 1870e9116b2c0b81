//! Events as workers store them.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use shared::{
    AcceptedEvent, EventType, Family,
    envelope::Envelope,
    message::{Receipt, body_sha256},
};
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::CancellationToken;
use worker::{
    metrics::Metrics,
    persistence::Persistence,
    work::{Source, Work},
};

pub(crate) fn event(id: &str, body: impl Into<Vec<u8>>) -> AcceptedEvent {
    let body = body.into();
    AcceptedEvent {
        webhook_id: id.to_owned(),
        event_type: Envelope::parse(&body).map_or_else(|_| EventType::unknown(), |e| e.event_type),
        body_sha256: body_sha256(&body),
        body: body.into(),
        received_at: Utc::now(),
        attempted_at: Some(Utc::now() - TimeDelta::milliseconds(250)),
        secret_name: Some("current".to_owned()),
        secret_companies: None,
    }
}

/// A vendor's state at a minute of its own time.
pub(crate) fn vendor(id: &str, vendor: &str, name: &str, state: &str, minute: u8) -> AcceptedEvent {
    let body = serde_json::json!({
        "eventType": "v1.vendor.created",
        "eventId": format!("e-{id}"),
        "data": {
            "id": vendor,
            "companyId": "c1",
            "name": name,
            "state": state,
            "updatedAt": format!("2025-02-21T10:{minute:02}:00Z"),
        },
    });
    event(id, body.to_string())
}

/// A vendor event without the vendor's name, which makes it a dead letter.
pub(crate) fn nameless(id: &str, company: &str) -> AcceptedEvent {
    event(
        id,
        format!(
            r#"{{"eventType":"v1.vendor.created","data":{{"id":"{id}","companyId":"{company}","state":"DRAFT"}}}}"#
        ),
    )
}

pub(crate) fn received(event: AcceptedEvent, received_at: DateTime<Utc>) -> AcceptedEvent {
    AcceptedEvent {
        received_at,
        ..event
    }
}

/// Lets each family's worker store its events among these.
pub(crate) async fn store(pool: &PgPool, events: impl IntoIterator<Item = AcceptedEvent>) {
    let events: Vec<AcceptedEvent> = events.into_iter().collect();
    for family in Family::ALL {
        let own = events.iter().filter(|e| e.event_type.family() == family);
        let works = own.map(|event| Work {
            event: event.clone(),
            receipt: Receipt::Recorded,
            attempts: 0,
            problem: None,
            source: Source::Queue,
        });
        Arc::new(Persistence::new(pool.clone(), family, Metrics::new(family)))
            .persist(works.collect(), &CancellationToken::new())
            .await
            .expect("not given up");
    }
}

/// Runs statements as Postgres' owner.
pub(crate) async fn sql(pool: &PgPool, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements))
        .execute(pool)
        .await
        .expect("good SQL");
}

/// So many events in the last day, of all families, some with problems, with receipts and rows of the
/// spool: a pipeline in use, in one statement for each table.
pub(crate) async fn fill(pool: &PgPool, events: u32) {
    sql(
        pool,
        &format!(
            "with times as (
                 select n, now() - interval '24 hours' * power(random(), 1.6) as at,
                        (array['v1.vendor.created', 'v1.vendor.updated', 'v1.export-job.created',
                               'v1.export-job.updated', 'v1.card.created'])
                            [1 + floor(power(random(), 1.4) * 5)::int] as event_type
                   from generate_series(1, {events}) n)
             insert into events (webhook_id, event_id, event_type, company_id, resource_id, attempted_at,
                                 received_at, stored_at, payload, body_sha256, secret_name)
             select 'msg_' || substr(md5(n::text), 1, 24), gen_random_uuid()::text, event_type,
                    'c-' || n % 7, 'r-' || n % 900, date_trunc('second', at), at,
                    at + interval '1 millisecond' * (3 + 30 * power(random(), 6)),
                    jsonb_build_object('eventType', event_type, 'eventId', n::text,
                        'data', jsonb_build_object('id', 'r-' || n % 900, 'companyId', 'c-' || n % 7,
                            'name', 'Vendor ' || n % 900, 'amount', 12.50)),
                    '\\x00', case when n % 9 = 0 then 'previous' else 'current' end
               from times"
        ),
    )
    .await;
}
