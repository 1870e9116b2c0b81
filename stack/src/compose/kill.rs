//! SIGKILL for a container's main process. After `docker kill`, the engine would not restart the container.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use super::container::Container;
use super::project::Project;

const RESTARTS_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Kills the main process of a container and waits until the engine has started it again.
///
/// # Errors
/// When it cannot be killed, or does not come back.
pub(super) async fn kill(project: &Project, container: &Container) -> Result<()> {
    let before = state(project, container).await?;
    // A container sees the machine's processes only with the right options, and the engine may be on
    // another machine.
    let kill = format!("kill -9 {}", before.pid);
    let mut args = vec!["run", "--rm", "--pid", "host", "--network", "none"];
    args.extend([
        "--user",
        "0",
        "--entrypoint",
        "sh",
        &project.image,
        "-c",
        &kill,
    ]);
    project.docker(&args).await?;
    let deadline = Instant::now() + RESTARTS_WITHIN;
    while state(project, container).await?.restarts <= before.restarts {
        ensure!(
            Instant::now() < deadline,
            "{} was not started again",
            container.name
        );
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Waits until a container is healthy.
///
/// # Errors
/// When that takes too long.
pub(super) async fn until_healthy(project: &Project, container: &Container) -> Result<()> {
    let deadline = Instant::now() + RESTARTS_WITHIN;
    while state(project, container).await?.health != "healthy" {
        ensure!(
            Instant::now() < deadline,
            "{} is not healthy again",
            container.name
        );
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

struct State {
    pid: u32,
    restarts: u32,
    health: String,
}

async fn state(project: &Project, container: &Container) -> Result<State> {
    let format = "{{.State.Pid}} {{.RestartCount}} {{.State.Health.Status}}";
    let out = project
        .docker(&["inspect", "--format", format, &container.id])
        .await?;
    let mut fields = out.split_whitespace();
    let mut next = || {
        fields
            .next()
            .with_context(|| format!("docker inspect printed {out:?}"))
    };
    Ok(State {
        pid: next()?.parse()?,
        restarts: next()?.parse()?,
        health: next()?.to_owned(),
    })
}
