//! Attacks on the ingest service, directly and through the proxy with the settings of `deploy/`. It is a
//! suite of its own, because other tests at the same time would fail.

use std::{fs, time::Duration};

use stack::{
    packages::Packages,
    programs::Programs,
    progress::Progress,
    siege::{self, Attack, Line, Plan},
};

/// The share of legitimate events that must be answered 2xx.
const SHARE: f64 = 0.99;
/// Half of the legitimate events must be answered within this time, in milliseconds. They usually need far
/// less.
const USUALLY_MS: u64 = 5_000;
const DURING: Duration = Duration::from_secs(3);
/// A busy machine may be too slow once. An attack that works has its effect every time.
const TRIES: usize = 3;

fn is_withstood(line: &Line) -> bool {
    line.seen.share() >= SHARE && line.seen.p50_ms <= USUALLY_MS
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_shut_no_good_sender_out() {
    rlimit::increase_nofile_limit(u64::MAX).expect("a limit");
    let packages = Packages::find().expect("RabbitMQ and Postgres are installed");
    let folder = tempfile::tempdir().expect("a folder");
    let mut attacks = Attack::ALL.to_vec();
    let mut failures = Vec::new();
    for number in 0..TRIES {
        let logs = folder.path().join(number.to_string());
        fs::create_dir(&logs).expect("a folder");
        let programs = Programs::find().expect("the services are built");
        let plan = Plan {
            during: DURING,
            attacks,
        };
        let report = siege::run(&packages, programs, &logs, &plan, Progress::Silent).await;
        let report = report.expect("everything comes up");
        failures = report.lines;
        failures.retain(|line| line.attack.is_some() && !is_withstood(line));
        attacks = failures.iter().filter_map(|line| line.attack).collect();
        attacks.dedup();
        if attacks.is_empty() {
            return;
        }
    }
    panic!("{failures:#?}");
}
