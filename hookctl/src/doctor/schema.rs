//! The schema: the applied migrations against those in this program.

use migrations::MIGRATOR;
use sqlx::PgConnection;

use super::finding::Finding;

const CHECK: &str = "schema";
const UPGRADE: &str = "run `hookctl setup` of the version that the services have, as the owner of \
                       the database; workers with MIGRATE=true do it as well";

#[derive(sqlx::FromRow)]
struct Applied {
    version: i64,
    success: bool,
    checksum: Vec<u8>,
}

pub(super) async fn check(postgres: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(&mut *postgres)
        .await?;
    if !exists {
        return Ok(vec![Finding::problem(CHECK, "there is none", UPGRADE)]);
    }
    let applied: Vec<Applied> =
        sqlx::query_as("select version, success, checksum from _sqlx_migrations order by version")
            .fetch_all(postgres)
            .await?;
    Ok(vec![judge(&applied)])
}

fn judge(applied: &[Applied]) -> Finding {
    let newest = applied.last().map_or(0, |applied| applied.version);
    if let Some(half) = applied.iter().find(|applied| !applied.success) {
        return Finding::problem(
            CHECK,
            format!("migration {} was broken off", half.version),
            "undo by hand what it did, delete its row in _sqlx_migrations, and run `hookctl setup`",
        );
    }
    let mut missing = Vec::new();
    for known in MIGRATOR.iter() {
        match applied
            .iter()
            .find(|applied| applied.version == known.version)
        {
            None => missing.push(known.version.to_string()),
            Some(applied) if applied.checksum != *known.checksum => {
                return Finding::problem(
                    CHECK,
                    format!("migration {} was applied with another text", known.version),
                    "find out which build applied it: no migration changes after its release",
                );
            }
            Some(_) => {}
        }
    }
    let known = MIGRATOR
        .iter()
        .map(|known| known.version)
        .max()
        .unwrap_or(0);
    if !missing.is_empty() {
        Finding::problem(
            CHECK,
            format!("behind: lacks migration {}", missing.join(", ")),
            UPGRADE,
        )
    } else if newest > known {
        Finding::warning(
            CHECK,
            format!("ahead: is at migration {newest}, this hookctl knows {known}"),
            "use the hookctl of the newest service",
        )
    } else {
        Finding::ok(CHECK, format!("up to date, migration {newest}"))
    }
}
