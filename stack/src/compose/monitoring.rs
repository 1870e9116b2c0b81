//! Queries to Prometheus and Alertmanager, through their published ports.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::project::Project;

/// Prometheus scrapes and evaluates its rules four times a minute.
const SOON: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const JOBS: [&str; 6] = [
    "alertmanager",
    "disks",
    "pleo",
    "postgres",
    "prometheus",
    "rabbitmq",
];

/// Every target is up, and each job has one.
///
/// # Errors
/// Names targets that are down, and jobs without a target.
pub(super) async fn targets_are_up(project: &Project) -> Result<usize> {
    eventually(async || {
        let found = prometheus(project, "targets", &[]).await?;
        let targets = found["activeTargets"].as_array().context("no targets")?;
        let down: Vec<String> = targets
            .iter()
            .filter(|target| target["health"] != "up")
            .map(|target| format!("{}: {}", target["scrapeUrl"], target["lastError"]))
            .collect();
        ensure!(down.is_empty(), "targets are down: {}", down.join("; "));
        let jobs: BTreeSet<&str> = targets
            .iter()
            .filter_map(|target| target["labels"]["job"].as_str())
            .collect();
        ensure!(jobs == BTreeSet::from(JOBS), "there are only {jobs:?}");
        Ok(targets.len())
    })
    .await
}

/// Every rule can be evaluated, and each metric of the stores has data.
///
/// # Errors
/// Names the rules and metrics that fail.
pub(super) async fn rules_work(project: &Project) -> Result<usize> {
    eventually(async || {
        let found = prometheus(project, "rules", &[]).await?;
        let groups = found["groups"].as_array().context("no groups")?;
        let rules: Vec<&Value> = groups
            .iter()
            .filter_map(|group| group["rules"].as_array())
            .flatten()
            .collect();
        ensure!(rules.len() > 50, "only {} rules", rules.len());
        for rule in &rules {
            ensure!(
                rule["health"] == "ok",
                "{}: {}",
                rule["name"],
                rule["lastError"]
            );
        }
        for group in groups
            .iter()
            .filter(|group| group["name"] == "pleo-stores-figures")
        {
            for rule in group["rules"].as_array().context("no rules")? {
                let name = rule["name"].as_str().context("a rule without a name")?;
                ensure!(series(project, name).await? > 0, "there is no {name}");
            }
        }
        Ok(rules.len())
    })
    .await
}

/// An alert has reached Alertmanager, with its runbook.
///
/// # Errors
/// When it does not arrive.
pub(super) async fn alert_arrives(project: &Project, name: &str) -> Result<()> {
    eventually(async || {
        let url = format!("http://{}/api/v2/alerts", project.published.alertmanager);
        let alerts = get(&url).await?;
        let alerts = alerts.as_array().context("no alerts")?;
        let alert = alerts
            .iter()
            .find(|alert| alert["labels"]["alertname"] == name);
        let alert =
            alert.with_context(|| format!("{name} is not among {} alerts", alerts.len()))?;
        let runbook = format!("docs/runbooks.md#{}", name.to_lowercase());
        ensure!(alert["annotations"]["runbook_url"] == runbook, "{alert}");
        Ok(())
    })
    .await
}

/// Waits until an expression returns at least this many series.
///
/// # Errors
/// When it does not.
pub(super) async fn until_series(project: &Project, expression: &str, wanted: usize) -> Result<()> {
    eventually(async || {
        let found = series(project, expression).await?;
        ensure!(
            found >= wanted,
            "{found} instead of {wanted} of {expression}"
        );
        Ok(())
    })
    .await
}

async fn series(project: &Project, expression: &str) -> Result<usize> {
    let found = prometheus(project, "query", &[("query", expression)]).await?;
    Ok(found["result"].as_array().context("no result")?.len())
}

async fn prometheus(project: &Project, path: &str, query: &[(&str, &str)]) -> Result<Value> {
    let url = format!("http://{}/api/v1/{path}", project.published.prometheus);
    let url = reqwest::Url::parse_with_params(&url, query)?;
    Ok(get(url.as_str()).await?["data"].take())
}

async fn get(url: &str) -> Result<Value> {
    let client = reqwest::Client::builder().timeout(ANSWER_WITHIN).build()?;
    let text = client.get(url).send().await?.text().await?;
    serde_json::from_str(&text).with_context(|| format!("{url} says {text}"))
}

async fn eventually<T>(look: impl AsyncFn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => {
                bail!("not within {SOON:?}: {error:#}");
            }
            Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}
