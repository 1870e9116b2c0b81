//! The secrets, as ingest would read them.

use super::finding::Finding;
use crate::secrets::SecretArgs;

const CHECK: &str = "secrets";

pub(super) fn check(args: &SecretArgs) -> Finding {
    let secrets = match args.read() {
        Ok(Some(secrets)) => secrets,
        Ok(None) => {
            return Finding::skipped(CHECK, "no WEBHOOK_SECRETS and no --webhook-secrets-file");
        }
        Err(error) => {
            return Finding::problem(
                CHECK,
                shared::reason::one_line(&error),
                "write them as name=whsec_…, one a line, each as Pleo shows it",
            );
        }
    };
    match secrets.development_secret() {
        Some(name) => Finding::problem(
            CHECK,
            format!("`{name}` is the development secret, which everybody knows"),
            "take it out: whoever knows it can send events",
        ),
        None => Finding::ok(CHECK, secrets.names().collect::<Vec<_>>().join(", ")),
    }
}
