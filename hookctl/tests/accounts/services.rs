//! What the services do only now and then works under their accounts as well.

use std::time::Duration;

use chrono::Utc;
use clap::Parser;
use ingest::receipts::{self, Claim};
use shared::{
    AcceptedEvent, EventType, Family, Program,
    database::{self, DeadlineTransaction, Durability, Pool, TransactionMode},
    message::{Receipt, body_sha256},
    spool::{self, SpoolEntry},
};
use sqlx::{ConnectOptions, PgPool};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::place::{Place, SOON};

fn event(id: &str, body: &'static str) -> AcceptedEvent {
    AcceptedEvent {
        webhook_id: id.to_owned(),
        event_type: EventType::unknown(),
        body_sha256: body_sha256(body.as_bytes()),
        body: body.into(),
        received_at: Utc::now(),
        attempted_at: None,
        secret_name: None,
        secret_companies: None,
    }
}

fn entry(event: &AcceptedEvent, claims: i32) -> SpoolEntry<'_> {
    SpoolEntry {
        event,
        family: event.event_type.family(),
        receipt: Receipt::Missing,
        attempts: 0,
        claims,
        delay: Duration::ZERO,
        reason: "a test",
    }
}

/// Postgres refuses then what a policy would filter, unless the transaction says otherwise.
async fn turn_row_security_off(place: &Place) {
    place
        .sql(
            "do $$ begin
                execute format('alter database %I set row_security = off', current_database());
             end $$",
        )
        .await;
}

#[sqlx::test(migrations = false)]
async fn ingest_can_claim_again_and_spool(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    turn_row_security_off(&place).await;
    let pool = PgPool::connect_with(place.database(Program::Ingest))
        .await
        .expect("it logs in");
    let services: Pool = pool.clone().into();
    database::probe(&services, receipts::PROBE)
        .await
        .expect("it is ready");
    let mode = TransactionMode::write(Durability::Replicated);
    let mut ingest = DeadlineTransaction::begin(&services, &mode, Instant::now() + SOON)
        .await
        .expect("a transaction");
    let event = event("msg_1", "{}");
    ingest
        .run(async |ingest| {
            // The second time there is a receipt that proves nothing any more.
            for _ in 0..2 {
                let claims = receipts::claim(ingest, &[&event], Duration::ZERO).await?;
                assert_eq!(claims, [Claim::Publish]);
            }
            // The second time it is kept already.
            for _ in 0..2 {
                spool::insert(ingest, &[entry(&event, 0)]).await?;
            }
            receipts::mark_spooled(ingest, &["msg_1"]).await?;
            let claims = receipts::claim(ingest, &[&event], Duration::ZERO).await?;
            assert!(matches!(claims[..], [Claim::Duplicate(_)]));
            Ok(())
        })
        .await
        .expect("the rights");
    ingest.commit().await.expect("committed");
    pool.close().await;
    place.clean_up().await;
}

#[sqlx::test(migrations = false)]
async fn a_worker_can_put_off_isolate_and_sweep(pool: PgPool) {
    let place = Place::prepared(&pool).await;
    turn_row_security_off(&place).await;
    place
        .sql(
            "insert into events (webhook_id, event_type, received_at, raw, body_sha256)
             values ('msg_old', 'unknown', now() - interval '9 days', '', '');
             insert into webhook_receipts (webhook_id, received_at, body_sha256)
             values ('msg_old', now() - interval '9 days', '');
             create function refuse_first() returns trigger language plpgsql as
                $$ begin raise 'not yet'; end $$;
             create trigger refuse_first before insert on events
                for each row when (new.webhook_id = 'msg_refused' and new.attempts = 1)
                execute function refuse_first()",
        )
        .await;
    let refused = event("msg_refused", "{}");
    let isolated = event("msg_isolated", "{}");
    let misrouted = event(
        "msg_misrouted",
        r#"{"eventType":"v1.vendor.created","data":{"id":"v","companyId":"c","name":"n","state":"DRAFT"}}"#,
    );
    let mut owner = pool.acquire().await.expect("a connection");
    spool::insert(
        &mut owner,
        &[
            entry(&refused, 0),
            entry(&isolated, 2),
            entry(&misrouted, 0),
        ],
    )
    .await
    .expect("an insert");

    let program = Program::Worker(Family::Other);
    let config = worker::config::Config::parse_from([
        "other-worker",
        "--database-url",
        place.database(program).to_url_lossy().as_str(),
        "--amqp-url",
        &place.broker_url(program),
        "--topology-prefix",
        &place.prefix,
        "--declare-topology=false",
        "--migrate=false",
        "--private-listen=127.0.0.1:0",
    ]);
    let stop = CancellationToken::new();
    let worker = tokio::spawn({
        let stop = stop.clone();
        async move { worker::service::run(Family::Other, &config, stop).await }
    });
    let deadline = Instant::now() + SOON;
    loop {
        let state: (i64, i64, i64, i64) = sqlx::query_as(
            "select (select count(*) from webhook_receipts where webhook_id = 'msg_old'),
                    (select count(*) from events where webhook_id = 'msg_isolated'),
                    (select count(*) from events where webhook_id = 'msg_refused' and attempts = 2),
                    (select count(*) from dead_letters where event_type = 'v1.vendor.created')",
        )
        .fetch_one(&pool)
        .await
        .expect("a state");
        if state == (0, 1, 1, 1) {
            break;
        }
        assert!(Instant::now() < deadline, "still {state:?}");
        assert!(!worker.is_finished(), "{:?}", worker.await);
        sleep(Duration::from_millis(50)).await;
    }
    stop.cancel();
    worker.await.expect("no panic").expect("a stop in order");
    place.clean_up().await;
}
