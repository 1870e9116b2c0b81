//! Checks the units in `deploy/systemd` with systemd's own tools. systemd itself does not run here.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The path on a host where the units are installed.
const PROGRAMS: &str = "/usr/local/bin/";
const PAGES: &str = "/usr/local/share/doc/pleo-webhooks/";

/// `systemd-analyze security` rates from 0 to 10; up to 2 means well protected.
const MOST_EXPOSED: f64 = 2.0;

const UNITS: [&str; 7] = [
    "pleo.target",
    "pleo-ingest.service",
    "pleo-worker@export-job.service",
    "pleo-worker@vendor.service",
    "pleo-worker@other.service",
    "pleo-console.service",
    "pleo-setup.service",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// Copies of the units in a temporary folder, with paths of programs and pages that exist.
struct Installed(tempfile::TempDir);

impl Installed {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for name in [
            "ingest",
            "export-job-worker",
            "vendor-worker",
            "other-worker",
            "console",
            "hookctl",
        ] {
            std::os::unix::fs::symlink("/bin/true", folder.path().join(name)).expect("a link");
        }
        let programs = format!("{}/", folder.path().display());
        let pages = format!("{}/docs/", workspace().display());
        for entry in fs::read_dir(workspace().join("deploy/systemd")).expect("the units") {
            let path = entry.expect("an entry").path();
            let is_unit = path
                .extension()
                .is_some_and(|extension| extension == "service" || extension == "target");
            if is_unit {
                let unit = fs::read_to_string(&path).expect("a unit");
                let unit = unit.replace(PROGRAMS, &programs).replace(PAGES, &pages);
                let name = path.file_name().expect("a name");
                fs::write(folder.path().join(name), unit).expect("a copy");
            }
        }
        Self(folder)
    }

    /// The output of `systemd-analyze`; without the program prints a warning and returns `None`.
    #[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
    fn analyze(&self, arguments: &[&OsStr]) -> Option<Output> {
        let output = Command::new("systemd-analyze")
            .args(arguments)
            .env("SYSTEMD_UNIT_PATH", format!("{}:", self.0.path().display()))
            .env("SYSTEMD_COLORS", "0")
            .output();
        match output {
            Ok(output) => Some(output),
            Err(error) => {
                eprintln!("!!! SKIPPED: systemd-analyze ({error}): apt-get install systemd");
                None
            }
        }
    }
}

fn text(output: &Output) -> String {
    let bytes = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let installed = Installed::new();
    for unit in UNITS {
        let Some(output) = installed.analyze(&["verify".as_ref(), unit.as_ref()]) else {
            return;
        };
        assert!(output.status.success(), "{unit}: {}", text(&output));
        assert_eq!(text(&output), "", "{unit}");
    }
}

#[test]
fn a_service_can_do_little_beyond_its_work() {
    let installed = Installed::new();
    for unit in [
        "pleo-ingest.service",
        "pleo-worker@.service",
        "pleo-console.service",
        "pleo-setup.service",
    ] {
        let path = installed.0.path().join(unit);
        let offline = [
            "security".as_ref(),
            "--offline=true".as_ref(),
            path.as_os_str(),
        ];
        let Some(output) = installed.analyze(&offline) else {
            return;
        };
        let report = text(&output);
        let (_, rating) = report
            .rsplit_once("Overall exposure level for")
            .unwrap_or_else(|| panic!("no rating: {report}"));
        let exposed: f64 = rating
            .split_whitespace()
            .find_map(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no rating: {rating}"));
        assert!(exposed <= MOST_EXPOSED, "{unit}: {report}");
    }
}

/// The documentation promises that unfinished work gets finished.
#[test]
fn a_service_gets_longer_to_stop_than_it_takes() {
    for unit in [
        "pleo-ingest.service",
        "pleo-worker@.service",
        "pleo-console.service",
    ] {
        let path = workspace().join("deploy/systemd").join(unit);
        let unit = fs::read_to_string(path).expect("a unit");
        let stop = unit
            .lines()
            .find_map(|line| line.strip_prefix("TimeoutStopSec="))
            .expect("a time");
        let stop = seconds(stop);
        // SHUTDOWN_DEADLINE, and time for the rest.
        assert!(stop > 25 + 5, "{stop} s");
        assert!(unit.contains("Restart=always"), "{unit}");
    }
}

fn seconds(text: &str) -> u64 {
    text.trim_end_matches('s').parse().expect("seconds")
}
