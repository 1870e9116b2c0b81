//! `hookctl rebuild`

use std::{process::Stdio, time::Duration};

use serde_json::Value;
use shared::AcceptedEvent;
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use crate::place::{
    SOON, documented_role, event, hookctl, is, lines, read_spool, sql, store_events, text, until,
    vendor_at,
};

/// Several states of each vendor and one job for each, so that a batch of a rebuild holds only some
/// of a vendor's events.
const VENDORS: u32 = 400;
const STATES: u8 = 4;

fn job(id: &str, job: &str) -> AcceptedEvent {
    let data = format!(
        r#"{{"id":"{job}","companyId":"c1","status":"pending","numberOfItems":2,
            "createdAt":"2025-02-21T10:00:00.123456789Z"}}"#
    );
    event(
        id,
        format!(r#"{{"eventType":"v1.export-job.created","data":{data}}}"#),
    )
}

/// Events in an order that has nothing to do with their ids or times.
fn events() -> Vec<AcceptedEvent> {
    let mut events = Vec::new();
    for number in 0..VENDORS {
        for state in 0..STATES {
            // The newest state has the least id for some vendors and the greatest for others.
            let place = (u32::from(state) * 7 + number) % 10;
            let id = format!("msg_{place}_{number}_{state}");
            let name = format!("name {state}");
            events.push(vendor_at(&id, &format!("v{number}"), &name, state));
        }
        events.push(job(&format!("msg_job_{number}"), &format!("j{number}")));
    }
    events.sort_by_key(|event| event.body_sha256);
    events
}

/// All rows of both tables, to the last column.
async fn rows(pool: &PgPool) -> Vec<Value> {
    sqlx::query_scalar(
        "select to_jsonb(t) from export_jobs t union all
         select to_jsonb(t) from vendors t order by 1",
    )
    .fetch_all(pool)
    .await
    .expect("the rows")
}

async fn rebuild(pool: &PgPool, flags: &[&str], code: i32) -> Vec<Value> {
    let output = hookctl(pool, &[&["rebuild", "--json"], flags].concat())
        .output()
        .await
        .expect("hookctl runs");
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    lines(&output)
}

/// Missing, older and wrong rows that a rebuild found in a table.
fn found(report: &[Value], table: &str) -> [u64; 3] {
    let line = report.iter().find(|line| line["table"] == table);
    let line = line.expect("a line for each table");
    ["missing", "older", "wrong"].map(|field| line[field].as_u64().expect("a number"))
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn wiped_tables_are_computed_as_the_workers_wrote_them(pool: PgPool) {
    for some in events().chunks(97) {
        store_events(&pool, some.to_vec()).await;
    }
    let written = rows(&pool).await;
    assert_eq!(written.len(), 2 * VENDORS as usize);
    let report = rebuild(&pool, &[], 0).await;
    assert_eq!(found(&report, "vendors"), [0, 0, 0]);

    sql(&pool, "truncate export_jobs, vendors").await;
    let report = rebuild(&pool, &[], 3).await;
    assert_eq!(found(&report, "vendors"), [VENDORS.into(), 0, 0]);
    assert!(rows(&pool).await.is_empty(), "a trial changes nothing");

    let report = rebuild(&pool, &["--yes"], 0).await;
    assert_eq!(found(&report, "export_jobs"), [VENDORS.into(), 0, 0]);
    assert_eq!(found(&report, "vendors"), [VENDORS.into(), 0, 0]);
    assert_eq!(rows(&pool).await, written);
    rebuild(&pool, &[], 0).await;
}

/// Its event is healthy, and another vendor's.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_copy_of_a_row_under_another_id_is_removed_or_replaced(pool: PgPool) {
    store_events(&pool, events()).await;
    let written = rows(&pool).await;
    sql(
        &pool,
        r#"insert into vendors
           select copy.* from vendors v,
                  jsonb_populate_record(v, '{"id": "copy"}') as copy where v.id = 'v1';
           delete from vendors where id = 'v2';
           insert into vendors
           select copy.* from vendors v,
                  jsonb_populate_record(v, '{"id": "v2"}') as copy where v.id = 'v3'"#,
    )
    .await;
    rebuild(&pool, &[], 3).await;
    let report = rebuild(&pool, &["--yes"], 0).await;
    let line = report.iter().find(|line| line["table"] == "vendors");
    assert_eq!(line.expect("a line")["event_not_healthy"], 2, "{report:?}");
    assert_eq!(rows(&pool).await, written);
    rebuild(&pool, &[], 0).await;
}

/// The row is newer than the event, so it was set by the one that had this id before and was swept.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_under_the_id_of_a_swept_one_does_not_correct_its_row(pool: PgPool) {
    store_events(&pool, [vendor_at("m", "v", "new", 5)]).await;
    let written = rows(&pool).await;
    sql(&pool, "delete from events").await;
    store_events(&pool, [vendor_at("m", "v", "old", 1)]).await;
    sql(
        &pool,
        "update events set stored_at = now() + interval '1 minute'",
    )
    .await;
    assert_eq!(rows(&pool).await, written);
    rebuild(&pool, &["--yes"], 0).await;
    assert_eq!(rows(&pool).await, written);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn damaged_rows_are_mended_and_no_other_is_touched(pool: PgPool) {
    store_events(&pool, events()).await;
    let written = rows(&pool).await;
    sql(
        &pool,
        "update vendors set name = 'damaged' where id in ('v1', 'v2');
         -- Newer than every state that there is, and of an event that is read after the newest one.
         update vendors set sort_key = '\\xffffffffffffffff', webhook_id = 'msg_9_9_0',
                            name = 'name 0'
          where id = 'v9';
         update vendors set sort_key = '\\xffffffffffffffff' where id = 'v4';
         update vendors set sort_key = '\\x00', webhook_id = 'msg_5_5_0' where id = 'v5';
         update export_jobs set number_of_items = 99 where id = 'j6';
         delete from export_jobs where id = 'j7'",
    )
    .await;
    let before = places(&pool).await;

    let report = rebuild(&pool, &["--yes"], 0).await;
    let [missing, older, wrong] = found(&report, "vendors");
    assert_eq!((missing, older + wrong), (0, 5), "{report:?}");
    assert_eq!(found(&report, "export_jobs"), [1, 0, 1]);
    assert_eq!(rows(&pool).await, written);
    assert_eq!(places(&pool).await, before, "what is right is not written");
}

/// Where the rows are that nothing is wrong with; a row that is written gets a new place.
async fn places(pool: &PgPool) -> String {
    sqlx::query_scalar(
        "select string_agg(ctid::text, ' ' order by id) from vendors
          where id not in ('v1', 'v2', 'v4', 'v5', 'v9')",
    )
    .fetch_one(pool)
    .await
    .expect("places")
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_row_whose_event_was_swept_stays(pool: PgPool) {
    store_events(
        &pool,
        [
            vendor_at("msg_1", "v1", "old", 1),
            vendor_at("msg_2", "v1", "new", 2),
            vendor_at("msg_3", "v2", "other", 1),
        ],
    )
    .await;
    let written = rows(&pool).await;
    sql(
        &pool,
        "delete from events where webhook_id in ('msg_2', 'msg_3')",
    )
    .await;
    let report = rebuild(&pool, &["--yes"], 0).await;
    assert_eq!(found(&report, "vendors"), [0, 0, 0]);
    assert_eq!(report[1]["rows_without_event"], 2, "{report:?}");
    assert_eq!(rows(&pool).await, written);
}

/// How many commands wait for a lock.
const WAITING: &str = "select count(*) from pg_stat_activity
     where datname = current_database() and application_name = 'hookctl'
       and wait_event_type = 'Lock'";

/// A vendor that stays, one whose event is distrusted, and one whose event is erased. The rows of the
/// latter two are missing.
async fn store_three_vendors(pool: &PgPool) {
    let stolen = AcceptedEvent {
        secret_name: Some("stolen".to_owned()),
        ..vendor_at("f1", "v1", "forged", 1)
    };
    store_events(
        pool,
        [
            vendor_at("m0", "v0", "true", 1),
            stolen,
            vendor_at("e1", "v2", "erased", 1),
        ],
    )
    .await;
    sql(pool, "delete from vendors where id in ('v1', 'v2')").await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_that_is_taken_back_after_it_was_read_sets_no_row(pool: PgPool) {
    store_three_vendors(&pool).await;
    let mut holding = pool.begin().await.expect("a transaction");
    sqlx::raw_sql(
        "update events set problem = 'distrusted: stolen' where webhook_id = 'f1';
         update events set event_type = 'erased', payload = null, raw = '', erased_at = now()
          where webhook_id = 'e1';
         select from vendors where id = 'v0' for update",
    )
    .execute(&mut *holding)
    .await
    .expect("locks");
    let committing = async {
        until(&pool, &format!("select ({WAITING}) = 1")).await;
        holding.commit().await.expect("a commit");
    };
    let (report, ()) = tokio::join!(rebuild(&pool, &["--yes", "--family=vendor"], 0), committing);
    assert_eq!(found(&report, "vendors"), [0, 0, 0]);
    assert!(is(&pool, "select array_agg(id) = array['v0'] from vendors").await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_is_distrusted_or_erased_beside_a_rebuild_leaves_no_row(pool: PgPool) {
    store_three_vendors(&pool).await;
    let mut holding = pool.begin().await.expect("a transaction");
    sqlx::query("select from vendors where id = 'v0' for update")
        .execute(&mut *holding)
        .await
        .expect("a lock");
    let erasing = ["erase", "--event=e1", "--yes"];
    let taking_back = async {
        until(&pool, &format!("select ({WAITING}) = 1")).await;
        let since = "--since=2025-01-01T00:00:00Z";
        let distrusting = ["secrets", "distrust", "--secret=stolen", since, "--yes"];
        let releasing = async {
            // Each of them waits for the rebuild, or has done its part already.
            let settled = format!(
                "select ({WAITING}) + (select count(*) from events
                                        where problem is not null or erased_at is not null) = 3"
            );
            until(&pool, &settled).await;
            holding.rollback().await.expect("a rollback");
        };
        let (mut distrust, mut erase) = (hookctl(&pool, &distrusting), hookctl(&pool, &erasing));
        tokio::join!(distrust.output(), erase.output(), releasing)
    };
    let (_, (distrusted, erased, ())) = tokio::join!(
        rebuild(&pool, &["--yes", "--family=vendor"], 0),
        taking_back
    );
    let distrusted = distrusted.expect("hookctl runs");
    assert_eq!(distrusted.status.code(), Some(0), "{}", text(&distrusted));
    let mut erased = erased.expect("hookctl runs");
    if erased.status.code() == Some(3) {
        // A row came meanwhile.
        erased = hookctl(&pool, &erasing).output().await.expect("it runs");
    }
    assert_eq!(erased.status.code(), Some(0), "{}", text(&erased));
    assert!(is(&pool, "select array_agg(id) = array['v0'] from vendors").await);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_row_whose_event_is_not_healthy_any_more_is_computed_again_or_removed(pool: PgPool) {
    store_events(
        &pool,
        [
            vendor_at("a1", "v1", "true", 1),
            vendor_at("f1", "v1", "forged", 5),
            vendor_at("f2", "v2", "forged", 5),
            vendor_at("e1", "v3", "erased", 1),
            vendor_at("s1", "v4", "swept", 1),
        ],
    )
    .await;
    sql(
        &pool,
        "update events set problem = 'distrusted: stolen' where webhook_id in ('f1', 'f2');
         update events set event_type = 'erased', payload = null, raw = '', erased_at = now()
          where webhook_id = 'e1';
         delete from events where webhook_id = 's1'",
    )
    .await;
    let before = rows(&pool).await;
    let not_healthy = |report: &[Value]| {
        let line = report.iter().find(|line| line["table"] == "vendors");
        ["event_not_healthy", "rows_without_event"]
            .map(|field| line.expect("a line")[field].clone())
    };
    let report = rebuild(&pool, &[], 3).await;
    assert_eq!(not_healthy(&report), [3, 1]);
    assert_eq!(rows(&pool).await, before, "a trial changes nothing");

    // The event that says what v1 should be is before the one after which it begins.
    let report = rebuild(&pool, &["--yes", "--family=vendor", "--after=b"], 0).await;
    assert_eq!(not_healthy(&report), [3, 1]);
    let rest = "select array_agg(id || ' ' || name order by id) = array['v1 true', 'v4 swept']
                  from vendors";
    assert!(is(&pool, rest).await, "{:?}", rows(&pool).await);
    assert!(
        is(
            &pool,
            "select sum(changed) = 3 from operator_actions where action = 'rebuild'"
        )
        .await,
        "two were removed and one was computed again"
    );
    let report = rebuild(&pool, &[], 0).await;
    assert_eq!(not_healthy(&report), [0, 1]);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_that_has_a_problem_today_is_named(pool: PgPool) {
    store_events(&pool, [vendor_at("msg_1", "v1", "Acme", 1)]).await;
    sql(
        &pool,
        "update events set payload = payload #- '{data,name}'; delete from vendors",
    )
    .await;
    let output = hookctl(&pool, &["rebuild", "--yes"])
        .output()
        .await
        .expect("hookctl runs");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let shown = text(&output);
    assert!(shown.contains("msg_1") && shown.contains("name"), "{shown}");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn workers_go_on_beside_two_rebuilds_and_the_newest_state_wins(pool: PgPool) {
    let events = events();
    let (first, second) = events.split_at(events.len() / 2);
    store_events(&pool, first.to_vec()).await;
    sql(
        &pool,
        "delete from vendors where id < 'v2'; delete from export_jobs",
    )
    .await;
    let storing = async {
        for some in second.chunks(20) {
            store_events(&pool, some.to_vec()).await;
        }
    };
    tokio::join!(
        storing,
        rebuild(&pool, &["--yes"], 0),
        rebuild(&pool, &["--yes"], 0)
    );
    // An event whose row a rebuild has locked for long is put off.
    read_spool(&pool).await;
    let report = rebuild(&pool, &[], 0).await;
    assert_eq!(found(&report, "vendors"), [0, 0, 0]);
    assert!(
        is(
            &pool,
            "select count(*) = 400 and count(*) filter (where name = 'name 3') = 400 from vendors"
        )
        .await
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_rebuild_that_was_stopped_says_how_to_go_on(pool: PgPool) {
    store_events(&pool, events()).await;
    let written = rows(&pool).await;
    sql(&pool, "truncate export_jobs, vendors").await;
    let slow = ["rebuild", "--yes", "--family=vendor", "--rate=40"];
    let child = hookctl(&pool, &slow)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("hookctl runs");
    let deadline = Instant::now() + SOON;
    while is(&pool, "select not exists (select from vendors)").await {
        assert!(Instant::now() < deadline, "it never writes a row");
        sleep(Duration::from_millis(20)).await;
    }
    let pid = child.id().expect("it runs");
    let status = tokio::process::Command::new("kill")
        .arg(pid.to_string())
        .status();
    assert!(status.await.expect("kill runs").success());
    let output = child.wait_with_output().await.expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let shown = text(&output);
    let (_, after) = shown.split_once("--after '").expect("how to go on");
    let (after, _) = after.split_once('\'').expect("an id");
    let done: i64 = sqlx::query_scalar("select count(*) from vendors")
        .fetch_one(&pool)
        .await
        .expect("a count");
    assert!((1..i64::from(VENDORS)).contains(&done), "{done}");

    rebuild(&pool, &["--yes", "--family=vendor", "--after", after], 0).await;
    rebuild(&pool, &["--yes"], 0).await;
    assert_eq!(rows(&pool).await, written);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_rebuild_that_fails_calls_nothing_right(pool: PgPool) {
    store_events(
        &pool,
        [job("msg_1", "j1"), vendor_at("msg_2", "v1", "n", 1)],
    )
    .await;
    // As `hookctl setup` leaves the database.
    sql(
        &pool,
        "do $$ begin execute format('revoke temporary on database %I from public', current_database());
         end $$",
    )
    .await;
    let (role, theirs) = documented_role(&pool).await;
    for flags in [&["rebuild", "--yes"][..], &["rebuild"]] {
        let output = hookctl(&theirs, flags).output().await.expect("it runs");
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(1), "{shown}");
        assert!(shown.contains("temporary tables"), "{shown}");
        assert!(shown.contains("export_jobs: not finished"), "{shown}");
        assert!(!shown.contains("what their events say"), "{shown}");
    }
    let flags = ["rebuild", "--yes", "--json"];
    let output = hookctl(&theirs, &flags).output().await.expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(lines(&output)[0]["finished"], false);
    theirs.close().await;
    sql(&pool, &format!("drop owned by {role}; drop role {role}")).await;
}
