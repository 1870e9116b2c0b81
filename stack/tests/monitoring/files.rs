//! The monitoring files of the repository.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The repository's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package is in a workspace")
}

pub(crate) fn monitoring() -> PathBuf {
    root().join("monitoring")
}

/// The rule files that Prometheus reads.
pub(crate) fn rules() -> Vec<PathBuf> {
    ["recording.yml", "alerts.yml"]
        .map(|name| monitoring().join(name))
        .into()
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A panel of the dashboard with a query.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) expressions: Vec<String>,
}

/// The dashboard's panels, with Grafana's own variable filled in.
pub(crate) fn panels() -> Vec<Panel> {
    let dashboard: Value =
        serde_json::from_str(&read("monitoring/grafana/dashboards/pipeline.json")).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let panels = dashboard["panels"].as_array().expect("panels");
    panels
        .iter()
        .filter(|panel| panel["type"] != "row" && panel["type"] != "alertlist")
        .map(|panel| Panel {
            title: text(&panel["title"]),
            expressions: panel["targets"]
                .as_array()
                .expect("targets")
                .iter()
                .map(|target| text(&target["expr"]).replace("$__rate_interval", "1m"))
                .collect(),
        })
        .collect()
}
