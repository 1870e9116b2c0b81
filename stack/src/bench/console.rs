//! How fast the console's pages are while the tables are large.
//!
//! The tables are filled by SQL alone, so that millions of events take minutes. Then a real console, under
//! its own account, is asked for each page again and again, by one client on the same machine: the times are
//! from the request to the last byte of the page, or to the first of a file.

mod fill;
mod pages;
mod report;
mod site;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use shared::Program;

pub use self::fill::Filled;
use self::pages::Pages;
use self::site::Site;
use super::durable;
use crate::accounts::Accounts;
use crate::data_folder::DataFolder;
use crate::packages::Packages;
use crate::programs::Programs;
use crate::progress::Progress;
use crate::service::Launcher;

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(40);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Events in the tables.
    pub events: u32,
    /// Requests for each page, after those that warm the caches up.
    pub requests: u32,
}

/// What a page took.
#[derive(Debug, Clone, Serialize)]
pub struct Page {
    /// Which page.
    pub name: String,
    /// The median.
    pub p50_ms: f64,
    /// Of twenty answers nineteen took at most so long.
    pub p95_ms: f64,
    /// The slowest answer.
    pub max_ms: f64,
    /// What the console promises for nineteen of twenty.
    pub promise_ms: f64,
    /// Whether that is so here.
    pub is_kept: bool,
    /// The share of answers that say how far the search came before it stopped.
    pub stopped: f64,
}

/// Everything that was measured. Its display is a table.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What the tables held.
    pub filled: Filled,
    /// Requests for each page.
    pub requests: u32,
    /// In the order in which they were measured.
    pub pages: Vec<Page>,
}

/// Fills the tables and measures; the console's log goes to `folder`.
///
/// # Errors
/// When a page is not answered with 200, or says that it could not be made.
pub async fn run(
    packages: &Packages,
    programs: Programs,
    folder: &Path,
    plan: Plan,
    progress: Progress,
) -> Result<Report> {
    let step = progress.step("starting the stores");
    let base = DataFolder::temporary()?;
    let (stores, pool) = durable::start(packages, &base).await?;
    let accounts = Accounts::random();
    accounts.set_up(&programs, &stores, folder).await?;
    // The console needs no broker.
    stores.rabbitmq.stop().await?;
    step.done("postgres is up");

    let filled = fill::fill(&pool, plan.events.into(), progress).await?;
    let console = Launcher::for_developers(programs, &stores, &accounts, folder)
        .start(Program::Console, "console")?;
    console.ready(READY_WITHIN).await?;
    let site = Site::new(console.public())?;
    let step = progress.step("waiting until the console knows its figures");
    site.until_known().await?;
    step.done("the console knows its figures");

    let asked = Pages::find(&pool, site.url().clone(), plan.events.into()).await?;
    let mut measured = measure(&site, asked.without_index, plan, progress).await?;
    let step = progress.step("creating an index on resources");
    sqlx::raw_sql("create index on events (resource_id)")
        .execute(&pool)
        .await?;
    step.done("resources have an index");
    measured.extend(measure(&site, asked.with_index, plan, progress).await?);
    console.stop(STOPPED_WITHIN).await?;
    pool.close().await;
    stores.postgres.stop().await?;
    Ok(Report {
        filled,
        requests: plan.requests,
        pages: measured,
    })
}

async fn measure(
    site: &Site,
    pages: Vec<pages::Page>,
    plan: Plan,
    progress: Progress,
) -> Result<Vec<Page>> {
    let mut measured = Vec::new();
    for page in pages {
        let step = progress.step(format!("asking for: {}", page.name));
        let found = site.measure(&page, plan.requests).await?;
        step.done(&format!("{}: {:.1} ms (p95)", found.name, found.p95_ms));
        measured.push(found);
    }
    Ok(measured)
}
