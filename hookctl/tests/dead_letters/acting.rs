//! `hookctl actions`, and what each command leaves there.

use std::process::Output;

use serde_json::{Value, json};
use shared::AcceptedEvent;
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool, postgres::PgConnectOptions};
use tokio::time::timeout;

use crate::place::{
    SOON, event, hookctl, is, json as dead_letters, lines, nameless, run, spool, sql, stop_worker,
    store_events, text, vendor, vendor_at,
};

async fn hookctl_ends(pool: &PgPool, arguments: &[&str], code: i32) -> Output {
    let output = hookctl(pool, arguments).output().await.expect("it runs");
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {}",
        text(&output)
    );
    output
}

/// What was written down, the newest first.
async fn actions(pool: &PgPool, flags: &[&str]) -> Vec<Value> {
    let arguments = [&["actions", "--json"], flags].concat();
    lines(&hookctl_ends(pool, &arguments, 0).await)
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn who_dismissed_stays_known_after_a_restore(pool: PgPool) {
    store_events(&pool, [nameless("m1"), nameless("m2")]).await;
    let dismiss = ["dismiss", "--id", "m1", "--note", "a test"];
    run(&pool, &dismiss, 0).await;
    assert!(actions(&pool, &[]).await.is_empty(), "it was only shown");
    run(&pool, &[&dismiss[..], &["--yes"]].concat(), 0).await;
    run(&pool, &["restore", "--all", "--yes"], 0).await;
    assert!(
        is(&pool, "select bool_and(dismissed_by is null) from events").await,
        "events has forgotten it"
    );

    let found = actions(&pool, &["--id", "m1"]).await;
    let [restored, dismissed] = &found[..] else {
        panic!("two rows: {found:?}");
    };
    assert_eq!(dismissed["action"], "dead-letters dismiss");
    assert_eq!(dismissed["filter"], json!({"ids": ["m1"]}));
    assert_eq!(dismissed["changed"], 1);
    assert_eq!(dismissed["person"], Value::Null);
    let change = &dismissed["changes"][0];
    assert_eq!(change["webhook_id"], "m1");
    assert_eq!(change["before"]["dismissed_at"], Value::Null);
    assert_eq!(change["after"]["dismissal_note"], "a test");
    assert_eq!(change["after"]["dismissed_by"], dismissed["account"]);
    assert_eq!(restored["action"], "dead-letters restore");
    assert_eq!(restored["filter"], json!({}), "all of them");
    assert_eq!(restored["changes"][0]["before"], change["after"]);
    assert_ne!(restored["run"], dismissed["run"]);

    assert!(actions(&pool, &["--id", "m2"]).await.is_empty());
    assert_eq!(actions(&pool, &["--action", "dead-letters"]).await.len(), 2);
    let only = ["--action", "dead-letters restore", "--newer-than", "1h"];
    assert_eq!(actions(&pool, &only).await.len(), 1);
    assert!(actions(&pool, &["--action", "dead"]).await.is_empty());
    assert!(actions(&pool, &["--older-than", "1h"]).await.is_empty());
    assert!(actions(&pool, &["--account", "nobody"]).await.is_empty());
    let account = dismissed["account"].as_str().expect("an account");
    assert_eq!(actions(&pool, &["--account", account]).await.len(), 2);
    assert_eq!(actions(&pool, &["--limit", "1"]).await.len(), 1);
    let table = text(&hookctl_ends(&pool, &["actions"], 0).await);
    for shown in ["dead-letters dismiss", account, r#"{"ids":["m1"]}"#] {
        assert!(table.contains(shown), "{shown} is not in {table}");
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_replay_is_written_down_as_one_run_with_its_child(pool: PgPool) {
    store_events(&pool, [nameless("m1"), vendor("m2")]).await;
    stop_worker(&pool, &vendor("m3")).await;
    sql(
        &pool,
        "update events set problem = 'value out of range', problem_kind = 'refused'
          where webhook_id = 'm2'",
    )
    .await;
    let replay = ["dead-letters", "replay"];
    hookctl_ends(&pool, &replay, 3).await;
    assert!(actions(&pool, &[]).await.is_empty(), "it was a trial");

    hookctl_ends(&pool, &[&replay[..], &["--yes"]].concat(), 3).await;
    let replays = actions(&pool, &[]).await;
    let [apart, together] = &replays[..] else {
        panic!("one for each transaction: {replays:?}");
    };
    assert_eq!(apart["run"], together["run"]);
    assert_eq!(together["changes"][0]["webhook_id"], "m2");
    assert_eq!(
        together["changes"][0]["before"],
        json!({"problem": "value out of range"})
    );
    assert_eq!(apart["changes"][0]["webhook_id"], "m3");
    assert_eq!(dead_letters(&pool, &["list"], 0).await.len(), 1);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_rebuild_is_written_down_without_values_of_bodies(pool: PgPool) {
    store_events(
        &pool,
        [
            vendor_at("m1", "v1", "True", 1),
            vendor_at("m2", "v2", "", 1),
        ],
    )
    .await;
    sql(
        &pool,
        "update vendors set name = 'damaged' where id = 'v1'; delete from vendors where id = 'v2'",
    )
    .await;
    hookctl_ends(&pool, &["rebuild"], 3).await;
    assert!(actions(&pool, &[]).await.is_empty(), "it was a trial");
    hookctl_ends(&pool, &["rebuild", "--yes", "--family", "vendor"], 0).await;
    let [rebuild] = &actions(&pool, &["--action", "rebuild"]).await[..] else {
        panic!("one row");
    };
    assert_eq!(rebuild["filter"], json!({"family": "vendor"}));
    let [mended, added] = &rebuild["changes"].as_array().expect("a list")[..] else {
        panic!("two changes: {rebuild}");
    };
    assert_eq!(
        (&mended["table"], &mended["id"]),
        (&"vendors".into(), &"v1".into())
    );
    let columns = mended["columns"].as_array().expect("a list");
    assert!(columns.contains(&"name".into()), "{mended}");
    assert_eq!(mended["before"]["webhook_id"], "m1");
    assert_eq!(
        (&added["id"], &added["before"]),
        (&"v2".into(), &Value::Null)
    );
    assert_eq!(added["after"]["webhook_id"], "m2");
    let words = rebuild.to_string();
    assert!(
        !words.contains("damaged") && !words.contains("True"),
        "{words}"
    );
    assert_eq!(actions(&pool, &["--id", "m2"]).await.len(), 1);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_write_off_is_written_down(pool: PgPool) {
    sql(
        &pool,
        "insert into webhook_receipts (webhook_id, body_sha256, received_at)
         values ('gone', '', now() - interval '1 day')",
    )
    .await;
    let write_off = ["receipts", "write-off", "--id", "gone", "--reason", "lost"];
    hookctl_ends(&pool, &write_off, 0).await;
    hookctl_ends(&pool, &[&write_off[..], &["--yes"]].concat(), 0).await;
    hookctl_ends(&pool, &["receipts", "restore", "--id", "gone", "--yes"], 0).await;
    let found = actions(&pool, &["--id", "gone"]).await;
    assert_eq!(found.len(), 2);
    assert_eq!(found[1]["action"], "receipts write-off");
    assert_eq!(found[1]["changes"][0]["after"]["write_off_reason"], "lost");
    assert_eq!(found[0]["action"], "receipts restore");
    assert_eq!(found[0]["changes"][0]["before"]["write_off_reason"], "lost");
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_row_can_be_neither_forged_nor_changed(pool: PgPool) {
    sql(
        &pool,
        "insert into operator_actions (run, at, account, action, filter, changed, changes)
         values (gen_random_uuid(), '2000-01-01', 'somebody else', 'dead-letters dismiss', '{}', 0, '[]')",
    )
    .await;
    assert!(
        is(
            &pool,
            "select account = session_user and at > now() - interval '1 hour' from operator_actions"
        )
        .await
    );
    for statement in [
        "update operator_actions set account = 'somebody else'",
        "delete from operator_actions",
        "truncate operator_actions",
        "insert into operator_actions (id, run, account, action, filter, changed, changes)
         overriding system value
         select id, run, account, action, filter, changed, changes from operator_actions
         on conflict (id) do update set account = 'somebody else'",
    ] {
        let error = sqlx::raw_sql(statement)
            .execute(&pool)
            .await
            .expect_err(statement);
        assert!(error.to_string().contains("only added"), "{error}");
    }
}

/// A trigger's function runs with the search path of the session that fires it.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_schema_of_the_operators_forges_no_row(pool: PgPool) {
    sql(
        &pool,
        "create schema forger;
         create function forger.now() returns timestamptz language sql return timestamptz '2000-01-01';
         set search_path = forger, pg_catalog, public;
         insert into operator_actions (run, action, filter, changed, changes)
         values (gen_random_uuid(), 'dead-letters dismiss', '{}', 0, '[]');
         reset search_path",
    )
    .await;
    assert!(
        is(
            &pool,
            "select at > now() - interval '1 hour' from operator_actions"
        )
        .await
    );
    // The same for every trigger function. Postgres searches pg_catalog first if a path does not name it.
    assert!(
        is(
            &pool,
            "select count(*) = 5 and bool_and(proconfig::text ~ 'search_path=(pg_catalog|public), pg_temp')
               from pg_proc
              where prorettype = 'trigger'::regtype and pronamespace = 'public'::regnamespace"
        )
        .await
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn nothing_is_changed_that_cannot_be_written_down(pool: PgPool) {
    store_events(&pool, [nameless("m1"), event("m2", "no json")]).await;
    let role = format!("mender_{:016x}", rand::random::<u64>());
    sql(
        &pool,
        &format!(
            "create role {role} login password 'mender';
             grant usage on schema public to {role};
             grant select on all tables in schema public to {role};
             grant update on events to {role}"
        ),
    )
    .await;
    let options = PgConnectOptions::clone(&pool.connect_options());
    let url = options.username(&role).password("mender").to_url_lossy();
    let dismiss = ["dead-letters", "dismiss", "--all", "--note", "n", "--yes"];
    let as_mender = hookctl(&pool, &dismiss)
        .env("DATABASE_URL", url.as_str())
        .output()
        .await
        .expect("it runs");
    let shown = text(&as_mender);
    assert_eq!(as_mender.status.code(), Some(1), "{shown}");
    assert!(
        shown.contains("grant insert (run, person, action, filter, changed, changes)"),
        "{shown}"
    );

    sql(&pool, "drop table operator_actions").await;
    for command in [&dismiss[..], &["actions"]] {
        let shown = text(&hookctl_ends(&pool, command, 1).await);
        assert!(
            shown.contains("run `hookctl setup`") || shown.contains("Run `hookctl setup`"),
            "{shown}"
        );
    }
    assert!(is(&pool, "select count(*) = 2 from dead_letters").await);
    sql(&pool, &format!("drop owned by {role}; drop role {role}")).await;
}

/// Each makes exactly one of the changes for which [`fill_for_commands`] leaves something.
const COMMANDS: [&[&str]; 8] = [
    &["dead-letters", "dismiss", "--id", "open", "--note", "n"],
    &["dead-letters", "restore", "--id", "dismissed"],
    &["dead-letters", "replay", "--id", "mended"],
    &["rebuild"],
    &[
        "secrets",
        "distrust",
        "--secret",
        "stolen",
        "--since",
        "2025-01-01T00:00:00Z",
    ],
    &["erase", "--event", "waits"],
    &["receipts", "write-off", "--id", "gone", "--reason", "r"],
    &["receipts", "restore", "--id", "lost"],
];

async fn fill_for_commands(pool: &PgPool) {
    let stolen = AcceptedEvent {
        secret_name: Some("stolen".to_owned()),
        ..vendor("stolen")
    };
    let healthy = [vendor("mended"), vendor("damaged"), stolen];
    store_events(pool, healthy).await;
    store_events(pool, [nameless("open"), nameless("dismissed")]).await;
    spool(pool, &vendor("waits"), 0, 0).await;
    sql(
        pool,
        "update events set dismissed_at = now() where webhook_id = 'dismissed';
         update events set problem = 'value out of range', problem_kind = 'refused'
          where webhook_id = 'mended';
         update vendors set name = 'by hand' where id = 'damaged';
         insert into webhook_receipts (webhook_id, body_sha256, received_at)
         select id, '', now() - interval '1 day' from unnest(array['gone', 'lost']) as id;
         update webhook_receipts set written_off_at = now(), write_off_reason = 'r'
          where webhook_id = 'lost'",
    )
    .await;
}

/// The rows of the tables that commands change.
async fn rows(pool: &PgPool) -> String {
    let tables = [
        "events",
        "webhook_spool",
        "vendors",
        "export_jobs",
        "webhook_receipts",
    ];
    let all = tables
        .map(|table| format!("(select string_agg(t::text, ' ' order by t::text) from {table} t)"));
    let rows = format!("select concat_ws(' ', {})", all.join(", "));
    sqlx::query_scalar(AssertSqlSafe(rows))
        .fetch_one(pool)
        .await
        .expect("text")
}

async fn recorded(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from operator_actions")
        .fetch_one(pool)
        .await
        .expect("a count")
}

/// Runs a command that must not succeed, and must leave everything as it is.
async fn assert_changes_nothing(pool: &PgPool, command: &[&str], before: &str) {
    let output = hookctl(pool, &[command, &["--yes"]].concat()).output();
    let output = timeout(SOON, output).await.expect("it ends");
    let output = output.expect("it runs");
    let shown = text(&output);
    assert_ne!(output.status.code(), Some(0), "{command:?}: {shown}");
    assert_eq!(rows(pool).await, before, "{command:?}: {shown}");
    assert_eq!(recorded(pool).await, 0, "{command:?}: {shown}");
}

/// Each command passes the check of its rights, and then its record or its change fails.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_change_and_its_record_are_kept_together_or_not_at_all(pool: PgPool) {
    fill_for_commands(&pool).await;
    let before = rows(&pool).await;
    sql(
        &pool,
        "create function refuse() returns trigger language plpgsql as
             'begin raise ''refused by a test''; end';
         create trigger refuse before insert on operator_actions
             for each row execute function refuse()",
    )
    .await;
    for command in COMMANDS {
        assert_changes_nothing(&pool, command, &before).await;
    }

    // The record is written, and the commit fails because of the change.
    sql(&pool, "drop trigger refuse on operator_actions").await;
    for table in ["events", "webhook_spool", "vendors", "webhook_receipts"] {
        let trigger = format!(
            "create constraint trigger refuse after insert or update or delete on {table}
                 deferrable initially deferred for each row execute function refuse()"
        );
        sql(&pool, &trigger).await;
    }
    for command in COMMANDS {
        assert_changes_nothing(&pool, command, &before).await;
    }

    sql(&pool, "drop function refuse() cascade").await;
    for (command, records) in COMMANDS.into_iter().zip(1..) {
        let before = rows(&pool).await;
        let output = hookctl(&pool, &[command, &["--yes"]].concat()).output();
        let shown = text(&output.await.expect("it runs"));
        assert_ne!(rows(&pool).await, before, "{command:?}: {shown}");
        assert!(recorded(&pool).await >= records, "{command:?}: {shown}");
    }
}
