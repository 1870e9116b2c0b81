//! The folder that holds a stack's data, and the lock that keeps a second stack out of it.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{User, geteuid};
use tempfile::TempDir;

use crate::process::PidFile;
use crate::progress::note;
use crate::small_disk;

/// Other accounts may pass through the folder, because the account of Postgres has to, but not list it.
const MODE: u32 = 0o711;
const RUN_PREFIX: &str = "run-";

/// A locked data folder. The lock ends with this value, or with the process.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    /// Deletes a temporary folder at the end. It comes before the lock so that it is dropped first.
    _temporary: Option<TempDir>,
    _lock: File,
}

impl DataFolder {
    /// The folder whose data stays between runs: `chosen`, or one under `/var/tmp` named after
    /// `workspace`, the path of the sources.
    ///
    /// # Errors
    /// When it cannot be created, belongs to somebody else, or another stack is using it.
    pub fn persistent(chosen: Option<&Path>, workspace: &Path) -> Result<Self> {
        let path = match chosen {
            Some(path) => std::path::absolute(path)?,
            None => parent()?.join(name_of(workspace)),
        };
        create(&path)?;
        let lock = try_lock(&path)?.with_context(|| {
            format!(
                "another stack is running on {}; stop it first, or set STACK_DIR",
                path.display()
            )
        })?;
        Ok(Self {
            path,
            _temporary: None,
            _lock: lock,
        })
    }

    /// A new folder that is deleted with this value; also deletes those that a crash left behind.
    ///
    /// # Errors
    /// When it cannot be created or locked.
    pub fn temporary() -> Result<Self> {
        let parent = parent()?;
        // Held until the new folder is locked: otherwise another run could sweep the folder away.
        let _sweeping = sweep(&parent)?;
        let folder = tempfile::Builder::new()
            .prefix(RUN_PREFIX)
            .permissions(Permissions::from_mode(MODE))
            .tempdir_in(&parent)
            .with_context(|| format!("cannot create a folder in {}", parent.display()))?;
        let path = folder.path().to_owned();
        // The umask may have removed the bits that the account of Postgres needs.
        fs::set_permissions(&path, Permissions::from_mode(MODE))?;
        let lock = try_lock(&path)?.context("a new folder is locked already")?;
        Ok(Self {
            path,
            _temporary: Some(folder),
            _lock: lock,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder inside, created if need be, that others may pass through but not look into.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        create(&path)?;
        Ok(path)
    }

    /// Deletes every folder inside, after killing processes that a crashed stack left running there.
    ///
    /// # Errors
    /// When something cannot be deleted.
    pub fn wipe(&self) -> Result<()> {
        kill_leftovers(&self.path);
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.is_dir() {
                fs::remove_dir_all(&path)
                    .with_context(|| format!("cannot delete {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Creates a folder with the mode [`MODE`], unless it exists.
///
/// # Errors
/// When it cannot be created, or belongs to another user, who could then swap its contents.
pub(crate) fn create(path: &Path) -> Result<()> {
    let failed = || format!("cannot create {}", path.display());
    DirBuilder::new()
        .recursive(true)
        .mode(MODE)
        .create(path)
        .with_context(failed)?;
    let owner = fs::symlink_metadata(path).with_context(failed)?.uid();
    ensure!(
        owner == geteuid().as_raw(),
        "{} belongs to another user",
        path.display()
    );
    fs::set_permissions(path, Permissions::from_mode(MODE)).with_context(failed)
}

/// `/var/tmp` survives a reboot and, unlike a home folder, can be reached by other accounts.
pub(crate) fn parent() -> Result<PathBuf> {
    let user = User::from_uid(geteuid()).context("cannot look up the current user")?;
    let name = user.map_or_else(|| geteuid().to_string(), |user| user.name);
    Ok(PathBuf::from(format!("/var/tmp/pleo-webhooks-{name}")))
}

/// The workspace's name and a hash of its path, so that two clones do not collide.
fn name_of(workspace: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    workspace.hash(&mut hasher);
    let name = workspace.file_name().unwrap_or_default().to_string_lossy();
    format!("{name}-{:08x}", hasher.finish() >> 32)
}

/// `None` if another process holds the lock.
fn try_lock(folder: &Path) -> Result<Option<File>> {
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => bail!("cannot lock {}: {error}", path.display()),
    }
}

/// Deletes the folders that crashed runs left behind, and kills processes that still run in them.
///
/// # Errors
/// When the parent folder cannot be read.
pub fn sweep_abandoned() -> Result<()> {
    sweep(&parent()?).map(drop)
}

/// Returns the lock under which it swept.
fn sweep(parent: &Path) -> Result<File> {
    create(parent)?;
    let sweeping = File::create(parent.join("sweep.lock"))?;
    sweeping
        .lock()
        .context("cannot lock the folder of temporary stacks")?;
    for entry in fs::read_dir(parent)?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(RUN_PREFIX) {
            continue;
        }
        if let Ok(Some(_lock)) = try_lock(&entry.path()) {
            kill_leftovers(&entry.path());
            // If it cannot be deleted now, the next stack tries again.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
    Ok(sweeping)
}

/// Kills processes that a crashed stack left running in its folder, and unmounts its mounts.
fn kill_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            kill_leftovers(&path);
            small_disk::detach(&path);
        } else if path.extension().is_some_and(|extension| extension == "pid")
            && let Err(error) = PidFile::kill_leftover(&path)
        {
            note(&shared::reason::one_line(&error));
        }
    }
}
