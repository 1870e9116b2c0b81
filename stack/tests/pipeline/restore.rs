//! Restoring a backup: which events are there afterwards, which are missing, and how those come back.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hookctl::delivery::Outcome;
use shared::Program;
use sqlx::{Connection, PgConnection};
use stack::{packages::Packages, process::Process, service::Service, stores::DATABASE};
use tokio::time::{Instant, sleep};

use crate::pipeline::{Pipeline, SOON, post, until_count};

/// A script of `deploy/`, as an operator runs it beside the server, with client programs of the server's
/// version.
pub(crate) async fn script(
    pipeline: &Pipeline,
    schema: &str,
    name: &str,
    file: &Path,
) -> (bool, String) {
    let packages = Packages::find().expect("Postgres is installed");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace");
    // Stores of another Debian see the data folders but not the sources.
    let script = pipeline.folder().join(name);
    std::fs::copy(workspace.join("deploy").join(name), &script).expect("a copy");
    let log = pipeline
        .folder()
        .join(format!("{name}-{:016x}.log", rand::random::<u64>()));
    let path = format!("{}:/usr/bin:/bin", packages.postgres.display());
    let spec = packages
        .spec(name, script)
        .args([file])
        .env("PATH", path)
        .env("DATABASE_URL", pipeline.stores.database_url())
        .env("DATABASE_SCHEMA", schema)
        .log(&log);
    let process = Process::spawn(spec).expect("the script runs");
    let status = process.wait().await;
    let text = std::fs::read_to_string(&log).expect("its output");
    (status.success(), text)
}

/// The exit code and output of `hookctl reconcile`.
async fn reconcile(pipeline: &Pipeline) -> (Option<i32>, String) {
    let mut command = pipeline.hookctl();
    let output = command
        .args(["reconcile", "--missing-after=1s", "--json"])
        .output()
        .await
        .expect("hookctl runs");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.code(), text)
}

/// The report of `hookctl reconcile` once it exits with this code: the queue figures of RabbitMQ's
/// management API are some seconds old.
async fn reconciled(pipeline: &Pipeline, expected: i32) -> String {
    let deadline = Instant::now() + SOON;
    loop {
        let (code, report) = reconcile(pipeline).await;
        if code == Some(expected) {
            return report;
        }
        assert!(Instant::now() < deadline, "ends with {code:?}: {report}");
        sleep(Duration::from_millis(500)).await;
    }
}

async fn start(pipeline: &Pipeline, programs: &[Program]) -> Vec<Service> {
    let mut services = Vec::new();
    for &program in programs {
        services.push(pipeline.start(program, program.name()));
    }
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    services
}

async fn stop(services: Vec<Service>) {
    for service in &services {
        service.stop(SOON).await.expect("a stop in time");
    }
}

fn vendor(id: &str) -> String {
    format!(
        r#"{{"eventType":"v1.vendor.created","data":{{"id":"{id}","companyId":"c","name":"n","state":"DRAFT"}}}}"#
    )
}

async fn send(services: &[Service], ids: &[String]) {
    let url = services[0].webhook_url();
    for id in ids {
        let answer = post(&url, id, &vendor(id)).await;
        assert_eq!(answer.outcome, Outcome::Accepted, "{id}: {answer:?}");
    }
}

fn ids(kind: &str) -> Vec<String> {
    (0..10)
        .map(|number| format!("msg_{kind}_{number}"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_takes_again_what_came_since() {
    let mut pipeline = Pipeline::new().await;
    // So that the sender's replay need not wait until receipts alone no longer count.
    pipeline.launcher = pipeline.launcher.clone().env("RECEIPT_TRUST", "1s");
    let workers = &Program::ALL[1..];
    let ingest = start(&pipeline, &Program::ALL[..1]).await;
    let running = start(&pipeline, workers).await;
    let file: PathBuf = pipeline.folder().join("pleo.dump");

    send(&ingest, &ids("before")).await;
    until_count(&pipeline.pool().await, "select count(*) from events", 10).await;
    // Accepted, and in RabbitMQ when the backup is made.
    stop(running).await;
    send(&ingest, &ids("queued")).await;
    let (saved, said) = script(&pipeline, "public", "backup", &file).await;
    assert!(saved, "{said}");
    let running = start(&pipeline, workers).await;
    send(&ingest, &ids("after")).await;
    until_count(&pipeline.pool().await, "select count(*) from events", 30).await;

    let (restored, said) = script(&pipeline, "public", "restore", &file).await;
    assert!(
        !restored && said.contains("holds a pipeline already"),
        "{said}"
    );

    // The disaster: the database is gone, and the queues are empty.
    stop(running).await;
    stop(ingest).await;
    let mut server = PgConnection::connect(&pipeline.stores.postgres.url("postgres"))
        .await
        .expect("postgres is up");
    sqlx::raw_sql("drop database pleo with (force)")
        .execute(&mut server)
        .await
        .expect("dropped");
    // As on a new server.
    for program in Program::ALL {
        let account = pipeline.accounts().login(program).user;
        let drop = sqlx::AssertSqlSafe(format!(r#"drop role "{account}""#));
        sqlx::raw_sql(drop)
            .execute(&mut server)
            .await
            .expect("dropped");
    }
    let created = pipeline.stores.postgres.create_database(DATABASE).await;
    created.expect("an empty database");

    let (restored, said) = script(&pipeline, "public", "restore", &file).await;
    assert!(restored && said.contains("restored 10 events"), "{said}");
    pipeline.set_up().await;
    let services = start(&pipeline, &Program::ALL).await;
    until_count(&pipeline.pool().await, "select count(*) from vendors", 10).await;
    // The receipts of events that were in RabbitMQ show that they are missing.
    let report = reconciled(&pipeline, 3).await;
    assert!(report.contains(r#""late":10"#), "{report}");
    for id in ids("queued") {
        assert!(report.contains(&id), "{report}");
    }

    // The sender sends all events again.
    for id in ["before", "queued", "after"].map(ids).concat() {
        let answer = post(&services[0].webhook_url(), &id, &vendor(&id)).await;
        let expected = if id.contains("before") {
            Outcome::Duplicate
        } else {
            Outcome::Accepted
        };
        assert_eq!(answer.outcome, expected, "{id}: {answer:?}");
    }
    let pool = pipeline.pool().await;
    until_count(&pool, "select count(*) from events", 30).await;
    until_count(&pool, "select count(*) from vendors", 30).await;
    reconciled(&pipeline, 0).await;
    stop(services).await;
}
