//! `cargo stack test`.

use std::process::ExitCode;
use std::{env, thread};

use anyhow::{Context, Result};
use stack::chromium;
use stack::data_folder::{self, DataFolder};
use stack::debian_root::Release;
use stack::haproxy;
use stack::packages::{self, Monitoring, Packages, STORES};
use stack::postgres::Durability;
use stack::process::Process;
use stack::programs::{self, Profile, Programs, Scope};
use stack::progress::Progress;
use stack::stores::{Addresses, Stores};

use super::signals::Signals;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run on the RabbitMQ and Postgres of this Debian [default: the machine's own]
    #[arg(long)]
    stores: Option<Release>,

    /// More arguments for `cargo test`, such as `-p ingest` or `-- --nocapture`
    #[arg(last = true)]
    cargo: Vec<String>,
}

/// The variable that sets how many tests run at once; cargo reads it.
const THREADS: &str = "RUST_TEST_THREADS";

/// Most tests mostly wait for stores, so a processor can run two.
const TESTS_PER_PROCESSOR: usize = 2;

/// Without it, tests would keep running if cargo was killed together with the stack.
const RUNNER: &str = r#"target."cfg(unix)".runner = ["setpriv", "--pdeathsig", "KILL", "--"]"#;

pub(super) async fn run(args: &Args, signals: &Signals) -> Result<ExitCode> {
    let base = DataFolder::temporary()?;
    let ended = signals.unless_stopped(test(args, &base)).await;
    // Interrupted tests could not clean up after themselves.
    data_folder::sweep_abandoned()?;
    match ended? {
        Ok(code) | Err(code) => Ok(code),
    }
}

async fn test(args: &Args, base: &DataFolder) -> Result<ExitCode> {
    let progress = Progress::Shown;
    let workspace = super::workspace()?;
    let apt = base.path().join("apt.log");
    let packages = match args.stores {
        Some(release) => Packages::of_release(release, &apt, progress).await?,
        None => Packages::find_or_install(&apt, progress).await?,
    };
    Monitoring::find_or_install(&apt, progress).await?;
    packages::install_pgbouncer(&apt, progress).await?;
    haproxy::install(&apt, progress).await?;
    chromium::install(&apt, progress).await;
    let scope = if selects_packages(&args.cargo) {
        Scope::Services
    } else {
        Scope::Everything
    };
    let programs = Programs::build(&workspace, scope, Profile::Own, progress).await?;
    let step = progress.step("starting rabbitmq and postgres (about 10 s)");
    let stores =
        Stores::start(&packages, base, Addresses::free()?, Durability::ProcessOnly).await?;
    step.done("rabbitmq and postgres are up");

    let cargo = programs::cargo("test")
        .env("DATABASE_URL", stores.database_url())
        .env("AMQP_URL", stores.amqp_url())
        .env("RABBITMQ_MANAGEMENT_URL", stores.management_url()?)
        .env(programs::BIN_DIR, programs.folder())
        .args([
            "--manifest-path".into(),
            workspace.join("Cargo.toml").into_os_string(),
        ])
        .args(["--profile", programs.profile(), "--config", RUNNER])
        .args((scope == Scope::Everything).then_some("--workspace"))
        .args(args.cargo.iter());
    let cargo = match env::var_os(THREADS) {
        Some(_) => cargo,
        None => cargo.env(THREADS, threads()?.to_string()),
    };
    // Some tests start stores of their own.
    let cargo = args
        .stores
        .into_iter()
        .fold(cargo, |cargo, release| cargo.env(STORES, release.name()));
    let status = Process::spawn(cargo)?.wait().await;
    // A test run that a signal killed has no exit code.
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

fn threads() -> Result<usize> {
    let processors = thread::available_parallelism().context("how many processors there are")?;
    Ok(TESTS_PER_PROCESSOR * processors.get())
}

/// With `--workspace` and single packages together, cargo runs all of them.
fn selects_packages(args: &[String]) -> bool {
    args.iter()
        .take_while(|arg| *arg != "--")
        .any(|arg| arg.starts_with("-p") || arg.starts_with("--package"))
}

#[cfg(test)]
mod tests {
    use super::selects_packages;

    #[test]
    fn packages_count_only_among_the_arguments_of_cargo() {
        let args = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(selects_packages(&args("-p ingest -- --nocapture")));
        assert!(!selects_packages(&args("--lib -- -p")));
    }
}
