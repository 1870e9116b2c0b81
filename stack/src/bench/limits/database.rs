//! Only inserts.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::request::{body, webhook_id};
use crate::postgres::Postgres;

/// A separate database, so that the pipeline's tables are not touched.
const NAME: &str = "limits";
/// The workers' default.
const EVENTS_IN_BATCH: u64 = 500;
/// As many receipts as 64 connections bring into a batch.
const RECEIPTS_IN_BATCH: u64 = 64;
const INSERTERS: u32 = 4;
/// Stand-ins for a hash and a sort key, of the usual lengths.
const HASH: &[u8] = b"thirty-two bytes, as a hash has. ";
const SORT_KEY: &[u8] = b"a sort key of the usual length";

/// Receipts: what ingest commits for a batch, without waiting for the disk.
const RECEIPTS: &str = "
    insert into webhook_receipts (webhook_id, body_sha256, received_at, published_at)
    select id, $2, now(), now() from unnest($1::text[]) as r (id)
    on conflict do nothing";

/// What a worker commits for a batch.
const STORED: &str = "
    with event as (
        insert into events (webhook_id, event_type, received_at, payload, body_sha256)
        select id, 'v1.vendor.created', now(), body::jsonb, $3
          from unnest($1::text[], $2::text[]) as e (id, body)
        on conflict do nothing)
    insert into vendors (id, company_id, name, state, sort_key, webhook_id)
    select id, 'company', 'name', 'DRAFT', $4, id from unnest($1::text[]) as v (id)
    on conflict do nothing";

/// A database with the pipeline's schema and without rows.
#[derive(Debug, Clone)]
pub(super) struct Database {
    pool: PgPool,
}

#[derive(Debug, Clone, Copy)]
enum Insert {
    Receipts,
    Stored,
}

impl Database {
    pub(super) async fn create(postgres: &Postgres) -> Result<Self> {
        postgres.create_database(NAME).await?;
        let url = postgres.url(NAME);
        let mut connection = PgConnection::connect(&url).await?;
        migrations::MIGRATOR.run(&mut connection).await?;
        sqlx::raw_sql("truncate events, vendors, webhook_receipts")
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        let pool = PgPoolOptions::new()
            .max_connections(INSERTERS)
            .connect(&url)
            .await?;
        Ok(Self { pool })
    }

    /// Receipts per second, without waiting for the disk.
    pub(super) async fn receipts(&self, slice: Duration) -> Result<f64> {
        self.rate(Insert::Receipts, RECEIPTS_IN_BATCH, slice).await
    }

    /// Events with their vendors per second, on disk.
    pub(super) async fn stored(&self, slice: Duration) -> Result<f64> {
        self.rate(Insert::Stored, EVENTS_IN_BATCH, slice).await
    }

    /// The average seconds of committing one receipt, in sequence.
    pub(super) async fn lone(&self, times: u32) -> Result<f64> {
        let mut connection = self.connection(Insert::Receipts).await?;
        let start = Instant::now();
        for number in 0..times {
            // From the other end, where no earlier insert has been.
            let number = u64::MAX - 1 - u64::from(number);
            insert(&mut connection, Insert::Receipts, number..number + 1).await?;
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(times))
    }

    pub(super) async fn close(self) {
        self.pool.close().await;
    }

    async fn rate(&self, what: Insert, in_batch: u64, slice: Duration) -> Result<f64> {
        let next = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let mut inserters = JoinSet::new();
        for _ in 0..INSERTERS {
            let (this, next) = (self.clone(), Arc::clone(&next));
            inserters.spawn(async move {
                let mut connection = this.connection(what).await?;
                while start.elapsed() < slice {
                    let first = next.fetch_add(in_batch, Ordering::Relaxed);
                    insert(&mut connection, what, first..first + in_batch).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = inserters.join_next().await {
            ended??;
        }
        Ok(next.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
    }

    async fn connection(&self, what: Insert) -> Result<sqlx::pool::PoolConnection<sqlx::Postgres>> {
        let mut connection = self.pool.acquire().await?;
        let durability = match what {
            Insert::Receipts => "set synchronous_commit = off",
            Insert::Stored => "set synchronous_commit = on",
        };
        sqlx::raw_sql(durability).execute(&mut *connection).await?;
        Ok(connection)
    }
}

async fn insert(connection: &mut PgConnection, what: Insert, numbers: Range<u64>) -> Result<()> {
    let ids: Vec<String> = numbers.clone().map(webhook_id).collect();
    let query = match what {
        Insert::Receipts => sqlx::query(RECEIPTS).bind(ids).bind(HASH),
        Insert::Stored => {
            let bodies: Vec<String> = numbers.map(body).collect();
            let query = sqlx::query(STORED).bind(ids).bind(bodies);
            query.bind(HASH).bind(SORT_KEY)
        }
    };
    query.execute(connection).await?;
    Ok(())
}
