//! A minimal run of the benchmark: it measures everything, and every event is stored. It is a suite of its
//! own, because it needs the whole machine.

use std::{path::Path, process::Command, time::Duration};

use stack::{
    bench::{self, Plan, Report, console},
    packages::Packages,
    programs::Programs,
    progress::Progress,
};

/// The first second is not counted.
const SLICE: Duration = Duration::from_secs(2);
const DRAINED: u64 = 2_000;
const GROWN: u64 = 1_000;

#[expect(clippy::print_stderr, reason = "a part that is skipped must be seen")]
fn has_node() -> bool {
    let has = |program| Command::new(program).arg("--version").output().is_ok();
    let has = has("node") && has("npm");
    if !has {
        eprintln!("!!! SKIPPED: what users would write in Node: apt-get install nodejs npm");
    }
    has
}

fn rates(report: &Report) -> Vec<f64> {
    let round = &report.rounds[0];
    let accepted = round.accepted.iter().map(|(_, outcome)| outcome.rate);
    let end_to_end = round.end_to_end.iter().map(|(_, stored)| stored.rate);
    let grown = report.grown.iter().flat_map(|grown| grown.drained.clone());
    let peer = round.peer.iter().flat_map(|peer| {
        let accepted = peer.accepted.iter().map(|(_, outcome)| outcome.rate);
        let stored = peer.end_to_end.iter().map(|(_, rate)| *rate);
        accepted.chain(stored).chain([peer.drained])
    });
    accepted
        .chain(end_to_end)
        .chain(round.drained)
        .chain(grown)
        .chain(peer)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_measured_and_stored() {
    rlimit::increase_nofile_limit(u64::MAX).expect("a limit");
    let packages = Packages::find().expect("RabbitMQ and Postgres are installed");
    let programs = Programs::find().expect("the services are built");
    let folder = tempfile::tempdir().expect("a folder");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace");
    let plan = Plan {
        rounds: 1,
        slice: SLICE,
        drained: DRAINED,
        grown: vec![GROWN],
        peers: has_node().then(|| workspace.to_owned()),
    };
    let report = bench::run(&packages, programs, folder.path(), &plan, Progress::Silent).await;
    let report = report.expect("everything is stored");
    assert!(report.events > DRAINED, "{report}");
    let rates = rates(&report);
    assert!(
        rates.len() >= 10 && rates.iter().all(|rate| *rate > 0.0),
        "{report}"
    );
    assert_eq!(
        report.to_string().contains("beside Node"),
        plan.peers.is_some(),
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_the_console_is_there_with_many_events() {
    let packages = Packages::find().expect("RabbitMQ and Postgres are installed");
    let programs = Programs::find().expect("the services are built");
    let folder = tempfile::tempdir().expect("a folder");
    let plan = console::Plan {
        events: 20_000,
        requests: 20,
    };
    let report = console::run(&packages, programs, folder.path(), plan, Progress::Silent).await;
    let report = report.expect("every page is there");
    let filled = &report.filled;
    assert_eq!((filled.events, filled.of_largest_company), (20_000, 4_000));
    for (figure, expected) in [
        (filled.dead_letters, 2_000),
        (filled.vendors, 2_000),
        (filled.export_jobs, 2_000),
        (filled.receipts, 20_000 * 7 / 30),
    ] {
        assert!((figure - expected).abs() < expected / 5, "{filled:?}");
    }
    assert!(report.pages.len() > 30, "{report}");
    for page in &report.pages {
        assert!(
            page.p50_ms > 0.0 && page.p50_ms <= page.p95_ms && page.p95_ms <= page.max_ms,
            "{page:?}"
        );
    }
    let text = report.to_string();
    assert!(
        text.contains("events of the largest company") && text.contains("promised"),
        "{text}"
    );
}
