//! Which event is blamed for a failure, and how it affects the others.

use std::time::Duration;

use shared::Family;
use sqlx::PgPool;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use worker::persistence::Abandoned;

use crate::sample::{
    count, persist, persistence, sql, start_spool_reader, until_count, vendor, work,
};

/// Makes Postgres refuse one vendor.
const REFUSE_POISON: &str = "alter table vendors add constraint no_poison check (id <> 'poison')";

pub(crate) fn batch_with_poison() -> Vec<shared::AcceptedEvent> {
    (0..500)
        .map(|i| {
            vendor(&if i == 317 {
                "poison".to_owned()
            } else {
                format!("m{i}")
            })
        })
        .collect()
}

/// Makes the only spooled event, which has failed once, due again and again until its last attempt
/// starts, because the delays grow to an hour.
pub(crate) async fn spend_all_attempts(pool: &PgPool) {
    for spent in 2..=5 {
        sql(pool, "update webhook_spool set due_at = now()").await;
        let deadline = tokio::time::Instant::now() + crate::sample::SOON;
        while count(pool, "select attempts::bigint from webhook_spool").await < spent {
            assert!(tokio::time::Instant::now() < deadline);
            sleep(Duration::from_millis(20)).await;
        }
    }
    sql(pool, "update webhook_spool set due_at = now()").await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn one_poison_event_costs_its_neighbours_nothing(pool: PgPool) {
    sql(&pool, REFUSE_POISON).await;
    persist(&pool, batch_with_poison()).await;
    assert_eq!(count(&pool, "select count(*) from events").await, 499);
    assert_eq!(count(&pool, "select count(*) from vendors").await, 499);
    assert_eq!(
        count(
            &pool,
            "select count(*) from webhook_spool
              where webhook_id = 'poison' and attempts = 1 and claims = 0
                and due_at between now() and now() + interval '1 s'
                and last_error like '%no_poison%'"
        )
        .await,
        1
    );
}

/// Postgres quotes a value that a user's trigger cannot convert.
#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_value_that_postgres_quotes_is_in_no_reason(pool: PgPool) {
    sql(
        &pool,
        "create function count_up() returns trigger language plpgsql as
           $$ begin perform new.name::integer + 1; return new; end $$;
         create trigger count_up before insert on vendors for each row execute function count_up()",
    )
    .await;
    persist(&pool, [vendor("m1")]).await;
    until_count(
        &pool,
        "select count(*) from webhook_spool where last_error like '%type integer: \"…\"%'",
        1,
    )
    .await;
    let stop = start_spool_reader(&pool, Family::Vendor);
    spend_all_attempts(&pool).await;
    until_count(&pool, "select count(*) from dead_letters", 1).await;
    stop.cancel();
    until_count(
        &pool,
        "select count(*) from dead_letters where problem like '%type integer: \"…\"%'",
        1,
    )
    .await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_refused_event_is_tried_again_and_stored_once_it_can_be(pool: PgPool) {
    sql(&pool, REFUSE_POISON).await;
    persist(&pool, [vendor("poison")]).await;
    sql(&pool, "alter table vendors drop constraint no_poison").await;
    let stop = start_spool_reader(&pool, Family::Vendor);
    until_count(&pool, "select count(*) from vendors where id = 'poison'", 1).await;
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    assert_eq!(
        count(
            &pool,
            "select count(*) from events where webhook_id = 'poison' and attempts = 2 and problem is null"
        )
        .await,
        1
    );
    stop.cancel();
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn with_its_attempts_spent_it_is_a_dead_letter_with_the_reason(pool: PgPool) {
    sql(&pool, REFUSE_POISON).await;
    persist(&pool, [vendor("poison")]).await;
    let stop = start_spool_reader(&pool, Family::Vendor);
    spend_all_attempts(&pool).await;
    until_count(
        &pool,
        "select count(*) from dead_letters where webhook_id = 'poison' and attempts = 6
            and problem like '%no_poison%'",
        1,
    )
    .await;
    until_count(&pool, "select count(*) from webhook_spool", 0).await;
    stop.cancel();
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_is_not_a_rows_fault_is_waited_out_without_a_problem(pool: PgPool) {
    let situations = [
        (
            "alter table vendors rename to gone",
            "alter table gone rename to vendors",
        ),
        (
            "alter table vendors rename country to land",
            "alter table vendors rename land to country",
        ),
        (
            "alter table events rename to gone",
            "alter table gone rename to events",
        ),
    ];
    for (i, (break_it, mend_it)) in situations.into_iter().enumerate() {
        sql(&pool, break_it).await;
        let persistence = persistence(&pool, Family::Vendor);
        let batch: Vec<_> = (0..10)
            .map(|n| work(vendor(&format!("m{i}-{n}"))))
            .collect();
        let task = {
            let persistence = persistence.clone();
            tokio::spawn(async move { persistence.persist(batch, &CancellationToken::new()).await })
        };
        let deadline = tokio::time::Instant::now() + crate::sample::SOON;
        while persistence.probe().await.is_ok() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "readiness never says so"
            );
            sleep(Duration::from_millis(20)).await;
        }
        sleep(Duration::from_millis(500)).await;
        assert!(!task.is_finished(), "held: {break_it}");
        sql(&pool, mend_it).await;
        task.await.expect("no panic").expect("not abandoned");
    }
    assert_eq!(count(&pool, "select count(*) from vendors").await, 30);
    assert_eq!(count(&pool, "select count(*) from dead_letters").await, 0);
    assert_eq!(count(&pool, "select count(*) from webhook_spool").await, 0);
    assert_eq!(
        count(&pool, "select max(attempts)::bigint from events").await,
        1
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_triggers_exception_is_blamed_on_its_row_in_the_end(pool: PgPool) {
    sql(
        &pool,
        "create function refuse() returns trigger language plpgsql as
           $$ begin if new.id = 'poison' then raise exception 'not this one'; end if; return new; end $$;
         create trigger refuse before insert on vendors for each row execute function refuse()",
    )
    .await;
    persist(&pool, ["m1", "poison", "m2"].map(vendor)).await;
    assert_eq!(count(&pool, "select count(*) from vendors").await, 2);
    assert_eq!(
        count(
            &pool,
            "select count(*) from webhook_spool where last_error like '%not this one%'"
        )
        .await,
        1
    );
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn what_is_held_is_given_up_on_request(pool: PgPool) {
    sql(&pool, "alter table vendors rename to gone").await;
    let abandon = CancellationToken::new();
    let persistence = persistence(&pool, Family::Vendor);
    let task = {
        let abandon = abandon.clone();
        tokio::spawn(async move {
            persistence
                .persist(vec![work(vendor("m1"))], &abandon)
                .await
        })
    };
    sleep(Duration::from_millis(300)).await;
    abandon.cancel();
    assert_eq!(task.await.expect("no panic"), Err(Abandoned));
    assert_eq!(count(&pool, "select count(*) from events").await, 0);
}
