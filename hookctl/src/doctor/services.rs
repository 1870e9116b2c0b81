//! The services given with `--url`: their readiness and their clocks.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use hyper::{Response, StatusCode, Uri, header, http::uri::PathAndQuery};
use serde_json::Value;

use super::{clocks::Reading, finding::Finding};
use crate::http::{self, Http};

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Counts events that arrived through the queue of another family.
const MISROUTED: &str = "pleo_worker_misrouted_total";

pub(super) async fn check(urls: &[Uri]) -> Vec<Finding> {
    if urls.is_empty() {
        return vec![Finding::skipped("services", "no --url of one")];
    }
    let http = Http::new();
    let mut findings = Vec::new();
    for url in urls {
        let place = url.authority().map_or("", |authority| authority.as_str());
        let before = Utc::now();
        let answer = http.get(at(url, "/readyz"), ANSWER_WITHIN).await;
        let after = Utc::now();
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                findings.push(Finding::problem(
                    format!("service at {place}"),
                    http::reason(&error),
                    "start it; its log says why it ended",
                ));
                continue;
            }
        };
        findings.push(readiness(&answer, place));
        if let Some(theirs) = date(&answer) {
            let reading = Reading {
                before,
                theirs,
                after,
                resolution: TimeDelta::seconds(1),
            };
            findings.push(reading.judge(place));
        }
        let metrics = http.get(at(url, "/metrics"), ANSWER_WITHIN).await;
        if let Ok(metrics) = metrics {
            findings.extend(misrouted(&String::from_utf8_lossy(metrics.body()), place));
        }
    }
    findings
}

fn at(url: &Uri, path: &'static str) -> Uri {
    let mut parts = url.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static(path));
    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
}

fn readiness(answer: &Response<Bytes>, place: &str) -> Finding {
    let check = format!("service at {place}");
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let Some(checks) = body["checks"].as_array() else {
        let status = answer.status();
        return Finding::skipped(check, format!("{status} for /readyz: no private port"));
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let failed: Vec<_> = checks
        .iter()
        .filter(|check| check["ok"] == false)
        .map(|check| format!("{}: {}", text(&check["name"]), text(&check["reason"])))
        .collect();
    let failed = failed.join(", ");
    match answer.status() {
        StatusCode::OK if failed.is_empty() => Finding::ok(check, "ready"),
        StatusCode::OK => Finding::warning(
            check,
            format!("ready, {} ({failed})", text(&body["note"])),
            "see to that store: without the other one, senders would be refused",
        ),
        _ => Finding::problem(
            check,
            format!("not ready ({failed})"),
            "see what it lacks; it becomes ready by itself once that is there",
        ),
    }
}

fn date(answer: &Response<Bytes>) -> Option<DateTime<Utc>> {
    let date = answer.headers().get(header::DATE)?.to_str().ok()?;
    Some(DateTime::parse_from_rfc2822(date).ok()?.to_utc())
}

fn misrouted(metrics: &str, place: &str) -> Option<Finding> {
    let counts = metrics
        .lines()
        .filter(|line| line.starts_with(MISROUTED))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    let count: f64 = counts.sum();
    (count > 0.0).then(|| {
        Finding::warning(
            format!("routes of {place}"),
            format!(
                "{count} event(s) came by the queue of another family since its start, and are dead letters"
            ),
            "see which binding is missing above: `hookctl setup` adds it; then look at those of \
             `hookctl dead-letters list --problem misrouted`, and replay what is true with `hookctl \
             dead-letters replay --include-withheld --id …`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misrouted_events_are_counted_over_all_series() {
        let metrics = "# HELP pleo_worker_misrouted_total x\n\
                       pleo_worker_misrouted_total{family=\"other\"} 2\nother 5\n";
        let finding = misrouted(metrics, "x").expect("a finding");
        assert!(format!("{finding:?}").contains("2 event(s)"));
        assert!(misrouted(&metrics.replace(" 2", " 0"), "x").is_none());
    }
}
