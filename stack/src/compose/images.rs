//! The images that the compose file and the Dockerfile name: the official ones, or stand-ins.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::shell::Shell;
use crate::data_folder::DataFolder;
use crate::debian_root::{DebianRoot, Release};
use crate::progress::Progress;

/// The smallest image; it shows whether the registry can be reached.
const PROBE: &str = "haproxy:3.2.24-alpine";
const PULL_WITHIN: Duration = Duration::from_secs(120);
const BUILD_WITHIN: Duration = Duration::from_secs(15 * 60);

/// Targets of `stack/stand-ins/Dockerfile`, and the variables of the compose file for them.
const STAND_INS: [(&str, &str); 8] = [
    ("base", "DEBIAN_IMAGE"),
    ("postgres", "POSTGRES_IMAGE"),
    ("rabbitmq", "RABBITMQ_IMAGE"),
    ("haproxy", "HAPROXY_IMAGE"),
    ("prometheus", "PROMETHEUS_IMAGE"),
    ("alertmanager", "ALERTMANAGER_IMAGE"),
    ("postgres-exporter", "POSTGRES_EXPORTER_IMAGE"),
    ("node-exporter", "NODE_EXPORTER_IMAGE"),
];

/// Services whose image Debian does not have are removed from the compose file.
const WITHOUT_GRAFANA: &str = "services: { grafana: { profiles: [left-out] } }\n";

/// The images that are used.
#[derive(Debug)]
pub(super) struct Images {
    /// Variables for the compose file.
    pub(super) env: Vec<(&'static str, String)>,
    /// For the report.
    pub(super) origin: String,
    /// What could not be tested, and why.
    pub(super) left_out: Option<&'static str>,
    /// Keeps the Debian root from which the stand-ins are built.
    root: Option<DebianRoot>,
}

impl Images {
    /// The official images if the engine can pull them; otherwise builds stand-ins.
    ///
    /// # Errors
    /// When neither is possible.
    pub(super) async fn find_or_make(
        shell: &Shell,
        base: &DataFolder,
        workspace: &Path,
        progress: Progress,
    ) -> Result<Self> {
        let step = progress.step("looking for the official images");
        match shell
            .ok("docker", &["pull", "--quiet", PROBE], PULL_WITHIN)
            .await
        {
            Ok(_) => {
                step.done("the official images can be pulled");
                Ok(Self {
                    env: Vec::new(),
                    origin: "the official ones".to_owned(),
                    left_out: None,
                    root: None,
                })
            }
            Err(_) => {
                step.done("the official images cannot be pulled");
                stand_ins(shell, base, workspace, progress)
                    .await
                    .context("the official images cannot be pulled, and stand-ins cannot be made")
            }
        }
    }

    /// Compose 2 from the stand-ins: a folder with Docker's plugins.
    ///
    /// # Errors
    /// When the official images are used, or the plugin cannot be built.
    pub(super) async fn plugins(
        &self,
        shell: &Shell,
        base: &DataFolder,
        workspace: &Path,
    ) -> Result<PathBuf> {
        let root = self.root.as_ref().context("Compose is not installed")?;
        let image = build(shell, workspace, &debian(root), "cli-plugins").await?;
        let folder = base.folder("docker")?;
        let id = docker(shell, &["create", &image, "true"]).await?;
        let from = format!("{}:/usr/libexec/docker/cli-plugins", id.trim());
        docker(shell, &["cp", &from, &folder.to_string_lossy()]).await?;
        docker(shell, &["rm", id.trim()]).await?;
        Ok(folder)
    }
}

async fn stand_ins(
    shell: &Shell,
    base: &DataFolder,
    workspace: &Path,
    progress: Progress,
) -> Result<Images> {
    let root = DebianRoot::find_or_make(Release::Debian13, progress).await?;
    let step = progress.step("building stand-ins for the official images");
    let debian = debian(&root);
    if docker(shell, &["image", "inspect", &debian]).await.is_err() {
        let import = r#"tar -C "$0" -c . | docker import - "$1""#;
        let root = root.path().to_string_lossy();
        let args = ["-c", import, &root, &debian];
        shell.ok("sh", &args, BUILD_WITHIN).await?;
    }
    let mut env = Vec::new();
    for (target, variable) in STAND_INS {
        step.update(format!("building a stand-in: {target}"));
        env.push((variable, build(shell, workspace, &debian, target).await?));
    }
    step.update("building a stand-in: rust".to_owned());
    env.push(("RUST_IMAGE", rust(shell, base, workspace).await?));
    let left_out = base.path().join("without-grafana.yml");
    fs::write(&left_out, WITHOUT_GRAFANA).context("cannot write an override")?;
    let files = format!("docker-compose.yml:{}", left_out.display());
    env.push(("COMPOSE_FILE", files));
    step.done("stand-ins for the official images are built");
    Ok(Images {
        env,
        origin: "stand-ins from Debian 13, as the official ones cannot be pulled".to_owned(),
        left_out: Some("Grafana, which is not in Debian"),
        root: Some(root),
    })
}

/// The name of the imported root: that of its folder, which identifies what it was made from.
fn debian(root: &DebianRoot) -> String {
    let name = root.path().file_name().unwrap_or_default();
    format!("pleo-stand-in/{}", name.to_string_lossy())
}

async fn build(shell: &Shell, workspace: &Path, debian: &str, target: &str) -> Result<String> {
    let tag = format!("pleo-stand-in/{target}");
    let argument = format!("DEBIAN={debian}");
    let folder = workspace.join("stack/stand-ins");
    let folder = folder.to_string_lossy();
    let mut args = vec!["build", "--quiet", "--build-arg", &argument];
    args.extend(["--target", target, "--tag", &tag, &folder]);
    docker(shell, &args).await?;
    Ok(tag)
}

/// The build image has the toolchain that compiled this program, and its downloaded crates.
async fn rust(shell: &Shell, base: &DataFolder, workspace: &Path) -> Result<String> {
    const SEND: &str = "tar -C \"$0\" -chf - --exclude=./toolchain/share --exclude=./registry/src . \
                        | docker build --quiet --build-arg DEBIAN=pleo-stand-in/base --tag \"$1\" -";
    let tag = "pleo-stand-in/rust";
    let folder = base.folder("rust")?;
    let toolchain = shell
        .ok("rustc", &["--print", "sysroot"], PULL_WITHIN)
        .await?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let registry = home.context("there is no home folder")?.join("registry");
    fs::copy(
        workspace.join("stack/stand-ins/rust.Dockerfile"),
        folder.join("Dockerfile"),
    )?;
    symlink(toolchain.trim(), folder.join("toolchain"))?;
    symlink(registry, folder.join("registry"))?;
    symlink("/etc/ssl/certs", folder.join("certificates"))?;
    let args = ["-c", SEND, &folder.to_string_lossy(), tag];
    shell.ok("sh", &args, BUILD_WITHIN).await?;
    Ok(tag.to_owned())
}

async fn docker(shell: &Shell, args: &[&str]) -> Result<String> {
    shell.ok("docker", args, BUILD_WITHIN).await
}
