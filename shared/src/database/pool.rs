//! Connections to the server that takes writes, kept open between transactions.
//!
//! Unlike sqlx's pool, it connects in a task of its own. A login that takes longer than a transaction may
//! wait goes on, and its connection serves a later transaction. All waiters get the reason of a failed
//! connection at once. The pool does not retry; callers do, with their own pauses.

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
    pooler::{Home, Opened},
    schema::Schema,
    url::{Access, DatabaseUrl, Role, role},
};
use crate::reach::{Cause, Unreached};

/// A connection that was unused for longer than this is tried before it is handed out, so that a
/// restart of Postgres costs no request.
const TRUST_IDLE: Duration = Duration::from_secs(1);

/// How long trying a connection may take.
const TRY_DEADLINE: Duration = Duration::from_secs(2);

/// A connection that was idle for so long is closed.
const IDLE_LIMIT: Duration = Duration::from_secs(600);

/// A connection is replaced after this, so that Postgres gives back what a session has gathered.
const LIFETIME: Duration = Duration::from_secs(1800);

/// A pool of at most so many connections. Clones share them.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    url: DatabaseUrl,
    name: String,
    /// What a new connection prepares.
    statements: &'static [&'static str],
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    /// Counts what made all connections doubtful; those of an earlier count are not used again.
    generation: AtomicU64,
}

struct Idle {
    live: Live,
    since: Instant,
}

struct Live {
    connection: PgConnection,
    home: Home,
    generation: u64,
    opened: Instant,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.0.url).finish()
    }
}

/// A pool of the same size for the same database, which lets go of its connections when sqlx's pool
/// is closed. It is for tests, whose database is dropped after that.
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
    /// At most `connections` that show as `name` in `pg_stat_activity`. It connects when it is asked
    /// for a connection: services start before Postgres does.
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

    /// A connection to a server that takes writes.
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
                // What ended one connection has ended the others as well, most of the time.
                Err(generation) => self.0.distrust(generation),
            }
        }
        self.connect(place).await
    }

    /// The schema of its transactions.
    pub fn schema(&self) -> &Schema {
        self.0.url.schema()
    }

    /// A connection that takes no place of the pool and never comes back to it.
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
            let connected = opened.map(|Opened { connection, home }| PooledConnection {
                live: Live {
                    connection,
                    home,
                    generation,
                    opened: Instant::now(),
                },
                pool,
                _place: place,
            });
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

    /// The connection that was used last, so that those not needed grow old and are closed.
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

    /// Uses no connection of this generation or an earlier one again.
    fn distrust(&self, generation: u64) {
        self.generation.fetch_max(generation + 1, Ordering::AcqRel);
    }
}

impl Idle {
    /// The connection, if it still works and leads to a server that takes writes; otherwise its
    /// generation. Where there are others, a server that is read-only by default does not do.
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

/// A connection of a pool. Dropped, it is closed; only [`give_back`](Self::give_back) keeps it for
/// others.
pub struct PooledConnection {
    live: Live,
    pool: Arc<Inner>,
    _place: OwnedSemaphorePermit,
}

impl PooledConnection {
    /// Keeps the connection for others. No transaction may be open on it.
    pub fn give_back(self) {
        self.pool.push(self.live);
    }

    /// The bare connection, which does not count for the pool any more.
    pub fn detach(self) -> PgConnection {
        self.live.connection
    }

    /// Where its statements are.
    pub(super) fn home(&self) -> &Home {
        &self.live.home
    }

    /// This server takes no writes any more, or mixes up statements: neither this connection nor
    /// those that the pool has kept are used again.
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
