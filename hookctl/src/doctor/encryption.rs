//! Whether TLS, if it is asked for, protects against another server that impersonates Postgres.

use shared::database::DatabaseUrl;

use super::finding::Finding;

const CHECK: &str = "tls of postgres";

/// No finding if the address does not ask for TLS, or stays on this machine.
pub(super) fn check(database: &DatabaseUrl) -> Option<Finding> {
    let (mode, hosts) = database.unverified_hosts()?;
    let unverified = match mode {
        "verify-ca" => "any server with a certificate of the authority is taken for it",
        "require" => "any server with any certificate is taken for it",
        _ => "any server is taken for it, also one without TLS",
    };
    Some(Finding::warning(
        CHECK,
        format!("sslmode={mode} for {}: {unverified}", hosts.join(", ")),
        "let DATABASE_URL say sslmode=verify-full, with sslrootcert=<file> for an authority of your \
         own, and give each server a certificate for the name in DATABASE_URL (docs/tls.md)",
    ))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("postgres://u@h/d", None)]
    #[case("postgres://u@h/d?sslmode=disable", None)]
    #[case("postgres://u@h/d?sslmode=verify-full", None)]
    #[case(
        "postgres://u@localhost,127.0.0.1,[::1],%2Frun%2Fpg/d?sslmode=require",
        None
    )]
    #[case("postgres://u@h/d?sslmode=prefer", Some("also one without TLS"))]
    #[case("postgres://u@h/d?sslmode=require", Some("any certificate"))]
    #[case(
        "postgres://u@localhost,h/d?sslmode=verify-ca",
        Some("for h: any server")
    )]
    #[case(
        "postgres://u@h/d?sslmode=require&sslrootcert=ca.pem",
        Some("verify-ca")
    )]
    fn only_unverified_tls_over_a_network_is_warned_of(
        #[case] url: &str,
        #[case] expected: Option<&str>,
    ) {
        let finding = check(&DatabaseUrl::parse(url).expect("valid"));
        let finding = finding.map(|finding| format!("{finding:?}"));
        assert_eq!(finding.is_some(), expected.is_some(), "{finding:?}");
        let found = finding.unwrap_or_default();
        assert!(found.contains(expected.unwrap_or_default()), "{found}");
    }
}
