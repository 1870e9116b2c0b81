//! A policy that lets the queue drop messages is shown by a metric and one log line.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use prometheus::TextEncoder;
use serde_json::{Value, json};
use shared::{
    Family,
    broker::BrokerUrl,
    topology::{Drift, Topology},
};
use tokio::time::{Instant, sleep};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;
use worker::{
    management::Management,
    metrics::Metrics,
    queue_watch::{self, QueueWatch},
};

use crate::sample::SOON;

/// The captured log lines.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Captures what this thread logs from now on.
    fn of_this_thread() -> (Self, DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(log.clone())
            .with_ansi(false)
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The lines that contain these words.
    fn lines(&self, words: &str) -> Vec<String> {
        let log = self.0.lock().expect("no panic").clone();
        let log = String::from_utf8(log).expect("text");
        let lines = log.lines().filter(|line| line.contains(words));
        lines.map(str::to_owned).collect()
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A queue of this test, and its watch.
struct Watched {
    topology: Topology,
    prefix: String,
    queue: String,
    channel: Channel,
    _connection: Connection,
    management: Management,
    metrics: Metrics,
    watch: QueueWatch,
}

const DRIFT: &str = "the broker's topology differs";

impl Watched {
    async fn new(arguments: FieldTable) -> Self {
        let variable = |name| {
            std::env::var(name)
                .unwrap_or_else(|_| panic!("set {name}, or run the tests with `cargo stack test`"))
        };
        let amqp = variable("AMQP_URL");
        let connection = Connection::connect(&amqp, ConnectionProperties::default())
            .await
            .expect("RabbitMQ at AMQP_URL");
        let channel = connection.create_channel().await.expect("a channel");
        let prefix = format!("test-{:016x}", rand::random::<u64>());
        let topology = Topology::new(&prefix);
        let queue = topology.queue(Family::Vendor);
        channel
            .queue_declare(
                queue.as_str().into(),
                QueueDeclareOptions::durable(),
                arguments,
            )
            .await
            .expect("a queue");
        let broker = BrokerUrl::parse(&amqp).expect("an address");
        let url = variable("RABBITMQ_MANAGEMENT_URL");
        let management = Management::new(&url, &broker).expect("an address");
        let metrics = Metrics::new(Family::Vendor);
        let watch = QueueWatch::new(
            management.clone(),
            &broker.vhost(),
            queue.clone(),
            &metrics,
            queue_watch::EVERY,
        );
        Self {
            topology,
            prefix,
            queue,
            channel,
            _connection: connection,
            management,
            metrics,
            watch,
        }
    }

    fn drift(&self) -> Option<bool> {
        let metrics = TextEncoder::new()
            .encode_to_string(&self.metrics.service.registry.gather())
            .expect("text");
        let series = format!("pleo_topology_drift{{entity=\"{}\"}} ", self.queue);
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(&series))?;
        Some(value == "1")
    }

    async fn until_drift(&mut self, expected: bool) {
        let deadline = Instant::now() + SOON;
        loop {
            self.watch.look().await;
            if self.drift() == Some(expected) {
                return;
            }
            assert!(Instant::now() < deadline, "it never becomes {expected}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Sets a policy (`policies`, `operator-policies`) for the queue.
    async fn set(&self, kind: &str, definition: Value) -> String {
        let policy = json!({
            "pattern": format!("^{}$", self.queue.replace('.', "\\.")),
            "apply-to": "queues",
            "definition": definition,
        });
        let path = format!("/api/{kind}/%2F/{}", self.prefix);
        self.management.put(&path, policy).await.expect("a policy");
        path
    }

    async fn delete(self) {
        self.channel
            .queue_delete(self.queue.as_str().into(), QueueDeleteOptions::default())
            .await
            .expect("the queue");
    }
}

#[tokio::test]
async fn a_policy_that_lets_the_queue_drop_messages_is_drift_until_it_goes() {
    let (log, _guard) = Log::of_this_thread();
    let mut watched = Watched::new(Topology::queue_arguments()).await;
    watched.until_drift(false).await;
    assert!(log.lines(DRIFT).is_empty());
    for (kind, definition, words) in [
        (
            "policies",
            json!({"message-ttl": 60_000}),
            "message-ttl 60000",
        ),
        (
            "operator-policies",
            json!({"delivery-limit": 20}),
            "delivery-limit 20",
        ),
        (
            "policies",
            json!({"max-length": 1_000, "overflow": "drop-head"}),
            "max-length 1000",
        ),
    ] {
        let path = watched.set(kind, definition).await;
        watched.until_drift(true).await;
        // A known problem is not logged again.
        watched.watch.look().await;
        let lines = log.lines(words);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains(DRIFT) && lines[0].contains("ERROR"),
            "{lines:?}"
        );
        let name = if kind == "policies" { "" } else { "operator " };
        let name = format!("{name}policy {}", watched.prefix);
        assert!(lines[0].contains(&name), "{lines:?}");
        assert!(
            lines[0].contains("take the queue out of the policy"),
            "{lines:?}"
        );
        watched.management.delete(&path).await.expect("the policy");
        watched.until_drift(false).await;
    }
    watched.watch.look().await;
    assert_eq!(log.lines("any more").len(), 3);
    watched.delete().await;
}

#[tokio::test]
async fn a_greatest_length_is_drift_only_where_the_queue_would_drop() {
    let (log, _guard) = Log::of_this_thread();
    let mut ours = Watched::new(Topology::queue_arguments()).await;
    let mut earlier = Watched::new(Topology::earlier_queue_arguments()).await;
    let of_ours = ours.set("policies", json!({"max-length": 2})).await;
    let of_earlier = earlier.set("policies", json!({"max-length": 2})).await;
    earlier.until_drift(true).await;
    ours.until_drift(false).await;
    assert_eq!(log.lines(DRIFT).len(), 1);
    for path in [of_ours, of_earlier] {
        ours.management.delete(&path).await.expect("the policy");
    }
    earlier.until_drift(false).await;
    ours.delete().await;
    earlier.delete().await;
}

#[tokio::test]
async fn an_argument_that_drops_messages_is_drift_as_well() {
    let (log, _guard) = Log::of_this_thread();
    let mut arguments = Topology::queue_arguments();
    arguments.insert("x-message-ttl".into(), 60_000.into());
    let mut watched = Watched::new(arguments).await;
    watched.until_drift(true).await;
    let lines = log.lines("x-message-ttl 60000");
    assert!(
        lines.len() == 1 && lines[0].contains("delete it"),
        "{lines:?}"
    );
    // The result of a declaration does not reset it, nor the other way round.
    watched.metrics.service.set_drift(&watched.topology, &[]);
    assert_eq!(watched.drift(), Some(true));
    let found = Drift {
        entity: watched.queue.clone(),
        reason: "other arguments".to_owned(),
        remedy: "none",
    };
    watched
        .metrics
        .service
        .set_drift(&watched.topology, &[found]);
    watched.metrics.service.set_losing(&watched.queue, false);
    assert_eq!(watched.drift(), Some(true));
    watched.metrics.service.set_drift(&watched.topology, &[]);
    assert_eq!(watched.drift(), Some(false));
    watched.delete().await;
}

#[tokio::test]
async fn a_management_that_is_away_is_one_warning_and_changes_nothing() {
    let (log, _guard) = Log::of_this_thread();
    let mut watched = Watched::new(Topology::queue_arguments()).await;
    watched
        .set("policies", json!({"message-ttl": 60_000}))
        .await;
    // Until a query has succeeded, the absence of drift means nothing.
    assert_eq!(watched.metrics.sees_policies.get(), 0);
    watched.until_drift(true).await;
    assert_eq!(watched.metrics.sees_policies.get(), 1);
    let amqp = std::env::var("AMQP_URL").expect("it is set");
    let broker = BrokerUrl::parse(&amqp).expect("an address");
    let mut blind = QueueWatch::new(
        Management::new("http://127.0.0.1:1", &broker).expect("an address"),
        &broker.vhost(),
        watched.queue.clone(),
        &watched.metrics,
        queue_watch::EVERY,
    );
    for _ in 0..3 {
        blind.look().await;
    }
    assert_eq!(watched.metrics.sees_policies.get(), 0);
    let lines = log.lines("cannot see the policies");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("WARN") && lines[0].contains("connection refused"),
        "{lines:?}"
    );
    assert_eq!(watched.drift(), Some(true));
    let path = format!("/api/policies/%2F/{}", watched.prefix);
    watched.management.delete(&path).await.expect("the policy");
    watched.delete().await;
}
