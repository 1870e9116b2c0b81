//! `hookctl health`: asks a service on its private port, for health checks in containers without an HTTP
//! client.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::Context;
use hyper::Uri;

use crate::{
    http::{Http, UrlParser},
    verdict::Verdict,
};

/// A service answers a readiness check within a second or two.
const DEADLINE: Duration = Duration::from_secs(4);

/// Ask a service whether it is well.
///
/// Exit codes: 0 it is, 1 it does not answer, 2 wrong settings, 3 it says no, with its reasons.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A path of its private port: /livez (does it run?) or /readyz (can it do its work?)
    #[arg(default_value = "http://127.0.0.1:9100/livez", value_parser = UrlParser)]
    pub url: Uri,
}

/// Runs the subcommand.
pub async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let response = Http::new()
        .get(args.url.clone(), DEADLINE)
        .await
        .with_context(|| format!("cannot reach {}", args.url))?;
    let reasons = String::from_utf8_lossy(response.body());
    if !reasons.is_empty() {
        writeln!(io::stdout(), "{reasons}")?;
    }
    Ok(Verdict::of(response.status().is_success()))
}
