//! A running ingest service, and the broker and database that it uses.

use std::{path::Path, time::Duration};

use chrono::Utc;
use clap::Parser;
use ingest::{config::Config, service::Service};
use lapin::{
    Channel, Connection, ConnectionProperties,
    message::BasicGetMessage,
    options::{
        BasicGetOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
        QueuePurgeOptions,
    },
    types::FieldTable,
};
use serde_json::Value;
use shared::{
    AcceptedEvent, Family,
    message::Delivered,
    topology::{Declare, Sight, Topology},
};
use sqlx::{ConnectOptions, PgPool};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::webhook::{SECRET, Webhook};

/// The limit for every wait.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The shared broker and the test's own database, with queue names of its own.
pub(crate) struct Stores {
    pub(crate) amqp_url: String,
    pub(crate) database_url: String,
    pub(crate) prefix: String,
    connection: Connection,
    channel: Channel,
}

impl Stores {
    pub(crate) async fn new(pool: &PgPool) -> Self {
        let amqp_url = std::env::var("AMQP_URL")
            .expect("set AMQP_URL and DATABASE_URL, or run the tests with `cargo stack test`");
        let connection = Connection::connect(&amqp_url, ConnectionProperties::default())
            .await
            .expect("RabbitMQ at AMQP_URL");
        let channel = connection.create_channel().await.expect("a channel");
        Self {
            amqp_url,
            database_url: pool.connect_options().to_url_lossy().to_string(),
            prefix: format!("test-{:016x}", rand::random::<u64>()),
            connection,
            channel,
        }
    }

    pub(crate) fn topology(&self) -> Topology {
        Topology::new(&self.prefix)
    }

    /// Takes all events from a family's queue.
    pub(crate) async fn events(&self, family: Family) -> Vec<AcceptedEvent> {
        self.drain(family)
            .await
            .into_iter()
            .map(|message| message.delivery)
            .flat_map(|d| Delivered::from_message(&d.properties, false, d.data, Utc::now()))
            .map(|delivered| delivered.event)
            .collect()
    }

    /// Takes all messages from a family's queue.
    pub(crate) async fn drain(&self, family: Family) -> Vec<BasicGetMessage> {
        let queue = self.topology().queue(family);
        let mut messages = Vec::new();
        while let Some(message) = self
            .channel
            .basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true })
            .await
            .expect("the queue")
        {
            messages.push(message);
        }
        messages
    }

    pub(crate) async fn purge(&self, family: Family) {
        let queue = self.topology().queue(family);
        self.channel
            .queue_purge(queue.as_str().into(), QueuePurgeOptions::default())
            .await
            .expect("the queue");
    }

    pub(crate) async fn delete_queue(&self, family: Family) {
        self.delete_queue_called(&self.topology().queue(family))
            .await;
    }

    async fn delete_queue_called(&self, queue: &str) {
        self.channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await
            .expect("the queue");
    }

    pub(crate) async fn delete_exchange(&self, exchange: &str) {
        self.channel
            .exchange_delete(exchange.into(), ExchangeDeleteOptions::default())
            .await
            .expect("the exchange");
    }

    /// Declares the whole topology, as a service does at start.
    pub(crate) async fn declare(&self) {
        let drifts = self
            .topology()
            .declare(&self.connection, Declare::Active, Sight::All)
            .await
            .expect("a connection");
        assert!(drifts.is_empty(), "{drifts:?}");
    }

    /// Declares a family's queue without the arguments that it should have.
    pub(crate) async fn declare_differently(&self, family: Family) {
        self.declare_with(family, FieldTable::default()).await;
    }

    /// Declares a family's queue with other arguments than the topology does.
    pub(crate) async fn declare_with(&self, family: Family, arguments: FieldTable) {
        let queue = self.topology().queue(family);
        let durable = QueueDeclareOptions::durable();
        self.channel
            .queue_declare(queue.as_str().into(), durable, arguments)
            .await
            .expect("a queue");
    }

    /// Removes this test's queues and exchanges from the broker.
    pub(crate) async fn clean_up(self) {
        let topology = self.topology();
        for queue in topology.queues() {
            self.delete_queue_called(&queue).await;
        }
        for exchange in topology.exchanges() {
            self.delete_exchange(&exchange).await;
        }
    }
}

/// A running service.
pub(crate) struct App {
    pub(crate) url: String,
    private_url: String,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    client: reqwest::Client,
}

impl App {
    /// Starts a service and waits until it is connected to the broker.
    pub(crate) async fn start(stores: &Stores) -> Self {
        let app = Self::start_at(&stores.database_url, &stores.amqp_url, &stores.prefix, &[]);
        app.until_ready("rabbitmq").await;
        app
    }

    /// Starts a service with further flags and does not wait.
    pub(crate) fn start_at(
        database_url: &str,
        amqp_url: &str,
        prefix: &str,
        flags: &[&str],
    ) -> Self {
        let secrets = format!("current={SECRET}");
        let secrets = ["--webhook-secrets", &secrets];
        Self::start_with(database_url, amqp_url, prefix, &[&secrets, flags].concat())
    }

    /// Starts a service whose secrets are in a file, and waits until it is connected to the broker.
    pub(crate) async fn start_on_file(stores: &Stores, secrets: &Path) -> Self {
        let path = secrets.to_str().expect("text");
        let app = Self::start_with(
            &stores.database_url,
            &stores.amqp_url,
            &stores.prefix,
            &["--webhook-secrets-file", path],
        );
        app.until_ready("rabbitmq").await;
        app
    }

    /// Starts a service with flags that include the secrets' source, and does not wait.
    pub(crate) fn start_with(
        database_url: &str,
        amqp_url: &str,
        prefix: &str,
        flags: &[&str],
    ) -> Self {
        let config = Config::parse_from(
            [
                "ingest",
                "--database-url",
                database_url,
                "--amqp-url",
                amqp_url,
                "--topology-prefix",
                prefix,
                "--listen",
                "127.0.0.1:0",
                "--private-listen",
                "127.0.0.1:0",
            ]
            .iter()
            .chain(flags),
        );
        let service = Service::bind(&config).expect("a good configuration");
        let stop = CancellationToken::new();
        Self {
            url: format!("http://{}/webhooks/pleo", service.address()),
            private_url: format!("http://{}", service.private_address()),
            running: tokio::spawn(service.run(stop.clone())),
            stop,
            client: reqwest::Client::new(),
        }
    }

    /// Sends a webhook and returns the answer's status and body.
    pub(crate) async fn send(&self, webhook: &Webhook) -> (u16, Value) {
        answer(
            self.client
                .post(&self.url)
                .header("webhook-id", &webhook.id)
                .header("webhook-timestamp", &webhook.timestamp)
                .header("webhook-signature", &webhook.signature)
                .body(webhook.body.clone()),
        )
        .await
    }

    /// Sends a request with any headers.
    pub(crate) async fn send_with(&self, headers: &[(&str, &[u8])], body: &[u8]) -> (u16, Value) {
        let mut request = self.client.post(&self.url).body(body.to_vec());
        for (name, value) in headers {
            let value = reqwest::header::HeaderValue::from_bytes(value).expect("a header value");
            request = request.header(*name, value);
        }
        answer(request).await
    }

    /// `/metrics`
    pub(crate) async fn metrics(&self) -> String {
        let response = self.client.get(format!("{}/metrics", self.private_url));
        let response = response.send().await.expect("an answer");
        response.text().await.expect("a body")
    }

    /// Waits until `/metrics` has this line.
    pub(crate) async fn until_metric(&self, line: &str) {
        self.until_metrics(line, |metrics| metrics.lines().any(|found| found == line))
            .await;
    }

    /// Waits until `/metrics` is as `expected`; `what` describes it.
    pub(crate) async fn until_metrics(&self, what: &str, expected: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + SOON;
        loop {
            let metrics = self.metrics().await;
            if expected(&metrics) {
                return;
            }
            assert!(Instant::now() < deadline, "never {what}: {metrics}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The status and body of `/readyz`.
    pub(crate) async fn readiness(&self) -> (u16, Value) {
        answer(self.client.get(format!("{}/readyz", self.private_url))).await
    }

    /// Waits until a store can be used.
    pub(crate) async fn until_ready(&self, store: &str) {
        self.until_check(store, true).await;
    }

    /// Waits until readiness says that a store can or cannot be used.
    pub(crate) async fn until_check(&self, store: &str, expected: bool) {
        let deadline = Instant::now() + SOON;
        loop {
            let (_, readiness) = self.readiness().await;
            let checks = readiness["checks"].as_array().expect("checks");
            if checks
                .iter()
                .any(|check| check["name"] == store && check["ok"] == expected)
            {
                return;
            }
            assert!(Instant::now() < deadline, "still {readiness}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the service, which must succeed in time.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.running
            .await
            .expect("the service does not panic")
            .expect("the service stops in good order");
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.bytes().await.expect("a body");
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}
