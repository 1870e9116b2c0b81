//! Lanes: each runs one test program after the other, on stores of its own. Most tests wait for stores most of
//! the time, so several lanes share a processor.

use std::collections::VecDeque;
use std::io::{Write, stdout};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use std::{env, fs, thread};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use stack::data_folder::DataFolder;
use stack::debian_root::Release;
use stack::packages::{Packages, STORES};
use stack::postgres::Durability;
use stack::process::{Process, Spec};
use stack::programs;
use stack::progress::{self, Progress};
use stack::stores::{Addresses, Stores};

/// The variable that sets how many tests of a program run at once.
const THREADS: &str = "RUST_TEST_THREADS";

/// What all test programs have in common.
#[derive(Debug)]
pub(super) struct Setting<'a> {
    /// The stores' programs.
    pub packages: &'a Packages,
    /// The Debian that was asked for; tests that start stores of their own use it too.
    pub release: Option<Release>,
    /// The folder of the services' binaries.
    pub binaries: &'a Path,
    /// Arguments for each test program, such as the names of tests.
    pub arguments: &'a [String],
}

/// Runs all test programs and returns the names of those that failed.
///
/// # Errors
/// When stores or a program do not start.
pub(super) async fn run(
    tests: Vec<Spec>,
    setting: &Setting<'_>,
    progress: Progress,
) -> Result<Vec<String>> {
    let processors = thread::available_parallelism().context("how many processors there are")?;
    let lanes = tests.len().min(processors.get());
    let step = progress.step(format!(
        "starting rabbitmq and postgres for {lanes} lanes (about 10 s)"
    ));
    let lanes = try_join_all((0..lanes).map(|_| Lane::start(setting))).await?;
    step.done("rabbitmq and postgres are up");

    // With one program its output needs no order.
    let live = tests.len() == 1;
    let waiting = Mutex::new(VecDeque::from(tests));
    let failed = try_join_all(lanes.iter().map(|lane| lane.run(&waiting, live))).await?;
    Ok(failed.concat())
}

struct Lane {
    /// What the lane's test programs get in addition to their own arguments.
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
    base: DataFolder,
    _stores: Stores,
}

impl Lane {
    async fn start(setting: &Setting<'_>) -> Result<Self> {
        let base = DataFolder::temporary()?;
        let addresses = Addresses::free()?;
        let stores =
            Stores::start(setting.packages, &base, addresses, Durability::ProcessOnly).await?;
        let mut variables = vec![
            ("DATABASE_URL", stores.database_url()),
            ("AMQP_URL", stores.amqp_url()),
            ("RABBITMQ_MANAGEMENT_URL", stores.management_url()?),
            (programs::BIN_DIR, setting.binaries.display().to_string()),
        ];
        variables.extend(
            setting
                .release
                .map(|release| (STORES, release.name().to_owned())),
        );
        if env::var_os(THREADS).is_none() {
            // There are as many lanes as processors, and most tests wait.
            let threads = thread::available_parallelism()?.get() + 1;
            variables.push((THREADS, threads.to_string()));
        }
        Ok(Self {
            arguments: setting.arguments.to_vec(),
            variables,
            base,
            _stores: stores,
        })
    }

    /// Runs what waits until nothing does; returns the names of the programs that failed.
    async fn run(&self, waiting: &Mutex<VecDeque<Spec>>, live: bool) -> Result<Vec<String>> {
        let mut failed = Vec::new();
        loop {
            let next = waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            let Some(test) = next else {
                return Ok(failed);
            };
            let name = test.name.clone();
            if !self.passes(test, live).await? {
                failed.push(name);
            }
        }
    }

    async fn passes(&self, mut test: Spec, live: bool) -> Result<bool> {
        let name = test.name.clone();
        let log = self.base.path().join("test.log");
        test = test.args(&self.arguments);
        for (variable, value) in &self.variables {
            test = test.env(variable, value);
        }
        if !live {
            test = test.log(&log);
        }
        let started = Instant::now();
        progress::note(&format!("… running {name}"));
        let process = Process::spawn(test)?;
        let status = process.wait().await;
        if !live {
            // Not `println`: the terminal may be gone.
            let mut out = stdout().lock();
            let seconds = started.elapsed().as_secs();
            writeln!(out, "\n     Ran {name} in {seconds} s").ok();
            out.write_all(&fs::read(&log)?).ok();
            fs::remove_file(&log)?;
        }
        Ok(status.success())
    }
}
