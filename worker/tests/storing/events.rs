//! The contents of the tables after a batch.

use shared::{
    Family,
    message::{Receipt, body_sha256},
};
use sqlx::{PgPool, Row};
use tokio_util::sync::CancellationToken;
use worker::problem::Kind;

use crate::{
    sample::{
        count, event, export_job_body, persist, persistence, sql, start_spool_reader, until_count,
        vendor, vendor_body, work,
    },
    spool::spool_events,
};

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_documented_vendor_event_fills_every_column(pool: PgPool) {
    let body = r#"{"data":{"id":"c27ed4d6","companyId":"c0","name":"Pleo Technologies GmbH",
        "country":"DE","registrationNumber":"","taxRegistrationNumber":"DE36538686","code":null,
        "state":"DRAFT","defaultCurrency":"EUR","createdBy":"22aff90a",
        "createdAt":"2025-02-21T10:05:43.530450712Z","updatedAt":"2025-02-21T10:05:43.530450712Z",
        "deletedAt":null},"eventType":"v1.vendor.created","eventId":"13d8550d"}"#;
    persist(&pool, [event("msg_1", body)]).await;
    let row = sqlx::query(
        "select e.event_id, e.event_type, e.company_id, e.resource_id, e.secret_name, e.attempts,
                e.payload->'data'->>'createdAt', v.registration_number, v.code,
                to_char(v.created_at at time zone 'utc', 'SS.US'), v.state, v.default_currency
           from events e join vendors v on v.webhook_id = e.webhook_id and v.id = e.resource_id
          where e.webhook_id = 'msg_1' and e.problem is null and e.raw is null",
    )
    .fetch_one(&pool)
    .await
    .expect("the event and its vendor");
    let text = |i: usize| row.get::<Option<String>, _>(i);
    assert_eq!(text(0).as_deref(), Some("13d8550d"));
    assert_eq!(text(1).as_deref(), Some("v1.vendor.created"));
    assert_eq!(text(2).as_deref(), Some("c0"));
    assert_eq!(text(3).as_deref(), Some("c27ed4d6"));
    assert_eq!(text(4).as_deref(), Some("current"));
    assert_eq!(row.get::<i32, _>(5), 1);
    assert_eq!(text(6).as_deref(), Some("2025-02-21T10:05:43.530450712Z"));
    assert_eq!(text(7).as_deref(), Some(""), "empty is not null");
    assert_eq!(text(8), None);
    assert_eq!(text(9).as_deref(), Some("43.530450"), "microseconds");
    assert_eq!(text(10).as_deref(), Some("DRAFT"));
    assert_eq!(text(11).as_deref(), Some("EUR"));
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn repetitions_change_nothing(pool: PgPool) {
    let batch = || ["m1", "m2", "m1", "m3", "m2"].map(vendor);
    persist(&pool, batch()).await;
    persist(&pool, batch()).await;
    assert_eq!(count(&pool, "select count(*) from events").await, 3);
    assert_eq!(count(&pool, "select count(*) from vendors").await, 3);
    assert_eq!(count(&pool, "select count(*) from dead_letters").await, 0);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn whatever_is_signed_can_be_stored(pool: PgPool) {
    let deep = format!(
        r#"{{"eventType":"v1.x.y","data":{}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let bodies: [&[u8]; 9] = [
        b"",
        b"\x00\xff",
        b"not json",
        br#"{"eventType":"v1.x.y","note":"\u0000"}"#,
        br#"{"eventType":"v1.x.y","note":"\ud800"}"#,
        br#"{"eventType":"v1.x.y","n":1e999}"#,
        br#"{"eventType":"v1.x.y","n":1e-99999}"#,
        deep.as_bytes(),
        br#"{"payload":{"eventType":"v1.vendor.created","data":{"id":"v","companyId":"c","name":"n","state":"DRAFT"}}}"#,
    ];
    let events = bodies
        .iter()
        .enumerate()
        .map(|(i, body)| event(&format!("m{i}"), *body));
    persist(&pool, events).await;
    for (i, body) in bodies.iter().enumerate() {
        let row =
            sqlx::query("select payload is null, raw, problem from events where webhook_id = $1")
                .bind(format!("m{i}"))
                .fetch_one(&pool)
                .await
                .expect("a row");
        if row.get::<bool, _>(0) {
            assert_eq!(row.get::<Vec<u8>, _>(1), *body);
        }
        let has_problem = row.get::<Option<String>, _>(2).is_some();
        assert_eq!(has_problem, i < 3, "body {i}");
    }
    assert_eq!(
        count(&pool, "select count(*) from vendors").await,
        1,
        "unwrapped"
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_second_body_under_one_id_is_kept_apart(pool: PgPool) {
    let first = vendor("m1");
    let second = event(
        "m1",
        export_job_body("j1", "pending", "2025-01-01T00:00:00Z"),
    );
    for event in [&first, &second, &second, &first] {
        persist(&pool, [event.clone()]).await;
    }
    // As ingest publishes it if it knows that the id is taken.
    persist(&pool, [second.into_conflict()]).await;
    assert_eq!(count(&pool, "select count(*) from events").await, 2);
    assert_eq!(
        count(
            &pool,
            "select count(*) from dead_letters where webhook_id like 'm1#conflict-%'"
        )
        .await,
        1
    );
}

/// With a worker's account, the id of another family's event can be taken only by an event of its
/// own family.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_id_that_another_family_has_taken_costs_no_event(pool: PgPool) {
    let job = event(
        "m1",
        export_job_body("j1", "pending", "2025-01-01T00:00:00Z"),
    );
    for id in [job.webhook_id.clone(), job.conflict_id(&job.webhook_id)] {
        sqlx::query(
            "insert into events (webhook_id, event_type, received_at, payload, body_sha256)
             values ($1, 'v1.vendor.created', now(), '{}', $2)",
        )
        .bind(id)
        .bind(&job.body_sha256[..])
        .execute(&pool)
        .await
        .expect("a forged event");
    }
    for _ in 0..2 {
        persist(&pool, [job.clone()]).await;
        assert_eq!(
            count(
                &pool,
                "select count(*) from dead_letters
                  where event_type = 'v1.export-job.created' and sha256(raw) = (
                        select distinct body_sha256 from events)",
            )
            .await,
            1
        );
    }
}

/// A sender chooses its ids, so one may look like the id of a conflict.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_second_body_is_kept_also_where_its_own_id_is_taken(pool: PgPool) {
    let bodies = ["1", "2", "3"].map(|body| event("m1", body));
    let taken = bodies[1].clone().into_conflict().webhook_id;
    persist(&pool, [event(&taken, "4")]).await;
    persist(&pool, bodies.clone()).await;
    let stored = "select count(distinct body_sha256) from events";
    assert_eq!(count(&pool, stored).await, 4);
    let events = count(&pool, "select count(*) from events").await;
    persist(&pool, bodies).await;
    assert_eq!(count(&pool, "select count(*) from events").await, events);
    persist(&pool, [event("m2", "5").into_conflict()]).await;
    assert_eq!(count(&pool, stored).await, 5);
}

/// The second body may arrive before the first one, and the first one may never arrive.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_second_body_takes_nothing_from_the_first_one(pool: PgPool) {
    let second = vendor("m1").into_conflict();
    spool_events(&pool, &[vendor("m2").into_conflict()], 0).await;
    persist(&pool, [second]).await;
    let reader = start_spool_reader(&pool, Family::Vendor);
    until_count(
        &pool,
        "select count(*) from dead_letters
          where webhook_id like 'm_#conflict-%' and payload is not null and company_id is not null",
        2,
    )
    .await;
    reader.cancel();
    assert_eq!(count(&pool, "select count(*) from vendors").await, 0);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_dead_letter_keeps_what_was_sent_to_the_byte(pool: PgPool) {
    let doubled = r#"{ "eventType":"v1.vendor.created", "data":{"id":"a","id":"b"} }"#;
    persist(&pool, [event("m1", doubled), vendor("m2")]).await;
    let raw: Option<Vec<u8>> =
        sqlx::query_scalar("select raw from dead_letters where payload->'data'->>'id' = 'b'")
            .fetch_one(&pool)
            .await
            .expect("the dead letter");
    assert_eq!(raw.as_deref(), Some(doubled.as_bytes()));
    assert_eq!(
        count(&pool, "select count(*) from events where raw is null").await,
        1
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_was_accepted_without_a_receipt_gets_one(pool: PgPool) {
    let mut missing = work(vendor("m1"));
    missing.receipt = Receipt::Missing;
    persistence(&pool, Family::Vendor)
        .persist(vec![missing, work(vendor("m2"))], &CancellationToken::new())
        .await
        .expect("not abandoned");
    assert_eq!(
        count(
            &pool,
            "select count(*) from webhook_receipts where webhook_id = 'm1' and published_at is not null"
        )
        .await,
        1
    );
    assert_eq!(
        count(&pool, "select count(*) from webhook_receipts").await,
        1
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn every_table_and_view_is_documented(pool: PgPool) {
    let undocumented: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c
          where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v')
            and c.relname not like '\\_sqlx%' and obj_description(c.oid) is null",
    )
    .fetch_all(&pool)
    .await
    .expect("a query");
    assert!(undocumented.is_empty(), "{undocumented:?}");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn every_commit_waits_for_the_disk_whatever_the_servers_default_is(pool: PgPool) {
    // A deferred trigger sees the settings of the commit.
    sql(
        &pool,
        "create table commits (durability text);
         create function note() returns trigger language plpgsql as
           $$ begin insert into commits values (current_setting('synchronous_commit')); return null; end $$;
         create constraint trigger note after insert on events
           deferrable initially deferred for each row execute function note();
         create constraint trigger note after insert on webhook_spool
           deferrable initially deferred for each row execute function note();
         alter table vendors add constraint no_poison check (id <> 'poison')",
    )
    .await;
    let options = (*pool.connect_options()).clone();
    let relaxed = PgPool::connect_with(options.options([("synchronous_commit", "off")]))
        .await
        .expect("a pool");
    // One event is stored, one is deferred and one is isolated.
    persist(&relaxed, ["m1", "poison"].map(vendor)).await;
    persistence(&relaxed, Family::Vendor)
        .isolate(&[work(vendor("suspect"))], &CancellationToken::new())
        .await
        .expect("not abandoned");
    let commits: Vec<String> = sqlx::query_scalar("select durability from commits")
        .fetch_all(&pool)
        .await
        .expect("rows");
    assert_eq!(commits, ["on"; 3]);
    relaxed.close().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_second_body_under_one_id_changes_no_typed_table(pool: PgPool) {
    persist(&pool, [vendor("m1")]).await;
    let newer = vendor_body("m1", "Other", "ACTIVE", "2030-01-01T00:00:00Z");
    let job = export_job_body("j1", "pending", "2025-01-01T00:00:00Z");
    persist(&pool, [event("m1", newer), event("m1", job)]).await;
    assert_eq!(count(&pool, "select count(*) from dead_letters").await, 2);
    assert_eq!(
        count(
            &pool,
            "select (select count(*) from vendors where name = 'Acme')
                  + 10 * (select count(*) from export_jobs)"
        )
        .await,
        1
    );
}

/// Postgres can never store any of these as it is, so retries would be useless.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_postgres_can_never_hold_is_a_dead_letter_at_once(pool: PgPool) {
    // Without repetition, so that Postgres cannot compress it.
    let long: String = (0..188)
        .map(|i| hex::encode(body_sha256(&[i])))
        .collect::<String>()
        .split_off(32);
    assert_eq!(long.len(), 12_000);
    let job = |at: &str| export_job_body("j1", "pending", at);
    let vendor = |id: &str, at: &str| vendor_body(id, "Acme", "DRAFT", at);
    let good = "2025-02-21T10:05:43Z";
    let refused = [
        (vendor("v1", "+300000-01-01T00:00:00Z"), "`data.updatedAt`"),
        (vendor("v1", "-005000-01-01T00:00:00Z"), "`data.updatedAt`"),
        (vendor("v1", "+262142-12-31T23:59:59Z"), "`data.updatedAt`"),
        (job("-262143-01-01T00:00:00Z"), "`data.lastUpdatedAt`"),
        (vendor(&long, good), "`data.id`"),
        (export_job_body(&long, "pending", good), "`data.id`"),
    ];
    let stored = [
        vendor("v2", "-004000-01-01T00:00:00Z"),
        vendor(&long[..2_600], good),
        export_job_body(&long[..2_600], "pending", good),
    ];
    let bodies = refused.iter().map(|(body, _)| body).chain(&stored);
    let events = bodies
        .enumerate()
        .map(|(i, body)| event(&format!("m{i}"), body.as_str()));
    persist(&pool, events).await;
    assert_eq!(
        count(&pool, "select count(*) from webhook_spool").await,
        0,
        "none is tried again"
    );
    for (i, (_, field)) in refused.iter().enumerate() {
        let (problem, kind): (String, String) =
            sqlx::query_as("select problem, problem_kind from dead_letters where webhook_id = $1")
                .bind(format!("m{i}"))
                .fetch_one(&pool)
                .await
                .expect("a dead letter");
        assert!(problem.contains(field), "{problem}");
        assert_eq!(kind, Kind::WrongData.name(), "{problem}");
        assert!(!problem.contains(&long[..100]), "{problem}");
    }
    assert_eq!(
        count(
            &pool,
            "select (select count(*) from vendors) + (select count(*) from export_jobs)"
        )
        .await,
        3
    );
}
