//! The whole pipeline over TLS. Both stores identify each service by its certificate only.

use std::{collections::BTreeSet, path::Path, process::Output, time::Duration};

use hookctl::{
    account, delivery,
    sample::{self, Sample},
};
use ingest::secrets::DEVELOPMENT_SECRET;
use serde_json::Value;
use shared::Program;
use sqlx::{Connection, PgConnection};
use stack::{
    programs::Programs,
    proxy::{Mode, Proxy},
    service::{Launcher, Service},
    stores::{DATABASE, Hosts},
};
use tokio::time::{Instant, sleep};

use crate::{
    authority::Files,
    stores::{Broker, Database, Environment},
};

/// The time limit of every wait, long enough for a busy machine.
const SOON: Duration = Duration::from_secs(60);

struct Pipeline {
    environment: Environment,
    database: Database,
    broker: Broker,
    programs: Programs,
}

impl Pipeline {
    async fn new() -> Self {
        let environment = Environment::new();
        let (database, broker) =
            tokio::join!(Database::start(&environment), Broker::start(&environment));
        let made = database.server.create_database(DATABASE).await;
        made.expect("a database");
        database.show(&environment, &environment.server).await;
        Self {
            environment,
            database,
            broker,
            programs: Programs::find().expect("the services are built"),
        }
    }

    /// The addresses of both stores, with the client's certificate. Postgres may be behind another port.
    fn settings(
        &self,
        login: &str,
        amqp_login: &str,
        client: &Files,
        postgres: u16,
    ) -> Vec<(&str, String)> {
        let amqp = self.broker.amqps.port();
        let path = |path: &Path| path.display().to_string();
        let (ca, certificate, key) = (
            self.environment.ca(),
            path(&client.certificate),
            path(&client.key),
        );
        vec![
            (
                "DATABASE_URL",
                format!(
                    "postgres://{login}@localhost:{postgres}/{DATABASE}?sslmode=verify-full\
                     &sslrootcert={ca}&sslcert={certificate}&sslkey={key}"
                ),
            ),
            (
                "AMQP_URL",
                format!("amqps://{amqp_login}localhost:{amqp}/%2f"),
            ),
            ("AMQP_CA_FILE", ca),
            ("AMQP_CERT_FILE", certificate),
            ("AMQP_KEY_FILE", key),
        ]
    }

    /// As the owner of both stores, with passwords.
    async fn hookctl(&self, args: &[&str], changes: &[(&str, &str)]) -> Output {
        let owner = self.database.server.owner();
        let login = format!("{}:{}", owner.user, owner.password);
        let client = self.environment.authority.issue("operator", &[]);
        let management = format!("https://localhost:{}", self.broker.https.port());
        let mut command = tokio::process::Command::new(self.programs.hookctl());
        command
            .args(args)
            .env_clear()
            .envs(self.settings(&login, "guest:guest@", &client, self.postgres()))
            .env("RABBITMQ_MANAGEMENT_URL", management)
            .envs(changes.iter().copied());
        command.output().await.expect("hookctl runs")
    }

    async fn set_up(&self) {
        let passwords = Program::ALL.map(|program| format!("{program}=unused-but-long-enough"));
        let passwords = passwords.join(",");
        let ended = self
            .hookctl(&["setup"], &[("ACCOUNT_PASSWORDS", &passwords)])
            .await;
        assert!(ended.status.success(), "{ended:?}");
    }

    fn postgres(&self) -> u16 {
        self.database.server.address().port()
    }

    fn start(&self, program: Program, postgres: u16) -> Service {
        let name = account::name(program, "pleo");
        let client = self.environment.authority.issue(&name, &[]);
        let hosts = Hosts::one(self.database.server.address(), self.broker.server.address());
        let owners = (
            self.database.server.owner(),
            self.broker.server.administrator(),
        );
        let logs = self.environment.base.folder("logs").expect("a folder");
        let mut launcher = Launcher::as_owner(self.programs.clone(), hosts, owners, logs)
            .env("DECLARE_TOPOLOGY", "false")
            .env("MIGRATE", "false");
        for (setting, value) in self.settings(&name, "", &client, postgres) {
            launcher = launcher.env(setting, value);
        }
        launcher.start(program, program.name()).expect("it starts")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_passes_through_both_stores_over_tls() {
    let pipeline = Pipeline::new().await;
    pipeline.set_up().await;
    let services = Program::ALL.map(|program| pipeline.start(program, pipeline.postgres()));
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    let url = services[0].webhook_url();
    for Sample { body, .. } in Sample::ALL {
        let id = sample::new_webhook_id();
        let answer = delivery::post(&url, DEVELOPMENT_SECRET, &id, body).await;
        let answer = answer.expect("a good secret and address");
        assert!(answer.outcome.is_safe(), "{answer:?}");
    }
    let mut postgres = superuser(&pipeline).await;
    for table in [
        "select count(*) from export_jobs",
        "select count(*) from vendors",
    ] {
        until_one(&mut postgres, table).await;
    }
    each_is_known_by_its_certificate(&pipeline, &mut postgres).await;
    doctor(&pipeline).await;
}

/// Connecting over TLS takes several more round trips.
#[tokio::test(flavor = "multi_thread")]
async fn over_a_long_way_to_postgres_dedup_comes_back_after_a_cut() {
    const ROUND_TRIP: Mode = Mode::Slow(Duration::from_millis(250));
    let pipeline = Pipeline::new().await;
    pipeline.set_up().await;
    let proxy = Proxy::start(pipeline.database.server.address()).await;
    let proxy = proxy.expect("a port");
    let ingest = pipeline.start(Program::Ingest, proxy.address().port());
    ingest.ready(SOON).await.expect("ready");
    let url = ingest.webhook_url();
    let [sample, ..] = Sample::ALL;
    let accept = async || {
        let id = sample::new_webhook_id();
        let answer = delivery::post(&url, DEVELOPMENT_SECRET, &id, sample.body).await;
        let answer = answer.expect("a good secret and address");
        assert!(answer.outcome.is_safe(), "{answer:?}");
        id
    };

    proxy.set(Mode::Cut).await;
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        accept().await;
    }
    proxy.set(ROUND_TRIP).await;
    let mut postgres = superuser(&pipeline).await;
    // Without dedup an event has no receipt.
    let end = Instant::now() + SOON;
    let mut in_a_row = 0;
    while in_a_row < 10 {
        assert!(Instant::now() < end, "events go on without dedup");
        let id = accept().await;
        let has_receipt = has_receipt(&mut postgres, &id).await;
        in_a_row = if has_receipt { in_a_row + 1 } else { 0 };
    }
}

/// It may be committed shortly after the answer.
async fn has_receipt(postgres: &mut PgConnection, id: &str) -> bool {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        let found = sqlx::query_scalar(
            "select exists (select from webhook_receipts where webhook_id = $1)",
        )
        .bind(id)
        .fetch_one(&mut *postgres)
        .await
        .expect("an answer");
        if found || Instant::now() > end {
            return found;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn superuser(pipeline: &Pipeline) -> PgConnection {
    let url = pipeline.database.server.url(DATABASE);
    PgConnection::connect(&url).await.expect("a connection")
}

async fn until_one(postgres: &mut PgConnection, sql: &'static str) {
    let end = Instant::now() + SOON;
    while sqlx::query_scalar::<_, i64>(sql)
        .fetch_one(&mut *postgres)
        .await
        .expect("a count")
        < 1
    {
        assert!(Instant::now() < end, "none: {sql}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn each_is_known_by_its_certificate(pipeline: &Pipeline, postgres: &mut PgConnection) {
    let accounts: BTreeSet<String> = Program::ALL.map(|p| account::name(p, "pleo")).into();
    let in_postgres: Vec<String> = sqlx::query_scalar(
        "select distinct usename::text from pg_stat_activity join pg_stat_ssl using (pid)
          where ssl and client_dn = '/CN=' || usename",
    )
    .fetch_all(postgres)
    .await
    .expect("the connections");
    assert_eq!(BTreeSet::from_iter(in_postgres), accounts);
    let what = [
        "list_connections",
        "--no-table-headers",
        "user",
        "auth_mechanism",
        "ssl",
    ];
    let listed = pipeline.broker.server.ctl(&what).await.expect("a list");
    for account in accounts {
        assert!(
            listed.contains(&format!("{account}\tEXTERNAL\ttrue")),
            "{listed}"
        );
    }
}

async fn doctor(pipeline: &Pipeline) {
    let warned = async |changes: &[(&str, &str)]| {
        let ended = pipeline.hookctl(&["doctor", "--json"], changes).await;
        let text = String::from_utf8(ended.stdout).expect("text");
        let rows = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let rows: Vec<Value> = rows.collect();
        let reached = rows
            .iter()
            .find(|row| row["check"] == "rabbitmq")
            .expect("a row");
        assert_eq!(reached["verdict"], "ok", "{reached}");
        rows.into_iter()
            .find(|row| row["check"] == "tls of postgres")
    };
    assert_eq!(warned(&[]).await, None);
    let elsewhere = [(
        "DATABASE_URL",
        "postgres://u@nowhere.invalid/d?sslmode=require",
    )];
    let row = warned(&elsewhere).await.expect("a warning");
    assert_eq!(row["verdict"], "warning", "{row}");
    let found = row["found"].as_str().expect("text");
    assert!(found.contains("nowhere.invalid"), "{found}");
}
