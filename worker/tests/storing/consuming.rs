//! A complete worker with its own queue.

use std::time::Duration;

use clap::Parser;
use futures_util::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions,
        ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::FieldTable,
};
use shared::{
    AcceptedEvent, Family,
    message::{Delivered, Message, Receipt},
    topology::{Declare, Sight, Topology},
};
use sqlx::{ConnectOptions, PgPool};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use worker::config::Config;

use crate::sample::{SOON, count, event, sql, until_count, vendor};

struct Broker {
    url: String,
    connection: Connection,
    channel: Channel,
    topology: Topology,
    prefix: String,
}

impl Broker {
    async fn new() -> Self {
        let url = std::env::var("AMQP_URL")
            .expect("set AMQP_URL and DATABASE_URL, or run the tests with `cargo stack test`");
        let connection = Connection::connect(&url, ConnectionProperties::default())
            .await
            .expect("RabbitMQ at AMQP_URL");
        let channel = connection.create_channel().await.expect("a channel");
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .expect("confirms");
        let prefix = format!("test-{:016x}", rand::random::<u64>());
        let topology = Topology::new(&prefix);
        let drifts = topology
            .declare(&connection, Declare::Active, Sight::All)
            .await
            .expect("a connection");
        assert!(drifts.is_empty(), "{drifts:?}");
        Self {
            url,
            connection,
            channel,
            topology,
            prefix,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the test stands in for ingest")]
    async fn publish_together(&self, events: &[AcceptedEvent]) {
        let mut confirms = Vec::new();
        for message in Message::of(&events.iter().collect::<Vec<_>>(), Receipt::Recorded) {
            let confirm = self
                .channel
                .basic_publish(
                    self.topology.events_exchange().as_str().into(),
                    message.routing_key.into(),
                    BasicPublishOptions::default(),
                    &message.body,
                    message.properties,
                )
                .await
                .expect("a publish");
            confirms.push(confirm);
        }
        for confirm in confirms {
            assert!(confirm.await.expect("a confirm").is_ack());
        }
    }

    /// Publishes each event as a message of its own.
    async fn publish(&self, events: &[AcceptedEvent]) {
        for event in events {
            self.publish_together(std::slice::from_ref(event)).await;
        }
    }

    async fn queued(&self, family: Family) -> u32 {
        let queue = self.topology.queue(family);
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        self.channel
            .queue_declare(queue.as_str().into(), options, FieldTable::default())
            .await
            .expect("the queue")
            .message_count()
    }

    /// The number of the queue's consumers; `None` if there is no queue.
    async fn consumers(&self, family: Family) -> Option<u32> {
        let queue = self.topology.queue(family);
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        // On a separate channel, because the broker closes it if there is no queue.
        let channel = self.connection.create_channel().await.expect("a channel");
        let declared = channel
            .queue_declare(queue.as_str().into(), options, FieldTable::default())
            .await;
        Some(declared.ok()?.consumer_count())
    }

    /// Consumes one message and disconnects without acknowledging it, like a worker that is killed.
    async fn die_with_a_message(&self, family: Family) {
        let connection = Connection::connect(&self.url, ConnectionProperties::default())
            .await
            .expect("a connection");
        let channel = connection.create_channel().await.expect("a channel");
        let queue = self.topology.queue(family);
        let mut consumer = channel
            .basic_consume(
                queue.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .expect("a consumer");
        consumer
            .next()
            .await
            .expect("a message")
            .expect("a message");
        connection.close(200, "dies".into()).await.expect("a close");
    }

    async fn clean_up(self) {
        for queue in self.topology.queues() {
            self.channel
                .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
                .await
                .expect("the queue");
        }
        for exchange in self.topology.exchanges() {
            self.channel
                .exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default())
                .await
                .expect("the exchange");
        }
        self.connection
            .close(200, "done".into())
            .await
            .expect("a close");
    }
}

struct RunningWorker {
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl RunningWorker {
    fn start(pool: &PgPool, broker: &Broker, family: Family) -> Self {
        Self::stopping_within("2s", pool, broker, family)
    }

    fn stopping_within(deadline: &str, pool: &PgPool, broker: &Broker, family: Family) -> Self {
        let database_url = pool.connect_options().to_url_lossy().to_string();
        let config = Config::parse_from([
            "worker",
            "--database-url",
            &database_url,
            "--amqp-url",
            &broker.url,
            "--topology-prefix",
            &broker.prefix,
            "--private-listen",
            "127.0.0.1:0",
            "--batch-size",
            "50",
            "--shutdown-deadline",
            deadline,
        ]);
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let stop = stop.clone();
            async move { worker::service::run(family, &config, stop).await }
        });
        Self { stop, running }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running
            .await
            .expect("the worker does not panic")
            .expect("the worker stops in good order");
    }
}

async fn until_queued(broker: &Broker, family: Family, expected: u32) {
    let deadline = Instant::now() + SOON;
    while broker.queued(family).await != expected {
        assert!(Instant::now() < deadline, "not {expected}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn queued_events_are_stored_and_acknowledged_by_workers_that_share_the_queue(pool: PgPool) {
    let broker = Broker::new().await;
    let events: Vec<_> = (0..500).map(|i| vendor(&format!("m{i}"))).collect();
    broker.publish(&events).await;
    let workers = [
        RunningWorker::start(&pool, &broker, Family::Vendor),
        RunningWorker::start(&pool, &broker, Family::Vendor),
    ];
    until_count(&pool, "select count(*) from vendors", 500).await;
    for worker in workers {
        worker.stop().await;
    }
    until_queued(&broker, Family::Vendor, 0).await;
    broker.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn nothing_is_acknowledged_before_it_is_stored(pool: PgPool) {
    let broker = Broker::new().await;
    // The worker subscribes only if it can store events, so Postgres must work at first.
    let worker = RunningWorker::start(&pool, &broker, Family::Vendor);
    broker.publish(&[vendor("first")]).await;
    until_count(&pool, "select count(*) from vendors", 1).await;
    sql(&pool, "alter table vendors rename to gone").await;
    let events: Vec<_> = (0..20).map(|i| vendor(&format!("m{i}"))).collect();
    broker.publish(&events).await;
    until_queued(&broker, Family::Vendor, 0).await;
    // The worker holds all of them. When it is stopped, it reports that they are not stored, and
    // the broker requeues them.
    worker.stop.cancel();
    let outcome = worker.running.await.expect("the worker does not panic");
    assert!(outcome.is_err(), "the deadline was missed");
    until_queued(&broker, Family::Vendor, 20).await;
    assert_eq!(count(&pool, "select count(*) from events").await, 1);

    sql(&pool, "alter table gone rename to vendors").await;
    let next = RunningWorker::start(&pool, &broker, Family::Vendor);
    until_count(&pool, "select count(*) from vendors", 21).await;
    next.stop().await;
    until_queued(&broker, Family::Vendor, 0).await;
    broker.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_stored_batch_acknowledges_no_earlier_one_that_is_not(pool: PgPool) {
    let broker = Broker::new().await;
    // The rehearsal fails too, so the worker waits. The sequence counts the attempts; a rollback
    // does not reset it.
    sql(
        &pool,
        "create sequence tries;
         create function hold() returns trigger language plpgsql as
           $$ begin
                if new.webhook_id in ('held', 'rehearsal') then
                  perform nextval('tries');
                  raise insufficient_privilege;
                end if;
                return new;
              end $$;
         create trigger hold before insert on events for each row execute function hold()",
    )
    .await;
    let worker = RunningWorker::start(&pool, &broker, Family::Vendor);
    broker.publish(&[vendor("held")]).await;
    until_count(&pool, "select count(*) from tries where is_called", 1).await;
    broker.publish(&[vendor("free")]).await;
    until_count(&pool, "select count(*) from vendors", 1).await;
    worker.stop.cancel();
    let outcome = worker.running.await.expect("the worker does not panic");
    assert!(outcome.is_err(), "the deadline was missed");
    until_queued(&broker, Family::Vendor, 2).await;

    sql(&pool, "drop trigger hold on events").await;
    let next = RunningWorker::start(&pool, &broker, Family::Vendor);
    until_count(&pool, "select count(*) from vendors", 2).await;
    next.stop().await;
    until_queued(&broker, Family::Vendor, 0).await;
    broker.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_worker_that_is_stopped_in_full_flow_stores_what_was_delivered_and_ends(pool: PgPool) {
    const WAITING: &str = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'";
    let broker = Broker::new().await;
    let worker = RunningWorker::stopping_within("60s", &pool, &broker, Family::Vendor);
    broker.publish(&[vendor("first")]).await;
    until_count(&pool, "select count(*) from vendors", 1).await;
    let mut lock = pool.begin().await.expect("a transaction");
    sqlx::query("lock table events in exclusive mode")
        .execute(&mut *lock)
        .await
        .expect("the lock");
    // Two batches of one event each wait for the lock, one more batch is full, and the remaining
    // messages have been delivered but not read when the broker confirms the cancellation.
    for (id, waiting) in [("second", 1), ("third", 2)] {
        broker.publish(&[vendor(id)]).await;
        until_count(&pool, WAITING, waiting).await;
    }
    let events: Vec<_> = (0..100).map(|i| vendor(&format!("m{i}"))).collect();
    broker.publish_together(&events).await;
    until_queued(&broker, Family::Vendor, 0).await;
    worker.stop.cancel();
    // A message that stays in the queue shows that the subscription has ended. The number of
    // consumers does not: RabbitMQ counts a consumer until its deliveries are finished.
    let mut late = 0;
    while broker.queued(Family::Vendor).await == 0 {
        broker.publish(&[vendor(&format!("late{late}"))]).await;
        late += 1;
        sleep(Duration::from_millis(100)).await;
    }
    lock.rollback().await.expect("the lock is free");
    worker.stop().await;
    let stored = count(&pool, "select count(*) from vendors").await;
    assert!(stored >= 103, "only {stored} of those delivered are stored");
    let left = u32::try_from(103 + late - stored).expect("not more than were published");
    until_queued(&broker, Family::Vendor, left).await;
    broker.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn of_events_that_share_a_message_each_goes_its_own_way(pool: PgPool) {
    let broker = Broker::new().await;
    sql(
        &pool,
        "create function refuse() returns trigger language plpgsql as
           $$ begin
                if new.webhook_id = 'refused' then raise check_violation; end if;
                return new;
              end $$;
         create trigger refuse before insert on events for each row execute function refuse()",
    )
    .await;
    let mut malformed = event("malformed", r#"{"eventType":"v1.vendor.created"}"#);
    malformed.event_type = vendor("m1").event_type;
    let events = [vendor("m1"), malformed, vendor("refused"), vendor("m2")];
    broker.publish_together(&events).await;
    until_queued(&broker, Family::Vendor, 1).await;
    let worker = RunningWorker::start(&pool, &broker, Family::Vendor);
    until_count(
        &pool,
        "select count(*) from webhook_spool where webhook_id = 'refused'",
        1,
    )
    .await;
    until_count(&pool, "select count(*) from vendors", 2).await;
    until_count(&pool, "select count(*) from dead_letters", 1).await;
    worker.stop().await;
    until_queued(&broker, Family::Vendor, 0).await;
    broker.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn an_event_that_comes_by_another_familys_queue_is_a_dead_letter(pool: PgPool) {
    let broker = Broker::new().await;
    // A missing binding sends vendors to the catch-all queue.
    let queue = broker.topology.queue(Family::Vendor);
    broker
        .channel
        .queue_unbind(
            queue.as_str().into(),
            broker.topology.events_exchange().as_str().into(),
            "vendor".into(),
            FieldTable::default(),
        )
        .await
        .expect("an unbind");
    broker.publish(&[vendor("m1")]).await;
    until_queued(&broker, Family::Other, 1).await;
    let worker = RunningWorker::start(&pool, &broker, Family::Other);
    until_count(
        &pool,
        "select count(*) from dead_letters
          where problem like 'it came by the queue of other%' and event_type = 'v1.vendor.created'
            and sha256(raw) = (select body_sha256 from events) and payload is not null",
        1,
    )
    .await;
    assert_eq!(count(&pool, "select count(*) from vendors").await, 0);
    worker.stop().await;
    broker.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn events_that_were_with_two_dead_consumers_are_handled_alone_and_stored(pool: PgPool) {
    let broker = Broker::new().await;
    broker.publish(&[vendor("suspect")]).await;
    broker.publish_together(&[vendor("m1"), vendor("m2")]).await;
    until_queued(&broker, Family::Vendor, 2).await;
    broker.die_with_a_message(Family::Vendor).await;
    broker.die_with_a_message(Family::Vendor).await;
    sql(
        &pool,
        "create table seen (claims int);
         create function note() returns trigger language plpgsql as
           $$ begin insert into seen values (new.claims); return new; end $$;
         create trigger note after insert or update on webhook_spool
           for each row execute function note()",
    )
    .await;
    let worker = RunningWorker::start(&pool, &broker, Family::Vendor);
    until_count(&pool, "select count(*) from vendors", 3).await;
    assert_eq!(
        count(&pool, "select count(*) from seen where claims = 3").await,
        3,
        "each went through the spool, and the try was noted"
    );
    worker.stop().await;
    until_queued(&broker, Family::Vendor, 0).await;
    broker.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
#[expect(
    clippy::disallowed_methods,
    reason = "the test stands in for a foreign publisher"
)]
async fn a_message_without_an_id_is_stored_with_a_problem(pool: PgPool) {
    let broker = Broker::new().await;
    broker
        .channel
        .basic_publish(
            broker.topology.events_exchange().as_str().into(),
            "vendor".into(),
            BasicPublishOptions::default(),
            b"by hand",
            lapin::BasicProperties::default(),
        )
        .await
        .expect("a publish")
        .await
        .expect("a confirm");
    let worker = RunningWorker::start(&pool, &broker, Family::Vendor);
    until_count(
        &pool,
        "select count(*) from dead_letters where webhook_id like 'unidentified:%'",
        1,
    )
    .await;
    worker.stop().await;
    broker.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
#[expect(
    clippy::disallowed_methods,
    reason = "the test stands in for a foreign publisher"
)]
async fn a_message_with_an_impossible_time_is_stored_like_any_other(pool: PgPool) {
    let broker = Broker::new().await;
    let mut headers = FieldTable::default();
    headers.insert(
        "received-at-ms".into(),
        lapin::types::AMQPValue::LongLongInt(-8_000_000_000_000_000),
    );
    let event = vendor("foreign");
    let properties = event.to_properties(Receipt::Missing).with_headers(headers);
    broker
        .channel
        .basic_publish(
            broker.topology.events_exchange().as_str().into(),
            "vendor".into(),
            BasicPublishOptions::default(),
            &event.body,
            properties,
        )
        .await
        .expect("a publish")
        .await
        .expect("a confirm");
    broker.publish(&[vendor("m1"), vendor("m2")]).await;
    let worker = RunningWorker::start(&pool, &broker, Family::Vendor);
    until_count(&pool, "select count(*) from vendors", 3).await;
    worker.stop().await;
    broker.clean_up().await;
}

#[sqlx::test]
async fn a_worker_brings_the_schema_and_several_may_do_so_at_once(pool: PgPool) {
    let broker = Broker::new().await;
    broker.publish(&[vendor("m1")]).await;
    let workers = Family::ALL.map(|family| RunningWorker::start(&pool, &broker, family));
    let deadline = Instant::now() + SOON;
    loop {
        let stored = sqlx::query_scalar::<_, i64>("select count(*) from vendors")
            .fetch_one(&pool)
            .await;
        if matches!(stored, Ok(1)) {
            break;
        }
        assert!(Instant::now() < deadline, "{stored:?}");
        sleep(Duration::from_millis(50)).await;
    }
    for worker in workers {
        worker.stop().await;
    }
    broker.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_lost_subscription_is_taken_up_again(pool: PgPool) {
    let broker = Broker::new().await;
    let worker = RunningWorker::start(&pool, &broker, Family::Vendor);
    broker.publish(&[vendor("m1")]).await;
    until_count(&pool, "select count(*) from vendors", 1).await;
    for (id, stored) in [("m2", 2), ("m3", 3)] {
        // The broker cancels the subscriptions of a deleted queue.
        let queue = broker.topology.queue(Family::Vendor);
        broker
            .channel
            .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
            .await
            .expect("the queue");
        let deadline = Instant::now() + SOON;
        while broker.consumers(Family::Vendor).await != Some(1) {
            assert!(Instant::now() < deadline, "nobody consumes again");
            sleep(Duration::from_millis(50)).await;
        }
        broker.publish(&[vendor(id)]).await;
        until_count(&pool, "select count(*) from vendors", stored).await;
    }
    worker.stop().await;
    broker.clean_up().await;
}

/// Takes a message and requeues it, like a node that goes down. Returns the number of failures that
/// the broker then counts.
#[expect(
    clippy::disallowed_methods,
    reason = "the test stands in for a node that goes away"
)]
async fn come_and_go(broker: &Broker, family: Family) -> u64 {
    let queue = broker.topology.queue(family);
    let message = broker
        .channel
        .basic_get(queue.as_str().into(), BasicGetOptions::default())
        .await
        .expect("the queue")
        .expect("a message");
    let delivery = message.delivery;
    let read = Delivered::from_message(
        &delivery.properties,
        delivery.redelivered,
        delivery.data.clone(),
        chrono::Utc::now(),
    );
    let requeue = BasicNackOptions {
        requeue: true,
        ..BasicNackOptions::default()
    };
    delivery.acker.nack(requeue).await.expect("it goes back");
    read[0].redeliveries
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_message_that_came_back_without_a_failure_is_not_set_aside(pool: PgPool) {
    let broker = Broker::new().await;
    broker.publish(&[vendor("m1")]).await;
    let mut failures = 0;
    for _ in 0..4 {
        failures = come_and_go(&broker, Family::Vendor).await;
    }
    // Up to 4.2 the broker counts every return; from 4.3 on, only failures.
    assert!([0, 3].contains(&failures), "{failures}");
    sql(
        &pool,
        "create table set_aside as select webhook_id from webhook_spool;
         create function note() returns trigger language plpgsql as
           $$ begin insert into set_aside values (new.webhook_id); return new; end $$;
         create trigger note before insert on webhook_spool for each row execute function note()",
    )
    .await;
    let worker = RunningWorker::start(&pool, &broker, Family::Vendor);
    until_count(&pool, "select count(*) from vendors", 1).await;
    let expected = i64::from(failures > 0);
    assert_eq!(
        count(&pool, "select count(*) from set_aside").await,
        expected
    );
    worker.stop().await;
    broker.clean_up().await;
}
