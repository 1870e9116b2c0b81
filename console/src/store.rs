//! Postgres, for looking only: each look is a short transaction that can change nothing.

use std::time::Duration;

use shared::{
    Program,
    database::{self, DatabaseUrl, DeadlineTransaction, Pool, TransactionError, TransactionMode},
};
use sqlx::PgConnection;
use thiserror::Error;
use tokio::time::Instant;

/// For pages, for the figures of the overview, and one for the probe of readiness.
const CONNECTIONS: u32 = 6;

/// How long Postgres may take over one statement.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);

/// For a whole look. Postgres' own limit ends a statement earlier, so that none goes on unseen.
const DEADLINE: Duration = Duration::from_secs(8);

const MODE: TransactionMode = TransactionMode::read()
    .statement_timeout(STATEMENT_TIMEOUT)
    .idle_timeout(Duration::from_secs(15));

const QUERY_CANCELED: &str = "57014";
const INSUFFICIENT_PRIVILEGE: &str = "42501";
const UNDEFINED: [&str; 2] = ["42P01", "42703"];

/// Why a look showed nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// It was ended by its time limit.
    #[error("Postgres took longer than {} s over this", STATEMENT_TIMEOUT.as_secs())]
    TooSlow,
    /// Postgres is not there, or does not let the console in.
    #[error("Postgres is away: {0}")]
    Away(String),
    /// The account has not got the right.
    #[error("the console's account may not read this: run `hookctl setup` again")]
    Forbidden,
    /// The tables are those of another version.
    #[error(
        "the tables are not those of this version: run `hookctl setup`, which brings them up to date"
    )]
    OtherSchema,
    /// Anything else that Postgres says; its words may hold what was looked for.
    #[error("Postgres refused this (SQLSTATE {0})")]
    Refused(String),
}

impl From<TransactionError> for StoreError {
    fn from(error: TransactionError) -> Self {
        let code = error.sqlstate();
        match (&error, code.as_deref()) {
            (TransactionError::NotConnected(_) | TransactionError::NotBegun(_), _) | (_, None) => {
                Self::Away(error.to_string())
            }
            (_, Some(QUERY_CANCELED)) => Self::TooSlow,
            (_, Some(INSUFFICIENT_PRIVILEGE)) => Self::Forbidden,
            (_, Some(code)) if UNDEFINED.contains(&code) => Self::OtherSchema,
            // The classes of lost connections, missing resources and a server that shuts down.
            (_, Some(code))
                if ["08", "53", "57"]
                    .iter()
                    .any(|class| code.starts_with(class)) =>
            {
                Self::Away(error.to_string())
            }
            (_, Some(code)) => Self::Refused(code.to_owned()),
        }
    }
}

/// Where pages get what they show.
#[derive(Clone, Debug)]
pub struct Store {
    pool: Pool,
}

impl Store {
    /// Connects when it is asked for something.
    pub fn new(url: DatabaseUrl) -> Self {
        Self {
            pool: database::pool(url, Program::Console.name(), CONNECTIONS),
        }
    }

    /// The connections, for what looks by itself.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Looks once.
    pub async fn look<T>(
        &self,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        self.look_in(&MODE, statement).await
    }

    /// Looks once, along an index even with wrong statistics. The statement must find its rows in the order of
    /// an index: to avoid a sort, Postgres would read a whole table in its order. Postgres ends the statement
    /// after `limit`, which is at most [`STATEMENT_TIMEOUT`].
    pub async fn look_by_index<T>(
        &self,
        limit: Duration,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let limit = limit.clamp(Duration::from_millis(1), STATEMENT_TIMEOUT);
        let mode = MODE.by_index().statement_timeout(limit);
        self.look_in(&mode, statement).await
    }

    async fn look_in<T>(
        &self,
        mode: &TransactionMode,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + DEADLINE;
        let mut transaction = DeadlineTransaction::begin(&self.pool, mode, deadline).await?;
        let outcome = transaction.run(statement).await.map_err(StoreError::from);
        // Only a connection that is rolled back is used again.
        if matches!(outcome, Ok(_) | Err(StoreError::TooSlow)) {
            transaction.rollback().await?;
        }
        outcome
    }

    /// Whether events can be read now.
    pub async fn probe(&self) -> Result<(), StoreError> {
        self.look(async |connection| {
            sqlx::query("select webhook_id from events limit 1")
                .execute(connection)
                .await
        })
        .await?;
        Ok(())
    }
}
