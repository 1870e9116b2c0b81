//! A pool of connections to the primary.
//!
//! Unlike sqlx's pool, it connects in a separate task. If a login takes longer than a transaction
//! may wait, the login continues and its connection serves a later transaction. If a connection
//! fails, its caller gets the reason at once. The pool does not retry; callers do, with their own
//! pauses.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{PgConnection, PgPool};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout},
};

use super::{
    pooler::{Opened, PreparedStatements},
    schema::Schema,
    server::{Role, role},
    url::{Access, DatabaseUrl},
};
use crate::reach::{Cause, Unreached};

/// A connection that was idle for longer is tested before use, so that no request fails after a
/// restart of Postgres.
const TRUST_IDLE: Duration = Duration::from_secs(1);

/// The time for that test.
const TRY_DEADLINE: Duration = Duration::from_secs(2);

const IDLE_LIMIT: Duration = Duration::from_secs(600);

/// A connection is replaced after this time, so that Postgres frees the session's memory.
const LIFETIME: Duration = Duration::from_secs(1800);

/// A pool of connections. Clones share it.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    url: DatabaseUrl,
    name: String,
    /// The statements that a new connection prepares.
    statements: &'static [&'static str],
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    /// Incremented when all connections may be broken. Connections of an older generation are not
    /// reused.
    generation: AtomicU64,
}

struct Idle {
    live: Live,
    since: Instant,
}

struct Live {
    connection: PgConnection,
    prepared: PreparedStatements,
    generation: u64,
    opened: Instant,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.0.url).finish()
    }
}

/// A pool of the same size for the same database, for tests. It closes its connections when sqlx's
/// pool is closed, because the test's database is dropped after that.
impl From<PgPool> for Pool {
    fn from(pool: PgPool) -> Self {
        let options = pool.connect_options().as_ref().clone();
        let places = pool.options().get_max_connections();
        let this = Self::new(options.into(), "test", places, &[]);
        let inner = Arc::downgrade(&this.0);
        tokio::spawn(async move {
            pool.close_event().await;
            if let Some(inner) = inner.upgrade() {
                inner.places.close();
                inner.distrust(u64::MAX - 1);
                drop(inner.pop());
            }
        });
        this
    }
}

impl Pool {
    /// A pool of at most `connections` connections, which have the name `name` in
    /// `pg_stat_activity`. It connects on demand, because services may start before Postgres.
    pub(super) fn new(
        url: DatabaseUrl,
        name: &str,
        connections: u32,
        statements: &'static [&'static str],
    ) -> Self {
        Self(Arc::new(Inner {
            url,
            name: name.to_owned(),
            statements,
            places: Arc::new(Semaphore::new(connections as usize)),
            idle: Mutex::default(),
            generation: AtomicU64::new(0),
        }))
    }

    /// Returns a connection to the primary.
    pub async fn acquire(&self) -> Result<PooledConnection, Unreached> {
        let place = Arc::clone(&self.0.places);
        let Ok(place) = place.acquire_owned().await else {
            let closed = Cause::Other("the pool is closed".to_owned());
            return Err(self.0.unreached(closed));
        };
        while let Some(idle) = self.0.pop() {
            match idle.tried(self.0.url.has_several_hosts()).await {
                Ok(live) => {
                    return Ok(PooledConnection {
                        live,
                        pool: Arc::clone(&self.0),
                        _place: place,
                    });
                }
                // What broke one connection has probably broken the others too.
                Err(generation) => self.0.distrust(generation),
            }
        }
        self.connect(place).await
    }

    /// The schema of its transactions.
    pub fn schema(&self) -> &Schema {
        self.0.url.schema()
    }

    /// Opens a connection outside the pool.
    pub(super) async fn connect_beyond(&self) -> Result<PgConnection, Unreached> {
        let opened = self.0.url.open(&self.0.name, Access::Write, &[]).await?;
        Ok(opened.connection)
    }

    async fn connect(&self, place: OwnedSemaphorePermit) -> Result<PooledConnection, Unreached> {
        let pool = Arc::clone(&self.0);
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            let generation = pool.generation.load(Ordering::Acquire);
            let opened = pool.url.open(&pool.name, Access::Write, pool.statements);
            let opened = opened.await;
            if opened.as_ref().is_err_and(Unreached::is_of_pooler) {
                pool.distrust(generation);
            }
            let connected = opened.map(
                |Opened {
                     connection,
                     prepared,
                 }| PooledConnection {
                    live: Live {
                        connection,
                        prepared,
                        generation,
                        opened: Instant::now(),
                    },
                    pool,
                    _place: place,
                },
            );
            if let Err(Ok(connection)) = sender.send(connected) {
                connection.give_back();
            }
        });
        receiver
            .await
            .expect("connecting neither panics nor is it cancelled")
    }
}

impl Inner {
    fn unreached(&self, cause: Cause) -> Unreached {
        Unreached::new("Postgres", vec![(self.name.clone(), cause)])
    }

    /// Takes the most recently used connection, so that unneeded ones stay idle and are closed.
    fn pop(&self) -> Option<Idle> {
        let generation = self.generation.load(Ordering::Acquire);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| idle.live.generation == generation);
        idle.pop()
    }

    fn push(&self, live: Live) {
        let now = Instant::now();
        if now - live.opened > LIFETIME || self.places.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| now - idle.since < IDLE_LIMIT);
        idle.push(Idle { live, since: now });
    }

    /// Stops the reuse of connections of this generation and earlier ones.
    fn distrust(&self, generation: u64) {
        self.generation.fetch_max(generation + 1, Ordering::AcqRel);
    }
}

impl Idle {
    /// Returns the connection if it still works and leads to the primary; otherwise its generation.
    /// If there are other hosts, a server that is read-only by default is not accepted.
    async fn tried(mut self, others: bool) -> Result<Live, u64> {
        if self.since.elapsed() <= TRUST_IDLE {
            return Ok(self.live);
        }
        match timeout(TRY_DEADLINE, role(&mut self.live.connection)).await {
            Ok(Ok(Role::Writable)) => Ok(self.live),
            Ok(Ok(Role::ReadOnlyByDefault)) if !others => Ok(self.live),
            _ => Err(self.live.generation),
        }
    }
}

/// A connection of a pool. Dropping it closes it; [`give_back`](Self::give_back) returns it to the
/// pool.
pub struct PooledConnection {
    live: Live,
    pool: Arc<Inner>,
    _place: OwnedSemaphorePermit,
}

impl PooledConnection {
    /// Returns the connection to the pool. No transaction may be open on it.
    pub fn give_back(self) {
        self.pool.push(self.live);
    }

    /// The connection itself, no longer part of the pool.
    pub fn detach(self) -> PgConnection {
        self.live.connection
    }

    /// Where its prepared statements are.
    pub(super) fn prepared(&self) -> &PreparedStatements {
        &self.live.prepared
    }

    /// Reports that this server is no longer the primary, or that a pooler mixes up statements.
    /// Neither this connection nor the pool's idle ones are reused.
    pub fn moved(&self) {
        self.pool.distrust(self.live.generation);
    }
}

impl Deref for PooledConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.live.connection
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.live.connection
    }
}
