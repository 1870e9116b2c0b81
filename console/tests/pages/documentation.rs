//! The documentation and the console say the same.

use std::collections::BTreeSet;

use clap::CommandFactory;
use sqlx::PgPool;
use web_console::config::Config;

use crate::app::App;

const METRICS: &str = include_str!("../../../docs/metrics.md");
const SETTINGS: &str = include_str!("../../../docs/settings.md");

#[sqlx::test(migrator = "migrations::MIGRATOR")]
async fn every_metric_is_documented(pool: PgPool) {
    let app = App::start(&pool).await;
    app.page("/events").await;
    app.get("/dead-letters/dismiss").await;
    app.page_with("/replays/1", 404).await;
    let request = app.client.get(format!("{}/metrics", app.private_url));
    let exposed = request.send().await.expect("an answer").text().await;
    let exposed = exposed.expect("text");
    let ours: BTreeSet<&str> = exposed
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("pleo_console_"))
        .collect();
    let section = METRICS.split_once("\n## console").expect("a section").1;
    let section = section.split("\n## ").next().expect("its text");
    let documented: BTreeSet<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(ours, documented);
    let pages: BTreeSet<&str> = exposed
        .lines()
        .filter_map(|line| {
            line.strip_prefix("pleo_console_request_seconds_count{page=\"")?
                .split_once('"')
        })
        .map(|(page, _)| page)
        .collect();
    for page in pages {
        assert!(section.contains(&format!("`{page}`")), "{page}");
    }
    for page in ["events", "act", "replay-progress"] {
        let counted = format!("pleo_console_request_seconds_count{{page=\"{page}\"}} 1");
        assert!(exposed.contains(&counted), "{counted} is not in {exposed}");
    }
    app.stop().await;
}

#[test]
fn every_setting_is_documented_with_its_default() {
    let command = Config::command();
    let all_services = SETTINGS.split("| **ingest** |").next().expect("a table");
    let console = SETTINGS.split_once("| **console** |").expect("a heading").1;
    let console = console.split("| **").next().expect("its rows");
    for argument in command.get_arguments() {
        let Some(name) = argument.get_env().and_then(|name| name.to_str()) else {
            continue;
        };
        let name = format!("`{name}`");
        let mut rows = all_services.lines().chain(console.lines());
        let row = rows.find(|row| {
            row.split('|')
                .nth(1)
                .is_some_and(|names| names.contains(&name))
        });
        let row = row.unwrap_or_else(|| panic!("{name} is not documented"));
        for default in argument.get_default_values() {
            let default = format!("| `{}` |", default.to_string_lossy());
            assert!(row.contains(&default), "{default}: {row}");
        }
    }
}
