//! Each service under an account of its own.

use std::collections::BTreeSet;

use hookctl::{
    delivery::Outcome,
    sample::{EXPORT_JOB, VENDOR},
};
use shared::{Family, Program};

use tokio::time::timeout;

use crate::pipeline::{Pipeline, SOON, count, post, send, until_count};

#[tokio::test(flavor = "multi_thread")]
async fn services_run_under_their_own_accounts_which_may_come_after_them() {
    let mut pipeline = Pipeline::unprepared().await;
    pipeline.launcher = pipeline.launcher.clone().under(pipeline.accounts());
    let services: Vec<_> = Program::ALL
        .into_iter()
        .map(|program| pipeline.start(program, program.name()))
        .collect();
    let url = services[0].webhook_url();
    let refused = loop {
        let answer = post(&url, "msg_1", "{}").await.outcome;
        if answer != Outcome::NoAnswer {
            break answer;
        }
        let process = services[0].process();
        assert!(process.is_running(), "{}", process.how_it_ended());
    };
    assert_eq!(refused, Outcome::Refused(503));

    pipeline.set_up().await;
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    send(&url, &EXPORT_JOB).await;
    send(&url, &VENDOR).await;
    let answer = post(&url, "msg_1", "{}").await;
    assert_eq!(answer.outcome, Outcome::Accepted, "{answer:?}");
    let pool = pipeline.pool().await;
    until_count(&pool, "select count(*) from events", 3).await;
    until_count(&pool, "select count(*) from export_jobs", 1).await;
    until_count(&pool, "select count(*) from vendors", 1).await;

    let accounts: BTreeSet<String> = Program::ALL
        .map(|program| pipeline.accounts().login(program).user)
        .into();
    // All programs of the pipeline name their connections; the connections of this test have no name.
    let connected: Vec<String> = sqlx::query_scalar(
        "select distinct usename::text from pg_stat_activity
          where datname = current_database() and application_name <> ''",
    )
    .fetch_all(&pool)
    .await
    .expect("the connections");
    assert_eq!(BTreeSet::from_iter(connected), accounts);
    assert_eq!(
        count(
            &pool,
            "select count(*) from pg_stat_activity
              where datname = current_database() and application_name <> ''
                and usename <> 'pleo-' || application_name"
        )
        .await,
        0,
        "each uses its own"
    );
    let connected = pipeline
        .stores
        .rabbitmq
        .ctl(&["list_connections", "user"])
        .await
        .expect("the connections");
    let connected: BTreeSet<String> = connected
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("pleo-") || *line == "guest")
        .map(str::to_owned)
        .collect();
    assert_eq!(connected, accounts);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_shows_every_page_under_its_own_account() {
    let pipeline = Pipeline::new().await;
    let ingest = pipeline.start(Program::Ingest, "ingest");
    let vendors = pipeline.start(Program::Worker(Family::Vendor), "vendor-worker");
    let console = pipeline.start(Program::Console, "console");
    for service in [&ingest, &vendors, &console] {
        service.ready(SOON).await.expect("ready");
    }
    send(&ingest.webhook_url(), &VENDOR).await;
    let pool = pipeline.pool().await;
    until_count(&pool, "select count(*) from vendors", 1).await;
    let id: String = sqlx::query_scalar("select webhook_id from events")
        .fetch_one(&pool)
        .await
        .expect("the event");
    let vendor = VENDOR.resource_id;
    for path in [
        "/".to_owned(),
        "/events?company=c1".to_owned(),
        format!("/event?id={id}"),
        format!("/event/body?id={id}"),
        format!("/resource?id={vendor}"),
        "/dead-letters".to_owned(),
        "/receipts".to_owned(),
    ] {
        let url = format!("http://{}{path}", console.public());
        let answer = reqwest::get(&url).await.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
    }
    // Background queries for metrics need their rights, too.
    let known = async {
        let url = format!("http://{}/", console.public());
        loop {
            let page = reqwest::get(&url).await.expect("an answer").text().await;
            let page = page.expect("text");
            assert!(!page.contains("not fresh"), "{page}");
            if page.contains("Open dead letters") && page.contains("Last hour") {
                break;
            }
        }
    };
    timeout(SOON, known).await.expect("it is counted");
    let ended = console.stop(SOON).await.expect("it stops in time");
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_grant_holds_its_family_until_it_is_given() {
    let pipeline = Pipeline::new().await;
    let ingest = pipeline.start(Program::Ingest, "ingest");
    let vendors = pipeline.start(Program::Worker(Family::Vendor), "vendor-worker");
    let jobs = pipeline.start(Program::Worker(Family::ExportJob), "export-job-worker");
    for service in [&ingest, &vendors, &jobs] {
        service.ready(SOON).await.expect("ready");
    }
    let pool = pipeline.pool().await;
    sqlx::raw_sql(r#"revoke insert on events from "pleo-vendor-worker""#)
        .execute(&pool)
        .await
        .expect("good SQL");
    send(&ingest.webhook_url(), &VENDOR).await;
    send(&ingest.webhook_url(), &EXPORT_JOB).await;
    until_count(&pool, "select count(*) from export_jobs", 1).await;
    let unready = async {
        loop {
            let answer = reqwest::get(vendors.private_url("/readyz")).await;
            if let Ok(answer) = answer
                && answer.status() == 503
            {
                return answer.text().await.expect("a reason");
            }
        }
    };
    let reason = timeout(SOON, unready).await.expect("it says so");
    assert!(reason.contains("permission denied"), "{reason}");
    assert_eq!(count(&pool, "select count(*) from vendors").await, 0);

    sqlx::raw_sql(r#"grant insert on events to "pleo-vendor-worker""#)
        .execute(&pool)
        .await
        .expect("good SQL");
    until_count(&pool, "select count(*) from vendors", 1).await;
    vendors.ready(SOON).await.expect("ready again by itself");
    assert_eq!(
        count(
            &pool,
            "select count(*) from events where problem is not null or attempts > 1"
        )
        .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn under_their_accounts_services_spool_and_store_without_rabbitmq() {
    let pipeline = Pipeline::new().await;
    let services = Program::ALL.map(|program| pipeline.start(program, program.name()));
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    let rabbitmq = &pipeline.stores.rabbitmq;
    rabbitmq.ctl(&["stop_app"]).await.expect("it stops");
    send(&services[0].webhook_url(), &EXPORT_JOB).await;
    send(&services[0].webhook_url(), &VENDOR).await;
    let answer = post(&services[0].webhook_url(), "msg_1", "{}").await;
    assert_eq!(answer.outcome, Outcome::Accepted, "{answer:?}");
    let pool = pipeline.pool().await;
    until_count(&pool, "select count(*) from events", 3).await;
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    until_count(&pool, "select count(*) from export_jobs", 1).await;
    until_count(&pool, "select count(*) from vendors", 1).await;
    rabbitmq.ctl(&["start_app"]).await.expect("it starts");
    for service in &services {
        service.ready(SOON).await.expect("ready again");
    }
}
