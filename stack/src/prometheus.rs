//! Debian's Prometheus as a private process, with the repository's own rules, and queries to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::packages::Monitoring;
use crate::ports;
use crate::process::{Process, Spec};
use crate::service::Service;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A running Prometheus. Dropping it kills it; its data stays in its folder.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    address: SocketAddr,
    client: reqwest::Client,
}

/// A rule as Prometheus has parsed it.
#[derive(Debug, Clone, Deserialize)]
pub struct Rule {
    /// Name of the alert, or of the recorded series.
    pub name: String,
    /// Its expression, as Prometheus formats it.
    pub query: String,
    /// `alerting` or `recording`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The annotations of an alert.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// One series of a query's current result.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The labels of the series.
    pub labels: BTreeMap<String, String>,
    /// NaN if nothing could be computed.
    pub value: f64,
}

impl Prometheus {
    /// Starts one that scrapes `services` and evaluates the rules every second. The job and the labels are
    /// those of `monitoring/prometheus.yml`.
    ///
    /// # Errors
    /// When its configuration cannot be written or it cannot be started.
    pub fn start(
        programs: &Monitoring,
        folder: &Path,
        rules: &[PathBuf],
        services: &[Service],
    ) -> Result<Self> {
        let targets: Vec<_> = services
            .iter()
            .map(|service| {
                json!({
                    "targets": [service.private_address().to_string()],
                    "labels": {"service": service.program().name()},
                })
            })
            .collect();
        // JSON is YAML as well.
        let configuration = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": rules,
            "scrape_configs": [{"job_name": "pleo", "static_configs": targets}],
        });
        let file = folder.join("prometheus.yml");
        fs::write(&file, configuration.to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
        let address = ports::free()?;
        let process = Process::spawn(
            Spec::new("prometheus", &programs.prometheus)
                .args([
                    format!("--config.file={}", file.display()),
                    format!("--storage.tsdb.path={}", folder.join("data").display()),
                    format!("--web.listen-address={address}"),
                ])
                .log(folder.join("prometheus.log")),
        )?;
        let client = reqwest::Client::builder().timeout(ANSWER_WITHIN).build()?;
        Ok(Self {
            process,
            address,
            client,
        })
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// When it ends, or does not answer within `deadline`.
    pub async fn ready(&self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        while self.rules().await.is_err() {
            ensure!(
                self.process.is_running() && Instant::now() < end,
                "{}",
                self.process.how_it_ended()
            );
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// All rules, of all groups.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn rules(&self) -> Result<Vec<Rule>> {
        #[derive(Deserialize)]
        struct Groups {
            groups: Vec<Group>,
        }
        #[derive(Deserialize)]
        struct Group {
            rules: Vec<Rule>,
        }
        let found: Groups = self.get("rules", &[]).await?;
        Ok(found.groups.into_iter().flat_map(|g| g.rules).collect())
    }

    /// The names of all series, including recorded ones.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn names(&self) -> Result<BTreeSet<String>> {
        self.get("label/__name__/values", &[]).await
    }

    /// The current result of an expression that returns a vector.
    ///
    /// # Errors
    /// When it does not answer, or the expression is wrong.
    pub async fn query(&self, expression: &str) -> Result<Vec<Sample>> {
        #[derive(Deserialize)]
        struct Vector {
            result: Vec<Series>,
        }
        #[derive(Deserialize)]
        struct Series {
            metric: BTreeMap<String, String>,
            value: (f64, String),
        }
        let found: Vector = self.get("query", &[("query", expression)]).await?;
        let samples = found.result.into_iter().map(|series| {
            Ok(Sample {
                labels: series.metric,
                value: series.value.1.parse()?,
            })
        });
        samples.collect()
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T> {
        #[derive(Deserialize)]
        struct Answer<T> {
            data: T,
        }
        let url = format!("http://{}/api/v1/{path}", self.address);
        let url = reqwest::Url::parse_with_params(&url, query)?;
        let text = self.client.get(url).send().await?.text().await?;
        let answer: Answer<T> =
            serde_json::from_str(&text).with_context(|| format!("Prometheus says {text}"))?;
        Ok(answer.data)
    }
}
