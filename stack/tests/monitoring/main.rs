//! `monitoring/`: rules, alerts and the dashboard, with a real Prometheus.

mod files;
mod rules;
