//! One store is enough; without both, the sender gets 503.

use std::net::ToSocketAddrs;

use futures_util::future::join_all;
use shared::Family;
use sqlx::PgPool;
use stack::proxy::{Mode, Proxy};
use tokio::time::{Duration, Instant, sleep};

use crate::{
    app::{App, SOON, Stores},
    webhook::Webhook,
};

/// A service that reaches both stores through proxies.
struct Proxied {
    app: App,
    broker: Proxy,
    database: Proxy,
}

impl Proxied {
    async fn start(stores: &Stores) -> Self {
        Self::start_with(stores, &[]).await
    }

    async fn start_with(stores: &Stores, flags: &[&str]) -> Self {
        let broker = Proxy::start(host_of(&stores.amqp_url))
            .await
            .expect("a proxy");
        let database = Proxy::start(host_of(&stores.database_url))
            .await
            .expect("a proxy");
        let app = App::start_at(
            &through(&stores.database_url, &database),
            &through(&stores.amqp_url, &broker),
            &stores.prefix,
            flags,
        );
        app.until_ready("rabbitmq").await;
        app.until_ready("postgres").await;
        Self {
            app,
            broker,
            database,
        }
    }
}

fn authority(url: &str) -> &str {
    let rest = url.split_once("://").expect("a scheme").1;
    let authority = rest.split(['/', '?']).next().expect("an authority");
    authority.rsplit('@').next().expect("a host")
}

fn host_of(url: &str) -> std::net::SocketAddr {
    let mut addresses = authority(url).to_socket_addrs().expect("host:port");
    addresses.next().expect("an address")
}

fn through(url: &str, proxy: &Proxy) -> String {
    url.replace(authority(url), &proxy.address().to_string())
}

async fn spooled(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from webhook_spool")
        .fetch_one(pool)
        .await
        .expect("a count")
}

/// Sends a webhook again and again until it is accepted.
async fn accepted_soon(app: &App, webhook: &Webhook) {
    let deadline = Instant::now() + SOON;
    while app.send(webhook).await.0 != 202 {
        assert!(Instant::now() < deadline, "never accepted");
        sleep(Duration::from_millis(100)).await;
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn without_rabbitmq_events_are_spooled_and_nothing_is_refused(pool: PgPool) {
    for mode in [Mode::Cut, Mode::Freeze] {
        let stores = Stores::new(&pool).await;
        let proxied = Proxied::start(&stores).await;
        let before = spooled(&pool).await;
        proxied.broker.set(mode).await;
        let webhooks: Vec<_> = (0..20)
            .map(|_| Webhook::vendor(&Webhook::new_id()))
            .collect();
        let answers = join_all(webhooks.iter().map(|w| proxied.app.send(w))).await;
        assert!(
            answers.iter().all(|(status, _)| *status == 202),
            "{mode:?}: {answers:?}"
        );
        assert_eq!(spooled(&pool).await - before, 20, "{mode:?}");

        // A repetition is detected, even by a process that does not remember the id.
        let other = App::start(&stores).await;
        assert_eq!(other.send(&webhooks[0]).await.1["status"], "duplicate");
        other.stop().await;

        // It recovers without a restart.
        proxied.broker.set(Mode::Pass).await;
        proxied.app.until_ready("rabbitmq").await;
        let deadline = Instant::now() + SOON;
        while stores.events(Family::Vendor).await.is_empty() {
            assert!(Instant::now() < deadline, "{mode:?}: never published again");
            proxied.app.send(&Webhook::vendor(&Webhook::new_id())).await;
        }
        proxied.app.stop().await;
        stores.clean_up().await;
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn without_postgres_events_are_published_and_nothing_is_refused(pool: PgPool) {
    for mode in [Mode::Cut, Mode::Freeze] {
        let stores = Stores::new(&pool).await;
        let proxied = Proxied::start(&stores).await;
        proxied.database.set(mode).await;
        let webhooks: Vec<_> = (0..20)
            .map(|_| Webhook::vendor(&Webhook::new_id()))
            .collect();
        let answers = join_all(webhooks.iter().map(|w| proxied.app.send(w))).await;
        assert!(
            answers.iter().all(|(status, _)| *status == 202),
            "{mode:?}: {answers:?}"
        );
        assert!(stores.events(Family::Vendor).await.len() >= 20, "{mode:?}");
        // On a busy machine a confirm may have come too late for the breaker.
        proxied.app.until_check("rabbitmq", true).await;
        proxied.app.until_check("postgres", false).await;
        let (status, readiness) = proxied.app.readiness().await;
        assert_eq!(status, 200, "one store is enough: {readiness}");

        proxied.database.set(Mode::Pass).await;
        proxied.app.until_ready("postgres").await;
        let receipts = async || -> i64 {
            sqlx::query_scalar("select count(*) from webhook_receipts")
                .fetch_one(&pool)
                .await
                .expect("a count")
        };
        let before = receipts().await;
        let deadline = Instant::now() + SOON;
        while receipts().await == before {
            assert!(Instant::now() < deadline, "{mode:?}: never deduped again");
            proxied.app.send(&Webhook::vendor(&Webhook::new_id())).await;
        }
        proxied.app.stop().await;
        stores.clean_up().await;
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn without_both_the_answer_is_503_and_the_service_recovers(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let proxied = Proxied::start(&stores).await;
    proxied.broker.set(Mode::Cut).await;
    proxied.database.set(Mode::Cut).await;
    let webhook = Webhook::vendor("msg_1");
    let (status, answer) = proxied.app.send(&webhook).await;
    assert_eq!(status, 503, "{answer}");
    proxied.app.until_check("postgres", false).await;
    assert_eq!(proxied.app.readiness().await.0, 503);

    // A refused event is accepted when it is sent again.
    proxied.broker.set(Mode::Pass).await;
    proxied.database.set(Mode::Pass).await;
    accepted_soon(&proxied.app, &webhook).await;
    proxied.app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_deleted_queue_is_declared_again_and_nothing_is_lost(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    for family in Family::ALL {
        stores.delete_queue(family).await;
    }
    // Without `mandatory`, the broker would confirm the event and drop it.
    assert_eq!(app.send(&Webhook::vendor("msg_1")).await.0, 202);
    assert_eq!(spooled(&pool).await, 1);
    let deadline = Instant::now() + SOON;
    loop {
        let before = spooled(&pool).await;
        assert_eq!(app.send(&Webhook::vendor(&Webhook::new_id())).await.0, 202);
        if spooled(&pool).await == before {
            break;
        }
        assert!(Instant::now() < deadline, "never declared again");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(!stores.events(Family::Vendor).await.is_empty());
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn past_the_in_flight_limit_the_answer_is_503_at_once(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let proxied = Proxied::start_with(&stores, &["--in-flight-limit", "1"]).await;
    // While neither store answers, an event takes the whole deadline.
    proxied.broker.set(Mode::Freeze).await;
    proxied.database.set(Mode::Freeze).await;
    let (slow, refused) = (Webhook::vendor("slow"), Webhook::vendor("refused"));
    let (slow, (refused, waited)) = tokio::join!(proxied.app.send(&slow), async {
        proxied.app.until_metric("pleo_ingest_in_flight 1").await;
        sleep(Duration::from_millis(300)).await;
        let started = Instant::now();
        (proxied.app.send(&refused).await, started.elapsed())
    });
    assert_eq!(slow.0, 503);
    assert_eq!(
        (refused.0, &refused.1["title"]),
        (503, &"too many requests at once".into())
    );
    assert!(waited < Duration::from_secs(2), "{waited:?}");
    proxied.broker.set(Mode::Pass).await;
    proxied.database.set(Mode::Pass).await;
    proxied.app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_without_a_queue_spoils_no_other_and_is_not_lost(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    stores.delete_queue(Family::Other).await;
    let others: Vec<_> = (0..20)
        .map(|_| Webhook::new(&Webhook::new_id(), br#"{"eventType":"v1.x.y"}"#))
        .collect();
    let vendors: Vec<_> = (0..200)
        .map(|_| Webhook::vendor(&Webhook::new_id()))
        .collect();
    // Each has its own connection, so that batches with and without unroutable events run at the
    // same time.
    let answers = join_all(others.iter().chain(&vendors).map(|w| app.send(w))).await;
    assert!(
        answers.iter().all(|(status, _)| *status == 202),
        "{answers:?}"
    );
    let mut safe: Vec<String> = sqlx::query_scalar("select webhook_id from webhook_spool")
        .fetch_all(&pool)
        .await
        .expect("a query");
    app.until_ready("rabbitmq").await;
    for family in [Family::Vendor, Family::Other] {
        let queued = stores.events(family).await;
        safe.extend(queued.into_iter().map(|event| event.webhook_id));
    }
    for webhook in others.iter().chain(&vendors) {
        assert!(safe.contains(&webhook.id), "{} is nowhere", webhook.id);
    }
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_topology_that_differs_is_shown_and_does_not_stop_publishing(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    stores.declare_differently(Family::Vendor).await;
    let app = App::start(&stores).await;
    let queue = stores.topology().queue(Family::Vendor);
    app.until_metric(&format!("pleo_topology_drift{{entity=\"{queue}\"}} 1"))
        .await;
    for _ in 0..20 {
        assert_eq!(app.send(&Webhook::vendor(&Webhook::new_id())).await.0, 202);
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(spooled(&pool).await, 0);
    assert_eq!(stores.events(Family::Vendor).await.len(), 20);
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test]
async fn it_serves_before_the_schema_is_there(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    assert_eq!(app.send(&Webhook::vendor("msg_1")).await.0, 202);
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_spool_row_is_on_disk_before_the_answer(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    // A deferred trigger sees the settings of the commit.
    sqlx::raw_sql(
        "create table commits (durability text);
         create function note() returns trigger language plpgsql as
           $$ begin insert into commits values (current_setting('synchronous_commit')); return null; end $$;
         create constraint trigger note after insert on webhook_spool
           deferrable initially deferred for each row execute function note()",
    )
    .execute(&pool)
    .await
    .expect("good SQL");
    let app = App::start_at(
        &stores.database_url,
        "amqp://127.0.0.1:1/%2f",
        &stores.prefix,
        &[],
    );
    app.until_ready("postgres").await;
    assert_eq!(app.send(&Webhook::vendor("msg_1")).await.0, 202);
    let commits: Vec<String> = sqlx::query_scalar("select durability from commits")
        .fetch_all(&pool)
        .await
        .expect("rows");
    assert_eq!(commits, ["on"], "the row is the event's only copy");
    app.stop().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_first_receipt_of_a_batch_is_inserted_within_its_limits(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    sqlx::raw_sql(
        "create table settings (value text);
         create function note() returns trigger language plpgsql as
           $$ begin
                insert into settings
                select concat_ws(' ', current_setting('synchronous_commit'), current_setting('lock_timeout'),
                                 current_setting('statement_timeout'),
                                 current_setting('idle_in_transaction_session_timeout'));
                return new;
              end $$;
         create trigger note before insert on webhook_receipts for each row execute function note()",
    )
    .execute(&pool)
    .await
    .expect("good SQL");
    let app = App::start(&stores).await;
    app.until_ready("rabbitmq").await;
    app.until_ready("postgres").await;
    assert_eq!(app.send(&Webhook::vendor("msg_1")).await.0, 202);
    // The service stops only after the receipt is committed.
    app.stop().await;
    let settings: Vec<String> = sqlx::query_scalar("select value from settings")
        .fetch_all(&pool)
        .await
        .expect("rows");
    assert_eq!(settings, ["off 1s 5s 15s"]);
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_commit_that_hangs_costs_no_confirmed_event_its_answer(pool: PgPool) {
    sqlx::raw_sql(
        "create function hang() returns trigger language plpgsql as
           $$ begin perform pg_sleep(60); return null; end $$;
         create constraint trigger hang after insert on webhook_receipts
           deferrable initially deferred for each row execute function hang()",
    )
    .execute(&pool)
    .await
    .expect("good SQL");
    let stores = Stores::new(&pool).await;
    let app = App::start(&stores).await;
    app.until_ready("rabbitmq").await;
    let webhook = Webhook::vendor("msg_1");
    let (status, body) = app.send(&webhook).await;
    assert_eq!(
        (status, &body["status"]),
        (202, &"accepted".into()),
        "{body}"
    );
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_refused_event_is_not_a_duplicate_when_it_comes_again(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let proxied = Proxied::start(&stores).await;
    proxied.broker.set(Mode::Cut).await;
    proxied.database.set(Mode::Cut).await;
    let webhook = Webhook::vendor("msg_1");
    for _ in 0..2 {
        assert_eq!(proxied.app.send(&webhook).await.0, 503);
    }
    proxied.broker.set(Mode::Pass).await;
    proxied.database.set(Mode::Pass).await;
    proxied.app.until_ready("rabbitmq").await;
    proxied.app.until_ready("postgres").await;
    accepted_soon(&proxied.app, &webhook).await;
    let queued = stores.events(Family::Vendor).await.len();
    let spooled = spooled(&pool).await;
    assert!(
        queued > 0 || spooled > 0,
        "answered 2xx, and neither queued nor spooled"
    );
    proxied.app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_wrong_signature_is_refused_without_asking_a_store(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let proxied = Proxied::start(&stores).await;
    let good = Webhook::vendor("msg_1");
    assert_eq!(proxied.app.send(&good).await.0, 202);
    let mut forged = good.clone();
    forged.body.push(b' ');
    let stale = Webhook::signed_at("msg_1", &good.body, 1_600_000_000);
    proxied.broker.set(Mode::Freeze).await;
    proxied.database.set(Mode::Freeze).await;
    for (webhook, in_memory) in [(&forged, true), (&stale, true), (&forged, false)] {
        let mut webhook = webhook.clone();
        if !in_memory {
            webhook.id = Webhook::new_id();
        }
        let started = Instant::now();
        // A client without the secret does not learn that an id was accepted before.
        assert_eq!(proxied.app.send(&webhook).await.0, 401);
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "it waited for a store"
        );
    }
    proxied.broker.set(Mode::Pass).await;
    proxied.database.set(Mode::Pass).await;
    proxied.app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn no_receipt_is_committed_while_the_confirm_is_awaited(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let proxied = Proxied::start(&stores).await;
    // Leaves an open channel, so that the next wait is for a confirm only.
    accepted_soon(&proxied.app, &Webhook::vendor("msg_0")).await;
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    proxied.broker.set(Mode::Freeze).await;
    let webhook = Webhook::vendor("msg_1");
    let look = async {
        for _ in 0..20 {
            sleep(Duration::from_millis(50)).await;
            let receipts: i64 = sqlx::query_scalar(
                "select count(*) from webhook_receipts where webhook_id = 'msg_1'",
            )
            .fetch_one(&pool)
            .await
            .expect("a count");
            assert_eq!(
                receipts, 0,
                "killed now, it would call the next try a duplicate"
            );
        }
    };
    tokio::select! {
        answer = proxied.app.send(&webhook) => panic!("{answer:?} before a confirm"),
        () = look => {}
    }
    proxied.broker.set(Mode::Pass).await;
    accepted_soon(&proxied.app, &webhook).await;
    proxied.app.stop().await;
    stores.clean_up().await;
}

/// A store on the other side of the earth.
const FAR_AWAY: Mode = Mode::Slow(Duration::from_millis(250));

/// The number of committed receipts.
async fn receipts(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from webhook_receipts")
        .fetch_one(pool)
        .await
        .expect("a count")
}

/// A value from `/metrics`.
async fn metric(app: &App, name: &str) -> f64 {
    let metrics = app.metrics().await;
    let line = metrics
        .lines()
        .find(|line| line.starts_with(&format!("{name} ")));
    let value = line
        .and_then(|line| line.split(' ').next_back())
        .expect("the metric");
    value.parse().expect("a number")
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn over_a_long_way_to_postgres_dedup_comes_back_after_a_cut(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let proxied = Proxied::start(&stores).await;
    let app = &proxied.app;
    proxied.database.set(Mode::Cut).await;
    let deadline = Instant::now() + Duration::from_secs(4);
    while Instant::now() < deadline {
        assert_eq!(app.send(&Webhook::vendor(&Webhook::new_id())).await.0, 202);
    }
    proxied.database.set(FAR_AWAY).await;
    let deadline = Instant::now() + SOON;
    while receipts(&pool).await == 0 {
        assert!(Instant::now() < deadline, "every batch goes without dedup");
        assert_eq!(app.send(&Webhook::vendor(&Webhook::new_id())).await.0, 202);
    }

    // Soon all batches have dedup again, even several at once and with repetitions.
    app.until_ready("postgres").await;
    let other = App::start(&stores).await;
    let deadline = Instant::now() + SOON;
    loop {
        let without_dedup = metric(app, "pleo_ingest_without_dedup_total").await;
        let webhooks: Vec<_> = (0..20)
            .map(|_| Webhook::vendor(&Webhook::new_id()))
            .collect();
        let first = join_all(webhooks.iter().map(|w| app.send(w))).await;
        assert!(first.iter().all(|(status, _)| *status == 202), "{first:?}");
        let repeated = join_all(webhooks.iter().map(|w| other.send(w))).await;
        let recognised = repeated
            .iter()
            .all(|(_, body)| body["status"] == "duplicate");
        if recognised && metric(app, "pleo_ingest_without_dedup_total").await == without_dedup {
            break;
        }
        assert!(Instant::now() < deadline, "{repeated:?}");
    }
    other.stop().await;
    proxied.app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn over_a_long_way_to_rabbitmq_events_are_published_again_after_a_cut(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let proxied = Proxied::start(&stores).await;
    proxied.broker.set(Mode::Cut).await;
    for _ in 0..10 {
        let webhook = Webhook::vendor(&Webhook::new_id());
        assert_eq!(proxied.app.send(&webhook).await.0, 202);
    }
    assert!(spooled(&pool).await > 0);
    proxied.broker.set(FAR_AWAY).await;
    let deadline = Instant::now() + SOON;
    while stores.events(Family::Vendor).await.is_empty() {
        assert!(Instant::now() < deadline, "everything is spooled");
        let webhook = Webhook::vendor(&Webhook::new_id());
        assert_eq!(proxied.app.send(&webhook).await.0, 202);
    }
    proxied.app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn without_postgres_a_slow_broker_is_waited_for(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let proxied = Proxied::start(&stores).await;
    proxied.database.set(Mode::Cut).await;
    proxied.broker.set(Mode::Freeze).await;
    let webhook = Webhook::vendor("msg_1");
    assert_eq!(proxied.app.send(&webhook).await.0, 503);
    // The breaker is open, and the broker is slow now: slower than a trial allows, faster than the
    // deadline of an answer.
    let slow = Mode::Slow(Duration::from_millis(400));
    proxied.broker.set(slow).await;
    assert_eq!(proxied.app.send(&webhook).await.0, 202, "it was there");
    proxied.app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_whose_spooling_hangs_is_published(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let proxied = Proxied::start(&stores).await;
    // The breaker of the broker opens, so the next batch is spooled.
    proxied.broker.set(Mode::Cut).await;
    let (first, second) = (Webhook::vendor("msg_1"), Webhook::vendor("msg_2"));
    assert_eq!(proxied.app.send(&first).await.0, 202);
    assert_eq!(spooled(&pool).await, 1);
    sqlx::raw_sql(
        "create function hang() returns trigger language plpgsql as
           $$ begin perform pg_sleep(60); return new; end $$;
         create trigger hang before insert on webhook_spool for each row execute function hang()",
    )
    .execute(&pool)
    .await
    .expect("good SQL");
    proxied.broker.set(Mode::Pass).await;
    let (status, answer) = proxied.app.send(&second).await;
    assert_eq!(status, 202, "RabbitMQ was there: {answer}");
    assert_eq!(stores.events(Family::Vendor).await.len(), 1);
    proxied.app.stop().await;
    stores.clean_up().await;
}
