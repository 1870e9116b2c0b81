//! A clean clone of the repository, with its compose project and containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::{Instant, sleep};

use super::container::Container;
use super::shell::{Ended, Shell};
use crate::data_folder::DataFolder;
use crate::ports;

/// The prefix of this command's projects, by which leftovers of a killed run are recognised.
const PREFIX: &str = "pleo-trial-";
const COMMAND_WITHIN: Duration = Duration::from_secs(5 * 60);
/// All Rust dependencies may have to be compiled.
const UP_WITHIN: Duration = Duration::from_secs(40 * 60);
const HEALTHY_WITHIN: Duration = Duration::from_secs(5 * 60);
const DOWN_WITHIN: Duration = Duration::from_secs(2 * 60);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// These services do one job and exit.
const ENDING: [&str; 3] = ["exposure-check", "setup", "monitoring-account"];

/// The version of Compose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    /// `docker compose`, version 2.
    Plugin,
    /// `docker-compose`, version 1.29.
    Old,
}

/// The published addresses of the project.
#[derive(Debug, Clone)]
pub(super) struct Published {
    /// Of the proxy.
    pub(super) webhooks: String,
    /// Of Prometheus.
    pub(super) prometheus: String,
    /// Of Alertmanager.
    pub(super) alertmanager: String,
    /// Of the console.
    pub(super) console: String,
}

/// A clone with its compose project. Dropping it removes the containers and volumes.
#[derive(Debug)]
pub(super) struct Project {
    /// The clone.
    pub(super) folder: PathBuf,
    /// The published addresses.
    pub(super) published: Published,
    /// The version of Compose that is tested.
    pub(super) tool: Tool,
    /// The name of the built or existing image.
    pub(super) image: String,
    shell: Shell,
    name: String,
}

impl Project {
    /// Clones the last commit of `workspace`.
    ///
    /// # Errors
    /// When it cannot be cloned.
    pub(super) async fn clone(
        base: &DataFolder,
        workspace: &Path,
        shell: Shell,
        image: &str,
    ) -> Result<Self> {
        let folder = base.path().join("clone");
        let clone = folder.to_string_lossy();
        let args = ["clone", "--quiet", &workspace.to_string_lossy(), &clone];
        Shell::default().ok("git", &args, COMMAND_WITHIN).await?;
        let published = Published {
            webhooks: ports::free()?.to_string(),
            prometheus: ports::free()?.to_string(),
            alertmanager: ports::free()?.to_string(),
            console: ports::free()?.to_string(),
        };
        let run = base.path().file_name().unwrap_or_default();
        let name = format!("{PREFIX}{}", run.to_string_lossy().to_lowercase());
        let shell = shell
            .within(folder.clone())
            .env("COMPOSE_PROJECT_NAME", &name)
            .env("PLEO_IMAGE", image)
            .env("PROFILE", "dev")
            .env("PUBLIC_BIND", &published.webhooks)
            .env("PROMETHEUS_BIND", &published.prometheus)
            .env("ALERTMANAGER_BIND", &published.alertmanager)
            .env("CONSOLE_BIND", &published.console)
            .env("GRAFANA_BIND", ports::free()?.to_string());
        Ok(Self {
            folder,
            published,
            tool: Tool::Plugin,
            image: image.to_owned(),
            shell,
            name,
        })
    }

    /// Runs a line of the documentation in a shell, as a user would.
    ///
    /// # Errors
    /// When it fails.
    pub(super) async fn line(&self, line: &str) -> Result<String> {
        self.shell.ok("sh", &["-c", line], UP_WITHIN).await
    }

    /// A subcommand of Compose that has to succeed.
    ///
    /// # Errors
    /// When it fails.
    pub(super) async fn compose(&self, args: &[&str]) -> Result<String> {
        let ended = self.try_compose(args).await?;
        ensure!(
            ended.code == Some(0),
            "compose {} failed: {}",
            args.join(" "),
            ended.end()
        );
        Ok(ended.out)
    }

    /// Runs a subcommand of Compose, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(super) async fn try_compose(&self, args: &[&str]) -> Result<Ended> {
        match self.tool {
            Tool::Plugin => {
                let args = [&["compose"], args].concat();
                self.shell.run("docker", &args, COMMAND_WITHIN).await
            }
            Tool::Old => self.shell.run("docker-compose", args, COMMAND_WITHIN).await,
        }
    }

    /// Runs `down` with `args`. Afterwards no container and no network may be left.
    ///
    /// Engines sometimes keep an endpoint in a network for a container that is gone. Then the endpoint is
    /// removed by force and `down` is run again, as a user would.
    ///
    /// # Errors
    /// When it fails in another way, or something is left.
    pub(super) async fn down(&self, args: &[&str]) -> Result<()> {
        let args = [&["down"], args].concat();
        let deadline = Instant::now() + DOWN_WITHIN;
        loop {
            let ended = self.try_compose(&args).await?;
            let networks = self.networks().await?;
            let containers = self.containers().await?.len();
            if ended.code == Some(0) && containers == 0 && networks.is_empty() {
                return Ok(());
            }
            ensure!(
                containers == 0 && !networks.is_empty() && Instant::now() < deadline,
                "compose {} leaves {containers} containers and {networks:?}: {}",
                args.join(" "),
                ended.end()
            );
            self.disconnect(&networks).await?;
            sleep(LOOK_EVERY).await;
        }
    }

    /// The ids of the project's networks.
    async fn networks(&self) -> Result<Vec<String>> {
        let label = format!("label=com.docker.compose.project={}", self.name);
        let args = ["network", "ls", "--quiet", "--filter", &label];
        let out = self.docker(&args).await?;
        Ok(out.lines().map(str::to_owned).collect())
    }

    /// Disconnects all endpoints of `networks`.
    async fn disconnect(&self, networks: &[String]) -> Result<()> {
        const DISCONNECT: &str = r#"
            for network; do
              docker network inspect --format '{{range .Containers}}{{println .Name}}{{end}}' "$network" |
              xargs -r -n 1 docker network disconnect --force "$network"
            done || true"#;
        let mut args = vec!["-c", DISCONNECT, "disconnect"];
        args.extend(networks.iter().map(String::as_str));
        self.shell.ok("sh", &args, COMMAND_WITHIN).await?;
        Ok(())
    }

    /// A subcommand of Docker that has to succeed.
    ///
    /// # Errors
    /// When it fails.
    pub(super) async fn docker(&self, args: &[&str]) -> Result<String> {
        self.shell.ok("docker", args, COMMAND_WITHIN).await
    }

    /// The result of a query, one row per line.
    ///
    /// # Errors
    /// When Postgres refuses it.
    pub(super) async fn sql(&self, query: &str) -> Result<Vec<String>> {
        let psql = [
            "exec", "-T", "postgres", "psql", "-U", "pleo", "-At", "pleo",
        ];
        let out = self.compose(&[&psql[..], &["-c", query]].concat()).await?;
        Ok(out.lines().map(str::to_owned).collect())
    }

    /// The single number that a query returns.
    ///
    /// # Errors
    /// As [`Project::sql`].
    pub(super) async fn count(&self, query: &str) -> Result<u64> {
        let rows = self.sql(query).await?;
        let row = rows.first().context("no row")?;
        row.parse().with_context(|| format!("{query} gave {row}"))
    }

    /// All containers of the project, except those of `run`.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub(super) async fn containers(&self) -> Result<Vec<Container>> {
        let label = format!("label=com.docker.compose.project={}", self.name);
        let mut args = vec!["ps", "--all", "--no-trunc", "--filter", &label];
        args.extend(["--filter", "label=com.docker.compose.oneoff=False"]);
        args.extend(["--format", Container::FORMAT]);
        let out = self.docker(&args).await?;
        out.lines().map(Container::parse).collect()
    }

    /// Containers of one service.
    ///
    /// # Errors
    /// As [`Project::containers`].
    pub(super) async fn replicas(&self, service: &str) -> Result<Vec<Container>> {
        let mut containers = self.containers().await?;
        containers.retain(|container| container.service == service);
        Ok(containers)
    }

    /// Waits until every service has a container, and every container is healthy or has done its job.
    ///
    /// # Errors
    /// When that takes too long; names the others.
    pub(super) async fn until_healthy(&self) -> Result<()> {
        let services = self.compose(&["config", "--services"]).await?;
        let services: Vec<&str> = services
            .lines()
            .filter(|name| self.is_started(name))
            .collect();
        let deadline = Instant::now() + HEALTHY_WITHIN;
        loop {
            let containers = self.containers().await?;
            let missing = services
                .iter()
                .filter(|name| !containers.iter().any(|c| c.service == **name))
                .map(|name| format!("{name} has no container"));
            let unwell = containers
                .iter()
                .filter(|c| !c.is_well(ENDING.contains(&c.service.as_str())))
                .map(|c| format!("{}: {}", c.name, c.status));
            let wrong: Vec<String> = missing.chain(unwell).collect();
            if wrong.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not healthy: {}", wrong.join("; "));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Compose 1.29 also lists services of profiles that are not active.
    fn is_started(&self, service: &str) -> bool {
        self.tool == Tool::Plugin || !["demo", "hookctl", "grafana"].contains(&service)
    }

    /// Adds a line to `.env`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn set(&self, line: &str) -> Result<()> {
        let file = self.folder.join(".env");
        let before = fs::read_to_string(&file).unwrap_or_default();
        fs::write(&file, format!("{before}{line}\n")).context("cannot write .env")
    }

    /// Details for a failure: the containers, and the logs of those that are not healthy.
    pub(super) async fn describe(&self) -> String {
        let mut text = String::new();
        for container in self.containers().await.unwrap_or_default() {
            text += &format!("{}: {}\n", container.name, container.status);
            if !container.is_well(ENDING.contains(&container.service.as_str())) {
                let args = ["logs", "--tail", "15", &container.id];
                if let Ok(logs) = self.shell.run("docker", &args, COMMAND_WITHIN).await {
                    text += &logs.end();
                    text.push('\n');
                }
            }
        }
        text
    }

    /// Removes what killed runs have left: projects whose folder is gone.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub(super) async fn sweep(shell: &Shell) -> Result<()> {
        const SWEEP: &str = r#"
            docker ps --all --filter label=com.docker.compose.project --format \
              '{{.Label "com.docker.compose.project"}} {{.Label "com.docker.compose.project.working_dir"}}' |
            sort -u | while read -r project folder; do
              case $project in "$0"*) ;; *) continue ;; esac
              [ ! -d "$folder" ] || continue
              only="--filter label=com.docker.compose.project=$project"
              docker ps --all --quiet $only | xargs -r docker rm --force --volumes
              docker volume ls --quiet $only | xargs -r docker volume rm
              docker network ls --quiet $only | xargs -r docker network rm
            done"#;
        shell
            .ok("sh", &["-c", SWEEP, PREFIX], COMMAND_WITHIN)
            .await?;
        Ok(())
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let mut down = self.shell.command(
            "docker",
            &[
                "compose",
                "down",
                "--volumes",
                "--remove-orphans",
                "--timeout",
                "5",
            ],
        );
        // If this fails, the next run cleans up.
        down.stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .ok();
    }
}
