//! `hookctl secrets distrust`

use std::process::Output;

use chrono::TimeDelta;
use serde_json::{Value, json};
use shared::AcceptedEvent;
use sqlx::PgPool;

use crate::place::{
    RECEIVED_AT, event, forge, hookctl, is, job_at, json as dead_letters, lines, nameless,
    read_spool, spool, sql, store_events, text, until, vendor_at,
};

/// Beginning and end of the time in which the secret was somebody else's.
const RANGE: [&str; 4] = [
    "--since",
    "2025-06-15T15:06:40Z",
    "--until",
    "2025-06-15T16:06:40Z",
];

/// Signed with the stolen secret, in that time.
fn forged(event: AcceptedEvent) -> AcceptedEvent {
    AcceptedEvent {
        secret_name: Some("stolen".to_owned()),
        ..event
    }
}

async fn distrust(pool: &PgPool, flags: &[&str], code: i32) -> Output {
    let secret = ["secrets", "distrust", "--secret", "stolen"];
    let output = hookctl(pool, &[&secret[..], flags].concat())
        .output()
        .await
        .expect("it runs");
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    output
}

/// The report, as JSON.
async fn report(pool: &PgPool, flags: &[&str], code: i32) -> Value {
    let flags = [&RANGE[..], &["--json"], flags].concat();
    lines(&distrust(pool, &flags, code).await).swap_remove(0)
}

/// Fails unless the rows are what the healthy events say.
async fn assert_rows_follow_from_events(pool: &PgPool) {
    let output = hookctl(pool, &["rebuild", "--json"]).output().await;
    for table in lines(&output.expect("it runs")) {
        let found = [
            "missing",
            "older",
            "wrong",
            "event_not_healthy",
            "problems",
            "rows_without_event",
        ]
        .map(|field| table[field].as_i64().expect("a number"));
        assert_eq!(found, [0; 6], "{table}");
    }
}

/// Five true events, seven forged ones, one of a later time, and a forged one in the spool.
async fn fill(pool: &PgPool) {
    let later = AcceptedEvent {
        received_at: RECEIVED_AT + TimeDelta::hours(2),
        ..forged(vendor_at("after", "v3", "after", 9))
    };
    store_events(
        pool,
        [
            vendor_at("m1", "v1", "true", 1),
            vendor_at("m2", "v1", "newer", 2),
            forged(vendor_at("f1", "v1", "forged", 5)),
            forged(vendor_at("f2", "v1", "forged before", 4)),
            forged(vendor_at("f3", "v2", "forged", 5)),
            forged(vendor_at("f4", "v4", "forged and outdated", 1)),
            vendor_at("m4", "v4", "true", 2),
            job_at("m5", "j1", 1),
            forged(job_at("f5", "j1", 2)),
            forged(event("f6", r#"{"eventType":"v1.card.created","data":{}}"#)),
            forged(nameless("f7")),
            later,
        ],
    )
    .await;
    spool(pool, &forged(vendor_at("f8", "v5", "spooled", 1)), 0, 0).await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn without_yes_it_is_only_shown_how_much_there_is(pool: PgPool) {
    fill(&pool).await;
    let shown = report(&pool, &[], 0).await;
    let vendors = &shown["types"][0];
    assert_eq!(vendors["event_type"], "v1.vendor.created");
    assert_eq!(
        ["events", "healthy", "dead_letters", "resources"].map(|field| &vendors[field]),
        [&json!(5), &json!(4), &json!(1), &json!(4)]
    );
    assert_eq!(
        shown["rows"],
        json!([{"table": "export_jobs", "rows": 1}, {"table": "vendors", "rows": 2}])
    );
    assert_eq!(
        (&shown["spooled"], &shown["done"]),
        (&json!(1), &Value::Null)
    );
    let page = text(&distrust(&pool, &RANGE, 0).await);
    for expected in [
        "1 event(s) of this secret are in the spool",
        "2 row(s) of vendors",
        "--yes",
    ] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }
    assert!(is(&pool, "select count(*) = 1 from dead_letters").await);
    assert!(is(&pool, "select not exists (select from operator_actions)").await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_a_stolen_secret_signed_is_taken_back(pool: PgPool) {
    fill(&pool).await;
    let done = report(&pool, &["--yes"], 3).await;
    assert_eq!(
        done["done"],
        json!({"distrusted": 7, "recomputed": 2, "removed": 1})
    );
    assert!(
        is(
            &pool,
            "select array_agg(id || ' ' || name order by id) = array['v1 newer', 'v3 after', 'v4 true']
               from vendors"
        )
        .await
    );
    assert!(
        is(
            &pool,
            "select array_agg(webhook_id) = array['m5'] from export_jobs"
        )
        .await
    );
    assert_rows_follow_from_events(&pool).await;
    let letters = dead_letters(&pool, &["list", "--problem", "distrusted"], 0).await;
    assert_eq!(letters.len(), 7);
    assert!(letters.iter().all(|letter| letter["kind"] == "distrusted"));
    assert!(
        is(
            &pool,
            "select problem like '%stolen; before that: `data`%' from events where webhook_id = 'f7'"
        )
        .await
    );
    assert!(
        is(
            &pool,
            "select count(distinct run) = 1 and sum(changed) = 10
                and bool_and(action = 'secrets distrust') from operator_actions"
        )
        .await,
        "seven events and three rows"
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_later_run_takes_back_what_was_in_the_spool_and_nothing_twice(pool: PgPool) {
    fill(&pool).await;
    report(&pool, &["--yes"], 3).await;
    read_spool(&pool).await;
    assert!(is(&pool, "select exists (select from vendors where id = 'v5')").await);
    let done = report(&pool, &["--yes"], 0).await;
    assert_eq!(
        done["done"],
        json!({"distrusted": 1, "recomputed": 0, "removed": 1})
    );
    let done = report(&pool, &["--yes"], 0).await;
    assert_eq!(done["done"]["distrusted"], 0);
    assert_rows_follow_from_events(&pool).await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_row_of_an_event_that_was_distrusted_before_is_taken_back(pool: PgPool) {
    store_events(
        &pool,
        [
            vendor_at("m1", "v1", "true", 1),
            forged(vendor_at("f1", "v1", "forged", 5)),
            forged(vendor_at("f2", "v2", "forged", 5)),
        ],
    )
    .await;
    sql(&pool, "create table kept as select * from vendors").await;
    report(&pool, &["--yes"], 0).await;
    // As somebody's copy of the table was put back.
    sql(
        &pool,
        "delete from vendors; insert into vendors select * from kept",
    )
    .await;
    let shown = report(&pool, &[], 0).await;
    assert_eq!(shown["rows"][1], json!({"table": "vendors", "rows": 2}));
    let done = report(&pool, &["--yes"], 0).await;
    assert_eq!(
        done["done"],
        json!({"distrusted": 0, "recomputed": 1, "removed": 1})
    );
    assert!(is(&pool, "select array_agg(name) = array['true'] from vendors").await);
    assert_rows_follow_from_events(&pool).await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_leaves_distrusted_events_out_unless_told_so(pool: PgPool) {
    store_events(
        &pool,
        [
            forged(vendor_at("f1", "v1", "forged", 1)),
            forged(nameless("f2")),
        ],
    )
    .await;
    report(&pool, &["--yes"], 0).await;
    let replayed = dead_letters(&pool, &["replay", "--yes"], 3).await;
    assert!(replayed.iter().all(|event| event["outcome"] == "withheld"));
    assert!(is(&pool, "select not exists (select from vendors)").await);
    let told = ["replay", "--yes", "--id", "f1", "--include-withheld"];
    let replayed = dead_letters(&pool, &told, 0).await;
    assert_eq!(replayed[0]["outcome"], "newest");
    assert_rows_follow_from_events(&pool).await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_row_of_another_table_than_its_event_is_of_is_taken_back(pool: PgPool) {
    store_events(&pool, [job_at("m1", "j1", 1)]).await;
    let newer = job_at("f1", "j1", 2);
    forge(&pool, &newer, "v1.vendor.created", None).await;
    forge(&pool, &job_at("f2", "j2", 1), "v1.card.created", None).await;
    // As versions wrote them that went by the body alone.
    sql(
        &pool,
        "insert into export_jobs (id, company_id, status, sort_key, webhook_id)
              values ('j2', 'c1', 'forged', '\\xff', 'f2');
         update export_jobs set webhook_id = 'f1', status = 'forged', sort_key = '\\xff',
                                stored_at = now()
          where id = 'j1'",
    )
    .await;
    let done = report(&pool, &["--yes"], 0).await;
    assert_eq!(
        done["done"],
        json!({"distrusted": 2, "recomputed": 1, "removed": 1})
    );
    assert!(
        is(
            &pool,
            "select array_agg(webhook_id || status) = array['m1pending'] from export_jobs"
        )
        .await
    );
    assert_rows_follow_from_events(&pool).await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_was_healthy_is_what_it_was_when_it_is_replayed(pool: PgPool) {
    // Of a doubled key the stored JSON has only the last value, and the columns have none.
    let doubled = r#"{"data":{"id":"r1","companyId":"c1","companyId":"c2"},
                      "eventType":"v1.receipt.created","eventId":"e1"}"#;
    store_events(&pool, [forged(event("f1", doubled))]).await;
    let columns = "select company_id is null and resource_id is null and event_id = 'e1'
                      and event_type = 'v1.receipt.created' and raw is null
                      and payload->'data'->>'companyId' = 'c2' from events";
    assert!(is(&pool, columns).await);
    report(&pool, &["--yes"], 0).await;
    let told = ["replay", "--yes", "--id", "f1", "--include-withheld"];
    let replayed = dead_letters(&pool, &told, 0).await;
    assert_eq!(replayed[0]["outcome"], "untyped");
    assert!(is(&pool, columns).await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn one_that_was_broken_off_leaves_no_row_of_a_distrusted_event(pool: PgPool) {
    let events = (0..600).flat_map(|i| {
        let vendor = format!("v{i:03}");
        [
            vendor_at(&format!("m{i:03}"), &vendor, "true", 1),
            forged(vendor_at(&format!("f{i:03}"), &vendor, "forged", 2)),
        ]
    });
    store_events(&pool, events).await;
    sql(
        &pool,
        "create function refuse() returns trigger language plpgsql as
             $$ begin raise exception 'not this one'; end $$;
         create trigger refuse before update on events
             for each row when (old.webhook_id = 'f450') execute function refuse()",
    )
    .await;
    let shown = text(&distrust(&pool, &[&RANGE[..], &["--yes"]].concat(), 1).await);
    assert!(shown.contains("not this one"), "{shown}");
    assert!(
        is(
            &pool,
            "select count(*) filter (where e.problem is not null) = 0
                and count(*) filter (where name = 'true') between 1 and 599
               from vendors v join events e on e.webhook_id = v.webhook_id"
        )
        .await
    );
    assert_rows_follow_from_events(&pool).await;
    sql(&pool, "drop trigger refuse on events").await;
    report(&pool, &["--yes"], 0).await;
    assert!(
        is(
            &pool,
            "select count(*) = 600 and bool_and(name = 'true') from vendors"
        )
        .await
    );
    assert!(is(&pool, "select sum(changed) = 1200 from operator_actions").await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_state_that_is_stored_after_the_look_is_not_overlooked(pool: PgPool) {
    store_events(
        &pool,
        [
            vendor_at("m1", "v1", "oldest", 1),
            forged(vendor_at("f1", "v1", "forged", 5)),
        ],
    )
    .await;
    let mut holding = pool.begin().await.expect("a transaction");
    sqlx::query("select from events where webhook_id = 'f1' for update")
        .execute(&mut *holding)
        .await
        .expect("a lock");
    let meanwhile = async {
        until(
            &pool,
            "select exists (select from pg_stat_activity
                             where datname = current_database() and application_name = 'hookctl'
                               and wait_event_type = 'Lock')",
        )
        .await;
        store_events(
            &pool,
            [vendor_at("m2", "v1", "older than the forged one", 3)],
        )
        .await;
        holding.rollback().await.expect("a rollback");
    };
    tokio::join!(meanwhile, report(&pool, &["--yes"], 0));
    assert!(is(&pool, "select webhook_id = 'm2' from vendors").await);
    assert_rows_follow_from_events(&pool).await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn workers_store_newer_and_older_states_meanwhile(pool: PgPool) {
    const VENDORS: usize = 300;
    let state = |kind: &str, name: &str, minute: u8| -> Vec<AcceptedEvent> {
        (0..VENDORS)
            .map(|i| vendor_at(&format!("{kind}{i}"), &format!("v{i}"), name, minute))
            .collect()
    };
    store_events(&pool, state("true", "true", 1)).await;
    store_events(&pool, state("forged", "forged", 5).into_iter().map(forged)).await;
    // Older than the forged ones for some, newer for others, and more forged ones from the queue.
    let meanwhile: Vec<_> = state("older", "older", 3)
        .into_iter()
        .zip(state("newer", "newer", 7))
        .zip(state("late", "late", 9).into_iter().map(forged))
        .enumerate()
        .flat_map(|(i, ((older, newer), late))| match i % 3 {
            0 => vec![older],
            1 => vec![late, older],
            _ => vec![newer],
        })
        .collect();
    let storing = async {
        for some in meanwhile.chunks(7) {
            store_events(&pool, some.to_vec()).await;
        }
    };
    tokio::join!(storing, report(&pool, &["--yes"], 0));
    // Whose rows were locked for long was put off.
    read_spool(&pool).await;
    report(&pool, &["--yes"], 0).await;
    assert!(
        is(
            &pool,
            "select count(*) = 300 and count(*) filter (where name = 'older') = 200
                and count(*) filter (where name = 'newer') = 100 from vendors"
        )
        .await
    );
    assert_rows_follow_from_events(&pool).await;
}

/// How many commands wait for a lock.
const WAITING: &str = "select count(*) from pg_stat_activity
                        where datname = current_database() and application_name = 'hookctl'
                          and wait_event_type = 'Lock'";

/// The state is read when the row is computed, and is to be erased before that is committed.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_state_that_is_erased_meanwhile_does_not_come_back(pool: PgPool) {
    store_events(
        &pool,
        [
            vendor_at("m1", "v1", "Jane Doe", 1),
            forged(vendor_at("f1", "v1", "forged", 5)),
        ],
    )
    .await;
    sql(
        &pool,
        "create function wait() returns trigger language plpgsql as
             $$ begin perform pg_advisory_xact_lock(1); return new; end $$;
         create trigger wait before update on vendors for each row execute function wait()",
    )
    .await;
    let mut holding = pool.begin().await.expect("a transaction");
    sqlx::query("select pg_advisory_xact_lock(1)")
        .execute(&mut *holding)
        .await
        .expect("a lock");
    let erasing = ["erase", "--event=m1", "--yes"];
    let meanwhile = async {
        until(&pool, &format!("select ({WAITING}) = 1")).await;
        let releasing = async {
            let settled = format!(
                "select ({WAITING}) + (select count(*) from events where erased_at is not null) = 2"
            );
            until(&pool, &settled).await;
            holding.rollback().await.expect("a rollback");
        };
        let mut erase = hookctl(&pool, &erasing);
        tokio::join!(erase.output(), releasing).0
    };
    let (_, erased) = tokio::join!(report(&pool, &["--yes"], 0), meanwhile);
    let mut erased = erased.expect("hookctl runs");
    if erased.status.code() == Some(3) {
        // The row came meanwhile.
        erased = hookctl(&pool, &erasing).output().await.expect("it runs");
    }
    assert_eq!(erased.status.code(), Some(0), "{}", text(&erased));
    assert!(is(&pool, "select not exists (select from vendors)").await);
}

/// A vendor of the company `c2`, and else as [`vendor_at`].
fn of_c2(id: &str, vendor: &str, minute: u8) -> AcceptedEvent {
    let body = vendor_at(id, vendor, "Other", minute).body;
    let body = String::from_utf8(body.to_vec()).expect("text");
    event(
        id,
        body.replace(r#""companyId":"c1""#, r#""companyId":"c2""#),
    )
}

/// Both vendors were the company `c1`'s until their rows were erased. `v1` has a healthy event of `c2`
/// besides the forged one, and `v2` has none.
async fn fill_two_companies(pool: &PgPool) {
    for vendor in ["v1", "v2"] {
        let id = |name: &str| format!("{name} of {vendor}");
        store_events(pool, [vendor_at(&id("a1"), vendor, "Own", 7)]).await;
        store_events(pool, [vendor_at(&id("a2"), vendor, "Own", 8)]).await;
        let erasing = format!("--event={}", id("a2"));
        let erased = hookctl(pool, &["erase", &erasing, "--yes"]).output().await;
        assert_eq!(erased.expect("it runs").status.code(), Some(0));
    }
    store_events(pool, [of_c2("b1", "v1", 1)]).await;
    for vendor in ["v1", "v2"] {
        store_events(pool, [forged(of_c2(&format!("f of {vendor}"), vendor, 2))]).await;
    }
}

const KEPT_COMPANIES: &str =
    "select array_agg(id || ' ' || company_id || ' ' || webhook_id order by id)
                                = array['v1 c2 b1', 'v2 c1 a1 of v2'] from vendors";

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_row_keeps_its_company_if_a_healthy_event_of_that_is_left(pool: PgPool) {
    fill_two_companies(&pool).await;
    let done = report(&pool, &["--yes"], 0).await;
    assert_eq!(
        done["done"],
        json!({"distrusted": 2, "recomputed": 2, "removed": 0})
    );
    assert!(is(&pool, KEPT_COMPANIES).await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_rebuild_computes_rows_of_distrusted_events_as_distrust_does(pool: PgPool) {
    fill_two_companies(&pool).await;
    sql(
        &pool,
        "update events set problem = 'distrusted: stolen' where secret_name = 'stolen'",
    )
    .await;
    // The other company's older event of v1 is named.
    let output = hookctl(&pool, &["rebuild", "--yes"]).output().await;
    let output = output.expect("it runs");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("a1 of v1"), "{}", text(&output));
    assert!(is(&pool, KEPT_COMPANIES).await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_time_that_the_tables_cannot_hold_is_a_wrong_setting(pool: PgPool) {
    for since in [
        "-4800-01-01T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "+10000-01-01T00:00:00Z",
        "+262142-01-01T00:00:00Z",
        "yesterday",
    ] {
        let output = distrust(&pool, &[&format!("--since={since}")], 2).await;
        assert!(text(&output).contains("--since"), "{}", text(&output));
        let until = format!("--until={since}");
        distrust(&pool, &["--since=2025-01-01T00:00:00Z", &until], 2).await;
    }
    let all = [
        "--since=1970-01-01T00:00:00Z",
        "--until=9999-12-31T23:59:59Z",
    ];
    distrust(&pool, &all, 0).await;
}
