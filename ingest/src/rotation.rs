//! Reloads the secrets file without a restart. The file is read every second. A good new list
//! replaces the current one for the next request. A bad list changes nothing; a metric and the log
//! show it.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use shared::{settings_file, text_file};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::spawn_blocking,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    metrics::Metrics,
    secrets::{DevelopmentSecret, Secrets},
};

/// The interval between two reads. A change is loaded when two reads in a row find the same
/// content, so within twice this time.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where the secrets come from.
#[derive(Debug)]
pub enum Source {
    /// A setting, which does not change.
    Setting(SecretString),
    /// A file, which is watched.
    File(PathBuf),
}

/// With more passes, the largest body without a valid signature costs several milliseconds of CPU.
const MANY_PASSES: usize = 32;

/// The result of a read: enough to detect a change without keeping the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Content([u8; 32]),
    Unreadable(io::ErrorKind),
}

/// Keeps the current list in step with its file.
pub struct Rotation {
    path: PathBuf,
    policy: DevelopmentSecret,
    metrics: Metrics,
    live: watch::Sender<Secrets>,
    hangups: Signal,
    look_every: Duration,
    /// What the current list was loaded from.
    active: Found,
    /// What was loaded or refused last, so that each content is judged and logged once.
    judged: Found,
    /// What the last read found. An editor may have been halfway through writing it.
    last: Found,
}

/// Loads the secrets, and prepares to watch their file if they have one. Errors name the bad entry
/// and show no secret.
pub fn open(
    source: Source,
    policy: DevelopmentSecret,
    metrics: &Metrics,
) -> anyhow::Result<(watch::Receiver<Secrets>, Option<Rotation>)> {
    let path = match source {
        Source::Setting(text) => {
            let secrets = judge(Ok(text), policy).context("WEBHOOK_SECRETS")?;
            taken(&secrets, metrics);
            return Ok((watch::channel(secrets).1, None));
        }
        Source::File(path) => path,
    };
    let (found, text) = look(&path);
    let secrets =
        judge(text, policy).with_context(|| format!("WEBHOOK_SECRETS_FILE {}", path.display()))?;
    taken(&secrets, metrics);
    let (live, secrets) = watch::channel(secrets);
    let rotation = Rotation {
        path,
        policy,
        metrics: metrics.clone(),
        live,
        hangups: signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?,
        look_every: LOOK_EVERY,
        active: found,
        judged: found,
        last: found,
    };
    Ok((secrets, Some(rotation)))
}

impl Rotation {
    /// Watches the file until `stop`. SIGHUP triggers a read at once.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let told = tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = self.hangups.recv() => true,
                () = sleep(self.look_every) => false,
            };
            let path = self.path.clone();
            // One read at a time, without a deadline: on a network file system that hangs, more
            // reads would only use up threads.
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = spawn_blocking(move || look(&path)) => looked,
            };
            if let Ok((found, text)) = looked {
                self.consider(found, text, told);
            }
        }
    }

    fn consider(&mut self, found: Found, text: io::Result<SecretString>, told: bool) {
        let settled = told || found == self.last;
        self.last = found;
        if !settled || found == self.judged {
            return;
        }
        self.judged = found;
        if found == self.active {
            self.metrics.secrets_rejected.set(0);
            info!("the secrets file is again as it was loaded");
            return;
        }
        match judge(text, self.policy) {
            Ok(secrets) => {
                self.active = found;
                taken(&secrets, &self.metrics);
                // From here on no request is counted under a name of the old list; see
                // `Verifier::signer_of`.
                let old = self.live.send_replace(secrets);
                let new = self.live.borrow();
                self.metrics.forget_secrets_beyond(&new, &old);
                let names: Vec<_> = new.names().collect();
                info!(?names, "the secrets file has changed and is in use");
            }
            Err(error) => {
                self.metrics.secrets_rejected.set(1);
                let (path, error) = (self.path.display(), shared::reason::one_line(&error));
                error!(%path, error, "the secrets file is refused; the secrets loaded before it stay in use");
            }
        }
    }
}

fn judge(text: io::Result<SecretString>, policy: DevelopmentSecret) -> anyhow::Result<Secrets> {
    Secrets::parse(&text?)?.permitted(policy)
}

fn taken(secrets: &Secrets, metrics: &Metrics) {
    metrics.secrets_loaded(secrets);
    let passes = secrets.most_passes();
    if passes > MANY_PASSES {
        warn!(
            secrets = secrets.names().count(),
            passes,
            "many secrets: a request that nobody signed has its whole body hashed up to `passes` times; \
             remove the secrets that are not in use"
        );
    }
    let untied = secrets.left_untied();
    if !untied.is_empty() {
        warn!(
            ?untied,
            tied = secrets.tied(),
            "some secrets are tied to companies and others are not: who has one of those can sign events of \
             every company"
        );
    }
    if let Some(name) = secrets.development_secret() {
        warn!(
            name,
            "the development secret is in use: anybody can sign events with it"
        );
    }
}

fn look(path: &Path) -> (Found, io::Result<SecretString>) {
    let text = read(path);
    let found = match &text {
        Ok(text) => Found::Content(Sha256::digest(text.expose_secret()).into()),
        Err(error) => Found::Unreadable(error.kind()),
    };
    (found, text)
}

fn read(path: &Path) -> io::Result<SecretString> {
    let text = text_file::decode(settings_file::read(path, text_file::MAX_LEN)?);
    text.map(SecretString::from).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[tokio::test]
    async fn a_hangup_makes_it_look_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secrets");
        std::fs::write(&path, format!("old={KEY}")).expect("written");
        let (mut secrets, rotation) = open(
            Source::File(path.clone()),
            DevelopmentSecret::Refused,
            &Metrics::new(),
        )
        .expect("good secrets");
        let rotation = Rotation {
            look_every: Duration::from_secs(3_600),
            ..rotation.expect("it is a file")
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(rotation.run(stop.clone()));
        std::fs::write(&path, format!("new={KEY}")).expect("written");
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).expect("it is caught");
        timeout(Duration::from_secs(20), secrets.changed())
            .await
            .expect("soon")
            .expect("it still runs");
        assert_eq!(secrets.borrow().names().collect::<Vec<_>>(), ["new"]);
        stop.cancel();
        running.await.expect("it stops");
    }
}
