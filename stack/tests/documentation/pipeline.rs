//! The whole pipeline on the stores of the tests: all services as real processes, as the stores' owner,
//! with a prefix of this test's own.

use std::{net::SocketAddr, time::Duration};

use ingest::secrets::DEVELOPMENT_SECRET;
use lapin::{
    Connection, ConnectionProperties,
    options::{ExchangeDeleteOptions, QueueDeleteOptions},
};
use shared::{Program, topology::Topology};
use sqlx::{ConnectOptions, PgPool};
use stack::{
    ports,
    process::{Process, Spec},
    programs::Programs,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// The time limit of every wait, long enough for a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Processes end before the folder of their logs is deleted.
pub(crate) struct Pipeline {
    services: Vec<(Program, SocketAddr, Process)>,
    webhooks: SocketAddr,
    amqp_url: String,
    topology: Topology,
    _logs: TempDir,
}

impl Pipeline {
    /// Starts everything and waits until it is ready for events.
    pub(crate) async fn new(pool: &PgPool) -> Self {
        let amqp_url = std::env::var("AMQP_URL")
            .expect("set AMQP_URL and DATABASE_URL, or run the tests with `cargo stack test`");
        let prefix = format!("test-{:016x}", rand::random::<u64>());
        let programs = Programs::find().expect("the services are built");
        let logs = tempfile::tempdir().expect("a folder");
        let webhooks = ports::free().expect("a port");
        let services = Program::ALL.map(|program| {
            let private = ports::free().expect("a port");
            let mut spec = Spec::new(program.name(), programs.path(program))
                .log(logs.path().join(program.name()))
                .env(
                    "DATABASE_URL",
                    pool.connect_options().to_url_lossy().to_string(),
                )
                .env("AMQP_URL", &amqp_url)
                .env("TOPOLOGY_PREFIX", &prefix)
                .env("PRIVATE_LISTEN", private.to_string())
                .env("LISTEN", webhooks.to_string())
                .env("DEVELOPMENT", "true")
                .env(
                    "WEBHOOK_SECRETS",
                    format!("development={DEVELOPMENT_SECRET}"),
                );
            spec.clean_env = true;
            let process = Process::spawn(spec).expect("the service starts");
            (program, private, process)
        });
        let pipeline = Self {
            services: services.into(),
            webhooks,
            amqp_url,
            topology: Topology::new(prefix),
            _logs: logs,
        };
        for program in Program::ALL {
            pipeline.until_ready(program).await;
        }
        pipeline
    }

    /// The webhook address.
    pub(crate) fn webhook_url(&self) -> String {
        format!("http://{}{}", self.webhooks, ingest::answer::PATH)
    }

    /// A program's `/metrics`.
    pub(crate) async fn metrics(&self, program: Program) -> String {
        let response = reqwest::get(self.private_url(program, "/metrics")).await;
        let response = response.expect("an answer");
        response.text().await.expect("text")
    }

    fn service(&self, program: Program) -> &(Program, SocketAddr, Process) {
        let mut services = self.services.iter();
        services
            .find(|(other, _, _)| *other == program)
            .expect("one of each runs")
    }

    fn private_url(&self, program: Program, path: &str) -> String {
        format!("http://{}{path}", self.service(program).1)
    }

    async fn until_ready(&self, program: Program) {
        let (url, process) = (
            self.private_url(program, "/readyz"),
            &self.service(program).2,
        );
        let deadline = Instant::now() + SOON;
        while !reqwest::get(&url).await.is_ok_and(|r| r.status() == 200) {
            assert!(process.is_running(), "{}", process.how_it_ended());
            let log = process.log_tail(15);
            assert!(Instant::now() < deadline, "{program} is not ready: {log}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Deletes everything of this test on the broker.
    pub(crate) async fn clean_up(self) {
        for (program, _, process) in &self.services {
            let ended = process.terminate(SOON).await.expect("it stops in time");
            assert!(ended.success(), "{program}: {ended}");
        }
        let connection = Connection::connect(&self.amqp_url, ConnectionProperties::default())
            .await
            .expect("RabbitMQ at AMQP_URL");
        let channel = connection.create_channel().await.expect("a channel");
        for queue in self.topology.queues() {
            channel
                .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
                .await
                .expect("the queue");
        }
        for exchange in self.topology.exchanges() {
            channel
                .exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default())
                .await
                .expect("the exchange");
        }
    }
}
