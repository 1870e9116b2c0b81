//! A standby of a private server, with streaming replication.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep};

use super::data::{ROLE, as_account, give, spawn};
use super::{Postgres, READY_WITHIN};
use crate::data_folder;
use crate::process::Process;

/// The name by which the primary knows the standby.
const NAME: &str = "standby";

impl Postgres {
    /// Copies this server to `folder`, starts the copy as a standby on `address` and waits until it
    /// answers.
    ///
    /// # Errors
    /// When the copy cannot be made, or with the end of the standby's log when it does not come up.
    pub async fn standby(&self, folder: &Path, address: SocketAddr) -> Result<Self> {
        data_folder::create(folder)?;
        let data = folder.join("data");
        let source = format!(
            "host={} port={} user={ROLE} password={} application_name={NAME}",
            self.address.ip(),
            self.address.port(),
            self.password
        );
        data_folder::create(&data)?;
        give(&data, 0o700, &self.packages)?;
        let copy = as_account(&self.packages, "pg_basebackup", folder)
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .args(["--dbname".to_owned(), source])
            .args(["-D".into(), data.into_os_string()]);
        let process = Process::spawn(copy)?;
        if !process.wait().await.success() {
            bail!("cannot copy the primary: {}", process.how_it_ended());
        }
        let process = spawn(folder, &self.packages, address, self.durability)?;
        let mut standby = Self {
            folder: folder.into(),
            packages: self.packages.clone(),
            address,
            durability: self.durability,
            password: self.password.clone(),
            process,
        };
        standby.until_ready().await?;
        Ok(standby)
    }

    /// Makes every commit wait for the standby, or for none.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn wait_for_standby(&self, wait: bool) -> Result<()> {
        let names = if wait { NAME } else { "" };
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        for statement in [
            format!("alter system set synchronous_standby_names = '{names}'"),
            "select pg_reload_conf()".to_owned(),
        ] {
            sqlx::raw_sql(AssertSqlSafe(statement))
                .execute(&mut connection)
                .await?;
        }
        let end = Instant::now() + READY_WITHIN;
        loop {
            let reached: bool = sqlx::query_scalar(
                "select current_setting('synchronous_standby_names') = $1
                    and ($1 = '' or exists (select from pg_stat_replication
                                             where sync_state = 'sync' and state = 'streaming'))",
            )
            .bind(names)
            .fetch_one(&mut connection)
            .await?;
            if reached {
                return connection
                    .close()
                    .await
                    .context("cannot close the connection");
            }
            if Instant::now() > end {
                bail!("the standby does not become synchronous");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Promotes this standby.
    ///
    /// # Errors
    /// When it is not a standby, or the promotion fails.
    pub async fn promote(&self) -> Result<()> {
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        let promoted: bool = sqlx::query_scalar("select pg_promote()")
            .fetch_one(&mut connection)
            .await?;
        ensure!(promoted, "the standby does not become a primary in time");
        Ok(())
    }
}
