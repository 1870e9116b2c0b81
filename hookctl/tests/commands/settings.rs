//! Settings of a database and of accounts: what the transactions make good, and what doctor and setup
//! name.

use serde_json::Value;
use shared::Program;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::place::{Ended, Place, SOON, until};

/// At odds with all that is expected.
const SETTINGS: [&str; 17] = [
    "default_transaction_isolation = 'serializable'",
    "default_transaction_read_only = on",
    "default_transaction_deferrable = on",
    "synchronous_commit = off",
    "statement_timeout = '100ms'",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '1ms'",
    "\"DateStyle\" = 'SQL, DMY'",
    "\"IntervalStyle\" = 'sql_standard'",
    "bytea_output = 'escape'",
    "standard_conforming_strings = off",
    "timezone = 'Asia/Kathmandu'",
    "row_security = off",
    "quote_all_identifiers = on",
    "transform_null_equals = on",
    "temp_tablespaces = nowhere",
    "jit_above_cost = 0",
];

/// Tables with the names of the pipeline's, and nothing else of them.
const DECOY: &str = "create schema decoy;
    create table decoy.events (webhook_id integer);
    create table decoy.webhook_receipts (webhook_id integer);
    create table decoy.webhook_spool (webhook_id integer);
    create table decoy.vendors (id integer);
    create table decoy.export_jobs (id integer);
    create table decoy.dead_letters (event_type integer);
    create table decoy.unstored_receipts (webhook_id integer);
    create table decoy._sqlx_migrations (version integer)";

/// A schema that is there, with tables that are not the pipeline's.
const DECOY_OF_OTHERS: &str = "create schema of_others; create table of_others.orders (id integer)";

async fn sql(admin: &mut PgConnection, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements))
        .execute(admin)
        .await
        .expect("good SQL");
}

async fn set(admin: &mut PgConnection, setting: &str) {
    let setting = setting.replace('\'', "''");
    let statement = format!(
        "do $$ begin
            execute format('alter database %I set {setting}', current_database());
         end $$"
    );
    sql(admin, &statement).await;
}

/// Posts two events and a repetition, and takes them by the tool's commands.
async fn work_through(place: &Place, admin: &mut PgConnection, round: &str) {
    let ingest = place.ingest().await;
    let stop = CancellationToken::new();
    let workers = place.workers(&stop);
    let (good, bad) = (format!("good-{round}"), format!("bad-{round}"));
    let url = ["--url", &ingest.url];
    let send = async |flags: &[&str], input: &str| {
        let flags = [&["send", "--json"], &url[..], flags].concat();
        let ended = place.run_with(&flags, input).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.json()[0]["outcome"].clone()
    };
    let vendor = ["--type", "v1.vendor.created", "--id", &good];
    assert_eq!(send(&vendor, "").await, "accepted");
    assert_eq!(send(&vendor, "").await, "duplicate");
    assert_eq!(send(&["--body", "-", "--id", &bad], "{}").await, "accepted");
    let admin = tokio::sync::Mutex::new(admin);
    until("both are stored", async || {
        let count: i64 =
            sqlx::query_scalar("select count(*) from public.events where webhook_id in ($1, $2)")
                .bind(&good)
                .bind(&bad)
                .fetch_one(&mut **admin.lock().await)
                .await
                .expect("a count");
        count == 2
    })
    .await;

    let listed = place.run(&["dead-letters", "list", "--json"]).await;
    assert_eq!(
        listed.json()[0]["webhook_id"],
        Value::from(&*bad),
        "{listed:?}"
    );
    for (arguments, code) in [
        (&["dead-letters", "show", &bad][..], 0),
        (
            &[
                "dead-letters",
                "dismiss",
                "--all",
                "--yes",
                "--note",
                "a test",
            ],
            0,
        ),
        (&["dead-letters", "restore", "--all", "--yes"], 0),
        // It has the same problem as before.
        (&["dead-letters", "replay", "--yes"], 3),
        (&["receipts", "list"], 0),
        (&["reconcile"], 0),
        (&["rebuild"], 0),
    ] {
        let ended = place.run(arguments).await;
        assert_eq!(ended.code, code, "{arguments:?}: {ended:?}");
    }
    let examined = place.run(&["doctor", "--json"]).await;
    for check in ["schema", "dead letters", "spool", "durability"] {
        let findings = examined.json();
        let finding = findings.iter().find(|finding| finding["check"] == check);
        let found = finding.map(|finding| finding["found"].to_string());
        let found = found.unwrap_or_else(|| panic!("no {check}: {examined:?}"));
        assert!(!found.contains("exist"), "{found}");
    }
    // `default_transaction_read_only` hinders no transaction that says that it writes.
    let findings = examined.json();
    let postgres = findings.iter().find(|f| f["check"] == "postgres");
    assert_eq!(
        postgres.expect("a finding")["verdict"],
        "ok",
        "{examined:?}"
    );
    stop.cancel();
    for worker in workers {
        worker.await.expect("no panic").expect("a stop in order");
    }
    ingest.stop().await;
}

#[sqlx::test(migrations = false)]
async fn settings_of_a_database_stop_nothing(pool: PgPool) {
    // It began before the settings, and so does not know them.
    let mut admin = pool.acquire().await.expect("a connection");
    let mut place = Place::new(&pool).await;
    sql(&mut admin, DECOY).await;
    for setting in SETTINGS {
        set(&mut admin, setting).await;
    }
    for schema in ["decoy", "nowhere"] {
        set(&mut admin, &format!("search_path = {schema}")).await;
        place.set_up_accounts().await;
        work_through(&place, &mut admin, schema).await;
    }
    sql(
        &mut admin,
        "do $$ begin execute format('alter database %I reset all', current_database()); end $$",
    )
    .await;
    place.pool = PgPool::connect_with((*pool.connect_options()).clone())
        .await
        .expect("a pool");
    place.remove_accounts().await;
    place.pool.close().await;
    place.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_no_transaction_sets_is_named_with_its_remedy(pool: PgPool) {
    let place = Place::new(&pool).await;
    place.set_up_accounts().await;
    let account = hookctl::account::name(Program::Ingest, &place.prefix);
    let cases = [
        (
            "set role = pg_monitor",
            "role = pg_monitor",
            "reset role",
            true,
        ),
        (
            "valid until '2020-01-01'",
            "password expired = true",
            "valid until 'infinity'",
            true,
        ),
        (
            "connection limit 3",
            "connection limit = 3",
            "run `hookctl setup`",
            false,
        ),
        (
            "set statement_timeout = '20ms'",
            "statement_timeout = 20ms",
            "set statement_timeout = 0",
            false,
        ),
        (
            "set idle_session_timeout = 500",
            "idle_session_timeout = 500",
            "set idle_session_timeout = 0",
            false,
        ),
        (
            "set track_activities = off",
            "track_activities = off",
            "set track_activities = on",
            false,
        ),
        (
            "set log_statement = 'all'",
            "log_statement = all",
            "set log_parameter_max_length = 0",
            false,
        ),
        (
            "set log_parameter_max_length_on_error = -1",
            "log_parameter_max_length_on_error = -1",
            "set log_parameter_max_length_on_error = 0",
            false,
        ),
    ];
    for (change, ..) in cases {
        place
            .sql(&format!(r#"alter role "{account}" {change}"#))
            .await;
    }
    place
        .sql(
            "do $$ declare emit regprocedure; begin
                for emit in select oid from pg_proc where proname = 'pg_logical_emit_message' loop
                    execute format('revoke execute on function %s from public', emit);
                end loop;
             end $$",
        )
        .await;
    let right = (
        "",
        "execute on pg_logical_emit_message = false",
        "grant execute on function pg_logical_emit_message",
        true,
    );
    let examined = place.run(&["doctor", "--json"]).await;
    let mut command = place.hookctl(&["setup"]);
    let password = |program| format!("{program}={:032x}", rand::random::<u128>());
    command.env("ACCOUNT_PASSWORDS", Program::ALL.map(password).join(","));
    let set_up = Ended::new(command.output().await.expect("hookctl runs"));
    assert_eq!(set_up.code, 3, "{set_up:?}");
    let check = format!("settings of {account}");
    for (_, found, remedy, stops) in cases.into_iter().chain([right]) {
        let findings = examined.json();
        let finding = findings
            .iter()
            .find(|finding| {
                let beginning = finding["found"].as_str().unwrap_or_default();
                finding["check"] == *check && beginning.starts_with(found)
            })
            .unwrap_or_else(|| panic!("no {found}: {examined:?}"));
        let verdict = if stops { "problem" } else { "warning" };
        assert_eq!(finding["verdict"], verdict, "{finding}");
        let said = finding["remedy"].as_str().unwrap_or_default();
        assert!(said.contains(remedy), "{said}");
        let level = if stops { "error" } else { "warning" };
        let line = format!("{level}: {account} has {found}");
        let line = set_up.err.lines().find(|l| l.starts_with(&line));
        // A set-up has mended what it mends.
        let is_as_it_should_be = match remedy.contains("hookctl setup") {
            true => line.is_none(),
            false => line.is_some_and(|l| l.contains(remedy)),
        };
        assert!(is_as_it_should_be, "{found}: {set_up:?}");
    }
    place.remove_accounts().await;
    place.clean_up().await;
}

/// Every command that asks Postgres names the schema, as the driver's words would not.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_schema_without_our_tables_is_named(pool: PgPool) {
    let place = Place::new(&pool).await;
    place.sql(DECOY_OF_OTHERS).await;
    for (schema, what) in [
        ("nowhere", "there is no schema nowhere"),
        (
            "of_others",
            "the schema of_others has no tables of the pipeline",
        ),
    ] {
        for (arguments, code) in [
            (&["doctor"][..], 3),
            (&["reconcile"], 1),
            (&["dead-letters", "list"], 1),
            (&["dead-letters", "show", "msg_1"], 1),
            (&["dead-letters", "replay", "--yes"], 1),
            (&["receipts", "list"], 1),
            (&["rebuild"], 1),
            (&["tail"], 1),
        ] {
            let mut command = place.hookctl(arguments);
            let output = command.env("DATABASE_SCHEMA", schema).output();
            let output = timeout(SOON, output).await.expect("it ends");
            let ended = Ended::new(output.expect("hookctl runs"));
            assert_eq!(ended.code, code, "{arguments:?}: {ended:?}");
            // A table breaks its lines.
            let said = format!("{} {}", ended.out, ended.err);
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(
                said.contains(what) && said.contains("DATABASE_SCHEMA"),
                "{arguments:?}: {said}"
            );
            assert!(!said.contains("relation"), "{arguments:?}: {said}");
        }
    }
    for reserved in ["pg_catalog", "information_schema", "pg_temp"] {
        let mut command = place.hookctl(&["doctor"]);
        let output = command.env("DATABASE_SCHEMA", reserved).output().await;
        let ended = Ended::new(output.expect("hookctl runs"));
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(ended.err.contains("--database-schema"), "{ended:?}");
    }
    place.clean_up().await;
}
