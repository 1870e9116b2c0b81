//! The tables in a schema whose name has to be quoted.

use std::process::Output;

use hookctl::{
    delivery::Outcome,
    sample::{EXPORT_JOB, VENDOR},
};
use shared::Program;

use crate::{
    acting::act,
    pipeline::{Pipeline, SOON, post, send, until_count},
    restore::script,
};

const SCHEMA: &str = r#"Pleo "2" events"#;

const RETENTION: [(&str, &str); 2] = [("EVENT_RETENTION", "30d"), ("TYPED_ROW_RETENTION", "30d")];

async fn hookctl(pipeline: &Pipeline, arguments: &[&str]) -> Output {
    let mut command = pipeline.hookctl();
    command
        .args(arguments)
        .env("DATABASE_SCHEMA", SCHEMA)
        .env("ACCOUNT_PASSWORDS", pipeline.accounts().passwords())
        .envs(RETENTION);
    command.output().await.expect("hookctl runs")
}

/// What it says, after it has ended with this code.
async fn says(pipeline: &Pipeline, arguments: &[&str], code: i32) -> String {
    let output = hookctl(pipeline, arguments).await;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_in_a_schema_whose_name_needs_quotes() {
    let mut pipeline = Pipeline::unprepared().await;
    let pool = pipeline.pool().await;
    let sql = async |statements: &'static str| {
        let done = sqlx::raw_sql(statements).execute(&pool).await;
        done.unwrap_or_else(|error| panic!("{statements}: {error}"));
    };
    sql(r#"create schema "Pleo ""2"" events""#).await;
    for _ in 0..2 {
        says(&pipeline, &["setup"], 0).await;
    }
    let launcher = pipeline.launcher.clone().under(pipeline.accounts());
    pipeline.launcher = (RETENTION.into_iter())
        .fold(launcher, |launcher, (name, value)| {
            launcher.env(name, value)
        })
        .env("DATABASE_SCHEMA", SCHEMA)
        .env("LOOPBACK_ROLE", "operator");
    let services = Program::WITH_CONSOLE.map(|program| pipeline.start(program, program.name()));
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    let [ingest, .., console] = &services;
    send(&ingest.webhook_url(), &EXPORT_JOB).await;
    send(&ingest.webhook_url(), &VENDOR).await;
    let answer = post(&ingest.webhook_url(), "msg_1", "no event").await;
    assert_eq!(answer.outcome, Outcome::Accepted, "{answer:?}");
    let stored = r#"select count(*) from "Pleo ""2"" events".events"#;
    until_count(&pool, stored, 3).await;

    // It finds the stores without fsync, and nothing about the schema.
    let doctor = says(&pipeline, &["doctor"], 3).await;
    let accounts = Program::ACCOUNTS.len();
    assert_eq!(
        doctor.matches("has its rights  ").count(),
        accounts,
        "{doctor}"
    );
    for found in [
        "up to date, migration",
        "sweeps old typed rows by a function",
    ] {
        assert!(doctor.contains(found), "{doctor}");
    }
    for arguments in [
        &["rebuild", "--yes"][..],
        &["dead-letters", "list"],
        &["dead-letters", "show", "msg_1"],
        &["receipts", "list"],
        &[
            "secrets",
            "distrust",
            "--secret=development",
            "--since=1970-01-01T00:00:00Z",
        ],
        &["erase", "--company", "c-nobody"],
        &["actions"],
    ] {
        says(&pipeline, arguments, 0).await;
    }
    for path in ["/", "/events", "/dead-letters", "/receipts", "/record"] {
        let url = format!("http://{}{path}", console.public());
        let answer = reqwest::get(&url).await.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
    }
    act(console, "dismiss", "&note=a+test").await;
    act(console, "restore", "&note=").await;
    act(console, "replay", "").await;
    let replayed = r#"select count(*) from "Pleo ""2"" events".replay_jobs where ended = 'done'"#;
    until_count(&pool, replayed, 1).await;

    sql(r#"set search_path = "Pleo ""2"" events";
           update events set received_at = received_at - interval '40 days',
                             stored_at = stored_at - interval '40 days';
           update webhook_receipts set received_at = received_at - interval '40 days';
           update vendors set stored_at = stored_at - interval '40 days';
           update export_jobs set stored_at = stored_at - interval '40 days';
           reset search_path"#)
    .await;
    // The dead letter stays.
    until_count(&pool, stored, 1).await;
    let typed = r#"select count(*) from "Pleo ""2"" events".vendors"#;
    until_count(&pool, typed, 0).await;
    let receipts = r#"select count(*) from "Pleo ""2"" events".webhook_receipts"#;
    until_count(&pool, receipts, 0).await;
    says(&pipeline, &["reconcile"], 0).await;
    for service in &services {
        service.stop(SOON).await.expect("it stops in time");
    }

    let file = pipeline.folder().join("pleo.dump");
    let (saved, said) = script(&pipeline, SCHEMA, "backup", &file).await;
    assert!(saved, "{said}");
    let (restored, said) = script(&pipeline, SCHEMA, "restore", &file).await;
    assert!(
        !restored && said.contains("holds a pipeline already"),
        "{said}"
    );
    sql(r#"drop schema "Pleo ""2"" events" cascade"#).await;
    let (restored, said) = script(&pipeline, SCHEMA, "restore", &file).await;
    assert!(restored && said.contains("restored 1 events"), "{said}");
}
