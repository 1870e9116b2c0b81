//! `docs/settings.md` and the services' own settings agree.

use std::collections::BTreeMap;

use clap::{Command, CommandFactory};

const DOCUMENT: &str = include_str!("../../../docs/settings.md");

/// Environment variables with their defaults, `None` where there is none.
type Settings = BTreeMap<String, Option<String>>;

/// The settings in the tables' rows below these headings.
fn documented(headings: [&str; 2]) -> Settings {
    let mut settings = Settings::new();
    let mut is_meant = false;
    for row in DOCUMENT.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let (names, default) = (cells[0], cells[1]);
        if let Some(heading) = names.strip_prefix("**") {
            is_meant = headings.contains(&heading.trim_end_matches('*'));
        }
        if !is_meant || !names.starts_with('`') {
            continue;
        }
        let default = default
            .strip_prefix('`')
            .map(|default| default.trim_end_matches('`').to_owned());
        for name in names.split(", ") {
            settings.insert(name.trim_matches('`').to_owned(), default.clone());
        }
    }
    settings
}

fn of_program(command: &Command) -> Settings {
    command
        .get_arguments()
        .filter_map(|argument| {
            let name = argument.get_env()?.to_str()?.to_owned();
            let default = argument.get_default_values().first();
            Some((name, default.map(|d| d.to_string_lossy().into_owned())))
        })
        .collect()
}

#[test]
fn every_setting_is_documented_with_its_default() {
    let ingest = of_program(&ingest::config::Config::command());
    assert_eq!(documented(["All services", "ingest"]), ingest);
    let worker = of_program(&worker::config::Config::command());
    assert_eq!(documented(["All services", "Workers"]), worker);
}
