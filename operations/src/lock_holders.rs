//! Who holds the lock that a command waits for. What they run is not told, as it may hold a secret.

use std::{convert::Infallible, fmt, future::pending, time::Duration};

use migrations::{Blocker, blocker};
use shared::database::{Access, DatabaseUrl};
use sqlx::PgConnection;
use tokio::{sync::Mutex, time::sleep};
use worker::judge::Class;

/// What takes longer may be waiting for a lock. Before that nothing is asked, and no connection is made.
const LOOK_AFTER: Duration = Duration::from_millis(50);

/// For a batch of rows. What workers and other commands lock is free again sooner.
pub const FIRST_LOCK_WAIT: Duration = Duration::from_secs(2);

/// For the parts of a batch in which a row is locked.
pub const LATER_LOCK_WAIT: Duration = Duration::from_millis(300);

/// For what was locked, at the end.
pub const LAST_LOCK_WAIT: Duration = Duration::from_secs(10);

/// After so many single rows of a batch were locked, perhaps the whole table is, and the rest of the batch
/// is not divided.
pub const MOST_LOCKED_ALONE: usize = 20;

/// Looks who holds up a backend, on a connection of its own that is made when it is needed first.
#[derive(Debug)]
pub struct Watch {
    url: DatabaseUrl,
    program: &'static str,
    observer: Mutex<Option<PgConnection>>,
}

impl Watch {
    /// Makes no connection yet.
    pub fn new(url: &DatabaseUrl) -> Self {
        Self::of(url, "hookctl")
    }

    /// As [`Watch::new`], for another program than hookctl.
    pub fn of(url: &DatabaseUrl, program: &'static str) -> Self {
        Self {
            url: url.clone(),
            program,
            observer: Mutex::new(None),
        }
    }

    /// Does `work` on the connection. Whoever is seen meanwhile to hold it up is in `holders`.
    pub async fn during<T, E: From<sqlx::Error>>(
        &self,
        connection: &mut PgConnection,
        holders: &mut Vec<Blocker>,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        // In each transaction, as a pooler may give each another backend.
        let backend: i32 = sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(&mut *connection)
            .await?;
        tokio::select! {
            biased;
            done = work(connection) => done,
            never = self.look(backend, holders) => match never {},
        }
    }

    /// Without a connection to spare nobody is named.
    async fn look(&self, backend: i32, holders: &mut Vec<Blocker>) -> Infallible {
        sleep(LOOK_AFTER).await;
        let mut observer = self.observer.lock().await;
        if observer.is_none() {
            let connected = self
                .url
                .connect(self.program, Access::AsTheAddressSays)
                .await;
            *observer = connected.ok();
        }
        match observer.as_mut() {
            Some(observer) => blocker::watch(observer, backend, holders).await,
            None => pending().await,
        }
    }
}

/// That a lock was not to be had in time, and who holds it. Nothing of the transaction was done.
#[derive(Debug)]
pub struct Held(Vec<Blocker>);

impl Held {
    /// Says so about an error that comes from a lock. All other errors stay as they are.
    pub fn explain(error: anyhow::Error, holders: Vec<Blocker>) -> anyhow::Error {
        match lacks_a_lock(&error) {
            true => error.context(Self(holders)),
            false => error,
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&said(&self.0))
    }
}

/// That a lock was not to be had, and who holds it.
pub fn said(holders: &[Blocker]) -> String {
    format!("waited in vain for a lock{}", blocker::list(holders))
}

/// Whether it is only a lock that was not to be had in time, or because of a deadlock.
pub fn lacks_a_lock(error: &anyhow::Error) -> bool {
    let code = error
        .downcast_ref::<sqlx::Error>()
        .and_then(|error| error.as_database_error()?.code());
    code.is_some_and(|code| matches!(Class::of_sqlstate(&code), Class::Locked | Class::Contention))
}
