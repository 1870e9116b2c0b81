//! PgBouncer between the pipeline and Postgres, in versions that work and versions that do not.
//!
//! It is the PgBouncer of the stores' Debian. That of Debian 12 does not work in transaction mode. So
//! `cargo stack test --stores debian13` tests the modes that work, and both test those that do not.

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    sync::Arc,
};

use hookctl::sample::{self, EXPORT_JOB, VENDOR};
use serde_json::Value;
use shared::Program;
use stack::{
    packages::Packages,
    pgbouncer::{PgBouncer, Settings, Version},
    ports,
    service::Service,
    stores::Hosts,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::Mutex,
    task::JoinSet,
    time::{Duration, Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::pipeline::{Pipeline, SOON, count, post, until_count};

/// The first version that supports prepared statements.
const FIT: Version = (1, 21);

/// Fewer connections than the services would open.
const POOL_SIZE: u32 = 4;

const TRANSACTION: Settings = Settings {
    pool_mode: "transaction",
    pool_size: POOL_SIZE,
    max_prepared_statements: None,
};

/// A PgBouncer in front of a test's Postgres.
struct Front {
    packages: Packages,
    folder: PathBuf,
    version: Version,
    hosts: Hosts,
    bouncer: PgBouncer,
}

impl Front {
    async fn new(pipeline: &Pipeline, settings: impl FnOnce(Version) -> Settings) -> Self {
        let packages = Packages::find().expect("Postgres is installed");
        let folder = pipeline.folder().join("pgbouncer");
        let version = PgBouncer::version(&packages, &folder).await;
        let version = version.expect("pgbouncer is installed: cargo stack test does that");
        let address = ports::free().expect("a free port");
        let postgres = pipeline.stores.postgres.address();
        let logins = Self::logins(pipeline);
        let settings = settings(version);
        let bouncer = PgBouncer::start(&packages, &folder, address, postgres, &logins, settings);
        Self {
            bouncer: bouncer.await.expect("pgbouncer comes up"),
            hosts: Hosts::one(address, pipeline.stores.addresses().amqp),
            packages,
            folder,
            version,
        }
    }

    fn logins(pipeline: &Pipeline) -> Vec<stack::stores::Login> {
        let accounts = Program::ALL.map(|program| pipeline.accounts().login(program));
        let owner = pipeline.stores.postgres.owner();
        [owner].into_iter().chain(accounts).collect()
    }

    /// Replaces it by another one.
    async fn replace(&mut self, pipeline: &Pipeline, settings: Settings) {
        self.bouncer.kill();
        let (address, postgres) = (self.bouncer.address(), pipeline.stores.postgres.address());
        let (packages, folder, logins) = (&self.packages, &self.folder, Self::logins(pipeline));
        let bouncer = PgBouncer::start(packages, folder, address, postgres, &logins, settings);
        self.bouncer = bouncer.await.expect("pgbouncer comes up");
    }

    fn database_url(&self, pipeline: &Pipeline) -> String {
        self.hosts.database_url(&pipeline.stores.postgres.owner())
    }

    async fn hookctl(&self, pipeline: &Pipeline, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = pipeline.hookctl();
        command
            .args(arguments)
            .env("DATABASE_URL", self.database_url(pipeline));
        let ended = timeout(SOON, command.kill_on_drop(true).output()).await;
        let Output {
            status,
            stdout,
            stderr,
        } = ended.expect("it ends").expect("hookctl runs");
        let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        (status.code(), text)
    }

    fn start_all(&self, pipeline: &Pipeline) -> Vec<Service> {
        let launcher = pipeline.launcher.clone().under(pipeline.accounts());
        let launcher = launcher.through(self.hosts.clone());
        let start = |program: Program| launcher.start(program, program.name());
        Program::ALL
            .map(|program| start(program).expect("it starts"))
            .into()
    }
}

/// Sends events until it is stopped, and remembers those that were accepted.
struct Load {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    accepted: Arc<Mutex<Vec<String>>>,
}

impl Load {
    fn start(url: &str) -> Self {
        let (stop, accepted) = (CancellationToken::new(), Arc::default());
        let mut tasks = JoinSet::new();
        for sender in 0..8 {
            let (stop, url) = (stop.clone(), url.to_owned());
            let accepted: Arc<Mutex<Vec<String>>> = Arc::clone(&accepted);
            let sample = if sender % 2 == 0 { EXPORT_JOB } else { VENDOR };
            tasks.spawn(async move {
                while !stop.is_cancelled() {
                    let id = sample::new_webhook_id();
                    if post(&url, &id, sample.body).await.outcome.is_safe() {
                        accepted.lock().await.push(id);
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            });
        }
        Self {
            stop,
            tasks,
            accepted,
        }
    }

    async fn accepted(&self) -> usize {
        self.accepted.lock().await.len()
    }

    /// Waits until more events are accepted.
    async fn go_on(&self) {
        let (deadline, before) = (Instant::now() + SOON, self.accepted().await);
        while self.accepted().await < before + 50 {
            assert!(Instant::now() < deadline, "no event is accepted");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops, and waits until every accepted event is stored.
    async fn until_stored(self, pipeline: &Pipeline) {
        self.stop.cancel();
        self.tasks.join_all().await;
        let (pool, ids) = (pipeline.pool().await, self.accepted.lock().await.clone());
        let deadline = Instant::now() + SOON * 2;
        loop {
            let stored: i64 =
                sqlx::query_scalar("select count(*) from events where webhook_id = any($1)")
                    .bind(&ids)
                    .fetch_one(&pool)
                    .await
                    .expect("a count");
            if usize::try_from(stored).expect("a count") == ids.len() {
                break;
            }
            assert!(Instant::now() < deadline, "{stored} of {}", ids.len());
            sleep(Duration::from_millis(100)).await;
        }
        until_count(&pool, "select count(*) from webhook_spool", 0).await;
        let problems = "select count(*) from events where problem is not null";
        assert_eq!(count(&pool, problems).await, 0);
    }
}

/// What readiness says about Postgres, as text.
async fn postgres_of(service: &Service) -> String {
    let Ok(response) = reqwest::get(service.private_url("/readyz")).await else {
        return String::new();
    };
    let body = response.text().await.expect("a body");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let checks = body["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == "postgres");
    check.expect("a check").to_string()
}

#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
fn skips(version: Version) -> bool {
    let is_old = version < FIT;
    if is_old {
        eprintln!(
            "skipped: PgBouncer {}.{} does not do transaction mode; \
             cargo stack test --stores debian13 has a newer one, as root",
            version.0, version.1
        );
    }
    is_old
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pipeline_works_behind_pgbouncer_and_outlives_restarts_of_both() {
    let mut pipeline = Pipeline::unprepared().await;
    let mut front = Front::new(&pipeline, |_| TRANSACTION).await;
    if skips(front.version) {
        return;
    }
    pipeline.set_up_by(&front.database_url(&pipeline)).await;
    let services = front.start_all(&pipeline);
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    let load = Load::start(&services[0].webhook_url());
    load.go_on().await;

    front.bouncer.restart().await.expect("pgbouncer");
    load.go_on().await;
    pipeline.stores.postgres.restart().await.expect("postgres");
    load.go_on().await;
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    load.go_on().await;
    load.until_stored(&pipeline).await;
    let sessions = "select count(*) from pg_stat_activity
                     where backend_type = 'client backend' and usename = 'pleo-ingest'";
    let sessions = count(&pipeline.pool().await, sessions).await;
    assert!((1..=POOL_SIZE.into()).contains(&sessions), "{sessions}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hookctl_works_behind_pgbouncer() {
    let pipeline = Pipeline::unprepared().await;
    let front = Front::new(&pipeline, |_| TRANSACTION).await;
    if skips(front.version) {
        return;
    }
    // The second time there is nothing to migrate.
    for _ in 0..2 {
        pipeline.set_up_by(&front.database_url(&pipeline)).await;
    }
    let services = front.start_all(&pipeline);
    let url = services[0].webhook_url();
    services[0].ready(SOON).await.expect("ready");
    for (id, body) in [("msg_1", EXPORT_JOB.body), ("msg_2", "{}")] {
        let answer = post(&url, id, body).await;
        assert!(answer.outcome.is_safe(), "{answer:?}");
    }
    let pool = pipeline.pool().await;
    until_count(&pool, "select count(*) from events", 2).await;
    sqlx::query("update export_jobs set company_id = 'wrong'")
        .execute(&pool)
        .await
        .expect("a row is spoiled");

    let cases: [(&[&str], i32, &str); 6] = [
        (&["dead-letters", "list"], 0, "msg_2"),
        (
            &["dead-letters", "replay", "--id", "msg_2", "--yes"],
            3,
            "msg_2",
        ),
        (&["rebuild", "--yes"], 0, "export_jobs"),
        (&["rebuild"], 0, "export_jobs"),
        (&["receipts", "list"], 0, ""),
        (&["reconcile"], 0, ""),
    ];
    for (arguments, code, words) in cases {
        let (ended, text) = front.hookctl(&pipeline, arguments).await;
        assert_eq!(ended, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(words), "{arguments:?}: {text}");
    }
    let mended = "select count(*) from export_jobs where company_id <> 'wrong'";
    assert_eq!(count(&pool, mended).await, 1);
    let mut tail = pipeline.hookctl();
    tail.arg("tail")
        .env("DATABASE_URL", front.database_url(&pipeline));
    let mut tail = tail.stdout(Stdio::piped()).kill_on_drop(true).spawn();
    let output = tail.as_mut().expect("hookctl runs").stdout.take();
    let mut lines = BufReader::new(output.expect("it is piped")).lines();
    let shown = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if line.contains("msg_1") {
                return;
            }
        }
        panic!("it ends");
    };
    timeout(SOON, shown).await.expect("it is shown");

    let (_, text) = front.hookctl(&pipeline, &["doctor", "--json"]).await;
    let postgres = finding(&text, "postgres");
    assert_eq!(postgres["verdict"], "ok", "{text}");
    assert_eq!(finding(&text, "schema")["verdict"], "ok", "{text}");
}

fn finding(text: &str, check: &str) -> Value {
    let rows = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let mut found = rows.filter(|row: &Value| row["check"] == check);
    found.next().unwrap_or_else(|| panic!("no {check}: {text}"))
}

/// One that passes the names of statements on, in transaction mode.
fn unfit(version: Version) -> Settings {
    Settings {
        max_prepared_statements: (version >= FIT).then_some(0),
        ..TRANSACTION
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_mixes_up_statements_is_told_and_costs_no_event() {
    const REMEDY: &str = "max_prepared_statements above 0";

    let pipeline = Pipeline::unprepared().await;
    pipeline.set_up().await;
    let mut front = Front::new(&pipeline, unfit).await;
    for _ in 0..2 {
        let (code, text) = front.hookctl(&pipeline, &["doctor", "--json"]).await;
        assert_eq!(code, Some(3), "{text}");
        let postgres = finding(&text, "postgres");
        for part in ["found", "remedy"] {
            let said = postgres[part].as_str().expect("text");
            assert!(said.contains(REMEDY), "{text}");
        }
    }
    let (code, text) = front.hookctl(&pipeline, &["dead-letters", "list"]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(REMEDY), "{text}");

    let services = front.start_all(&pipeline);
    services[0].ready(SOON).await.expect("RabbitMQ is enough");
    let load = Load::start(&services[0].webhook_url());
    for service in &services {
        until_said(service, REMEDY).await;
    }
    load.go_on().await;

    // Every version supports session mode.
    let session = Settings {
        pool_mode: "session",
        pool_size: 20,
        max_prepared_statements: None,
    };
    front.replace(&pipeline, session).await;
    load.go_on().await;
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    load.until_stored(&pipeline).await;
    pipeline.stores.stop().await.expect("a stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_mode_is_told() {
    const REMEDY: &str = "set pool_mode to transaction";

    let pipeline = Pipeline::unprepared().await;
    pipeline.set_up().await;
    let statement = Settings {
        pool_mode: "statement",
        ..TRANSACTION
    };
    let front = Front::new(&pipeline, |_| statement).await;
    let (code, text) = front.hookctl(&pipeline, &["doctor", "--json"]).await;
    assert_eq!(code, Some(3), "{text}");
    let found = finding(&text, "postgres")["found"].to_string();
    assert!(found.contains(REMEDY), "{text}");
    for service in front.start_all(&pipeline) {
        until_said(&service, REMEDY).await;
    }
}

/// Waits until both readiness and the log contain this.
async fn until_said(service: &Service, words: &str) {
    let deadline = Instant::now() + SOON;
    let (mut is_shown, mut is_logged) = (false, false);
    while !(is_shown && is_logged) {
        let shown = postgres_of(service).await;
        let log = service.process().log_tail(1_000);
        is_shown |= shown.contains(words);
        is_logged |= log.contains(words);
        assert!(Instant::now() < deadline, "never said: {shown} {log}");
        sleep(Duration::from_millis(100)).await;
    }
}
