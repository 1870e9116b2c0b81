//! How failing events affect the others.

use std::time::{Duration, Instant};

use shared::{AcceptedEvent, Family};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    sample::{SOON, count, event, persistence, sql, start_spool_reader, until_count, vendor, work},
    spool::spool_events,
};

/// A batch of healthy events with this many offenders spread over it.
fn batch(events: usize, offenders: usize) -> Vec<AcceptedEvent> {
    let every = events / offenders;
    (0..events)
        .map(|i| {
            if i % every == every / 2 {
                vendor(&format!("poison-{i:04}"))
            } else {
                vendor(&format!("m{i:04}"))
            }
        })
        .collect()
}

/// Makes Postgres run a statement for each vendor whose id starts with `poison`.
async fn on_poison(pool: &PgPool, statement: &str) {
    let statements = format!(
        "create function offend() returns trigger language plpgsql as
           $$ begin if new.id like 'poison-%' then {statement}; end if; return new; end $$;
         create trigger offend before insert or update on vendors
            for each row execute function offend()"
    );
    sqlx::raw_sql(AssertSqlSafe(statements))
        .execute(pool)
        .await
        .expect("good SQL");
}

/// Stores a batch. Returns the time until its healthy events are stored, and the time until it is
/// finished.
async fn store(pool: &PgPool, batch: Vec<AcceptedEvent>, healthy: i64) -> (Duration, Duration) {
    let started = Instant::now();
    let persistence = persistence(pool, Family::Vendor);
    let works = batch.into_iter().map(work).collect();
    let task =
        tokio::spawn(async move { persistence.persist(works, &CancellationToken::new()).await });
    let deadline = started + 6 * SOON;
    while count(
        pool,
        "select count(*) from events where webhook_id not like 'poison-%'",
    )
    .await
        < healthy
    {
        assert!(Instant::now() < deadline, "the healthy ones are not stored");
        sleep(Duration::from_millis(10)).await;
    }
    let neighbours = started.elapsed();
    task.await.expect("no panic").expect("not abandoned");
    (neighbours, started.elapsed())
}

/// A user's open transaction has locked rows.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_locked_row_holds_up_only_its_own_event_and_spends_no_attempt(pool: PgPool) {
    sql(
        &pool,
        "insert into vendors (id, company_id, name, state, sort_key, webhook_id)
         values ('poison-0200', 'c1', '', '', '', '')",
    )
    .await;
    let mut user = pool.begin().await.expect("a transaction");
    sqlx::query("select from vendors for update")
        .execute(&mut *user)
        .await
        .expect("a lock");
    let (neighbours, _) = store(&pool, batch(401, 1), 400).await;
    assert!(neighbours < SOON / 2, "{neighbours:?}");
    assert_eq!(
        count(
            &pool,
            "select count(*) from webhook_spool
              where webhook_id like 'poison-%' and attempts = 0 and claims = 0"
        )
        .await,
        1
    );
    // It waits until the lock is released, and is then stored normally.
    let reader = start_spool_reader(&pool, Family::Vendor);
    until_count(
        &pool,
        "select count(*) from webhook_spool where claims = 0 and due_at > now()",
        1,
    )
    .await;
    user.rollback().await.expect("the end");
    until_count(
        &pool,
        "select count(*) from events
          where webhook_id like 'poison-%' and attempts = 1 and problem is null",
        1,
    )
    .await;
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    reader.cancel();
}

/// A locked table affects all events.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_locked_table_is_waited_out(pool: PgPool) {
    let mut user = pool.begin().await.expect("a transaction");
    sqlx::query("lock table vendors in exclusive mode")
        .execute(&mut *user)
        .await
        .expect("a lock");
    let persistence = persistence(&pool, Family::Vendor);
    let works = batch(20, 1).into_iter().map(work).collect();
    let task = {
        let persistence = persistence.clone();
        tokio::spawn(async move { persistence.persist(works, &CancellationToken::new()).await })
    };
    let deadline = Instant::now() + SOON;
    while persistence.probe().await.is_ok() {
        assert!(Instant::now() < deadline, "readiness never says so");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(!task.is_finished());
    user.rollback().await.expect("the end");
    task.await.expect("no panic").expect("not abandoned");
    assert_eq!(count(&pool, "select count(*) from vendors").await, 20);
    assert_eq!(count(&pool, "select count(*) from webhook_spool").await, 0);
}

/// One event is at fault, whatever the SQLSTATE says.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_offender_with_the_sqlstate_of_an_outage_leaves_its_neighbours_alone(pool: PgPool) {
    for (sqlstate, offender) in [("42501", "poison-42501"), ("53100", "poison-53100")] {
        sqlx::raw_sql("drop function if exists offend cascade")
            .execute(&pool)
            .await
            .expect("good SQL");
        let statement = format!("raise sqlstate '{sqlstate}'");
        on_poison(&pool, &statement).await;
        let healthy = (0..50).map(|i| vendor(&format!("{sqlstate}-{i}")));
        let batch = healthy.chain([vendor(offender)]).collect();
        let before = count(&pool, "select count(*) from vendors").await;
        store(&pool, batch, before + 50).await;
        assert_eq!(
            count(&pool, "select count(*) from vendors").await,
            before + 50
        );
    }
    assert_eq!(
        count(
            &pool,
            "select count(*) from webhook_spool where webhook_id like 'poison-%' and attempts = 1"
        )
        .await,
        2
    );
}

/// The body was not the cause, so it can be queried like any other once it is stored.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_that_was_refused_for_a_while_keeps_its_payload(pool: PgPool) {
    on_poison(&pool, "raise 'no'").await;
    store(&pool, vec![vendor("m1"), vendor("poison-1")], 1).await;
    until_count(
        &pool,
        "select count(*) from webhook_spool where attempts = 1",
        1,
    )
    .await;
    sql(&pool, "drop function offend cascade").await;
    let reader = start_spool_reader(&pool, Family::Vendor);
    until_count(
        &pool,
        "select count(*) from events where webhook_id = 'poison-1' and attempts = 2
            and payload->'data'->>'id' = 'poison-1' and problem is null",
        1,
    )
    .await;
    reader.cancel();
}

/// A slow event is deferred after its timeout, and has more time on its next attempt.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_slow_event_is_stored_after_its_neighbours(pool: PgPool) {
    on_poison(&pool, "perform pg_sleep(3)").await;
    store(&pool, batch(100, 2), 98).await;
    assert_eq!(count(&pool, "select count(*) from vendors").await, 98);
    let reader = start_spool_reader(&pool, Family::Vendor);
    until_count(
        &pool,
        "select count(*) from events where webhook_id like 'poison-%' and attempts = 2
            and problem is null",
        2,
    )
    .await;
    reader.cancel();
}

/// Neither event was stored before, so acknowledging it would lose it.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_a_trigger_or_an_index_of_others_keeps_out_is_not_taken_for_stored(pool: PgPool) {
    sql(
        &pool,
        "create function skip() returns trigger language plpgsql as $$ begin return null; end $$;
         create trigger skip before insert on events
            for each row when (new.webhook_id = 'skipped') execute function skip();
         create unique index on events (event_id)",
    )
    .await;
    let one_id = |webhook_id: &str| {
        let body = format!(
            r#"{{"eventId":"e1","eventType":"v1.vendor.created","data":{{"id":"{webhook_id}","companyId":"c","name":"n","state":"DRAFT"}}}}"#
        );
        event(webhook_id, body)
    };
    let batch = vec![one_id("first"), one_id("second"), vendor("skipped")];
    store(&pool, batch, 1).await;
    let refused = "select count(*) from webhook_spool
                    where webhook_id in ('second', 'skipped') and attempts = 1";
    until_count(&pool, refused, 2).await;
    assert_eq!(count(&pool, "select count(*) from events").await, 1);
    assert_eq!(count(&pool, "select count(*) from vendors").await, 1);
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_slow_event_in_the_spool_holds_up_no_other(pool: PgPool) {
    on_poison(&pool, "perform pg_sleep(8)").await;
    spool_events(&pool, &[vendor("poison-1")], 0).await;
    sql(&pool, "update webhook_spool set attempts = 1").await;
    let reader = start_spool_reader(&pool, Family::Vendor);
    let claimed = "select count(*) from webhook_spool where webhook_id = 'poison-1' and claims = 1";
    until_count(&pool, claimed, 1).await;
    spool_events(&pool, &[vendor("m1")], 0).await;
    until_count(&pool, "select count(*) from vendors where id = 'm1'", 1).await;
    assert_eq!(
        count(&pool, claimed).await,
        1,
        "the slow one is still being stored"
    );
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    reader.cancel();
}

/// Only the commit meets this failure, and it affects all events.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn trouble_of_the_commit_is_waited_out_and_named(pool: PgPool) {
    sql(
        &pool,
        "create function audit() returns trigger language plpgsql as
            $$ begin perform from audit_log; return null; end $$;
         create constraint trigger audit after insert on events
            deferrable initially deferred for each row execute function audit()",
    )
    .await;
    let persistence = persistence(&pool, Family::Vendor);
    let task = {
        let persistence = persistence.clone();
        let works = vec![work(vendor("m1"))];
        tokio::spawn(async move { persistence.persist(works, &CancellationToken::new()).await })
    };
    let deadline = Instant::now() + SOON;
    loop {
        let said = persistence.probe().await.err().unwrap_or_default();
        if said.contains("harmless") && said.contains("\"audit_log\" does not exist") {
            break;
        }
        assert!(Instant::now() < deadline, "it says {said:?}");
        sleep(Duration::from_millis(20)).await;
    }
    sql(&pool, "create table audit_log ()").await;
    task.await.expect("no panic").expect("not abandoned");
    let stored = "select count(*) from events where attempts = 1 and problem is null";
    assert_eq!(count(&pool, stored).await, 1);
}

/// The largest number of failures: those of halving until each offender is alone, and those until
/// it is blamed. With the SQLSTATE of an outage, blaming takes three more. Contention is retried
/// once for each group, and three times for a single event.
fn enough_failures(offenders: i64, events: i64, sqlstate: &str) -> i64 {
    let digits = i64::from((events / offenders).ilog2() + 1);
    match sqlstate {
        "40001" => offenders * (2 * (2 + digits) + 3 + 3),
        _ => offenders * (2 + digits + 3),
    }
}

/// All healthy events are stored in one pass over the batch, and each offender is judged once in
/// it.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn many_offenders_cost_their_neighbours_no_second_pass(pool: PgPool) {
    // Counted with a sequence, which a rollback does not reset.
    sql(&pool, "create sequence failures").await;
    for offenders in [10, 100] {
        for raised in ["23514", "P0001", "42501", "53100", "40001"] {
            sql(
                &pool,
                "truncate events, vendors, webhook_spool; drop function if exists offend cascade;
                 alter sequence failures restart",
            )
            .await;
            let statement = format!("perform nextval('failures'); raise sqlstate '{raised}'");
            on_poison(&pool, &statement).await;
            let healthy = 1_000 - offenders;
            store(
                &pool,
                batch(1_000, usize::try_from(offenders).unwrap_or(1)),
                healthy,
            )
            .await;
            let what = format!("{offenders} with {raised}");
            assert_eq!(
                count(&pool, "select count(*) from vendors").await,
                healthy,
                "{what}"
            );
            let deferred = "select count(*) from webhook_spool
                            where webhook_id like 'poison-%' and attempts = 1 and claims = 0";
            assert_eq!(count(&pool, deferred).await, offenders, "{what}");
            let failures = count(&pool, "select last_value from failures").await;
            assert!(
                failures <= enough_failures(offenders, 1_000, raised),
                "{what}: {failures}"
            );
        }
    }
}

/// Prints the measurements: `cargo test -p worker --test storing -- --ignored --nocapture cost_of`.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
#[ignore = "measures"]
#[expect(clippy::print_stdout, reason = "its figures are what it is for")]
async fn the_cost_of_offenders(pool: PgPool) {
    let kinds = [
        ("none", "null"),
        ("constraint (23514)", ""),
        ("locked row (55P03)", ""),
        ("trigger (P0001)", "raise 'no'"),
        ("no right (42501)", "raise sqlstate '42501'"),
        ("disk full (53100)", "raise sqlstate '53100'"),
        ("serialization (40001)", "raise sqlstate '40001'"),
        ("slow (57014)", "perform pg_sleep(60)"),
    ];
    for offenders in [1, 10, 100] {
        for (kind, statement) in kinds {
            sql(
                &pool,
                "truncate events, vendors, webhook_spool;
                 drop function if exists offend cascade;
                 alter table vendors drop constraint if exists no_poison",
            )
            .await;
            let mut user = pool.begin().await.expect("a transaction");
            match kind {
                "constraint (23514)" => sql(&pool, REFUSE_POISONS).await,
                "locked row (55P03)" => {
                    sqlx::query(
                        "insert into vendors (id, company_id, name, state, sort_key, webhook_id)
                         select 'poison-' || to_char(n, 'FM0000'), 'c1', '', '', '', ''
                           from generate_series(0, 999) n",
                    )
                    .execute(&pool)
                    .await
                    .expect("rows");
                    sqlx::query("select from vendors for update")
                        .execute(&mut *user)
                        .await
                        .expect("locks");
                }
                _ => on_poison(&pool, statement).await,
            }
            let healthy = 1_000 - i64::try_from(offenders).unwrap_or(0);
            let (neighbours, all) = store(&pool, batch(1_000, offenders), healthy).await;
            println!("{offenders} of 1,000, {kind}: neighbours {neighbours:.1?}, all {all:.1?}");
            user.rollback().await.expect("the end");
        }
    }
}

const REFUSE_POISONS: &str =
    "alter table vendors add constraint no_poison check (id not like 'poison-%')";
