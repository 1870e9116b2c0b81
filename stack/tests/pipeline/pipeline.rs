//! Private stores and services for one test.

use std::{path::PathBuf, time::Duration};

use hookctl::{
    delivery::{self, Answer},
    sample::{self, Sample},
};
use ingest::secrets::DEVELOPMENT_SECRET;
use shared::Program;
use sqlx::PgPool;
use stack::{
    accounts::Accounts,
    data_folder::DataFolder,
    packages::Packages,
    postgres::Durability,
    programs::Programs,
    service::{Launcher, Service},
    stores::{Addresses, Stores},
};
use tokio::time::{Instant, sleep};

/// The time limit of every wait, long enough for a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// The stores are dropped before their folder, and the services, which a test owns, before both.
pub(crate) struct Pipeline {
    pub(crate) launcher: Launcher,
    pub(crate) stores: Stores,
    accounts: Accounts,
    programs: Programs,
    logs: PathBuf,
    _base: DataFolder,
}

impl Pipeline {
    /// Stores that are running and prepared, with an account for each service; no service yet.
    pub(crate) async fn new() -> Self {
        let pipeline = Self::unprepared().await;
        pipeline.set_up().await;
        let launcher = pipeline.launcher.clone().under(&pipeline.accounts);
        Self {
            launcher,
            ..pipeline
        }
    }

    /// Stores that are running and empty, with their owner as the services' account; no service yet.
    pub(crate) async fn unprepared() -> Self {
        let base = DataFolder::temporary().expect("a folder");
        let packages = Packages::find().expect("RabbitMQ and Postgres are installed");
        let addresses = Addresses::free().expect("free ports");
        let stores = Stores::start(&packages, &base, addresses, Durability::ProcessOnly)
            .await
            .expect("the stores come up");
        let programs = Programs::find().expect("the services are built");
        let logs = base.folder("logs").expect("a folder");
        Self {
            launcher: Launcher::new(programs.clone(), &stores, &logs),
            stores,
            accounts: Accounts::random(),
            programs,
            logs,
            _base: base,
        }
    }

    /// Creates the schema, the topology and the accounts.
    pub(crate) async fn set_up(&self) {
        self.accounts
            .set_up(&self.programs, &self.stores, &self.logs)
            .await
            .expect("the stores are set up");
    }

    /// The same as [`Self::set_up`], with this address of Postgres.
    pub(crate) async fn set_up_by(&self, database_url: &str) {
        let mut owner = self.stores.owner_urls().expect("addresses");
        owner.database = database_url.to_owned();
        self.accounts
            .set_up_at(&self.programs, &owner, &self.logs)
            .await
            .expect("the stores are set up");
    }

    /// The accounts, which [`Self::set_up`] creates.
    pub(crate) fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    pub(crate) fn start(&self, program: Program, name: &str) -> Service {
        self.launcher
            .start(program, name)
            .expect("the service starts")
    }

    /// The exit code and output of `hookctl health` for a service.
    pub(crate) async fn health(&self, service: &Service, path: &str) -> (Option<i32>, String) {
        let output = tokio::process::Command::new(self.programs.hookctl())
            .args(["health", &service.private_url(path)])
            .output()
            .await
            .expect("hookctl runs");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.code(), text)
    }

    /// hookctl, as the owner of the stores.
    pub(crate) fn hookctl(&self) -> tokio::process::Command {
        let management = self.stores.management_url().expect("it runs");
        let mut command = tokio::process::Command::new(self.programs.hookctl());
        command
            .env_clear()
            .env("DATABASE_URL", self.stores.database_url())
            .env("AMQP_URL", self.stores.amqp_url())
            .env("RABBITMQ_MANAGEMENT_URL", management);
        command
    }

    /// A folder for files of the test.
    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.logs
    }

    /// A new connection to the database, which may have been restarted since the last one.
    pub(crate) async fn pool(&self) -> PgPool {
        PgPool::connect(&self.stores.database_url())
            .await
            .expect("postgres is up")
    }
}

/// Posts a body under this id, signed with the services' secret.
pub(crate) async fn post(url: &str, id: &str, body: &str) -> Answer {
    let posted = delivery::post(url, DEVELOPMENT_SECRET, id, body).await;
    posted.expect("a good secret and address")
}

/// Sends a sample, which must be accepted.
pub(crate) async fn send(url: &str, sample: &Sample) {
    let answer = post(url, &sample::new_webhook_id(), sample.body).await;
    assert!(answer.outcome.is_safe(), "{answer:?}");
}

/// The single number that a query returns.
pub(crate) async fn count(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql)
        .fetch_one(pool)
        .await
        .expect("a count")
}

/// Waits until a query returns the expected number.
pub(crate) async fn until_count(pool: &PgPool, sql: &'static str, expected: i64) {
    let deadline = Instant::now() + SOON;
    loop {
        let found = count(pool, sql).await;
        if found == expected {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "still {found}, not {expected}: {sql}"
        );
        sleep(Duration::from_millis(100)).await;
    }
}
