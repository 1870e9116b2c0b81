//! The same file with docker-compose 1.29.

use anyhow::Result;

use super::as_cloned::demo_is_stored;
use crate::compose::checklist::Checklist;
use crate::compose::project::Project;

pub(in crate::compose) async fn run(project: &Project, checklist: &mut Checklist) -> Result<()> {
    let up = ["up", "-d", "--no-build"];
    checklist
        .check("docker-compose 1.29: up", project.compose(&up))
        .await?;
    checklist
        .check(
            "docker-compose 1.29: everything is healthy",
            project.until_healthy(),
        )
        .await?;
    let demo = ["run", "--rm", "-T", "demo"];
    checklist
        .check("docker-compose 1.29: demo", project.compose(&demo))
        .await?;
    checklist
        .check(
            "docker-compose 1.29: demo's events are stored",
            demo_is_stored(project),
        )
        .await?;
    checklist
        .check("docker-compose 1.29: down", project.down(&["--volumes"]))
        .await?;
    Ok(())
}
