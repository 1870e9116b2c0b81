//! Whether data that Postgres has committed survives a crash, and the loss of a disk.

use sqlx::PgConnection;

use super::finding::Finding;

const SETTINGS: &str = "durability";
const STANDBY: &str = "standby";

pub(super) async fn settings(postgres: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let (fsync, full_page_writes, synchronous_commit): (String, String, String) = sqlx::query_as(
        // The transaction of this query has set the last one itself.
        "select current_setting('fsync'), current_setting('full_page_writes'),
                (select reset_val from pg_settings where name = 'synchronous_commit')",
    )
    .fetch_one(postgres)
    .await?;
    let found = format!(
        "fsync {fsync}, full_page_writes {full_page_writes}, synchronous_commit \
         {synchronous_commit}"
    );
    Ok(vec![if fsync == "off" || full_page_writes == "off" {
        Finding::problem(
            SETTINGS,
            found,
            "set fsync and full_page_writes to on: after a crash of the host the database may be \
             damaged, and answered events gone",
        )
    } else if synchronous_commit == "off" {
        Finding::warning(
            SETTINGS,
            found,
            "set synchronous_commit to on: the services do so themselves where an event depends \
             on it, and nobody else who writes here does",
        )
    } else {
        Finding::ok(SETTINGS, found)
    }])
}

pub(super) async fn standby(postgres: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let names: String = sqlx::query_scalar("select current_setting('synchronous_standby_names')")
        .fetch_one(&mut *postgres)
        .await?;
    // Without the right to see them, the states are null.
    let states: Vec<Option<String>> =
        sqlx::query_scalar("select sync_state from pg_stat_replication")
            .fetch_all(postgres)
            .await?;
    let synchronous = states
        .iter()
        .flatten()
        .filter(|state| matches!(&***state, "sync" | "quorum"))
        .count();
    Ok(vec![if states.iter().any(Option::is_none) {
        Finding::skipped(
            STANDBY,
            "the user of DATABASE_URL is no member of pg_monitor",
        )
    } else if synchronous > 0 {
        Finding::ok(
            STANDBY,
            format!("{synchronous} synchronous of {}", states.len()),
        )
    } else if !names.is_empty() {
        Finding::problem(
            STANDBY,
            format!("{names} is to confirm each commit, and is not connected"),
            "bring the standby back: until then every commit waits, and ingest depends on RabbitMQ \
             alone",
        )
    } else {
        let found = match states.len() {
            0 => "there is none".to_owned(),
            asynchronous => format!("{asynchronous}, all asynchronous"),
        };
        Finding::warning(
            STANDBY,
            found,
            "add a standby to synchronous_standby_names: without one, the last events are only as \
             safe as this server's disk",
        )
    }])
}
