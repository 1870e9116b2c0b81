//! Every query of `docs/queries.md` runs, and returns rows.

use chrono::{TimeDelta, Utc};
use hookctl::{
    delivery::{self, Outcome},
    sample::{self, EXPORT_JOB, VENDOR},
};
use ingest::secrets::DEVELOPMENT_SECRET;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::time::{Instant, sleep};

use crate::pipeline::{Pipeline, SOON};

const DOCUMENT: &str = include_str!("../../../docs/queries.md");

/// Rows that cannot be made by sending events: traces of outages.
const TRACES: &str = "
    insert into events (webhook_id, event_type, received_at, raw, body_sha256, problem,
                        problem_kind)
    values ('msg_1#conflict-0123456789abcdef', 'v1.vendor.created', now(), '{}', '',
            'another body was accepted under this webhook id before', 'conflict');
    insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
    values ('msg_in_rabbitmq', '', now(), now());
    update events set attempts = 2 where event_type = 'v1.card.created';
    update webhook_receipts r set published_at = e.stored_at
      from events e where e.webhook_id = r.webhook_id and e.event_type = 'v1.card.created';
    insert into webhook_spool (webhook_id, body_sha256, family, event_type, body, received_at,
                               has_receipt, attempts, due_at, last_error)
    values ('msg_spooled', '', 'vendor', 'v1.vendor.created', '{}', now(), false, 1,
            now() + interval '1 hour', 'value out of range');
    insert into operator_actions (run, action, filter, changed, changes)
    values (gen_random_uuid(), 'dead-letters restore', '{\"ids\": [\"msg_1\"]}', 1,
            '[{\"webhook_id\": \"msg_1\", \"before\": {\"dismissed_by\": \"owner\"}, \"after\": {}}]')";

fn job(id: &str, fields: &str) -> String {
    format!(
        r#"{{"eventType":"v1.export-job.created","data":{{"id":"{id}","companyId":"c-1","numberOfItems":3,{fields}}}}}"#
    )
}

/// The company of the sample vendor. A row never changes its company.
const COMPANY: &str = "00000000-0000-0000-0000-000000000000";

fn vendor(id: &str, name: &str, updated_at: &str) -> String {
    format!(
        r#"{{"eventType":"v1.vendor.created","data":{{"id":"{id}","companyId":"{COMPANY}","name":"{name}","state":"DRAFT","country":"DE","createdAt":"2025-02-21T10:05:43Z","updatedAt":"{updated_at}"}}}}"#
    )
}

fn events() -> Vec<String> {
    let ago = |minutes| {
        let time = Utc::now() - TimeDelta::minutes(minutes);
        time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
    };
    let (created, started, ended) = (ago(200), ago(190), ago(180));
    vec![
        // The same event of Pleo's under two webhook ids.
        EXPORT_JOB.body.to_owned(),
        EXPORT_JOB.body.to_owned(),
        job(
            "j-1",
            &format!(
                r#""status":"pending","createdAt":"{}","expiresIn":3600"#,
                ago(30)
            ),
        ),
        job(
            "j-2",
            &format!(r#""status":"in_progress","createdAt":"{created}","startedAt":"{started}""#),
        ),
        job(
            "j-3",
            &format!(
                r#""status":"failed","createdAt":"{created}","startedAt":"{started}","completedAt":"{ended}","failureReason":"no answer","failureReasonType":"service_timeout""#
            ),
        ),
        VENDOR.body.to_owned(),
        vendor(VENDOR.resource_id, "Pleo", "2025-03-01T10:00:00Z"),
        vendor("v-2", "pleo ", "2025-03-01T10:00:00Z"),
        r#"{"eventType":"v1.card.created","data":{"id":"card-1","companyId":"c-1"}}"#.to_owned(),
        // A dead letter, and one whose number `jsonb` cannot hold.
        r#"{"eventType":"v1.vendor.created","data":{}}"#.to_owned(),
        r#"{"eventType":"v1.card.created","data":{},"n":1e-99999}"#.to_owned(),
    ]
}

/// Sends the events and waits until all are stored.
async fn fill(pipeline: &Pipeline, pool: &PgPool) {
    let events = events();
    let url = pipeline.webhook_url();
    for body in &events {
        let id = sample::new_webhook_id();
        let answer = delivery::post(&url, DEVELOPMENT_SECRET, &id, body)
            .await
            .expect("a good secret and address");
        assert_eq!(answer.outcome, Outcome::Accepted, "{}", answer.detail);
    }
    let deadline = Instant::now() + SOON;
    loop {
        let stored: i64 = sqlx::query_scalar("select count(*) from events")
            .fetch_one(pool)
            .await
            .expect("a count");
        if usize::try_from(stored) == Ok(events.len()) {
            break;
        }
        assert!(Instant::now() < deadline, "only {stored} are stored");
        sleep(std::time::Duration::from_millis(100)).await;
    }
    sqlx::raw_sql(TRACES).execute(pool).await.expect("good SQL");
}

#[sqlx::test(migrations = false)]
async fn every_query_of_the_cookbook_runs_and_finds_something(pool: PgPool) {
    let pipeline = Pipeline::new(&pool).await;
    fill(&pipeline, &pool).await;
    let queries: Vec<&str> = DOCUMENT
        .split("```sql\n")
        .skip(1)
        .map(|block| block.split_once("```").expect("the end of the block").0)
        .collect();
    assert!(queries.len() >= 20, "only {}", queries.len());
    let mut faults = Vec::new();
    for query in queries {
        match sqlx::raw_sql(AssertSqlSafe(query)).fetch_all(&pool).await {
            Ok(rows) if rows.is_empty() => faults.push(format!("found nothing:\n{query}")),
            Ok(_) => {}
            Err(error) => faults.push(format!("{error}:\n{query}")),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    pipeline.clean_up().await;
}
