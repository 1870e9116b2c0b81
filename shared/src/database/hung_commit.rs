//! Commits that wait for a synchronous standby longer than anything here waits for them.
//!
//! The backend goes on waiting when its client has gone, and keeps its place among the server's
//! connections. A pool that opened another connection meanwhile would take them all in the end.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};
use tracing::warn;

use super::pool::{Pool, PooledConnection};

/// How often Postgres is asked whether the backend is still there.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// For one look, with a login over a long way.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);

/// For the connection's orderly end.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// One look at a time, on a connection beyond the pool's: all of those may be waiting.
static LOOKING: Mutex<()> = Mutex::const_new(());

/// The server's process behind a connection.
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

    /// Whether it is still at work. A server that cannot be asked has not finished.
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

/// Keeps the connection's place in its pool until the commit is over. A connection that is well then
/// goes back to the pool.
///
/// The answer usually comes by the connection itself. Where the way to the server is lost, the
/// connection says nothing, or too early that it is broken; then only the server knows.
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
        // A connection that is closed in vain is as good as closed.
        let close = connection.detach().close();
        timeout(CLOSE_DEADLINE, close).await.ok();
    }
}

/// Waits for the answer that a step left behind: true if the connection is ready for another one.
async fn answer(connection: &mut PgConnection) -> bool {
    loop {
        match connection.ping().await {
            Ok(()) => return true,
            // The commit's own error; it is followed by the end of the answer.
            Err(sqlx::Error::Database(_)) => {}
            Err(_) => return false,
        }
    }
}
