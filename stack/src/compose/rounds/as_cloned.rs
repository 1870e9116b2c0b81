//! What a new user does: README's commands, then more replicas, kills, and a stop.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ingest::secrets::DEVELOPMENT_SECRET;
use tokio::time::{Instant, sleep};

use crate::compose::checklist::Checklist;
use crate::compose::load::Load;
use crate::compose::project::Project;
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

pub(in crate::compose) async fn run(
    project: &Project,
    checklist: &mut Checklist,
    built: bool,
) -> Result<()> {
    let text = fs::read_to_string(project.folder.join("README.md"))?;
    let commands = readme::commands(&text, HEADING);
    let (up, others) = commands
        .split_first()
        .context("README.md has no commands")?;
    let up = if built {
        up.replace(" --build", " --no-build")
    } else {
        (*up).to_owned()
    };
    checklist
        .check(&format!("README: {up}"), project.line(&up))
        .await?;
    checklist
        .check("everything is healthy", project.until_healthy())
        .await?;
    for command in others {
        checklist
            .check(&format!("README: {command}"), project.line(command))
            .await?;
    }
    checklist
        .check("demo's events are in their tables", demo_is_stored(project))
        .await?;
    let (name, password) = USER;
    checklist
        .check(
            "the console shows them to its user",
            console::shows_events(project, name, password),
        )
        .await?;
    checklist
        .check(
            "no container may do more than its work",
            confinement::holds(project),
        )
        .await?;
    checklist
        .check(
            "hookctl doctor finds only the development secret",
            doctor(project),
        )
        .await?;
    checklist
        .check(
            "Prometheus reaches every target",
            monitoring::targets_are_up(project),
        )
        .await?;
    checklist
        .check("every rule works", monitoring::rules_work(project))
        .await?;
    let alert = monitoring::alert_arrives(project, "PleoDevelopmentSecret");
    checklist
        .check("an alert comes to Alertmanager", alert)
        .await?;
    checklist
        .check("replicas of .env stay", replicas_stay(project))
        .await?;
    let load = Load::start(&project.published.webhooks, DEVELOPMENT_SECRET)?;
    checklist
        .check("replicas share the work", work_is_shared(project))
        .await?;
    for service in KILLED {
        let what = format!("kill -9 {service} under load");
        checklist.check(&what, kill_one(project, service)).await?;
    }
    checklist
        .check("everything is healthy again", project.until_healthy())
        .await?;
    ensure!(
        load.accepted() > 100,
        "only {} events were accepted",
        load.accepted()
    );
    let settled = checklist.check(
        "everything accepted is stored exactly once",
        load.settle(project),
    );
    let accepted = settled.await?;
    checklist
        .check(
            "hookctl reconcile agrees",
            project.compose(&["run", "--rm", "-T", "hookctl", "reconcile"]),
        )
        .await?;
    checklist
        .check("down and up keep the data", data_stays(project, accepted))
        .await?;
    checklist
        .check("down --volumes", project.down(&["--volumes"]))
        .await?;
    Ok(())
}

/// It sends two events five times each, under new ids: ten events of two resources.
pub(super) async fn demo_is_stored(project: &Project) -> Result<()> {
    let wanted = "10 1 1";
    let query = "select (select count(*) from events where problem is null) || ' ' || \
                 (select count(*) from export_jobs) || ' ' || (select count(*) from vendors)";
    let deadline = Instant::now() + STORED_WITHIN;
    loop {
        let found = project.sql(query).await?;
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
async fn doctor(project: &Project) -> Result<()> {
    let deadline = Instant::now() + FINDS_THEM_WITHIN;
    loop {
        let ended = project
            .try_compose(&["run", "--rm", "-T", "hookctl"])
            .await?;
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

async fn replicas_stay(project: &Project) -> Result<()> {
    project.set(&format!("INGEST_REPLICAS={INGEST}"))?;
    project.set(&format!("VENDOR_WORKER_REPLICAS={VENDOR_WORKERS}"))?;
    for up in [&["up", "-d", "--no-build"][..], &["up", "-d"]] {
        project.compose(up).await?;
        project.until_healthy().await?;
        for (service, wanted) in [("ingest", INGEST), ("vendor-worker", VENDOR_WORKERS)] {
            let found = project.replicas(service).await?.len();
            ensure!(found == wanted, "{found} of {service} instead of {wanted}");
        }
    }
    Ok(())
}

async fn work_is_shared(project: &Project) -> Result<()> {
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
        monitoring::until_series(project, share, replicas).await?;
    }
    Ok(())
}

async fn kill_one(project: &Project, service: &str) -> Result<()> {
    let replicas = project.replicas(service).await?;
    let container = replicas
        .first()
        .with_context(|| format!("there is no {service}"))?;
    kill::kill(project, container).await?;
    if ["rabbitmq", "postgres"].contains(&service) {
        kill::until_healthy(project, container).await?;
    }
    Ok(())
}

async fn data_stays(project: &Project, accepted: usize) -> Result<()> {
    project.down(&[]).await?;
    project.compose(&["up", "-d"]).await?;
    project.until_healthy().await?;
    let stored = project.count("select count(*) from events").await?;
    let wanted = u64::try_from(accepted)? + 10;
    ensure!(stored == wanted, "{stored} events instead of {wanted}");
    project.line("docker compose run --rm -T demo").await?;
    Ok(())
}
