//! The whole pipeline over TLS, each service known to both stores by its certificate alone.

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
    service::{Launcher, Service},
    stores::{DATABASE, Hosts},
};
use tokio::time::{Instant, sleep};

use crate::{
    authority::Files,
    stores::{Broker, Database, Ground},
};

/// How long anything may take that is waited for, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

struct World {
    ground: Ground,
    database: Database,
    broker: Broker,
    programs: Programs,
}

impl World {
    async fn new() -> Self {
        let ground = Ground::new();
        let (database, broker) = tokio::join!(Database::start(&ground), Broker::start(&ground));
        let made = database.server.create_database(DATABASE).await;
        made.expect("a database");
        database.show(&ground, &ground.server).await;
        Self {
            ground,
            database,
            broker,
            programs: Programs::find().expect("the services are built"),
        }
    }

    /// Where both stores are, and what a client shows there.
    fn settings(&self, login: &str, amqp_login: &str, client: &Files) -> Vec<(&str, String)> {
        let postgres = self.database.server.address().port();
        let amqp = self.broker.amqps.port();
        let path = |path: &Path| path.display().to_string();
        let (ca, certificate, key) = (
            self.ground.ca(),
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

    /// As the owner of both stores, who has passwords.
    async fn hookctl(&self, args: &[&str], changes: &[(&str, &str)]) -> Output {
        let owner = self.database.server.owner();
        let login = format!("{}:{}", owner.user, owner.password);
        let client = self.ground.authority.issue("operator", &[]);
        let management = format!("https://localhost:{}", self.broker.https.port());
        let mut command = tokio::process::Command::new(self.programs.hookctl());
        command
            .args(args)
            .env_clear()
            .envs(self.settings(&login, "guest:guest@", &client))
            .env("RABBITMQ_MANAGEMENT_URL", management)
            .envs(changes.iter().copied());
        command.output().await.expect("hookctl runs")
    }

    fn start(&self, program: Program) -> Service {
        let name = account::name(program, "pleo");
        let client = self.ground.authority.issue(&name, &[]);
        let hosts = Hosts::one(self.database.server.address(), self.broker.server.address());
        let owners = (
            self.database.server.owner(),
            self.broker.server.administrator(),
        );
        let logs = self.ground.base.folder("logs").expect("a folder");
        let mut launcher = Launcher::as_owner(self.programs.clone(), hosts, owners, logs)
            .env("DECLARE_TOPOLOGY", "false")
            .env("MIGRATE", "false");
        for (setting, value) in self.settings(&name, "", &client) {
            launcher = launcher.env(setting, value);
        }
        launcher.start(program, program.name()).expect("it starts")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_passes_through_both_stores_over_tls() {
    let world = World::new().await;
    let passwords = Program::ALL.map(|program| format!("{program}=unused-but-long-enough"));
    let passwords = passwords.join(",");
    let ended = world
        .hookctl(&["setup"], &[("ACCOUNT_PASSWORDS", &passwords)])
        .await;
    assert!(ended.status.success(), "{ended:?}");

    let services = Program::ALL.map(|program| world.start(program));
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
    let mut postgres = superuser(&world).await;
    for table in [
        "select count(*) from export_jobs",
        "select count(*) from vendors",
    ] {
        until_one(&mut postgres, table).await;
    }
    each_is_known_by_its_certificate(&world, &mut postgres).await;
    doctor(&world).await;
}

async fn superuser(world: &World) -> PgConnection {
    let url = world.database.server.url(DATABASE);
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

async fn each_is_known_by_its_certificate(world: &World, postgres: &mut PgConnection) {
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
    let listed = world.broker.server.ctl(&what).await.expect("a list");
    for account in accounts {
        assert!(
            listed.contains(&format!("{account}\tEXTERNAL\ttrue")),
            "{listed}"
        );
    }
}

async fn doctor(world: &World) {
    let warned = async |changes: &[(&str, &str)]| {
        let ended = world.hookctl(&["doctor", "--json"], changes).await;
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
