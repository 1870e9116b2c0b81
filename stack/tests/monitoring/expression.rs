//! The part of PromQL that the tests have to understand.

use std::collections::BTreeSet;

/// The expression without comparisons with numbers: an alert's value, whether or not it fires. Prometheus
/// puts spaces around operators.
pub(crate) fn without_limits(expression: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut words = expression.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let is_comparison = ["==", "!=", ">", "<", ">=", "<="].contains(&word);
        let limit = words.peek().map(|next| next.trim_end_matches(')'));
        match limit {
            Some(limit) if is_comparison && limit.parse::<f64>().is_ok() => {
                let next = words.next().unwrap_or_default();
                kept.extend(Some(&next[limit.len()..]).filter(|rest| !rest.is_empty()));
            }
            _ => kept.push(word),
        }
    }
    kept.join(" ")
}

/// The names of the pipeline's own metrics in it; the names of recording rules have colons.
pub(crate) fn metrics(expression: &str) -> BTreeSet<&str> {
    expression
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| word.starts_with("pleo_") || word.starts_with("pleo:"))
        .collect()
}

#[test]
fn an_alerts_figures_are_what_is_left_without_its_limits() {
    assert_eq!(
        without_limits(r#"(a:b > 20) and max by (c) (d{e="f"}) == 0.1 or g / h <= i"#),
        r#"(a:b ) and max by (c) (d{e="f"}) or g / h <= i"#
    );
}

#[test]
fn metrics_are_found_wherever_they_stand() {
    assert_eq!(
        metrics(r#"sum(rate(pleo_a_total{x="pleo"}[5m])) / pleo:b:rate5m - up"#),
        BTreeSet::from(["pleo_a_total", "pleo:b:rate5m"])
    );
}
