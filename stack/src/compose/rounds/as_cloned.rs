//! What a new user does: README's commands, then more replicas, kills, and a stop.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ingest::secrets::DEVELOPMENT_SECRET;
use tokio::time::{Instant, sleep};

use crate::compose::load::Load;
use crate::compose::site::Site;
use crate::compose::trial::Trial;
use crate::compose::{confinement, console, kill, monitoring, readme};

const HEADING: &str = "### With docker compose";
/// The console user of `deploy/development-secrets`.
const USER: (&str, &str) = ("admin", "development-only");
const FINDS_THEM_WITHIN: Duration = Duration::from_secs(90);
const STORED_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const INGEST: usize = 2;
const VENDOR_WORKERS: usize = 3;
/// All services, with the two stores in sequence, because one of them is always needed.
const KILLED: [&str; 12] = [
    "node-exporter",
    "postgres-exporter",
    "alertmanager",
    "prometheus",
    "proxy",
    "console",
    "ingest",
    "export-job-worker",
    "vendor-worker",
    "other-worker",
    "rabbitmq",
    "postgres",
];

pub(in crate::compose) async fn run(site: &Site, trial: &mut Trial, built: bool) -> Result<()> {
    let text = fs::read_to_string(site.folder.join("README.md"))?;
    let commands = readme::commands(&text, HEADING);
    let (up, others) = commands
        .split_first()
        .context("README.md has no commands")?;
    let up = if built {
        up.replace(" --build", " --no-build")
    } else {
        (*up).to_owned()
    };
    trial
        .check(&format!("README: {up}"), site.line(&up))
        .await?;
    trial
        .check("everything is healthy", site.until_healthy())
        .await?;
    for command in others {
        trial
            .check(&format!("README: {command}"), site.line(command))
            .await?;
    }
    trial
        .check("demo's events are in their tables", demo_is_stored(site))
        .await?;
    let (name, password) = USER;
    trial
        .check(
            "the console shows them to its user",
            console::shows_events(site, name, password),
        )
        .await?;
    trial
        .check(
            "no container may do more than its work",
            confinement::holds(site),
        )
        .await?;
    trial
        .check(
            "hookctl doctor finds only the development secret",
            doctor(site),
        )
        .await?;
    trial
        .check(
            "Prometheus reaches every target",
            monitoring::targets_are_up(site),
        )
        .await?;
    trial
        .check("every rule works", monitoring::rules_work(site))
        .await?;
    let alert = monitoring::alert_arrives(site, "PleoDevelopmentSecret");
    trial.check("an alert comes to Alertmanager", alert).await?;
    trial
        .check("replicas of .env stay", replicas_stay(site))
        .await?;
    let load = Load::start(&site.published.webhooks, DEVELOPMENT_SECRET)?;
    trial
        .check("replicas share the work", work_is_shared(site))
        .await?;
    for service in KILLED {
        let what = format!("kill -9 {service} under load");
        trial.check(&what, kill_one(site, service)).await?;
    }
    trial
        .check("everything is healthy again", site.until_healthy())
        .await?;
    ensure!(
        load.accepted() > 100,
        "only {} events were accepted",
        load.accepted()
    );
    let settled = trial.check(
        "everything accepted is stored exactly once",
        load.settle(site),
    );
    let accepted = settled.await?;
    trial
        .check(
            "hookctl reconcile agrees",
            site.compose(&["run", "--rm", "-T", "hookctl", "reconcile"]),
        )
        .await?;
    trial
        .check("down and up keep the data", data_stays(site, accepted))
        .await?;
    trial
        .check("down --volumes", site.down(&["--volumes"]))
        .await?;
    Ok(())
}

/// It sends two events five times each, under new ids: ten events of two resources.
pub(super) async fn demo_is_stored(site: &Site) -> Result<()> {
    let wanted = "10 1 1";
    let query = "select (select count(*) from events where problem is null) || ' ' || \
                 (select count(*) from export_jobs) || ' ' || (select count(*) from vendors)";
    let deadline = Instant::now() + STORED_WITHIN;
    loop {
        let found = site.sql(query).await?;
        if found == [wanted] {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "events, export jobs and vendors: {found:?} instead of {wanted}"
        );
        sleep(LOOK_EVERY).await;
    }
}

/// The services may take some seconds to connect after `setup` has created their accounts.
async fn doctor(site: &Site) -> Result<()> {
    let deadline = Instant::now() + FINDS_THEM_WITHIN;
    loop {
        let ended = site.try_compose(&["run", "--rm", "-T", "hookctl"]).await?;
        let problems: Vec<&str> = ended
            .out
            .lines()
            .filter(|line| line.contains("PROBLEM"))
            .collect();
        let only_the_secret = problems.len() == 1 && problems[0].contains("development secret");
        if ended.code == Some(3) && only_the_secret {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "it ended with {:?} and found:\n{}\n{}",
            ended.code,
            problems.join("\n"),
            ended.end()
        );
        sleep(LOOK_EVERY).await;
    }
}

async fn replicas_stay(site: &Site) -> Result<()> {
    site.set(&format!("INGEST_REPLICAS={INGEST}"))?;
    site.set(&format!("VENDOR_WORKER_REPLICAS={VENDOR_WORKERS}"))?;
    for up in [&["up", "-d", "--no-build"][..], &["up", "-d"]] {
        site.compose(up).await?;
        site.until_healthy().await?;
        for (service, wanted) in [("ingest", INGEST), ("vendor-worker", VENDOR_WORKERS)] {
            let found = site.replicas(service).await?.len();
            ensure!(found == wanted, "{found} of {service} instead of {wanted}");
        }
    }
    Ok(())
}

async fn work_is_shared(site: &Site) -> Result<()> {
    let shares = [
        (
            r#"pleo_ingest_requests_total{outcome="accepted"} > 0"#,
            INGEST,
        ),
        (
            r#"pleo_worker_events_total{outcome="stored",service="vendor-worker"} > 0"#,
            VENDOR_WORKERS,
        ),
    ];
    for (share, replicas) in shares {
        monitoring::until_series(site, share, replicas).await?;
    }
    Ok(())
}

async fn kill_one(site: &Site, service: &str) -> Result<()> {
    let replicas = site.replicas(service).await?;
    let container = replicas
        .first()
        .with_context(|| format!("there is no {service}"))?;
    kill::kill(site, container).await?;
    if ["rabbitmq", "postgres"].contains(&service) {
        kill::until_healthy(site, container).await?;
    }
    Ok(())
}

async fn data_stays(site: &Site, accepted: usize) -> Result<()> {
    site.down(&[]).await?;
    site.compose(&["up", "-d"]).await?;
    site.until_healthy().await?;
    let stored = site.count("select count(*) from events").await?;
    let wanted = u64::try_from(accepted)? + 10;
    ensure!(stored == wanted, "{stored} events instead of {wanted}");
    site.line("docker compose run --rm -T demo").await?;
    Ok(())
}
