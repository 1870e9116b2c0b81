//! Every expression of rules and panels returns data while real services process events.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use hookctl::delivery;
use hookctl::sample::{EXPORT_JOB, VENDOR, new_webhook_id};
use ingest::secrets::DEVELOPMENT_SECRET;
use shared::Program;
use stack::accounts::Accounts;
use stack::data_folder::DataFolder;
use stack::packages::{Monitoring, Packages};
use stack::postgres::Durability;
use stack::programs::Programs;
use stack::prometheus::{Prometheus, Sample};
use stack::service::Launcher;
use stack::stores::{Addresses, Stores};
use tokio::time::{Instant, sleep};

use crate::expression::{metrics, without_limits};
use crate::files;

const SOON: Duration = Duration::from_secs(60);

/// Rates need some time, and the ledger is read four times a minute.
const DATA_WITHIN: Duration = Duration::from_secs(120);

/// Repeats for ever: a valid event of each family, one duplicate, and one with a wrong signature.
async fn traffic(url: String) {
    loop {
        let twice = new_webhook_id();
        let (once, again) = (new_webhook_id(), new_webhook_id());
        for (secret, id, body) in [
            (DEVELOPMENT_SECRET, &once, VENDOR.body),
            (DEVELOPMENT_SECRET, &again, EXPORT_JOB.body),
            (DEVELOPMENT_SECRET, &twice, "{}"),
            (DEVELOPMENT_SECRET, &twice, "{}"),
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", &once, "{}"),
        ] {
            // Ingest's own tests check its answers.
            delivery::post(&url, secret, id, body).await.ok();
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Where an expression comes from, and its result without its limits.
struct Asked {
    place: String,
    expression: String,
}

/// Every expression of every rule and panel.
async fn expressions(prometheus: &Prometheus) -> Vec<Asked> {
    let rules = prometheus.rules().await.expect("the rules");
    assert!(rules.len() > 40, "{} rules", rules.len());
    let of_rules = rules.into_iter().map(|rule| Asked {
        place: rule.name,
        expression: without_limits(&rule.query),
    });
    let of_panels = files::panels().into_iter().flat_map(|panel| {
        let place = format!("panel {}", panel.title);
        panel.expressions.into_iter().map(move |expression| Asked {
            place: place.clone(),
            expression,
        })
    });
    of_rules.chain(of_panels).collect()
}

async fn answer(prometheus: &Prometheus, expression: &str) -> Vec<Sample> {
    let samples = prometheus.query(expression).await;
    samples.unwrap_or_else(|error| panic!("{expression}: {error:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_expression_of_every_rule_and_panel_returns_data() {
    let base = DataFolder::temporary().expect("a folder");
    let packages = Packages::find().expect("RabbitMQ and Postgres are installed");
    let monitoring = Monitoring::find().expect("Prometheus is installed");
    let addresses = Addresses::free().expect("free ports");
    let stores = Stores::start(&packages, &base, addresses, Durability::ProcessOnly)
        .await
        .expect("the stores come up");
    let programs = Programs::find().expect("the services are built");
    let folder = base.folder("logs").expect("a folder");
    let accounts = Accounts::random();
    accounts
        .set_up(&programs, &stores, &folder)
        .await
        .expect("the stores are set up");
    let launcher = Launcher::new(programs, &stores, &folder).under(&accounts);
    let services = Program::ALL.map(|program| {
        let started = launcher.start(program, program.name());
        started.expect("the service starts")
    });
    for service in &services {
        service.ready(SOON).await.expect("ready");
    }
    let sender = tokio::spawn(traffic(services[0].webhook_url()));
    let prometheus = Prometheus::start(&monitoring, &folder, &files::rules(), &services)
        .expect("Prometheus starts");
    prometheus.ready(SOON).await.expect("Prometheus answers");

    let asked = expressions(&prometheus).await;
    let deadline = Instant::now() + DATA_WITHIN;
    loop {
        let mut empty = Vec::new();
        for Asked { place, expression } in &asked {
            let samples = answer(&prometheus, expression).await;
            if samples.is_empty() || samples.iter().any(|sample| sample.value.is_nan()) {
                empty.push(format!("{place}: {expression}: {samples:?}"));
            }
        }
        if empty.is_empty() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "no data for {}",
            empty.join("\n")
        );
        sleep(Duration::from_millis(500)).await;
    }

    let names = prometheus.names().await.expect("the names");
    let named: BTreeSet<&str> = asked.iter().flat_map(|a| metrics(&a.expression)).collect();
    let unknown: Vec<_> = named
        .iter()
        .filter(|name| !names.contains(**name))
        .collect();
    assert!(unknown.is_empty(), "there are no {unknown:?}");

    report(&prometheus).await;
    sender.abort();
}

/// The table of `docs/dashboard.md`, written where cargo keeps files of tests.
async fn report(prometheus: &Prometheus) {
    let mut table = "| Panel | Query | Result |\n|---|---|---|\n".to_owned();
    for panel in files::panels() {
        for (n, expression) in panel.expressions.iter().enumerate() {
            let title = if n == 0 { panel.title.as_str() } else { "" };
            let samples = answer(prometheus, expression).await;
            let mut results: Vec<_> = samples.iter().map(shown).collect();
            results.sort();
            let query = expression.replace('|', "\\|");
            writeln!(table, "| {title} | `{query}` | {} |", results.join("<br>"))
                .expect("a string takes any text");
        }
    }
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard.md");
    std::fs::write(file, table).expect("the table is written");
}

fn shown(sample: &Sample) -> String {
    let labels: Vec<_> = sample
        .labels
        .iter()
        // Ports differ in each run.
        .filter(|(name, _)| !["__name__", "job", "instance"].contains(&name.as_str()))
        .map(|(_, value)| value.as_str())
        .collect();
    let value = format!("{:.4}", sample.value);
    let value = value.trim_end_matches('0').trim_end_matches('.');
    format!("{} {value}", labels.join(" ")).trim().to_owned()
}
