//! The binaries of the services and of hookctl: builds them with cargo and returns their paths.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use shared::Program;

use crate::process::{Process, Spec};
use crate::progress::Progress;

/// `cargo stack test` sets it to the folder of the binaries that it has built.
pub const BIN_DIR: &str = "STACK_BIN_DIR";

/// `cargo run` sets these for the program that it runs. A nested cargo must not see them: the build scripts
/// of some dependencies would treat them as a change and compile again.
const OF_CARGO_RUN: [&str; 5] = [
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_BIN_",
    "CARGO_CRATE_",
    "CARGO_PRIMARY_",
];

/// The operators' tool, which creates the services' accounts.
const HOOKCTL: &str = "hookctl";

/// A folder with all the binaries.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

/// What to compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The services.
    Services,
    /// Also all tests.
    Everything,
}

/// How to compile the binaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// The profile of the running program, with which it shares compiled dependencies.
    Own,
    /// Optimised.
    Release,
}

impl Programs {
    /// Builds the binaries in `workspace`, the folder of the sources; cargo shows its own progress.
    ///
    /// # Errors
    /// When they do not compile.
    pub async fn build(
        workspace: &Path,
        scope: Scope,
        profile: Profile,
        progress: Progress,
    ) -> Result<Self> {
        let own = own_folder()?;
        let folder = match profile {
            Profile::Own => own,
            Profile::Release => own.with_file_name("release"),
        };
        // Cargo gives dependencies the features that all selected packages need together. With a different
        // selection of packages it would compile them once more.
        let (what, selection) = match scope {
            // The same selection as when cargo compiled the stack.
            Scope::Services => (
                "the services",
                "-p stack -p ingest -p worker -p web-console -p hookctl --bins".split(' '),
            ),
            // The same as `cargo test --workspace`.
            Scope::Everything => (
                "the services and the tests",
                "--workspace --all-targets".split(' '),
            ),
        };
        progress.say(&format!("… building {what}"));
        let build = cargo("build")
            .args(selection)
            .args(["--profile", profile_of(&folder), "--manifest-path"])
            .args([workspace.join("Cargo.toml")]);
        let status = Process::spawn(build)?.wait().await;
        ensure!(status.success(), "{what} do not build (see above)");
        Self::at(folder)
    }

    /// The existing binaries: in the folder named by `STACK_BIN_DIR`, or beside the running program, where
    /// cargo puts them.
    ///
    /// # Errors
    /// When one is missing.
    pub fn find() -> Result<Self> {
        match std::env::var_os(BIN_DIR) {
            Some(folder) => Self::at(folder.into()),
            None => Self::at(own_folder()?),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// The cargo profile with which they were compiled.
    pub fn profile(&self) -> &str {
        profile_of(&self.0)
    }

    /// Path of a binary.
    pub fn path(&self, program: Program) -> PathBuf {
        self.0.join(program.name())
    }

    /// Path of the operators' tool.
    pub fn hookctl(&self) -> PathBuf {
        self.0.join(HOOKCTL)
    }

    fn at(folder: PathBuf) -> Result<Self> {
        for name in Program::WITH_CONSOLE
            .map(Program::name)
            .into_iter()
            .chain([HOOKCTL])
        {
            let path = folder.join(name);
            ensure!(
                path.exists(),
                "{} does not exist; build it with: cargo build --workspace --bins",
                path.display()
            );
        }
        Ok(Self(folder))
    }
}

/// A cargo subcommand with the environment of a user's shell.
pub fn cargo(subcommand: &str) -> Spec {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut spec = Spec::new(format!("cargo {subcommand}"), program).args([subcommand]);
    spec.clean_env = true;
    spec.env = std::env::vars_os()
        .filter(|(name, _)| {
            let name = name.to_string_lossy();
            !OF_CARGO_RUN.iter().any(|prefix| name.starts_with(prefix))
        })
        .collect();
    spec
}

/// Where cargo put the running program; tests and examples are one level further down.
fn own_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find the running program")?;
    let folder = program
        .parent()
        .context("the running program is in no folder")?;
    let nested = folder.ends_with("deps") || folder.ends_with("examples");
    Ok(if nested {
        folder.parent().unwrap_or(folder)
    } else {
        folder
    }
    .to_owned())
}

/// Cargo names the folder after the profile, except for its default one.
fn profile_of(folder: &Path) -> &str {
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    }
}
