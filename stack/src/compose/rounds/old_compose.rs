//! The same file with docker-compose 1.29.

use anyhow::Result;

use super::as_cloned::demo_is_stored;
use crate::compose::site::Site;
use crate::compose::trial::Trial;

pub(in crate::compose) async fn run(site: &Site, trial: &mut Trial) -> Result<()> {
    let up = ["up", "-d", "--no-build"];
    trial
        .check("docker-compose 1.29: up", site.compose(&up))
        .await?;
    trial
        .check(
            "docker-compose 1.29: everything is healthy",
            site.until_healthy(),
        )
        .await?;
    let demo = ["run", "--rm", "-T", "demo"];
    trial
        .check("docker-compose 1.29: demo", site.compose(&demo))
        .await?;
    trial
        .check(
            "docker-compose 1.29: demo's events are stored",
            demo_is_stored(site),
        )
        .await?;
    trial
        .check("docker-compose 1.29: down", site.down(&["--volumes"]))
        .await?;
    Ok(())
}
