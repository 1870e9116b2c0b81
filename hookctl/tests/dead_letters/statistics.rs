//! Statements that take some rows take no more of them, whatever the planner believes.

use sqlx::PgPool;

use crate::place::{hookctl, sql, text};

/// More dead letters than any batch has.
const LETTERS: &str = r#"
    insert into events (webhook_id, event_type, company_id, resource_id, received_at, raw,
                        body_sha256, secret_name, problem, problem_kind)
    select 'm' || n, 'v1.vendor.created', 'c1', 'v' || n, now(), body, sha256(body), 'stolen', 'a test',
           'refused'
      from generate_series(1, 1200) n
     cross join lateral convert_to(
               format('{"eventType":"v1.vendor.created","data":{"id":"v%s","companyId":"c1",
                        "name":"n","state":"DRAFT"}}', n), 'utf8') as body"#;

/// What notes how many rows a statement took.
const NOTES: &str = "
    create table taken (size bigint);
    create function note() returns trigger language plpgsql as
      $$ begin insert into taken select count(*) from taking; return null; end $$;
    create trigger note_update after update on events referencing new table as taking
       for each statement execute function note();
    create trigger note_insert after insert on vendors referencing new table as taking
       for each statement execute function note();
    create trigger note_update after update on vendors referencing new table as taking
       for each statement execute function note();
    create trigger note_delete after delete on vendors referencing old table as taking
       for each statement execute function note()";

/// What stock autovacuum can leave behind in a table that was empty when it looked, and settings that
/// keep the planner from the plan that it would choose by itself.
const BAD_PLANS: &str = "
    update pg_class set relpages = 1, reltuples = 0
     where relname in ('webhook_spool', 'webhook_receipts', 'events', 'vendors', 'export_jobs');
    do $$ begin
        execute format('alter database %I set plan_cache_mode = force_generic_plan',
                       current_database());
        execute format('alter database %I set enable_hashjoin = off', current_database());
        execute format('alter database %I set enable_mergejoin = off', current_database());
        execute format('alter database %I set enable_indexscan = off', current_database());
        execute format('alter database %I set enable_bitmapscan = off', current_database());
        execute format('alter database %I set enable_material = off', current_database());
    end $$";

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn no_command_takes_more_rows_at_once_than_a_batch_has(pool: PgPool) {
    sql(&pool, LETTERS).await;
    sql(&pool, NOTES).await;
    sql(&pool, BAD_PLANS).await;
    for (arguments, most) in [
        (
            &["dead-letters", "dismiss", "--all", "--note=a test", "--yes"][..],
            1_000,
        ),
        (&["dead-letters", "restore", "--all", "--yes"], 1_000),
        (&["dead-letters", "replay", "--rate=100000", "--yes"], 100),
        (&["rebuild", "--yes"], 500),
        (
            &[
                "secrets",
                "distrust",
                "--secret=stolen",
                "--since=1970-01-01T00:00:00Z",
                "--yes",
            ],
            200,
        ),
        (&["erase", "--company=c1", "--yes"], 1_000),
    ] {
        sql(&pool, "truncate taken").await;
        if arguments[0] == "rebuild" {
            sql(&pool, "truncate vendors").await;
        }
        let output = hookctl(&pool, arguments).output().await;
        let output = output.expect("hookctl runs");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        let (taken, sum): (i64, i64) = sqlx::query_as(
            "select coalesce(max(size), 0), coalesce(sum(size), 0)::bigint from taken",
        )
        .fetch_one(&pool)
        .await
        .expect("what was taken");
        assert!(sum >= 1_200, "{arguments:?} took {sum}");
        assert!(taken <= most, "{arguments:?} took {taken} at once");
    }
}
