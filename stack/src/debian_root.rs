//! A newer Debian in a folder, for server versions that the machine's own Debian does not have.
//!
//! debootstrap makes it once, from a recipe, and it is kept between runs under a name that the recipe
//! determines: a changed recipe makes another root. Users hold a shared lock and makers an exclusive one,
//! so that concurrent runs wait for each other. The root gets its final name only when it is complete.
//! Programs run in it by chroot, read-only, each in a mount namespace of its own, so that nothing stays
//! mounted when they end. All of this needs root.

use std::fs::{self, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::unistd::{Gid, Uid, geteuid};

use crate::data_folder;
use crate::packages::install_if_permitted;
use crate::process::{Inside, Process, Spec};
use crate::progress::Progress;

const MAKE: &str = include_str!("debian_root/make.sh");
/// A mirror to use instead of debootstrap's default.
const MIRROR_VARIABLE: &str = "DEBIAN_MIRROR";
/// Packages that tests and drills need beside the stores, for clusters.
const PACKAGES: [&str; 6] = [
    "patroni",
    // Patroni accepts any one of its clients, and apt would choose another.
    "python3-etcd",
    "etcd-server",
    "haproxy",
    "pgbouncer",
    "iproute2",
];
const STORES: [&str; 2] = ["rabbitmq-server", "postgresql"];
/// After this time, the newest versions have become old.
const NEWEST_FOR: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// A root that was not used for this long is deleted when another is made.
const UNUSED_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const CANNOT_LOCK: &str = "cannot lock a Debian root";
const GONE: &str = "somebody has deleted the Debian root";

/// The Debian release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Release {
    /// RabbitMQ 3.10 and Postgres 15
    #[value(name = "debian12")]
    Debian12,
    /// RabbitMQ 4.0 and Postgres 17
    #[value(name = "debian13")]
    Debian13,
    /// The newest that Debian has, from unstable
    #[value(name = "newest")]
    Newest,
}

impl Release {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Debian12 => "debian12",
            Self::Debian13 => "debian13",
            Self::Newest => "newest",
        }
    }

    /// The arguments of the script that makes it, after folder and mirror.
    fn recipe(self) -> Vec<&'static str> {
        let (suite, unstable, stable) = match self {
            Self::Debian12 => ("bookworm", [].as_slice(), STORES.as_slice()),
            Self::Debian13 => ("trixie", [].as_slice(), STORES.as_slice()),
            Self::Newest => ("trixie", STORES.as_slice(), [].as_slice()),
        };
        [&[suite], unstable, &["--"], stable, &PACKAGES].concat()
    }

    /// Whether it is the release of this machine.
    pub fn is_of_machine(self) -> bool {
        let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
        self.is_of(&system)
    }

    fn is_of(self, os_release: &str) -> bool {
        let version = match self {
            Self::Debian12 => "VERSION_ID=\"12\"",
            Self::Debian13 => "VERSION_ID=\"13\"",
            Self::Newest => return false,
        };
        let has = |wanted| os_release.lines().any(|line| line == wanted);
        has("ID=debian") && has(version)
    }

    fn is_outdated(self, age: Duration) -> bool {
        match self {
            Self::Debian12 | Self::Debian13 => false,
            Self::Newest => age > NEWEST_FOR,
        }
    }
}

/// A complete Debian root that is in use. It can be cloned, and is kept as long as a clone exists.
#[derive(Debug, Clone)]
pub struct DebianRoot {
    path: PathBuf,
    /// Where the stack keeps its data; programs inside see it under the same path.
    data: PathBuf,
    _in_use: Arc<File>,
}

impl DebianRoot {
    /// Finds an existing root, however old.
    ///
    /// # Errors
    /// When there is none, or we are not root.
    pub fn find(release: Release) -> Result<Self> {
        ensure_root()?;
        let location = Location::of(release)?;
        let lock = location.lock()?;
        lock.lock_shared().context(CANNOT_LOCK)?;
        let name = release.name();
        location.open(lock)?.with_context(|| {
            format!("there is no Debian root {name} yet; cargo stack test --stores {name} makes it")
        })
    }

    /// The same as [`DebianRoot::find`], but first makes the root if it is missing or out of date, which
    /// takes some minutes and a gigabyte of disk. Installs debootstrap if necessary.
    ///
    /// # Errors
    /// When we are not root or it cannot be made; the message says why.
    pub async fn find_or_make(release: Release, progress: Progress) -> Result<Self> {
        ensure_root()?;
        let location = Location::of(release)?;
        let lock = lock(location.lock()?, Use::Shared, progress).await?;
        if location.is_current(release) {
            return location.open(lock)?.context(GONE);
        }
        let lock = match lock.try_lock() {
            Ok(()) => lock,
            Err(TryLockError::Error(error)) => return Err(error).context(CANNOT_LOCK),
            // Another process uses the outdated root, so it is good enough.
            Err(TryLockError::WouldBlock) if location.made_at().is_some() => {
                let lock = self::lock(lock, Use::Shared, progress).await?;
                return location.open(lock)?.context(GONE);
            }
            Err(TryLockError::WouldBlock) => self::lock(lock, Use::Exclusive, progress).await?,
        };
        // Another process may have made it meanwhile.
        if !location.is_current(release) {
            match location.make(release, progress).await {
                Err(error) if location.made_at().is_some() => {
                    progress.say(&format!("… keeping an older {}: {error:#}", release.name()));
                }
                made => made?,
            }
            location.sweep_unused();
        }
        let lock = self::lock(lock, Use::Shared, progress).await?;
        location.open(lock)?.context(GONE)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A program inside, by its path there, with a clean environment. It sees the stack's data folders
    /// under their usual paths. It can write to them, to `/tmp` and to `/run`, and nowhere else.
    pub fn spec(&self, name: impl Into<String>, program: impl Into<PathBuf>) -> Spec {
        let mut spec = Spec::new(name, program);
        spec.clean_env = true;
        spec.inside = Some(Inside {
            root: self.path.clone(),
            binds: vec![(self.data.clone(), self.data.clone())],
        });
        spec
    }

    /// The ids of an account inside. They differ from those of the same name outside.
    ///
    /// # Errors
    /// When there is no account of that name.
    pub fn account(&self, name: &str) -> Result<(Uid, Gid)> {
        let path = self.path.join("etc/passwd");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        ids(&text, name).with_context(|| format!("{} has no account {name}", path.display()))
    }
}

/// The path of a root, whether it exists or not.
#[derive(Debug)]
struct Location {
    folder: PathBuf,
    path: PathBuf,
    data: PathBuf,
}

impl Location {
    fn of(release: Release) -> Result<Self> {
        let data = data_folder::parent()?;
        let folder = data.join("debian");
        data_folder::create(&folder)?;
        let mut hasher = DefaultHasher::new();
        (MAKE, release.recipe()).hash(&mut hasher);
        let name = format!("{}-{:08x}", release.name(), hasher.finish() >> 32);
        Ok(Self {
            path: folder.join(name),
            folder,
            data,
        })
    }

    fn lock(&self) -> Result<File> {
        let path = self.path.with_extension("lock");
        let file = File::options().create(true).append(true).open(&path);
        file.with_context(|| format!("cannot create {}", path.display()))
    }

    /// When it was made; `None` if it does not exist. It is never modified later.
    fn made_at(&self) -> Option<SystemTime> {
        fs::metadata(&self.path).ok()?.modified().ok()
    }

    fn is_current(&self, release: Release) -> bool {
        self.made_at()
            .is_some_and(|at| !release.is_outdated(age(at)))
    }

    /// The caller holds `lock`, at least shared. The lock file's time records the last use of the root.
    fn open(&self, lock: File) -> Result<Option<DebianRoot>> {
        if self.made_at().is_none() {
            return Ok(None);
        }
        lock.set_modified(SystemTime::now())
            .context("cannot note the use of a Debian root")?;
        Ok(Some(DebianRoot {
            path: self.path.clone(),
            data: self.data.clone(),
            _in_use: Arc::new(lock),
        }))
    }

    /// Makes the root under a temporary name first. The caller holds the exclusive lock.
    async fn make(&self, release: Release, progress: Progress) -> Result<()> {
        let log = self.path.with_extension("log");
        if !Path::new("/usr/sbin/debootstrap").exists() {
            install_if_permitted(&["debootstrap"], &log, progress).await?;
        }
        let unfinished = self.path.with_extension("new");
        remove(&unfinished)?;
        let mirror = std::env::var(MIRROR_VARIABLE).unwrap_or_default();
        let spec = Spec::new("debootstrap", "unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--",
                "/bin/sh",
                "-c",
                MAKE,
                "make",
            ])
            .args([unfinished.as_os_str()])
            .args([&mirror])
            .args(release.recipe())
            .log(&log);
        let what = format!(
            "making a Debian root {}, once (some minutes)",
            release.name()
        );
        let step = progress.step(what.clone());
        let maker = Process::spawn(spec)?;
        let status = step.follow(&what, &maker).await;
        ensure!(
            status.success(),
            "cannot make a Debian root (it needs a mirror of Debian, which {MIRROR_VARIABLE} may name, and \
             the right to mount): {}",
            maker.how_it_ended()
        );
        remove(&self.path)?;
        fs::rename(&unfinished, &self.path).context("cannot name the new Debian root")?;
        step.done(&format!("made a Debian root {}", release.name()));
        Ok(())
    }

    /// Deletes roots of other recipes that were not used for long.
    fn sweep_unused(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_lock = path
                .extension()
                .is_some_and(|extension| extension == "lock");
            let used_at = entry.metadata().and_then(|data| data.modified());
            if is_lock
                && used_at.is_ok_and(|at| age(at) > UNUSED_FOR)
                && let Ok(lock) = File::open(&path)
                && lock.try_lock().is_ok()
            {
                // If it cannot be deleted now, the next run tries again.
                remove(&path.with_extension("")).ok();
                remove(&path.with_extension("new")).ok();
            }
        }
    }
}

/// The purpose of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Using an existing root.
    Shared,
    /// Making or deleting a root.
    Exclusive,
}

/// Takes the lock, replacing the one that `file` holds, if any.
async fn lock(file: File, how: Use, progress: Progress) -> Result<File> {
    let at_once = match how {
        Use::Shared => file.try_lock_shared(),
        Use::Exclusive => file.try_lock(),
    };
    match at_once {
        Ok(()) => return Ok(file),
        Err(TryLockError::Error(error)) => return Err(error).context(CANNOT_LOCK),
        Err(TryLockError::WouldBlock) => {
            progress.say("… waiting for another stack, which is making the same Debian root");
        }
    }
    let locked = tokio::task::spawn_blocking(move || {
        match how {
            Use::Shared => file.lock_shared()?,
            Use::Exclusive => file.lock()?,
        }
        std::io::Result::Ok(file)
    });
    locked.await?.context(CANNOT_LOCK)
}

fn ensure_root() -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "other stores than the machine's own need root, to make a Debian root and to run programs in it"
    );
    Ok(())
}

fn age(at: SystemTime) -> Duration {
    SystemTime::now().duration_since(at).unwrap_or_default()
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Reads the lines of `/etc/passwd`.
fn ids(passwd: &str, name: &str) -> Option<(Uid, Gid)> {
    let line = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    let mut ids = line.split(':').skip(2).map(str::parse);
    Some((
        Uid::from_raw(ids.next()?.ok()?),
        Gid::from_raw(ids.next()?.ok()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::{Release, ids};

    #[test]
    fn only_the_machines_own_release_is_the_machines() {
        let debian = "ID=debian\nVERSION_ID=\"13\"\n";
        assert!(Release::Debian13.is_of(debian));
        assert!(!Release::Debian12.is_of(debian));
        assert!(!Release::Newest.is_of(debian));
        assert!(!Release::Debian13.is_of("ID=ubuntu\nVERSION_ID=\"13\"\n"));
    }

    #[test]
    fn ids_are_those_of_the_very_account() {
        let passwd =
            "postgres2:x:7:8::/:/bin/sh\npostgres:x:100:102:PostgreSQL:/var/lib:/bin/bash\n";
        let (user, group) = ids(passwd, "postgres").expect("it is there");
        assert_eq!((user.as_raw(), group.as_raw()), (100, 102));
        assert_eq!(ids(passwd, "rabbitmq"), None);
    }
}
