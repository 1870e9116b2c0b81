//! The secrets, read as ingest reads them.

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
    if let Some(name) = secrets.development_secret() {
        return Finding::problem(
            CHECK,
            format!("`{name}` is the development secret, which everybody knows"),
            "take it out: whoever knows it can send events",
        );
    }
    let untied = secrets.left_untied();
    if !untied.is_empty() {
        return Finding::warning(
            CHECK,
            format!(
                "some are tied to companies, and others speak for every company: {}",
                untied.join(", ")
            ),
            "tie them as well: name=whsec_… company=ID",
        );
    }
    let names = secrets.names().collect::<Vec<_>>().join(", ");
    Finding::ok(
        CHECK,
        match secrets.tied() {
            0 => names,
            _ => format!("{names}; all tied to companies"),
        },
    )
}
