//! A database and a prefix of one test's own, and the accounts that are made there.

use std::{collections::BTreeMap, process::Output, time::Duration};

use hookctl::{account, management::Management};
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{ExchangeDeleteOptions, QueueDeleteOptions},
    uri::AMQPUri,
};
use shared::{Program, broker::BrokerUrl, topology::Topology};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection as _, PgConnection, PgPool,
    postgres::PgConnectOptions,
};
use tokio::process::Command;

/// How long anything may take that is waited for.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Place {
    pub(crate) prefix: String,
    pub(crate) pool: PgPool,
    pub(crate) amqp_url: String,
    pub(crate) management_url: String,
    passwords: BTreeMap<&'static str, String>,
}

impl Place {
    /// With new passwords that no account has yet.
    pub(crate) fn new(pool: &PgPool) -> Self {
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| {
                panic!(
                    "set {name}, or run the tests with `cargo stack test`, which sets DATABASE_URL, \
                     AMQP_URL and RABBITMQ_MANAGEMENT_URL"
                )
            })
        };
        let mut place = Self {
            // A dot, as it means something in a regular expression.
            prefix: format!("test.{:016x}", rand::random::<u64>()),
            pool: pool.clone(),
            amqp_url: variable("AMQP_URL"),
            management_url: variable("RABBITMQ_MANAGEMENT_URL"),
            passwords: BTreeMap::new(),
        };
        place.change_passwords();
        place
    }

    /// As [`Self::new`], with everything set up.
    pub(crate) async fn prepared(pool: &PgPool) -> Self {
        let place = Self::new(pool);
        let output = place.set_up(&[]).await;
        assert!(output.status.success(), "{}", text(&output));
        place
    }

    /// New passwords for the next [`Self::set_up`].
    pub(crate) fn change_passwords(&mut self) {
        self.passwords = Program::ACCOUNTS
            .map(|program| (program.name(), format!("{:032x}", rand::random::<u128>())))
            .into();
    }

    /// No password for this program with the next [`Self::set_up`].
    pub(crate) fn forget_password(&mut self, program: Program) {
        self.passwords.remove(program.name());
    }

    /// Runs `hookctl setup`, which must show no password.
    pub(crate) async fn set_up(&self, flags: &[&str]) -> Output {
        let output = self
            .hookctl()
            .env("ACCOUNT_PASSWORDS", self.password_list())
            .args(flags)
            .output()
            .await
            .expect("hookctl runs");
        for password in self.passwords.values() {
            assert!(!text(&output).contains(password), "{}", text(&output));
        }
        output
    }

    /// `hookctl setup` without passwords.
    pub(crate) fn hookctl(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hookctl"));
        command
            .arg("setup")
            .env_clear()
            .env(
                "DATABASE_URL",
                self.pool.connect_options().to_url_lossy().as_str(),
            )
            .env("AMQP_URL", &self.amqp_url)
            .env("RABBITMQ_MANAGEMENT_URL", &self.management_url)
            .env("TOPOLOGY_PREFIX", &self.prefix);
        command
    }

    pub(crate) fn password_list(&self) -> String {
        self.passwords
            .iter()
            .map(|(service, password)| format!("{service}={password}\n"))
            .collect()
    }

    pub(crate) fn topology(&self) -> Topology {
        Topology::new(&self.prefix)
    }

    pub(crate) fn name(&self, program: Program) -> String {
        account::name(program, &self.prefix)
    }

    pub(crate) fn password(&self, program: Program) -> &str {
        &self.passwords[program.name()]
    }

    /// How the account connects to Postgres.
    pub(crate) fn database(&self, program: Program) -> PgConnectOptions {
        PgConnectOptions::clone(&self.pool.connect_options())
            .username(&self.name(program))
            .password(self.password(program))
    }

    /// How the account connects to RabbitMQ.
    pub(crate) fn broker(&self, program: Program) -> AMQPUri {
        let mut uri: AMQPUri = self.amqp_url.parse().expect("AMQP_URL is one");
        uri.authority.userinfo.username = self.name(program);
        uri.authority.userinfo.password = self.password(program).to_owned();
        uri
    }

    /// The account's `AMQP_URL`.
    pub(crate) fn broker_url(&self, program: Program) -> String {
        let AMQPUri {
            authority, vhost, ..
        } = self.broker(program);
        let user = authority.userinfo;
        format!(
            "amqp://{}:{}@{}:{}/{}",
            user.username,
            user.password,
            authority.host,
            authority.port,
            hookctl::management::encode(&vhost)
        )
    }

    /// A connection to Postgres as the account.
    pub(crate) async fn postgres(&self, program: Program) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect_with(&self.database(program)).await
    }

    /// A connection to RabbitMQ as the account.
    pub(crate) async fn rabbitmq(&self, program: Program) -> Result<Connection, lapin::Error> {
        Connection::connect_uri(self.broker(program), ConnectionProperties::default()).await
    }

    /// A channel as RabbitMQ's administrator.
    pub(crate) async fn administrator(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&self.amqp_url, ConnectionProperties::default())
            .await
            .expect("RabbitMQ at AMQP_URL");
        let channel = connection.create_channel().await.expect("a channel");
        (connection, channel)
    }

    pub(crate) fn management(&self) -> Management {
        let broker = BrokerUrl::parse(&self.amqp_url).expect("AMQP_URL is one");
        Management::new(&self.management_url, &broker).expect("RABBITMQ_MANAGEMENT_URL is one")
    }

    /// Runs statements as Postgres' owner.
    pub(crate) async fn sql(&self, statements: &str) {
        sqlx::raw_sql(AssertSqlSafe(statements))
            .execute(&self.pool)
            .await
            .expect("good SQL");
    }

    /// Leaves nothing outside of the test's database, which goes by itself.
    pub(crate) async fn clean_up(self) {
        let (_connection, channel) = self.administrator().await;
        let topology = self.topology();
        for queue in topology.queues() {
            channel
                .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
                .await
                .expect("the queue");
        }
        for exchange in topology.exchanges() {
            channel
                .exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default())
                .await
                .expect("the exchange");
        }
        for program in Program::ACCOUNTS {
            let name = self.name(program);
            if !matches!(program, Program::Console | Program::ConsoleOperator) {
                self.management()
                    .delete(&format!("/api/users/{name}"))
                    .await
                    .expect("the user");
            }
            self.sql(&format!(r#"drop owned by "{name}"; drop role "{name}""#))
                .await;
        }
    }
}

/// Everything that was printed.
pub(crate) fn text(output: &Output) -> String {
    let bytes = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}
