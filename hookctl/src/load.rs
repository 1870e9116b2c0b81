//! `hookctl load`: sends signed events at a steady rate, and reports how they were answered.
//!
//! [`Plan`], [`Plan::run`] and [`Report`] are for benchmarks as well.

mod generator;
mod plan;
mod report;

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::{bail, ensure};
use hyper::Uri;
use indicatif::{ProgressBar, ProgressStyle};
use shared::shutdown;
use tokio::time::{MissedTickBehavior, interval};

pub use self::{
    generator::Progress,
    plan::Plan,
    report::{Latency, Report},
};
use crate::{
    duration,
    http::UrlParser,
    output::OutputArgs,
    sample::Sample,
    secrets::SigningArgs,
    verdict::{Verdict, WrongSettings},
};

/// Send signed, unique events at a steady rate and report how they were answered.
///
/// The rate does not drop when answers are slow: a request whose time has come waits for a free
/// connection, and its latency counts from that time. Ctrl-C ends it early, with the report.
///
/// Exit codes: 0 all are safe, 2 wrong settings, 3 some were refused or not answered.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where to
    #[arg(long, default_value = "http://127.0.0.1:8080/webhooks/pleo", value_parser = UrlParser)]
    pub url: Uri,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub signing: SigningArgs,

    /// Requests a second
    #[arg(long, default_value_t = 100.0)]
    pub rate: f64,

    /// For how long
    #[arg(long, default_value = "10s", value_parser = duration::parse)]
    pub duration: Duration,

    /// How many requests, instead of for how long
    #[arg(
        long,
        conflicts_with = "duration",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000_000)
    )]
    pub count: Option<u64>,

    /// Connections at most, and so requests under way at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections: u16,

    /// The share of requests, from 0 to 1, that repeat an earlier event under its id
    #[arg(long, default_value_t = 0.0)]
    pub duplicates: f64,

    /// The types of the events, separated by commas, in turn [default: all that there are samples of]
    #[arg(long, value_delimiter = ',', value_parser = Sample::parse)]
    pub types: Vec<Sample>,

    /// Also to a service on another machine, whose database the events will stay in
    #[arg(long)]
    pub yes: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub output: OutputArgs,
}

/// Runs the subcommand.
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let plan = args.plan().map_err(WrongSettings::new)?;
    let requests = plan.requests;
    let stop = shutdown::on_signal()?;
    let progress = Arc::<Progress>::default();
    let mut running = tokio::spawn(plan.run(Arc::clone(&progress), stop));

    let bar = ProgressBar::new(requests).with_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} requests, {per_sec}, {eta} left{msg}",
    )?);
    let mut ticks = interval(Duration::from_millis(200));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let report = loop {
        tokio::select! {
            report = &mut running => break report?,
            _ = ticks.tick() => {
                bar.set_position(progress.answered());
                if progress.refused() > 0 {
                    bar.set_message(format!(", {} refused", progress.refused()));
                }
            }
        }
    };
    bar.finish_and_clear();
    args.output.print(&report, Report::to_string)?;
    Ok(Verdict::of(report.all_safe()))
}

impl Args {
    fn plan(&self) -> anyhow::Result<Plan> {
        ensure!(
            self.rate > 0.0 && self.rate <= 1_000_000.0,
            "--rate must be more than 0 and at most 1000000"
        );
        ensure!(
            (0.0..=1.0).contains(&self.duplicates),
            "--duplicates must be from 0 to 1"
        );
        if !is_loopback(&self.url) && !self.yes {
            bail!(
                "{} is not on this machine, and the events will stay in its database: repeat with \
                 --yes if that is meant",
                self.url.host().unwrap_or_default()
            );
        }
        let plan = Plan {
            url: self.url.clone(),
            key: self.signing.key()?,
            rate: self.rate,
            requests: self
                .count
                .unwrap_or_else(|| plan::requests(self.rate, self.duration)),
            connections: self.connections.into(),
            duplicates: self.duplicates,
            samples: if self.types.is_empty() {
                Sample::ALL.into()
            } else {
                self.types.clone()
            },
            name: rand::random(),
        };
        // Fails here, and not with every request, if the events cannot be signed.
        plan.delivery(0)?;
        Ok(plan)
    }
}

fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("http://127.0.0.1:8080/", true)]
    #[case("http://127.9.9.9/", true)]
    #[case("http://[::1]:8080/", true)]
    #[case("https://localhost/", true)]
    #[case("http://10.0.0.1/", false)]
    #[case("http://localhost.example.com/", false)]
    #[case("http://127.0.0.1.example.com/", false)]
    fn only_this_machine_is_loaded_without_asking(#[case] url: &'static str, #[case] here: bool) {
        assert_eq!(is_loopback(&Uri::from_static(url)), here);
    }
}
