//! The users file: one user a line, `name:role:hash`.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use secrecy::ExposeSecret;
use shared::text_file;
use tracing::{info, warn};

use super::Role;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

const MIN_PASSWORD: usize = 12;
const MAX_PASSWORD: usize = 256;
const MAX_NAME: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    role: Role,
    hash: String,
}

/// Those who may sign in, as the file has them.
pub struct Users {
    path: PathBuf,
    entries: RwLock<Arc<Vec<Entry>>>,
    /// Takes as long to check as a real one.
    decoy: String,
}

impl Users {
    /// Reads the file, which may have no user yet. The error names the line and never shows a hash.
    pub fn open(path: PathBuf) -> anyhow::Result<Self> {
        let entries = read(&path)?;
        if entries.is_empty() {
            warn!("USERS_FILE has no user who could sign in; make a line with `console user NAME`");
        }
        Ok(Self {
            path,
            entries: RwLock::new(Arc::new(entries)),
            decoy: hash("nobody has this password")?,
        })
    }

    /// Reads the file again when it changes, for ever. A bad one changes nothing.
    pub async fn watch(self: Arc<Self>) {
        let mut rejected = String::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match read(&self.path) {
                Ok(entries) => {
                    rejected.clear();
                    self.replace(entries);
                }
                Err(error) => {
                    let error = shared::reason::one_line(&error);
                    if error != rejected {
                        warn!(
                            error,
                            "the users file was refused; the users stay as they were"
                        );
                        rejected = error;
                    }
                }
            }
        }
    }

    fn replace(&self, entries: Vec<Entry>) {
        if **self.entries() != entries {
            info!(users = entries.len(), "the users file has changed");
            *self.entries.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(entries);
        }
    }

    fn entries(&self) -> Arc<Vec<Entry>> {
        Arc::clone(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether there is no user to sign in.
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// What the user of this name may do whose password has this hash, if there is one.
    pub fn role(&self, name: &str, hash: &str) -> Option<Role> {
        let entries = self.entries();
        entries
            .iter()
            .find(|entry| entry.name == name && entry.hash == hash)
            .map(|entry| entry.role)
    }

    /// The password's hash, if it is the user's. It takes as long for a name that no user has.
    pub fn verify(&self, name: &str, password: &str) -> Option<String> {
        let entries = self.entries();
        let entry = entries.iter().find(|entry| entry.name == name);
        let hash = entry.map_or(&self.decoy, |entry| &entry.hash);
        let is_right = PasswordHash::new(hash).is_ok_and(|hash| {
            Argon2::default()
                .verify_password(password.as_bytes(), &hash)
                .is_ok()
        });
        let entry = entry.filter(|_| is_right && password.len() <= MAX_PASSWORD);
        entry.map(|entry| entry.hash.clone())
    }
}

fn read(path: &std::path::Path) -> anyhow::Result<Vec<Entry>> {
    let text = text_file::read(path).with_context(|| format!("USERS_FILE {}", path.display()))?;
    parse(text_file::without_mark(text.expose_secret()))
        .with_context(|| format!("USERS_FILE {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = index + 1;
        let mut parts = line.splitn(3, ':').map(str::trim);
        let (Some(name), Some(role), Some(hash)) = (parts.next(), parts.next(), parts.next())
        else {
            bail!("line {number} is not name:role:hash; make one with `console user NAME`");
        };
        check_name(name).with_context(|| format!("line {number}"))?;
        let role = Role::parse(role).with_context(|| format!("line {number}"))?;
        ensure!(
            PasswordHash::new(hash).is_ok_and(|hash| hash.algorithm.as_str().starts_with("argon2")
                && hash.salt.is_some()
                && hash.hash.is_some()),
            "line {number} has no argon2 hash; make the line with `console user NAME`"
        );
        ensure!(
            entries.iter().all(|entry| entry.name != name),
            "line {number}: the user is there twice"
        );
        entries.push(Entry {
            name: name.to_owned(),
            role,
            hash: hash.to_owned(),
        });
    }
    Ok(entries)
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let is_good = (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@'));
    ensure!(
        is_good,
        "a name is 1 to {MAX_NAME} letters, digits, `.`, `-`, `_` or `@`"
    );
    Ok(())
}

/// The line of the users file for a user with this password.
pub fn line(name: &str, role: Role, password: &str) -> anyhow::Result<String> {
    check_name(name)?;
    ensure!(
        (MIN_PASSWORD..=MAX_PASSWORD).contains(&password.len()),
        "a password has {MIN_PASSWORD} to {MAX_PASSWORD} bytes"
    );
    Ok(format!("{name}:{role}:{}", hash(password)?))
}

fn hash(password: &str) -> anyhow::Result<String> {
    match Argon2::default().hash_password(password.as_bytes()) {
        Ok(hash) => Ok(hash.to_string()),
        Err(error) => bail!("cannot hash a password: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_line_lets_its_user_in_and_nobody_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("users");
        let text = line("ada", Role::Operator, "correct horse battery").expect("a line");
        std::fs::write(&path, format!("\u{feff}# people\r\n\n{text}\r\n")).expect("a file");
        let users = Users::open(path).expect("good users");
        let hash = users.verify("ada", "correct horse battery");
        assert_eq!(
            users.role("ada", &hash.expect("the right one")),
            Some(Role::Operator)
        );
        assert_eq!(users.role("ada", "another hash"), None);
        assert!(!users.is_empty());
        for (name, password) in [
            ("ada", "correct horse"),
            ("bob", "correct horse battery"),
            ("nobody", "nobody has this password"),
        ] {
            assert_eq!(users.verify(name, password), None);
        }
    }

    #[rstest]
    #[case("ada", "line 1 is not")]
    #[case("\nada:viewer", "line 2 is not")]
    #[case("a b:viewer:x", "line 1")]
    #[case("ada:admin:$argon2id$x", "must be viewer or operator")]
    #[case("ada:operator:$argon2id", "no argon2 hash")]
    #[case("ada:viewer:hunter2hunter2", "no argon2 hash")]
    #[case(
        "ada:viewer:$pbkdf2-sha256$i=1$c2FsdHNhbHQ$aGFzaGhhc2g",
        "no argon2 hash"
    )]
    fn a_bad_file_is_refused_without_showing_a_hash(#[case] text: &str, #[case] expected: &str) {
        let error = format!("{:#}", parse(text).expect_err("refused"));
        assert!(error.contains(expected), "{error}");
        assert!(
            !error.contains("hunter2") && !error.contains("c2Fs"),
            "{error}"
        );
    }

    #[rstest]
    #[case("a b", "long enough to do")]
    #[case("ada", "short")]
    fn no_line_is_made_of_a_bad_name_or_password(#[case] name: &str, #[case] password: &str) {
        assert!(line(name, Role::Viewer, password).is_err());
    }
}
