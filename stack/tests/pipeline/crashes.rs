//! Whatever is killed, whenever: every event answered 2xx is stored, once.

use std::{collections::BTreeSet, time::Duration};

use stack::{
    programs::Program,
    sample::{self, DEVELOPMENT_SECRET},
};
use tokio::time::{Instant, sleep};

use crate::{
    load::Load,
    world::{SOON, World, count, until_count},
};

/// Waits until the load gets through again: nothing needs a restart by hand.
async fn accepting_again(load: &Load, after: &str) {
    let before = load.accepted();
    let deadline = Instant::now() + SOON;
    while load.accepted() < before + 50 {
        assert!(
            Instant::now() < deadline,
            "nothing is accepted after {after}"
        );
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_accepted_is_lost_or_stored_twice_whatever_is_killed() {
    let mut world = World::new().await;
    let mut services = vec![
        world.start(Program::Ingest, "ingest-1"),
        world.start(Program::Ingest, "ingest-2"),
        world.start(Program::ExportJobWorker, "export-job-worker"),
        world.start(Program::VendorWorker, "vendor-worker-1"),
        world.start(Program::VendorWorker, "vendor-worker-2"),
        world.start(Program::OtherWorker, "other-worker"),
    ];
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    let urls = vec![services[0].webhook_url(), services[1].webhook_url()];
    let load = Load::start(urls);
    accepting_again(&load, "the start").await;

    for service in &mut services {
        let name = service.process().name().to_owned();
        service.process().kill();
        sleep(Duration::from_millis(300)).await;
        service.restart().expect("a restart");
        accepting_again(&load, &name).await;
    }
    world.stores.rabbitmq.kill();
    accepting_again(&load, "the broker was killed").await;
    world
        .stores
        .rabbitmq
        .restart()
        .await
        .expect("the broker is back");
    accepting_again(&load, "the broker is back").await;

    world.stores.postgres.kill();
    accepting_again(&load, "postgres was killed").await;
    world
        .stores
        .postgres
        .restart()
        .await
        .expect("postgres is back");
    accepting_again(&load, "postgres is back").await;

    world.stores.postgres.pause().expect("a pause");
    accepting_again(&load, "postgres was frozen").await;
    world.stores.postgres.resume().expect("a resume");
    world.stores.rabbitmq.pause().expect("a pause");
    accepting_again(&load, "the broker was frozen").await;
    world.stores.rabbitmq.resume().expect("a resume");

    // Stopped in good order under load, it answers what it has and says so.
    let stopped = services[0].stop(SOON).await.expect("stopped in time");
    assert!(stopped.success(), "{stopped}");
    services[0].restart().expect("a restart");
    let stopped = services[3].stop(SOON).await.expect("stopped in time");
    assert!(stopped.success(), "{stopped}");
    services[3].restart().expect("a restart");
    accepting_again(&load, "everything").await;

    let ledger = load.stop().await;
    for service in &services {
        service.ready(SOON).await.expect("ready again by itself");
    }
    let pool = world.pool().await;
    until_count(&pool, "select count(*) from unstored_receipts", 0).await;
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    let deadline = Instant::now() + SOON;
    let missing = loop {
        let stored: BTreeSet<String> = sqlx::query_scalar("select webhook_id from events")
            .fetch_all(&pool)
            .await
            .expect("events")
            .into_iter()
            .collect();
        let missing: Vec<String> = ledger.accepted.difference(&stored).cloned().collect();
        if missing.is_empty() || Instant::now() > deadline {
            break missing;
        }
        sleep(Duration::from_millis(200)).await;
    };
    assert!(
        missing.is_empty(),
        "of {} accepted, missing: {missing:?}; refused: {:?}",
        ledger.accepted.len(),
        ledger.refused
    );
    assert_eq!(count(&pool, "select count(*) from dead_letters").await, 0);
    assert_eq!(
        count(
            &pool,
            "select count(*) from events e
              where event_type = 'v1.vendor.created'
                and not exists (select from vendors v
                                 where v.id = e.resource_id and v.webhook_id = e.webhook_id)
                 or event_type = 'v1.export-job.created'
                and not exists (select from export_jobs j
                                 where j.id = e.resource_id and j.webhook_id = e.webhook_id)"
        )
        .await,
        0,
        "each event has its typed row"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_between_delivery_and_commit_loses_nothing() {
    let world = World::new().await;
    let ingest = world.start(Program::Ingest, "ingest");
    let mut worker = world.start(Program::VendorWorker, "vendor-worker");
    ingest.ready(SOON).await.expect("ready");
    worker.ready(SOON).await.expect("ready");
    let pool = world.pool().await;

    // A lock keeps the commit from coming, so the worker has the deliveries in hand.
    let mut lock = pool.begin().await.expect("a transaction");
    sqlx::raw_sql("lock table vendors in exclusive mode")
        .execute(&mut *lock)
        .await
        .expect("a lock");
    let load = Load::start(vec![ingest.webhook_url()]);
    accepting_again(&load, "the lock").await;
    let ledger = load.stop().await;
    until_count(
        &pool,
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%into vendors%'",
        1,
    )
    .await;
    worker.process().kill();
    lock.rollback().await.expect("a rollback");
    assert_eq!(count(&pool, "select count(*) from vendors").await, 0);

    worker.restart().expect("a restart");
    let vendors = ledger
        .accepted
        .iter()
        .filter(|id| {
            let number: usize = id
                .rsplit('_')
                .next()
                .and_then(|n| n.parse().ok())
                .expect("a number");
            number.is_multiple_of(3)
        })
        .count();
    until_count(
        &pool,
        "select count(*) from vendors",
        i64::try_from(vendors).expect("a small number"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_makes_postgres_crash_is_set_aside_and_holds_up_no_other() {
    let world = World::new().await;
    let services = Program::ALL.map(|program| world.start(program, program.name()));
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    let pool = world.pool().await;
    sqlx::raw_sql(
        "create function crash() returns trigger language plpgsql as
           $$ begin
                if new.id = 'poison' then
                  execute format('copy (select 1) to program %L', 'kill -KILL ' || pg_backend_pid());
                end if;
                return new;
              end $$;
         create trigger crash before insert on vendors for each row execute function crash()",
    )
    .execute(&pool)
    .await
    .expect("good SQL");

    let url = services[0].webhook_url();
    let load = Load::start(vec![url.clone()]);
    accepting_again(&load, "the start").await;
    let poison = r#"{"eventType":"v1.vendor.created",
        "data":{"id":"poison","companyId":"c","name":"n","state":"DRAFT"}}"#;
    let (status, _) = sample::post(&url, DEVELOPMENT_SECRET, "msg_poison", poison)
        .await
        .expect("an answer");
    assert_eq!(status, 202);
    until_despite_crashes(
        &pool,
        "select exists (select from webhook_spool where webhook_id = 'msg_poison' and attempts > 0)",
    )
    .await;
    accepting_again(&load, "the crashes").await;
    load.stop().await;

    until_despite_crashes(
        &pool,
        "drop trigger if exists crash on vendors; select true",
    )
    .await;
    until_despite_crashes(
        &pool,
        "update webhook_spool set due_at = now() where webhook_id = 'msg_poison' and claims = 0;
         select exists (select from vendors where id = 'poison')
            and not exists (select from webhook_spool)
            and not exists (select from unstored_receipts)",
    )
    .await;
    assert_eq!(count(&pool, "select count(*) from dead_letters").await, 0);
    assert_eq!(
        count(
            &pool,
            "select count(*) from events where attempts > 1 and webhook_id <> 'msg_poison'"
        )
        .await,
        0
    );
}

/// Waits until statements that end in a yes or no say yes.
async fn until_despite_crashes(pool: &sqlx::PgPool, statements: &'static str) {
    let deadline = Instant::now() + SOON;
    loop {
        let answer = sqlx::raw_sql(statements).fetch_one(pool).await;
        if answer.is_ok_and(|row| sqlx::Row::try_get(&row, 0).unwrap_or(false)) {
            return;
        }
        assert!(Instant::now() < deadline, "not so: {statements}");
        sleep(Duration::from_millis(100)).await;
    }
}
