//! Settings of the services' accounts that a transaction cannot override.

use sqlx::PgConnection;

use super::finding::Finding;
use crate::account_settings::hindrances;

pub(super) async fn check(
    postgres: &mut PgConnection,
    prefix: &str,
) -> Result<Vec<Finding>, sqlx::Error> {
    let hindrances = hindrances(postgres, prefix).await?;
    if hindrances.is_empty() {
        return Ok(vec![Finding::ok("settings", "hinder no account")]);
    }
    Ok(hindrances
        .into_iter()
        .map(|hindrance| {
            let check = format!("settings of {}", hindrance.account);
            match hindrance.stops {
                true => Finding::problem(check, hindrance.found, hindrance.remedy),
                false => Finding::warning(check, hindrance.found, hindrance.remedy),
            }
        })
        .collect())
}
