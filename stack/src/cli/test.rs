//! `cargo stack test`: runs the test programs of all packages, some of them side by side.

mod lanes;
mod programs;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use stack::chromium;
use stack::data_folder::{self, DataFolder};
use stack::debian_root::Release;
use stack::haproxy;
use stack::packages::{self, Monitoring, Packages};
use stack::process::Process;
use stack::programs::{Profile, Programs, Scope, cargo};
use stack::progress::Progress;

use self::lanes::Setting;
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

pub(super) async fn run(args: &Args, signals: &Signals) -> Result<ExitCode> {
    let base = DataFolder::temporary()?;
    let ended = signals.unless_stopped(test(args, &base)).await;
    // Interrupted tests could not clean up after themselves.
    data_folder::sweep_abandoned()?;
    Ok(ended?.exit_code())
}

async fn test(args: &Args, base: &DataFolder) -> Result<ExitCode> {
    let progress = Progress::Shown;
    let workspace = super::workspace()?;
    let packages = install(args.stores, base, progress).await?;
    let (for_cargo, for_tests) = split(&args.cargo);
    let everything = !selects_packages(for_cargo);
    let scope = if everything {
        Scope::Everything
    } else {
        Scope::Services
    };
    let binaries = Programs::build(&workspace, scope, Profile::Own, progress).await?;
    let log = base.path().join("cargo.log");
    let tests = programs::compile(&workspace, &binaries, for_cargo, &log).await?;
    let count = tests.len();
    ensure!(count > 0, "these arguments select no test program");
    let setting = Setting {
        packages: &packages,
        release: args.stores,
        binaries: binaries.folder(),
        arguments: for_tests,
    };
    let mut failed = lanes::run(tests, &setting, progress).await?;
    if for_cargo.is_empty() {
        failed.extend(documentation(&workspace, &binaries).await?);
    }
    if failed.is_empty() {
        progress.say(&format!("✓ {count} test programs passed"));
        return Ok(ExitCode::SUCCESS);
    }
    for name in &failed {
        progress.say(&format!("✗ {name} failed"));
    }
    Ok(ExitCode::FAILURE)
}

/// Installs what tests need, as far as that is permitted.
async fn install(
    release: Option<Release>,
    base: &DataFolder,
    progress: Progress,
) -> Result<Packages> {
    let apt = base.path().join("apt.log");
    let packages = match release {
        Some(release) => Packages::of_release(release, &apt, progress).await?,
        None => Packages::find_or_install(&apt, progress).await?,
    };
    Monitoring::find_or_install(&apt, progress).await?;
    packages::install_pgbouncer(&apt, progress).await?;
    haproxy::install(&apt, progress).await?;
    chromium::install(&apt, progress).await;
    Ok(packages)
}

/// Runs the examples in the documentation; returns what failed.
async fn documentation(workspace: &Path, binaries: &Programs) -> Result<Option<String>> {
    let tests = cargo("test")
        .args(["--doc", "--workspace", "--profile", binaries.profile()])
        .args([
            "--manifest-path".into(),
            workspace.join("Cargo.toml").into_os_string(),
        ]);
    let passed = Process::spawn(tests)?.wait().await.success();
    Ok((!passed).then(|| "examples in the documentation".to_owned()))
}

/// Arguments for cargo, and those for each test program, which follow a `--`.
fn split(args: &[String]) -> (&[String], &[String]) {
    match args.iter().position(|arg| arg == "--") {
        Some(at) => (&args[..at], &args[at + 1..]),
        None => (args, &[]),
    }
}

/// With `--workspace` and single packages together, cargo runs all of them.
fn selects_packages(for_cargo: &[String]) -> bool {
    for_cargo
        .iter()
        .any(|arg| arg.starts_with("-p") || arg.starts_with("--package"))
}

#[cfg(test)]
mod tests {
    use super::{selects_packages, split};

    #[test]
    fn packages_count_only_among_the_arguments_of_cargo() {
        let selects = |text: &str| {
            let args: Vec<_> = text.split(' ').map(str::to_owned).collect();
            selects_packages(split(&args).0)
        };
        assert!(selects("-p ingest -- --nocapture"));
        assert!(!selects("--lib -- -p"));
    }

    #[test]
    fn what_follows_two_dashes_is_for_the_test_programs() {
        let args = ["--lib", "--", "a_name", "--nocapture"].map(str::to_owned);
        assert_eq!(split(&args), (&args[..1], &args[2..]));
        assert_eq!(split(&args[..1]), (&args[..1], &[][..]));
    }
}
