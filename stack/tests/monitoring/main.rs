//! `monitoring/`: rules, alerts and the dashboard, with a real Prometheus.

mod expression;
mod files;
mod live;
mod rules;
