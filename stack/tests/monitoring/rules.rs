//! Rules and configuration without services.

use std::collections::BTreeSet;
use std::process::Command;

use stack::packages::Monitoring;

use crate::files::{monitoring, read};

const TESTS: [&str; 3] = ["alerts.test.yml", "alerts.days.test.yml", "stores.test.yml"];

/// The files with alerts.
fn alerts() -> String {
    ["alerts.yml", "stores.yml"]
        .map(|name| read(monitoring().join(name)))
        .concat()
}

fn promtool(arguments: &[&str]) {
    let programs = Monitoring::find().expect("Prometheus is installed");
    let output = Command::new(programs.promtool)
        .current_dir(monitoring())
        .args(arguments)
        .output()
        .expect("promtool runs");
    let text = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&text)
    );
}

/// The rest of the lines of a file after `key`.
fn values<'t>(text: &'t str, key: &str) -> Vec<&'t str> {
    text.lines()
        .filter_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix(key))
        .map(str::trim)
        .collect()
}

#[test]
fn prometheus_accepts_its_configuration_and_the_rules() {
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&[
        "check",
        "rules",
        "recording.yml",
        "alerts.yml",
        "stores.yml",
    ]);
}

#[test]
fn alerts_fire_for_what_they_are_about_and_for_nothing_similar() {
    promtool(&[&["test", "rules"], &TESTS[..]].concat());
}

#[test]
fn every_alert_is_tested_both_ways() {
    let alerts = alerts();
    let tests = TESTS.map(|name| read(monitoring().join(name))).concat();
    let expectations: Vec<(&str, bool)> = tests
        .split("alertname:")
        .skip(1)
        .map(|case| {
            let (name, rest) = case.split_once('\n').expect("more lines");
            let (_, expected) = rest.split_once("exp_alerts:").expect("an expectation");
            (
                name.trim(),
                !expected.trim_start_matches(' ').starts_with("[]"),
            )
        })
        .collect();
    let alerts = values(&alerts, "alert:");
    assert!(alerts.len() > 15, "{alerts:?}");
    for alert in alerts {
        for fires in [true, false] {
            assert!(
                expectations.contains(&(alert, fires)),
                "no test expects {alert} {}",
                if fires { "to fire" } else { "not to fire" }
            );
        }
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_has_its_runbook() {
    let text = alerts();
    let alerts = values(&text, "alert:");
    let severities = values(&text, "labels:");
    assert_eq!(severities.len(), alerts.len());
    for severity in severities {
        let known = ["critical", "warning", "info"].map(|s| format!("{{ severity: {s} }}"));
        assert!(known.iter().any(|k| k == severity), "{severity}");
    }
    let expected: Vec<_> = alerts
        .iter()
        .map(|alert| {
            format!(
                "'{{{{ $externalLabels.runbooks }}}}#{}'",
                alert.to_lowercase()
            )
        })
        .collect();
    assert_eq!(values(&text, "runbook_url:"), expected);

    let runbooks = read("docs/runbooks.md");
    let sections: BTreeSet<_> = values(&runbooks, "## ").into_iter().collect();
    assert_eq!(sections, alerts.into_iter().collect());
    for section in runbooks.split("\n## ").skip(1) {
        for part in ["Look:", "Fix:"] {
            assert!(section.contains(part), "no {part} in {section}");
        }
    }
}

#[test]
fn every_panel_asks_the_chosen_prometheus_and_has_a_whole_legend() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("monitoring/grafana/dashboards/pipeline.json")).expect("JSON");
    let chosen = &dashboard["templating"]["list"][0];
    assert_eq!(
        (&chosen["name"], &chosen["type"]),
        (&"datasource".into(), &"datasource".into())
    );
    let panels = dashboard["panels"].as_array().expect("panels");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = &panel["title"];
        let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
        for asks in [panel].into_iter().chain(targets) {
            assert_eq!(asks["datasource"]["uid"], "${datasource}", "{title}");
        }
        // Grafana counts the entries of `calcs`.
        let legend = &panel["options"]["legend"];
        assert!(
            legend.is_null() || legend["calcs"].is_array(),
            "{title}: {legend}"
        );
    }
}
