//! The test programs: what cargo compiles from the tests of each package.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Artifact, Message};
use stack::process::{Process, Spec};
use stack::programs::{self, Programs};

/// The test programs that run for minutes, the longest first. They start first, so that no lane ends with one
/// of them while the others have nothing to do.
const LONG: [&str; 6] = ["siege", "storing", "pipeline", "drills", "api", "benchmark"];

/// Compiles the test programs that cargo selects by `arguments`, and describes how to run them.
///
/// # Errors
/// When they do not compile, or `log` cannot be written or read.
pub(super) async fn compile(
    workspace: &Path,
    programs: &Programs,
    arguments: &[String],
    log: &Path,
) -> Result<Vec<Spec>> {
    let build = programs::cargo("test")
        .args([
            "--no-run",
            "--profile",
            programs.profile(),
            "--manifest-path",
        ])
        .args([workspace.join("Cargo.toml")])
        .args(arguments);
    compiles(build.clone()).await?;
    // Once more, for the list alone: the first run showed its progress and what does not compile.
    compiles(build.args(["--quiet", "--message-format=json"]).log(log)).await?;
    listed(log, workspace)
}

/// The test programs in the order in which they run.
fn listed(log: &Path, workspace: &Path) -> Result<Vec<Spec>> {
    let output = File::open(log).with_context(|| format!("cannot read {}", log.display()))?;
    let mut listed = Vec::new();
    for message in Message::parse_stream(BufReader::new(output)) {
        if let Message::CompilerArtifact(artifact) = message.context("cargo's output")?
            && artifact.profile.test
            && let Some(program) = &artifact.executable
        {
            listed.push((
                turn(&artifact),
                spec(&artifact, program.as_ref(), workspace)?,
            ));
        }
    }
    listed.sort_by(|(one, left), (other, right)| (one, &left.name).cmp(&(other, &right.name)));
    Ok(listed.into_iter().map(|(_, spec)| spec).collect())
}

/// Runs one test program as `cargo test` does: in the folder of its package.
fn spec(artifact: &Artifact, program: &Path, workspace: &Path) -> Result<Spec> {
    let source = artifact.target.src_path.as_std_path();
    let source = source.strip_prefix(workspace).unwrap_or(source);
    let package = artifact
        .manifest_path
        .parent()
        .context("a manifest without a folder")?;
    let mut spec = Spec::new(source.display().to_string(), program);
    spec.folder = Some(package.into());
    Ok(spec)
}

fn turn(artifact: &Artifact) -> usize {
    LONG.iter()
        .position(|name| *name == artifact.target.name)
        .unwrap_or(LONG.len())
}

async fn compiles(build: Spec) -> Result<()> {
    let build = Process::spawn(build)?;
    let status = build.wait().await;
    ensure!(status.success(), "the tests do not compile (see above)");
    Ok(())
}
