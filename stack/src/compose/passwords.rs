//! Checks that no password is exposed: in the engine's information about containers, in the environment and
//! the arguments of their processes, or in their logs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::project::Project;

/// Shorter ones would be found everywhere.
const SHORTEST: usize = 8;

/// Always of the main process, and of the others if they live long enough.
const READ: &str = "cat /proc/1/environ || exit 1
    cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null || true";

/// Searches every container for every password of a folder.
///
/// # Errors
/// Names the container with a password, and where it is.
pub(super) async fn are_nowhere(project: &Project, secrets: &Path) -> Result<usize> {
    let passwords = read(secrets)?;
    ensure!(passwords.len() >= 8, "only {} passwords", passwords.len());
    let containers = project.containers().await?;
    for container in &containers {
        let pid = format!("container:{}", container.id);
        let mut environments = vec!["run", "--rm", "--cap-add", "SYS_PTRACE", "--pid", &pid];
        environments.extend([
            "--network",
            "none",
            "--user",
            "0",
            "--entrypoint",
            "sh",
            &project.image,
        ]);
        environments.extend(["-c", READ]);
        let inspect = project.docker(&["inspect", &container.id]).await?;
        let logs = project
            .line(&format!("docker logs {} 2>&1", container.id))
            .await?;
        let running = container.status.starts_with("Up");
        let processes = match running {
            true => project.docker(&environments).await?,
            false => String::new(),
        };
        ensure!(
            !running || processes.contains("PATH="),
            "{} shows no environment",
            container.name
        );
        for (place, text) in [
            ("docker inspect", inspect),
            ("the log", logs),
            ("the environment or arguments of a process", processes),
        ] {
            for (name, password) in &passwords {
                ensure!(
                    !text.contains(password.as_str()),
                    "{name} is in {place} of {}",
                    container.name
                );
            }
        }
    }
    Ok(containers.len())
}

/// Each with the file's name. For `name=secret` it is the secret.
fn read(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut passwords = Vec::new();
    for entry in fs::read_dir(folder).context("cannot read the secrets")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(&path)?;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let password = line
                .split_once('=')
                .map_or(line, |(_, secret)| secret)
                .trim();
            if password.len() >= SHORTEST {
                passwords.push((name.clone().into_owned(), password.to_owned()));
            }
        }
    }
    Ok(passwords)
}
