//! The accounts that services run under, created by the real `hookctl setup`.

use std::path::Path;

use anyhow::{Result, ensure};
use hookctl::account;
use shared::Program;

use crate::process::{Process, Spec};
use crate::programs::Programs;
use crate::stores::{Login, OwnerUrls, Stores};

/// The prefix of the accounts' names, the same as the services' default.
const PREFIX: &str = "pleo";

/// An account for each service, with a random password.
#[derive(Debug, Clone)]
pub struct Accounts(Vec<(Program, Login)>);

impl Accounts {
    /// New passwords. They are valid after [`Accounts::set_up`].
    pub fn random() -> Self {
        Self(
            Program::ACCOUNTS
                .map(|program| {
                    let login = Login {
                        user: account::name(program, PREFIX),
                        password: format!("{:032x}", rand::random::<u128>()),
                    };
                    (program, login)
                })
                .into(),
        )
    }

    /// A service's account.
    pub fn login(&self, program: Program) -> Login {
        let found = self.0.iter().find(|(other, _)| *other == program);
        found
            .map(|(_, login)| login.clone())
            .expect("there is one for each program")
    }

    /// The passwords as `ACCOUNT_PASSWORDS` of `hookctl setup`.
    pub fn passwords(&self) -> String {
        let lines = (self.0.iter()).map(|(program, login)| format!("{program}={}", login.password));
        lines.collect::<Vec<_>>().join(",")
    }

    /// Runs `hookctl setup` as the stores' owner: schema, topology, accounts. Its output goes to a
    /// log in `folder`.
    ///
    /// # Errors
    /// With the end of that log when it fails.
    pub async fn set_up(&self, programs: &Programs, stores: &Stores, folder: &Path) -> Result<()> {
        self.set_up_at(programs, &stores.owner_urls()?, folder)
            .await
    }

    /// The same as [`Accounts::set_up`], for stores that the owner reaches at these addresses.
    ///
    /// # Errors
    /// As [`Accounts::set_up`].
    pub async fn set_up_at(
        &self,
        programs: &Programs,
        owner: &OwnerUrls,
        folder: &Path,
    ) -> Result<()> {
        let mut spec = Spec::new("hookctl setup", programs.hookctl())
            .args(["setup"])
            .env("DATABASE_URL", &owner.database)
            .env("AMQP_URL", &owner.amqp)
            .env("RABBITMQ_MANAGEMENT_URL", &owner.management)
            .env("TOPOLOGY_PREFIX", PREFIX)
            .env("ACCOUNT_PASSWORDS", self.passwords())
            .log(folder.join("hookctl-setup.log"));
        spec.clean_env = true;
        let process = Process::spawn(spec)?;
        ensure!(process.wait().await.success(), "{}", process.how_it_ended());
        Ok(())
    }
}
