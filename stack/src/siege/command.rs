//! All attacks in every way, one after the other, each on an ingest service of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use shared::Program;

use super::{Attack, Entrance, Line, Report, Target, besiege, secrets};
use crate::accounts::Accounts;
use crate::data_folder::DataFolder;
use crate::haproxy::HaProxy;
use crate::packages::Packages;
use crate::postgres::Durability;
use crate::programs::Programs;
use crate::progress::Progress;
use crate::service::Launcher;
use crate::stores::{Addresses, Stores};

const READY_WITHIN: Duration = Duration::from_secs(60);
/// For connections without a deadline when an ingest service is stopped.
const STOPPED_WITHIN: Duration = Duration::from_secs(40);

/// Options of a siege.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How long senders are measured, for each attack and way.
    pub during: Duration,
    /// The attacks, besides a measurement without an attack.
    pub attacks: Vec<Attack>,
}

/// Runs the plan; the services' logs go to `folder`.
///
/// # Errors
/// When a process does not start. What senders notice is not an error.
pub async fn run(
    packages: &Packages,
    programs: Programs,
    folder: &Path,
    plan: &Plan,
    progress: Progress,
) -> Result<Report> {
    let step = progress.step("starting the stores");
    let base = DataFolder::temporary()?;
    let stores = Stores::start(packages, &base, Addresses::free()?, Durability::Full).await?;
    let accounts = Accounts::random();
    accounts.set_up(&programs, &stores, folder).await?;
    let launcher = Launcher::new(programs, &stores, folder)
        .under(&accounts)
        .env("WEBHOOK_SECRETS", secrets());
    step.done("the stores are up");
    let mut lines = Vec::new();
    let attacks = plan.attacks.iter().copied().map(Some);
    for attack in std::iter::once(None).chain(attacks) {
        let name = attack.map_or("no attack", Attack::name);
        for entrance in Entrance::ALL {
            let step = progress.step(format!("{name}, {}", entrance.name()));
            let ingest = launcher.start(Program::Ingest, "ingest")?;
            ingest.ready(READY_WITHIN).await?;
            let proxy = HaProxy::start(folder, ingest.public(), ingest.private_address()).await?;
            let target = Target {
                entrance,
                address: match entrance {
                    Entrance::Direct => ingest.public(),
                    Entrance::Proxy => proxy.address(),
                    Entrance::Terminator => proxy.behind_terminator(),
                },
            };
            let seen = besiege(target, attack, plan.during).await?;
            step.done(&format!("{name}, {}: {seen}", entrance.name()));
            lines.push(Line {
                attack,
                entrance: entrance.name(),
                seen,
            });
            drop(proxy);
            ingest.stop(STOPPED_WITHIN).await?;
        }
    }
    Ok(Report { lines })
}
