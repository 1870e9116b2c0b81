//! `docs/metrics.md` and `/metrics` agree.

use std::collections::{BTreeMap, BTreeSet};

use shared::{Family, Program};
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use crate::pipeline::{Pipeline, SOON};

const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

/// A metric, as documented or as exposed.
#[derive(Debug, PartialEq, Eq)]
struct Metric {
    kind: String,
    help: String,
    /// Label names with their values; no values if they depend on the installation.
    labels: BTreeMap<String, BTreeSet<String>>,
}

type Metrics = BTreeMap<String, Metric>;

/// Labels whose values the document can describe only in words.
const OPEN: [&str; 3] = ["secret", "entity", "version"];

/// The programs that a section of the document covers.
fn programs(section: &str) -> Vec<Program> {
    Program::ALL
        .into_iter()
        .filter(|program| match section {
            "Every program" => true,
            "ingest" => *program == Program::Ingest,
            "Every worker" => *program != Program::Ingest,
            "other-worker" => *program == Program::Worker(Family::Other),
            // The console's own tests compare them.
            "console" => false,
            _ => panic!("the section {section} is of no program"),
        })
        .collect()
}

/// The rows of the document's tables for `program`: name, type and unit, labels, meaning, what to do.
fn documented(program: Program) -> Metrics {
    let mut metrics = Metrics::new();
    for section in DOCUMENT.split("\n## ").skip(1) {
        let (title, text) = section.split_once('\n').expect("a title");
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        let mut rows = rows.peekable();
        if rows.peek().is_none() || !programs(title).contains(&program) {
            continue;
        }
        for row in rows {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [name, kind, labels, help, advice] = cells[..] else {
                panic!("not a row of five cells: {row}");
            };
            assert!(!advice.is_empty(), "it says what to do: {row}");
            let metric = Metric {
                kind: kind.split(',').next().unwrap_or_default().to_owned(),
                help: help.to_owned(),
                labels: labels_of_cell(labels, program),
            };
            let name = name.trim_matches('`').to_owned();
            assert!(metrics.insert(name, metric).is_none(), "twice: {row}");
        }
    }
    metrics
}

/// Reads cells such as `outcome`: `stored`, `duplicate`; `family`: the worker's
fn labels_of_cell(cell: &str, program: Program) -> BTreeMap<String, BTreeSet<String>> {
    let labels = cell.split(';').filter_map(|label| {
        let (name, values) = label.split_once(':')?;
        let values = match values.trim() {
            "the program" => vec![program.name()],
            "the worker's" => match program {
                Program::Worker(family) => vec![family.name()],
                Program::Ingest | Program::Console | Program::ConsoleOperator => vec![],
            },
            listed => listed.split('`').skip(1).step_by(2).collect(),
        };
        let values = values.into_iter().map(str::to_owned).collect();
        Some((name.trim().trim_matches('`').to_owned(), values))
    });
    labels.collect()
}

/// Reads Prometheus' text format.
fn exposed(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    let mut help = ("", "");
    let mut current = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').expect("a name and a text");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert_eq!(name, help.0, "every metric has a help text");
            current = name;
            let metric = Metric {
                kind: kind.to_owned(),
                help: help.1.to_owned(),
                labels: BTreeMap::new(),
            };
            metrics.insert(name.to_owned(), metric);
        } else if let Some((_, rest)) = line.split_once('{') {
            let labels = rest.split_once('}').expect("a closing bracket").0;
            let metric = metrics.get_mut(current).expect("after its type");
            for label in labels.split(',') {
                let (name, value) = label.split_once('=').expect("a label");
                // The buckets of a histogram.
                if name == "le" {
                    continue;
                }
                let values = metric.labels.entry(name.to_owned()).or_default();
                if !OPEN.contains(&name) {
                    values.insert(value.trim_matches('"').to_owned());
                }
            }
        }
    }
    metrics
}

#[sqlx::test(migrations = false)]
async fn every_metric_is_documented_and_every_documented_metric_is_there(pool: PgPool) {
    let pipeline = Pipeline::new(&pool).await;
    for program in Program::ALL {
        let documented = documented(program);
        let deadline = Instant::now() + SOON;
        // Some exist only after the first connection to a store.
        loop {
            let exposed = exposed(&pipeline.metrics(program).await);
            if exposed == documented {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{program}: {}",
                difference(&exposed, &documented)
            );
            sleep(std::time::Duration::from_millis(200)).await;
        }
    }
    pipeline.clean_up().await;
}

fn difference(exposed: &Metrics, documented: &Metrics) -> String {
    let names: BTreeSet<&String> = exposed.keys().chain(documented.keys()).collect();
    names
        .into_iter()
        .filter(|name| exposed.get(*name) != documented.get(*name))
        .map(|name| {
            let (exposed, documented) = (exposed.get(name), documented.get(name));
            format!("\n{name}\n  exposed    {exposed:?}\n  documented {documented:?}")
        })
        .collect()
}
