//! Debian's Chromium and its driver, for browser tests of pages.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::data_folder;
use crate::packages::install_if_permitted;
use crate::ports;
use crate::process::{Process, Spec};
use crate::progress::{Progress, note};

const CHROMIUM: &str = "/usr/bin/chromium";
const DRIVER: &str = "/usr/bin/chromedriver";
const READY_WITHIN: Duration = Duration::from_secs(30);

/// No window, no background work, and no sandbox, because root cannot have one.
const ARGUMENTS: [&str; 8] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
];

/// A running driver, which starts browsers on request.
#[derive(Debug)]
pub struct Driver {
    address: SocketAddr,
    folder: PathBuf,
    process: Process,
}

/// Whether both programs are installed.
pub fn is_installed() -> bool {
    Path::new(CHROMIUM).exists() && Path::new(DRIVER).exists()
}

/// Installs both if they are missing and we have the rights. If they cannot be installed, the tests that
/// need them print that and are skipped: not every machine has the disk space.
pub async fn install(log: &Path, progress: Progress) {
    if is_installed() {
        return;
    }
    let packages = ["chromium", "chromium-driver"];
    if let Err(error) = install_if_permitted(&packages, log, progress).await {
        note(&format!(
            "no Chromium, so tests in a browser are skipped: {error:#}"
        ));
    }
}

impl Driver {
    /// Starts it on a free port; the profiles of its browsers are in `folder`.
    ///
    /// # Errors
    /// With the end of its log when it does not come up.
    pub async fn start(folder: &Path) -> Result<Self> {
        ensure!(
            is_installed(),
            "missing: chromium; install with: sudo apt-get install -y chromium chromium-driver"
        );
        data_folder::create(folder)?;
        let address = ports::free()?;
        let mut spec = Spec::new("chromedriver", DRIVER)
            .args([format!("--port={}", address.port())])
            // Chromium stores some files beside its profile.
            .env("HOME", folder.as_os_str())
            .log(folder.join("chromedriver.log"));
        spec.clean_env = true;
        let driver = Self {
            address,
            folder: folder.to_owned(),
            process: Process::spawn(spec)?,
        };
        let end = Instant::now() + READY_WITHIN;
        while TcpStream::connect(driver.address).await.is_err() {
            ensure!(
                driver.process.is_running(),
                "{}",
                driver.process.how_it_ended()
            );
            if Instant::now() > end {
                bail!("chromedriver does not answer within {READY_WITHIN:?}");
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(driver)
    }

    /// The address for new sessions.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The arguments of a browser with a new profile of this name.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn arguments(&self, profile: &str) -> Result<Vec<String>> {
        let folder = self.folder.join(profile);
        fs::create_dir_all(&folder)?;
        let profile = format!("--user-data-dir={}", folder.display());
        Ok(ARGUMENTS
            .into_iter()
            .map(str::to_owned)
            .chain([profile])
            .collect())
    }
}
