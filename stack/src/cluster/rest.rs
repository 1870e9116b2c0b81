//! The HTTP APIs of RabbitMQ and Patroni.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A machine that is off the network never answers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

pub(super) fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(1))
        .timeout(ANSWERS_WITHIN)
        // A pooled connection may lead to the machine before its restart.
        .pool_max_idle_per_host(0)
        .build()
        .context("cannot make an HTTP client")
}

pub(super) async fn get(client: &reqwest::Client, url: &str) -> Result<Value> {
    let answer = client.get(url).send().await?.error_for_status()?;
    answer
        .json()
        .await
        .with_context(|| format!("{url} gives no JSON"))
}

/// Some of these requests take long, so the caller gives the limit.
pub(super) async fn post(
    client: &reqwest::Client,
    url: &str,
    body: &Value,
    within: Duration,
) -> Result<()> {
    let answer = client.post(url).json(body).timeout(within).send().await?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    ensure!(status.is_success(), "{url} answers {status}: {text}");
    Ok(())
}
