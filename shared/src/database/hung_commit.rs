//! Commits that wait for a synchronous standby longer than their deadline.
//!
//! The backend keeps waiting after its client has gone, and still counts among the server's
//! connections. A pool that replaced the connection would use up all of them in the end.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};
use tracing::warn;

use super::pool::{Pool, PooledConnection};

const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The time for a query, including a login over a long distance.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);

const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// One query at a time, on a connection outside the pool, because all of the pool's may be waiting.
static LOOKING: Mutex<()> = Mutex::const_new(());

/// The Postgres process of a connection.
pub(super) struct Backend {
    pool: Pool,
    pid: i32,
}

impl Backend {
    pub(super) fn new(pool: &Pool, pid: i32) -> Self {
        Self {
            pool: pool.clone(),
            pid,
        }
    }

    /// Whether it is still active. If the server cannot be queried, the answer is yes.
    async fn is_busy(&self) -> bool {
        let _turn = LOOKING.lock().await;
        !matches!(timeout(LOOK_DEADLINE, self.look()).await, Ok(Ok(false)))
    }

    async fn look(&self) -> anyhow::Result<bool> {
        let mut connection = self.pool.connect_beyond().await?;
        let is_busy = sqlx::query_scalar(
            "select exists (select from pg_stat_activity
                             where pid = $1 and usename = current_user and state = 'active')",
        )
        .bind(self.pid)
        .fetch_one(&mut connection)
        .await;
        connection.close().await?;
        Ok(is_busy?)
    }
}

/// Keeps the connection's place in its pool until the commit has ended. A connection that still
/// works then returns to the pool.
///
/// Usually the answer arrives on the connection itself. If the network is interrupted, the
/// connection stays silent, or breaks before the commit has ended; then only the server knows.
pub(super) async fn wait(mut connection: PooledConnection, backend: Backend) {
    warn!("a commit does not end; its connection is kept until it does");
    let answered = {
        let answer = answer(&mut connection);
        tokio::pin!(answer);
        let mut broken = false;
        loop {
            tokio::select! {
                is_well = &mut answer, if !broken => {
                    if is_well {
                        break true;
                    }
                    broken = true;
                }
                () = sleep(LOOK_EVERY) => {
                    if !backend.is_busy().await {
                        break false;
                    }
                }
            }
        }
    };
    if answered {
        connection.give_back();
    } else {
        // If closing fails, the connection is gone anyway.
        let close = connection.detach().close();
        timeout(CLOSE_DEADLINE, close).await.ok();
    }
}

/// Waits for the outstanding answer. True if the connection can be used again.
async fn answer(connection: &mut PgConnection) -> bool {
    loop {
        match connection.ping().await {
            Ok(()) => return true,
            // The commit's own error; the end of the answer follows.
            Err(sqlx::Error::Database(_)) => {}
            Err(_) => return false,
        }
    }
}
