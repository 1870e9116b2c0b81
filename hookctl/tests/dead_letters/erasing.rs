//! `hookctl erase`

use chrono::TimeDelta;
use serde_json::Value;
use shared::AcceptedEvent;
use sqlx::PgPool;
use worker::work::{Source, Work};

use crate::place::{
    RECEIVED_AT, event, hookctl, is, lines, nameless, read_spool, run, spool, sql, store,
    store_events, text, vendor_at, work,
};

/// The vendor's name is what must not be left anywhere.
const NAME: &str = "Jane Doe";

fn vendor(id: &str, vendor: &str, minute: u8) -> AcceptedEvent {
    vendor_at(id, vendor, NAME, minute)
}

fn job(id: &str, company: &str) -> AcceptedEvent {
    let data = format!(r#"{{"id":"job of {id}","companyId":"{company}","status":"pending"}}"#);
    event(
        id,
        format!(r#"{{"eventType":"v1.export-job.created","data":{data}}}"#),
    )
}

/// Rows by table that were found.
async fn erase(pool: &PgPool, flags: &[&str], code: i32) -> Vec<(String, u64)> {
    let output = hookctl(pool, &[&["erase", "--json"], flags].concat())
        .output()
        .await
        .expect("hookctl runs");
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    let count = |line: &Value| {
        let table = line["table"].as_str().expect("a table").to_owned();
        (table, line["rows"].as_u64().expect("a number"))
    };
    lines(&output).iter().map(count).collect()
}

fn found(spooled: u64, events: u64, jobs: u64, vendors: u64) -> Vec<(String, u64)> {
    let tables = ["webhook_spool", "events", "export_jobs", "vendors"];
    let counts = [spooled, events, jobs, vendors];
    let pairs = tables.into_iter().zip(counts);
    pairs.map(|(table, n)| (table.to_owned(), n)).collect()
}

/// Everything that the tables hold.
async fn everything(pool: &PgPool) -> String {
    sqlx::query_scalar(
        "select concat(
             (select string_agg((to_jsonb(e) - 'body_sha256' - 'raw')::text
                                || coalesce(convert_from(e.raw, 'utf8'), ''), ' ' order by webhook_id)
                from events e),
             (select string_agg((to_jsonb(v) - 'sort_key')::text, ' ' order by id) from vendors v),
             (select string_agg((to_jsonb(j) - 'sort_key')::text, ' ' order by id)
                from export_jobs j),
             (select string_agg((to_jsonb(s) - 'body_sha256' - 'body')::text
                                || convert_from(s.body, 'utf8'), ' ' order by webhook_id)
                from webhook_spool s))",
    )
    .fetch_one(pool)
    .await
    .expect("text")
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn nothing_is_left_of_a_company_and_what_comes_late_is_recognised(pool: PgPool) {
    let waiting = vendor("waiting", "v3", 1);
    store_events(
        &pool,
        [
            vendor("m1", "v1", 1),
            vendor("m2", "v1", 2),
            vendor("m3", "v2", 1),
            job("j1", "c1"),
            job("j2", "c2"),
            nameless("c2's"),
            event(
                "card",
                r#"{"eventType":"v1.card.created","data":{"companyId":"c1"}}"#,
            ),
        ],
    )
    .await;
    spool(&pool, &waiting, 1, 0).await;
    // A dead letter with its bytes, and everything else that can be in a row.
    sql(
        &pool,
        &format!(
            "update events
                set raw = convert_to(payload::text || '{NAME}', 'utf8'), problem = '{NAME}',
                    replayed_problem = '{NAME}', dismissed_at = now(), dismissal_note = '{NAME}',
                    secret_name = '{NAME}', secret_companies = array['{NAME}']
              where webhook_id = 'card'"
        ),
    )
    .await;
    // What ingest has accepted.
    sql(
        &pool,
        "insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
         select webhook_id, body_sha256, now(), now() from events
         union all select webhook_id, body_sha256, now(), null from webhook_spool",
    )
    .await;
    let before = everything(&pool).await;
    let preview = erase(&pool, &["--company=c1"], 3).await;
    assert_eq!(preview, found(1, 5, 1, 2));
    assert_eq!(everything(&pool).await, before);

    erase(&pool, &["--company=c1", "--yes"], 0).await;
    let after = everything(&pool).await;
    for gone in [NAME, r#""c1""#, r#""v1""#, "job of j1"] {
        assert!(!after.contains(gone), "{gone} is in {after}");
    }
    let others = "select (select count(*) from export_jobs where company_id = 'c2') = 1
                     and (select count(*) from dead_letters where company_id = 'c2') = 1
                     and not exists (select from unstored_receipts)";
    assert!(is(&pool, others).await, "{after}");
    assert_eq!(erase(&pool, &["--company=c1"], 0).await, found(0, 0, 0, 0));
    let on_record = "select count(distinct run) = 1 and sum(changed) = 9
                            and bool_and(filter = '{\"company\": \"c1\"}')
                            and not bool_or(changes::text like '%Jane%')
                       from operator_actions where action = 'erase'";
    assert!(is(&pool, on_record).await);

    // Repetitions, and one that a worker had taken out of the spool.
    let taken = Work {
        source: Source::Spool,
        ..work(waiting)
    };
    store(
        &pool,
        [
            taken,
            work(vendor("m2", "v1", 2)),
            work(vendor("m3", "v2", 1)),
        ],
    )
    .await;
    assert_eq!(everything(&pool).await, after);
    let rebuilt = hookctl(&pool, &["rebuild", "--yes"]).output().await;
    let rebuilt = rebuilt.expect("hookctl runs");
    assert_eq!(rebuilt.status.code(), Some(0), "{}", text(&rebuilt));
    assert_eq!(everything(&pool).await, after);
    let shown = text(&run(&pool, &["show", "m1"], 0).await);
    assert!(shown.contains("erased"), "{shown}");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn one_resource_or_one_event_is_erased_alone(pool: PgPool) {
    store_events(
        &pool,
        [
            vendor("m1", "v1", 1),
            vendor("m2", "v1", 2),
            vendor("m3", "v2", 1),
        ],
    )
    .await;
    erase(&pool, &["--event=m2", "--yes"], 0).await;
    let rebuilt = hookctl(&pool, &["rebuild", "--yes"]).output().await;
    assert_eq!(rebuilt.expect("hookctl runs").status.code(), Some(0));
    let older = "select webhook_id = 'm1' from vendors where id = 'v1'";
    assert!(is(&pool, older).await);

    assert_eq!(
        erase(&pool, &["--resource=v1", "--yes"], 0).await,
        found(0, 1, 0, 1)
    );
    let rest = "select (select array_agg(id) from vendors) = array['v2']
                   and (select array_agg(webhook_id) from events where erased_at is null)
                       = array['m3']";
    assert!(is(&pool, rest).await);
    for wrong in [
        &["erase"][..],
        &["erase", "--company=c1", "--event=m1"],
        &["erase", "--company="],
    ] {
        let output = hookctl(&pool, wrong).output().await.expect("hookctl runs");
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    }
}

/// A second body under a taken id would have had a row under an id of its own.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_erased_second_body_is_recognised_as_well(pool: PgPool) {
    store_events(&pool, [job("m1", "c2")]).await;
    let second = vendor("m1", "v1", 1);
    spool(&pool, &second, 0, 0).await;
    erase(&pool, &["--company=c1", "--yes"], 0).await;
    let after = everything(&pool).await;
    assert!(!after.contains(NAME), "{after}");
    store_events(&pool, [second]).await;
    assert_eq!(everything(&pool).await, after);
}

/// Two bodies under one id are in the spool where both came while Postgres was away.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn two_bodies_that_wait_under_one_id_are_both_recognised(pool: PgPool) {
    let bodies = [1, 2, 3].map(|minute| vendor("m1", "v1", minute));
    for body in &bodies {
        spool(&pool, body, 0, 0).await;
    }
    erase(&pool, &["--company=c1", "--yes"], 0).await;
    let after = everything(&pool).await;
    assert!(!after.contains(NAME), "{after}");
    let under_their_ids = "select count(*) = 3 and count(*) filter (where webhook_id = 'm1') = 1
                              and bool_and(webhook_id in ('m1', 'm1#conflict-'
                                               || left(encode(body_sha256, 'hex'), 16)))
                              and bool_and(erased_at is not null)
                             from events";
    assert!(is(&pool, under_their_ids).await, "{after}");
    for body in bodies {
        store_events(&pool, [body]).await;
    }
    assert_eq!(everything(&pool).await, after);
    assert_eq!(erase(&pool, &["--company=c1"], 0).await, found(0, 0, 0, 0));
}

/// Another company's event came first under the id, so it is stored under that.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_erased_second_body_takes_no_id_from_a_first_one_that_waits(pool: PgPool) {
    let second = AcceptedEvent {
        received_at: RECEIVED_AT + TimeDelta::seconds(1),
        ..vendor("m1", "v1", 1)
    };
    let first = job("m1", "c2");
    spool(&pool, &second, 0, 0).await;
    spool(&pool, &first, 0, 0).await;
    sql(
        &pool,
        "update webhook_spool set due_at = now() + interval '1 hour'",
    )
    .await;
    erase(&pool, &["--company=c1", "--yes"], 0).await;
    let after = everything(&pool).await;
    assert!(!after.contains(NAME), "{after}");
    sql(&pool, "update webhook_spool set due_at = now()").await;
    read_spool(&pool).await;
    let is_healthy = "select count(*) = 1 from export_jobs j
                        join events e using (webhook_id) where webhook_id = 'm1' and problem is null";
    assert!(is(&pool, is_healthy).await, "{}", everything(&pool).await);
    store_events(&pool, [second]).await;
    assert!(
        is(
            &pool,
            "select count(*) = 2 and not exists (select from dead_letters) from events"
        )
        .await
    );
}

/// Its row under the id of a second body would not stop the worker, which takes the first id.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_second_body_that_a_worker_has_taken_before_the_first_one_is_left(pool: PgPool) {
    let second = AcceptedEvent {
        received_at: RECEIVED_AT + TimeDelta::seconds(1),
        ..vendor("m1", "v1", 1)
    };
    spool(&pool, &job("m1", "c2"), 0, 0).await;
    spool(&pool, &second, 0, 1).await;
    sql(
        &pool,
        "update webhook_spool set due_at = now() + interval '1 minute'",
    )
    .await;
    erase(&pool, &["--company=c1", "--yes"], 3).await;
    assert!(is(&pool, "select count(*) = 2 from webhook_spool").await);
    // The worker is gone.
    sql(&pool, "update webhook_spool set due_at = now()").await;
    erase(&pool, &["--company=c1", "--yes"], 0).await;
    assert!(
        is(
            &pool,
            "select array_agg(family) = array['export-job'] from webhook_spool"
        )
        .await
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn it_does_not_say_that_nothing_is_left_where_rows_were_not_read(pool: PgPool) {
    store_events(&pool, [vendor("m1", "v1", 1)]).await;
    spool(&pool, &vendor("stops", "v2", 1), 0, 5).await;
    erase(&pool, &["--company=c1", "--yes"], 3).await;
    for flags in [&["--company=c1"][..], &["--company=c1", "--yes"]] {
        assert_eq!(erase(&pool, flags, 3).await, found(0, 0, 0, 0));
    }
    assert_eq!(
        erase(&pool, &["--event=stops", "--yes"], 0).await,
        found(1, 0, 0, 0)
    );
    erase(&pool, &["--company=c1"], 0).await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_is_erased_with_the_second_bodies_under_its_id(pool: PgPool) {
    for minute in [1, 2] {
        store_events(&pool, [vendor("m1", "v1", minute)]).await;
        spool(&pool, &vendor("m1", "v1", 4 + minute), 0, 0).await;
    }
    // As ingest spools a second body when it knows the first one.
    spool(&pool, &vendor("m1", "v1", 9).into_conflict(), 0, 0).await;
    // Neither is a second body of the event.
    store_events(
        &pool,
        [vendor("m1#conflict", "v2", 1), vendor("m12", "v3", 1)],
    )
    .await;
    assert_eq!(
        erase(&pool, &["--event=m1", "--yes"], 0).await,
        found(3, 2, 0, 1)
    );
    let rest = "select count(*) = 7 and count(*) filter (where erased_at is null) = 2
                       and not exists (select from webhook_spool)
                       and (select array_agg(id order by id) from vendors) = array['v2', 'v3']
                  from events";
    assert!(is(&pool, rest).await, "{}", everything(&pool).await);
}

/// What is stored while a company is erased is found by the next run, at the latest.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn beside_workers_another_run_finds_the_rest(pool: PgPool) {
    let storing = async {
        for number in 0..200 {
            let id = format!("m{number}");
            store_events(&pool, [vendor(&id, &format!("v{}", number % 10), 1)]).await;
        }
    };
    let erasing = async {
        for _ in 0..5 {
            let output = hookctl(&pool, &["erase", "--company=c1", "--yes"]).output();
            let output = output.await.expect("hookctl runs");
            assert!(
                matches!(output.status.code(), Some(0 | 3)),
                "{}",
                text(&output)
            );
        }
    };
    tokio::join!(storing, erasing);
    read_spool(&pool).await;
    erase(&pool, &["--company=c1", "--yes"], 0).await;
    let rest = everything(&pool).await;
    assert!(!rest.contains(NAME) && !rest.contains(r#""c1""#), "{rest}");
    assert!(is(&pool, "select count(*) = 200 from events").await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_only_the_body_says_of_a_dead_letter_is_found(pool: PgPool) {
    let untyped = r#"{"data":{"companyId":"c9","id":"r9"},"eventId":"e"}"#;
    store_events(&pool, [event("m1", untyped), event("m2", untyped)]).await;
    let counts = erase(&pool, &["--resource", "r9"], 3).await;
    assert_eq!(counts, found(0, 2, 0, 0));
    let counts = erase(&pool, &["--company", "c9", "--yes"], 0).await;
    assert_eq!(counts, found(0, 2, 0, 0));
    assert!(is(&pool, "select bool_and(payload is null) from events").await);
}
