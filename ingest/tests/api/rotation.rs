//! Secrets are replaced while the service runs.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use ingest::secrets::DEVELOPMENT_SECRET;
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{
    app::{App, SOON, Stores},
    webhook::{SECRET, Webhook},
};

const NEW: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const REJECTED: &str = "pleo_ingest_secrets_rejected 1";

/// A secrets file as Kubernetes mounts it: a link to a link to a folder. An update replaces the
/// second link.
struct Mounted {
    folder: TempDir,
    versions: u32,
}

impl Mounted {
    fn new(content: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        symlink("..data/secrets", folder.path().join("secrets")).expect("a link");
        let mut this = Self {
            folder,
            versions: 0,
        };
        this.replace(content);
        this
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("secrets")
    }

    fn replace(&mut self, content: &str) {
        self.versions += 1;
        let version = format!("..{}", self.versions);
        fs::create_dir(self.folder.path().join(&version)).expect("a folder");
        fs::write(self.folder.path().join(&version).join("secrets"), content).expect("written");
        let next = self.folder.path().join("..next");
        symlink(&version, &next).expect("a link");
        fs::rename(next, self.folder.path().join("..data")).expect("renamed");
    }
}

async fn status(app: &App, secret: &str) -> u16 {
    app.send(&Webhook::under(secret)).await.0
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn secrets_are_replaced_without_a_restart(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let mut file = Mounted::new(&format!("old={SECRET}"));
    let app = App::start_on_file(&stores, &file.path()).await;
    assert_eq!(
        (status(&app, SECRET).await, status(&app, NEW).await),
        (202, 401)
    );

    file.replace(&format!("old={SECRET}\nnew={NEW}\n"));
    app.until_metric("pleo_ingest_secret_matched_total{secret=\"new\"} 0")
        .await;
    assert_eq!(
        (status(&app, SECRET).await, status(&app, NEW).await),
        (202, 202)
    );
    app.until_metric("pleo_ingest_secret_matched_total{secret=\"old\"} 2")
        .await;

    file.replace(&format!("new={NEW}\n"));
    app.until_metrics("without the old", |metrics| {
        !metrics.contains("secret=\"old\"")
    })
    .await;
    assert_eq!(
        (status(&app, SECRET).await, status(&app, NEW).await),
        (401, 202)
    );
    app.until_metric("pleo_ingest_secret_matched_total{secret=\"new\"} 2")
        .await;
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn a_bad_secrets_file_changes_nothing_and_shows_until_a_good_one_comes(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let mut file = Mounted::new(&format!("old={SECRET}"));
    let app = App::start_on_file(&stores, &file.path()).await;
    for bad in ["", &format!("new={NEW}\nknown={DEVELOPMENT_SECRET}\n")] {
        file.replace(bad);
        app.until_metric(REJECTED).await;
        assert_eq!(
            (status(&app, SECRET).await, status(&app, NEW).await),
            (202, 401)
        );
        app.until_metric("pleo_ingest_development_secret 0").await;
        // The content that is loaded already.
        file.replace(&format!("old={SECRET}"));
        app.until_metric("pleo_ingest_secrets_rejected 0").await;
    }

    fs::remove_file(file.path()).expect("removed");
    app.until_metric(REJECTED).await;
    assert_eq!(status(&app, SECRET).await, 202);
    fs::write(file.path(), format!("new={NEW}")).expect("written");
    app.until_metric("pleo_ingest_secrets_rejected 0").await;
    assert_eq!(
        (status(&app, SECRET).await, status(&app, NEW).await),
        (401, 202)
    );
    app.stop().await;
    stores.clean_up().await;
}

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn the_development_secret_is_accepted_for_development_and_shows(pool: PgPool) {
    let stores = Stores::new(&pool).await;
    let secrets = format!("known={DEVELOPMENT_SECRET}");
    let app = App::start_with(
        &stores.database_url,
        &stores.amqp_url,
        &stores.prefix,
        &["--webhook-secrets", &secrets, "--development", "true"],
    );
    app.until_ready("rabbitmq").await;
    assert_eq!(status(&app, DEVELOPMENT_SECRET).await, 202);
    app.until_metric("pleo_ingest_development_secret 1").await;
    app.stop().await;
    stores.clean_up().await;
}

/// The real binary, which needs no store to read its secrets.
struct Running {
    process: Child,
    log: PathBuf,
}

impl Running {
    fn start(folder: &Path, secrets: &Path) -> Self {
        let log = folder.join("log");
        let process = Command::new(env!("CARGO_BIN_EXE_ingest"))
            .env_clear()
            .env("DATABASE_URL", "postgres://u@127.0.0.1:1/d")
            .env("AMQP_URL", "amqp://u:p@127.0.0.1:1/%2f")
            .env("LISTEN", "127.0.0.1:0")
            .env("PRIVATE_LISTEN", "127.0.0.1:0")
            .env("LOG", "trace")
            .env("WEBHOOK_SECRETS_FILE", secrets)
            .stderr(File::create(&log).expect("a log"))
            .spawn()
            .expect("the binary runs");
        Self { process, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("text")
    }

    async fn until_logged(&self, text: &str) {
        let deadline = Instant::now() + SOON;
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "never {text}: {}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it is a child");
    }
}

#[tokio::test]
async fn a_refusal_is_logged_once_and_shows_no_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut file = Mounted::new(&format!("old={SECRET}"));
    let ingest = Running::start(folder.path(), &file.path());
    ingest.until_logged("listening").await;
    let bad = format!("new={NEW}\nnew={SECRET}\n");
    file.replace(&bad);
    ingest
        .until_logged("the secret name `new` is there twice")
        .await;
    // The same bad content again, and then another bad one.
    file.replace(&bad);
    file.replace("new=whsec_c2hvcnQ=");
    ingest.until_logged("24 to 64").await;
    file.replace(&format!("new={NEW}"));
    ingest.until_logged("has changed and is in use").await;
    let log = ingest.log();
    assert_eq!(log.matches("is refused").count(), 2, "{log}");
    for secret in ["MfKQ9", "C2FVs", "c2hvcnQ"] {
        assert!(!log.contains(secret), "{log}");
    }
}
