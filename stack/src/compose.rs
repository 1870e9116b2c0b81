//! Tests `docker-compose.yml` on a real engine, as users run it: from a clean clone, with README's own
//! commands.
//!
//! [`prepare`] finds or starts what is needed: an engine, Compose, and images, official or stand-ins. If it
//! cannot get them, that is no fault of the repository, so a run may be skipped. [`Ready::check`] then
//! tests everything that `docs/deploying.md` promises, and fails at the first check that does not hold.

mod checklist;
mod confinement;
mod console;
mod container;
mod engine;
mod images;
mod kill;
mod load;
mod monitoring;
mod passwords;
mod project;
mod readme;
mod rounds;
mod shell;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use self::checklist::Checklist;
use self::engine::Engine;
use self::images::Images;
use self::project::{Project, Tool};
use self::shell::Shell;
use crate::data_folder::DataFolder;
use crate::progress::{Progress, note};

pub use self::checklist::Report;

/// The name of the built image, unless another image is given.
const IMAGE: &str = "pleo-webhooks-trial";
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The options of a run.
#[derive(Debug)]
pub struct Settings {
    /// An existing image to use instead of building one.
    pub image: Option<String>,
    /// Start an engine of our own beside a running one.
    pub own_engine: bool,
}

/// Everything that is needed to test the compose file.
#[derive(Debug)]
pub struct Ready {
    started: Instant,
    shell: Shell,
    images: Images,
    compose: String,
    has_old: bool,
    // The last field, because the engine stops when it is dropped.
    engine: Engine,
}

/// Finds or makes an engine, Compose and the images.
///
/// # Errors
/// When this machine cannot get one of them; the message says why.
pub async fn prepare(
    base: &DataFolder,
    workspace: &Path,
    settings: &Settings,
    progress: Progress,
) -> Result<Ready> {
    let started = Instant::now();
    let engine = Engine::find_or_start(base, settings.own_engine, progress).await?;
    Project::sweep(&engine.shell).await?;
    let images = Images::find_or_make(&engine.shell, base, workspace, progress).await?;
    let mut shell = engine.shell.clone();
    let version = match plugin(&shell).await {
        Ok(version) => version,
        Err(_) => {
            let folder = images.plugins(&shell, base, workspace).await?;
            shell = shell.env("DOCKER_CONFIG", folder.to_string_lossy());
            plugin(&shell).await?
        }
    };
    let old = shell
        .ok("docker-compose", &["version", "--short"], ANSWER_WITHIN)
        .await;
    Ok(Ready {
        started,
        shell,
        images,
        compose: version,
        has_old: old.is_ok_and(|version| version.starts_with("1.29")),
        engine,
    })
}

impl Ready {
    /// Runs all checks, and removes everything again.
    ///
    /// # Errors
    /// Names the check that does not hold, and shows the state of the containers.
    pub async fn check(
        self,
        base: &DataFolder,
        workspace: &Path,
        settings: &Settings,
        progress: Progress,
    ) -> Result<Report> {
        let mut shell = self.shell.clone();
        for (name, value) in &self.images.env {
            shell = shell.env(name, value);
        }
        let image = settings.image.as_deref().unwrap_or(IMAGE);
        let mut project = Project::clone(base, workspace, shell, image).await?;
        let mut checklist = Checklist::new(progress);
        if let Err(error) = self.rounds(&mut project, &mut checklist, settings).await {
            note(&project.describe().await);
            return Err(error);
        }
        drop(project);
        self.engine.tidy().await;
        let used = vec![
            format!("Docker {}, Compose {}", self.engine.version, self.compose),
            format!("images: {}", self.images.origin),
        ];
        let mut left_out: Vec<String> = self
            .images
            .left_out
            .iter()
            .map(|&what| what.to_owned())
            .collect();
        if !self.has_old {
            left_out.push("docker-compose 1.29, which is not installed".to_owned());
        }
        Ok(checklist.report(used, left_out, self.started.elapsed()))
    }

    async fn rounds(
        &self,
        project: &mut Project,
        checklist: &mut Checklist,
        settings: &Settings,
    ) -> Result<()> {
        rounds::as_cloned::run(project, checklist, settings.image.is_some()).await?;
        rounds::own_secrets::run(project, checklist).await?;
        if self.has_old {
            project.tool = Tool::Old;
            fs::remove_file(project.folder.join(".env")).context("there is no .env")?;
            rounds::old_compose::run(project, checklist).await?;
        }
        Ok(())
    }
}

async fn plugin(shell: &Shell) -> Result<String> {
    let out = shell
        .ok("docker", &["compose", "version", "--short"], ANSWER_WITHIN)
        .await?;
    Ok(out.trim().to_owned())
}
