//! A database and a prefix of one test's own, and the services that run there.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use chrono::Utc;
use clap::Parser;
use hookctl::{account, management::Management};
use ingest::secrets::DEVELOPMENT_SECRET;
use lapin::{
    Channel, Connection, ConnectionProperties,
    message::Delivery,
    options::{BasicGetOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use serde_json::{Value, json};
use shared::{
    Family, Program,
    broker::BrokerUrl,
    message::Delivered,
    topology::{Declare, Sight, Topology},
};
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool};
use tokio::{
    io::AsyncWriteExt,
    process::Command,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long anything may take that is waited for.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Place {
    pub(crate) prefix: String,
    pub(crate) pool: PgPool,
    connection: Connection,
    pub(crate) channel: Channel,
    pub(crate) amqp_url: String,
    pub(crate) management_url: String,
}

/// A running ingest service.
pub(crate) struct Ingest {
    pub(crate) url: String,
    pub(crate) private_url: String,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Place {
    /// With the topology and the schema.
    pub(crate) async fn new(pool: &PgPool) -> Self {
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| {
                panic!(
                    "set {name}, or run the tests with `cargo stack test`, which sets DATABASE_URL, \
                     AMQP_URL and RABBITMQ_MANAGEMENT_URL"
                )
            })
        };
        let amqp_url = variable("AMQP_URL");
        let connection = Connection::connect(&amqp_url, ConnectionProperties::default())
            .await
            .expect("RabbitMQ at AMQP_URL");
        let place = Self {
            prefix: format!("test-{:016x}", rand::random::<u64>()),
            pool: pool.clone(),
            channel: connection.create_channel().await.expect("a channel"),
            connection,
            amqp_url,
            management_url: variable("RABBITMQ_MANAGEMENT_URL"),
        };
        let topology = place.topology();
        let declared = topology.declare(&place.connection, Declare::Active, Sight::All);
        assert!(declared.await.expect("a connection").is_empty());
        place
    }

    pub(crate) fn topology(&self) -> Topology {
        Topology::new(&self.prefix)
    }

    /// An ingest service that takes events.
    pub(crate) async fn ingest(&self) -> Ingest {
        let secrets = format!("development={DEVELOPMENT_SECRET}");
        let database_url = self.database_url();
        let config = ingest::config::Config::parse_from([
            "ingest",
            "--database-url",
            &database_url,
            "--amqp-url",
            &self.amqp_url,
            "--topology-prefix",
            &self.prefix,
            "--webhook-secrets",
            &secrets,
            "--development=true",
            "--listen=127.0.0.1:0",
            "--private-listen=127.0.0.1:0",
        ]);
        let service = ingest::service::Service::bind(&config).expect("a good configuration");
        let stop = CancellationToken::new();
        let ingest = Ingest {
            url: format!("http://{}/webhooks/pleo", service.address()),
            private_url: format!("http://{}", service.private_address()),
            running: tokio::spawn(service.run(stop.clone())),
            stop,
        };
        let ready = format!("{}/readyz", ingest.private_url);
        until("ingest is ready", async || {
            let answer = reqwest::get(&ready).await;
            answer.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
        ingest
    }

    /// `hookctl` with the settings of this place and nothing else of our environment.
    pub(crate) fn hookctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hookctl"));
        command
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", self.database_url())
            .env("AMQP_URL", &self.amqp_url)
            .env("RABBITMQ_MANAGEMENT_URL", &self.management_url)
            .env("TOPOLOGY_PREFIX", &self.prefix)
            .env(
                "WEBHOOK_SECRETS",
                format!("development={DEVELOPMENT_SECRET}"),
            )
            .kill_on_drop(true);
        command
    }

    /// Runs `hookctl` to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        let output = self.hookctl(arguments).output();
        let output = timeout(SOON, output).await.expect("it ends");
        Ended::new(output.expect("hookctl runs"))
    }

    /// Runs `hookctl` with this on its standard input.
    pub(crate) async fn run_with(&self, arguments: &[&str], input: &str) -> Ended {
        let mut child = self
            .hookctl(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("hookctl runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).await.expect("a write");
        drop(stdin);
        let output = timeout(SOON, child.wait_with_output()).await;
        Ended::new(output.expect("it ends").expect("output"))
    }

    /// At least so many events are kept for the workers: in the queues, a message or more, whose counts come a little late, or
    /// in the spool, where ingest puts them if the broker takes its time.
    pub(crate) async fn kept_count(&self) -> u64 {
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let mut count = 0;
        for family in Family::ALL {
            let queue = self.topology().queue(family);
            let declared =
                self.channel
                    .queue_declare(queue.as_str().into(), options, FieldTable::default());
            count += u64::from(declared.await.expect("the queue").message_count());
        }
        let spooled: i64 = sqlx::query_scalar("select count(*) from webhook_spool")
            .fetch_one(&self.pool)
            .await
            .expect("a count");
        count + u64::try_from(spooled).expect("a count")
    }

    /// Takes what is kept for the workers, and gives the ids and bodies, in order.
    pub(crate) async fn take_kept(&self) -> Vec<(String, Vec<u8>)> {
        let mut kept: Vec<(String, Vec<u8>)> =
            sqlx::query_as("delete from webhook_spool returning webhook_id, body")
                .fetch_all(&self.pool)
                .await
                .expect("the spool");
        for family in Family::ALL {
            let queue = self.topology().queue(family);
            let options = BasicGetOptions { no_ack: true };
            while let Some(message) = self
                .channel
                .basic_get(queue.as_str().into(), options)
                .await
                .expect("the queue")
            {
                let Delivery {
                    properties, data, ..
                } = message.delivery;
                kept.extend(
                    Delivered::from_message(&properties, false, data, Utc::now())
                        .into_iter()
                        .map(|d| (d.event.webhook_id, d.event.body.into())),
                );
            }
        }
        kept.sort();
        kept
    }

    /// The settings of a worker.
    pub(crate) fn worker_config(&self) -> worker::config::Config {
        worker::config::Config::parse_from([
            "worker",
            "--database-url",
            &self.database_url(),
            "--amqp-url",
            &self.amqp_url,
            "--topology-prefix",
            &self.prefix,
            "--private-listen=127.0.0.1:0",
        ])
    }

    /// Makes the services' accounts.
    pub(crate) async fn set_up_accounts(&self) {
        let password = |program| format!("{program}={:032x}", rand::random::<u128>());
        let mut command = self.hookctl(&["setup"]);
        command.env("ACCOUNT_PASSWORDS", Program::ALL.map(password).join(","));
        let ended = Ended::new(command.output().await.expect("hookctl runs"));
        assert_eq!(ended.code, 0, "{ended:?}");
    }

    /// RabbitMQ's HTTP API, as its administrator.
    pub(crate) fn management(&self) -> Management {
        let broker = BrokerUrl::parse(&self.amqp_url).expect("AMQP_URL is one");
        Management::new(&self.management_url, &broker).expect("RABBITMQ_MANAGEMENT_URL is one")
    }

    /// The `AMQP_URL` of an account that [`Self::set_up_accounts`] has made, with a new password.
    pub(crate) async fn account(&self, program: &str) -> String {
        let (name, password) = (format!("{}-{program}", self.prefix), "of-this-test");
        let management = self.management();
        let path = format!("/api/users/{name}");
        let user = management.get(&path).await.expect("the user");
        let value = json!({"password": password, "tags": user["tags"]});
        management.put(&path, value).await.expect("a password");
        let (_, place) = self.amqp_url.rsplit_once('@').expect("a user");
        format!("amqp://{name}:{password}@{place}")
    }

    /// Gives a service's account these rights on the broker.
    pub(crate) async fn permit(&self, program: &str, configure: &str, write: &str, read: &str) {
        let path = format!("/api/permissions/%2F/{}-{program}", self.prefix);
        let rights = json!({"configure": configure, "write": write, "read": read});
        let put = self.management().put(&path, rights).await;
        put.expect("the permissions");
    }

    /// Undoes [`Self::set_up_accounts`].
    pub(crate) async fn remove_accounts(&self) {
        let management = self.management();
        for program in Program::ALL {
            let name = account::name(program, &self.prefix);
            let user = management.delete(&format!("/api/users/{name}")).await;
            user.expect("the user");
            self.sql(&format!(r#"drop owned by "{name}"; drop role "{name}""#))
                .await;
        }
    }

    /// Runs statements as Postgres' owner.
    pub(crate) async fn sql(&self, statements: &str) {
        sqlx::raw_sql(AssertSqlSafe(statements))
            .execute(&self.pool)
            .await
            .expect("good SQL");
    }

    fn database_url(&self) -> String {
        self.pool.connect_options().to_url_lossy().to_string()
    }

    /// Leaves nothing on the broker.
    pub(crate) async fn clean_up(self) {
        let topology = self.topology();
        for queue in topology.queues() {
            self.channel
                .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
                .await
                .expect("the queue");
        }
        for exchange in topology.exchanges() {
            self.channel
                .exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default())
                .await
                .expect("the exchange");
        }
    }
}

impl Ingest {
    /// Stops it, which must succeed in time.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let stopped = self.running.await.expect("no panic");
        stopped.expect("a stop in order");
    }
}

/// How a run of `hookctl` ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// No output may show the secret.
    pub(crate) fn new(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        let ended = Self {
            code: output.status.code().expect("an exit code"),
            out: text(output.stdout),
            err: text(output.stderr),
        };
        let secret = DEVELOPMENT_SECRET.trim_start_matches("whsec_");
        assert!(!format!("{ended:?}").contains(secret), "{ended:?}");
        ended
    }

    /// The JSON objects that it printed, one a line.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{self:?}")))
            .collect()
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition().await {
        assert!(Instant::now() < deadline, "it never comes true that {what}");
        sleep(Duration::from_millis(50)).await;
    }
}
