//! A crash in the middle of the work loses no event.

use std::time::Duration;

use shared::{Family, Program};
use stack::drill::{Kind, Sender, kind};
use tokio::time::{Instant, sleep};

use crate::pipeline::{Pipeline, SOON, count, post, until_count};

fn send_to(url: String) -> Sender {
    Sender::start(1, 100, &[url]).expect("a sender")
}

/// Waits until the sender's event is accepted again; nothing needs a restart by hand.
async fn accepting_again(sender: &Sender, after: &str) {
    let before = sender.accepted();
    let deadline = Instant::now() + SOON;
    while sender.accepted() < before + 50 {
        assert!(
            Instant::now() < deadline,
            "nothing is accepted after {after}"
        );
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_between_delivery_and_commit_loses_nothing() {
    let pipeline = Pipeline::new().await;
    let ingest = pipeline.start(Program::Ingest, "ingest");
    let mut worker = pipeline.start(Program::Worker(Family::Vendor), "vendor-worker");
    ingest.ready(SOON).await.expect("ready");
    worker.ready(SOON).await.expect("ready");
    let pool = pipeline.pool().await;

    // A lock blocks the commit, so the worker has unacked deliveries.
    let mut lock = pool.begin().await.expect("a transaction");
    sqlx::raw_sql("lock table vendors in exclusive mode")
        .execute(&mut *lock)
        .await
        .expect("a lock");
    let sender = send_to(ingest.webhook_url());
    accepting_again(&sender, "the lock").await;
    let sent = sender.finish(SOON).await;
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
    let accepted = sent.accepted.iter();
    let vendors = accepted.filter(|number| kind(**number) == Kind::Vendor);
    until_count(
        &pool,
        "select count(*) from events where event_type = 'v1.vendor.updated'",
        i64::try_from(vendors.count()).expect("a small number"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_stops_its_worker_ends_as_a_dead_letter_and_costs_no_other_anything() {
    const NEIGHBOURS: i64 = 20;
    let pipeline = Pipeline::new().await;
    let ingest = pipeline.start(Program::Ingest, "ingest");
    ingest.ready(SOON).await.expect("ready");
    let url = ingest.webhook_url();
    let pool = pipeline.pool().await;
    // A worker that stores the poison message hangs until this test kills it.
    sqlx::raw_sql(
        "create function stop() returns trigger language plpgsql as
           $$ begin
                if new.id = 'poison' then perform pg_sleep(60); end if;
                return new;
              end $$;
         create trigger stop before insert on vendors for each row execute function stop()",
    )
    .execute(&pool)
    .await
    .expect("good SQL");
    for id in (0..NEIGHBOURS)
        .map(|n| n.to_string())
        .chain(["poison".to_owned()])
    {
        let body = format!(
            r#"{{"eventType":"v1.vendor.created","data":{{"id":"{id}","companyId":"c","name":"n","state":"DRAFT"}}}}"#
        );
        let answer = post(&url, &format!("msg_{id}"), &body).await;
        assert!(answer.outcome.is_safe(), "{answer:?}");
    }

    let mut worker = pipeline.start(Program::Worker(Family::Vendor), "vendor-worker");
    let mut kills = 0;
    while count(&pool, "select count(*) from dead_letters").await == 0 {
        until_count(
            &pool,
            "select greatest(
                (select count(*) from pg_stat_activity where wait_event = 'PgSleep'),
                (select count(*) from dead_letters))",
            1,
        )
        .await;
        worker.process().kill();
        kills += 1;
        assert!(kills < 10, "nobody gives up");
        // Its lease would last a minute.
        sqlx::raw_sql(
            "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep';
             update webhook_spool set due_at = now()",
        )
        .execute(&pool)
        .await
        .expect("good SQL");
        worker.restart().expect("a restart");
    }

    until_count(&pool, "select count(*) from vendors", NEIGHBOURS).await;
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    assert_eq!(
        count(
            &pool,
            "select count(*) from dead_letters
              where webhook_id = 'msg_poison' and problem = 'stopped the worker 3 times'"
        )
        .await,
        1
    );
    assert_eq!(count(&pool, "select count(*) from dead_letters").await, 1);
    assert_eq!(
        count(&pool, "select count(*) from events where attempts > 1").await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_makes_postgres_crash_is_set_aside_and_holds_up_no_other() {
    let pipeline = Pipeline::new().await;
    let services = Program::ALL.map(|program| pipeline.start(program, program.name()));
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    let pool = pipeline.pool().await;
    sqlx::raw_sql(
        "create function crash() returns trigger language plpgsql security definer as
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
    let sender = send_to(url.clone());
    accepting_again(&sender, "the start").await;
    let poison = r#"{"eventType":"v1.vendor.created",
        "data":{"id":"poison","companyId":"c","name":"n","state":"DRAFT"}}"#;
    let answer = post(&url, "msg_poison", poison).await;
    assert!(answer.outcome.is_safe(), "{answer:?}");
    until_despite_crashes(
        &pool,
        "select exists (select from webhook_spool where webhook_id = 'msg_poison' and attempts > 0)",
    )
    .await;
    accepting_again(&sender, "the crashes").await;
    sender.finish(SOON).await;

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
    assert_eq!(
        count(
            &pool,
            "select count(*) from dead_letters
              where event_type in ('v1.vendor.updated', 'v1.export-job.created')"
        )
        .await,
        0
    );
    assert_eq!(
        count(
            &pool,
            "select count(*) from events where attempts > 1 and webhook_id <> 'msg_poison'"
        )
        .await,
        0
    );
}

/// Waits until boolean queries return true.
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
