//! Both stores, which start side by side.

use std::net::SocketAddr;

use anyhow::Result;

use crate::base::Base;
use crate::packages::Packages;
use crate::ports;
use crate::postgres::{Durability, Postgres};
use crate::rabbitmq::{Plugins, RabbitMq};

/// The database that the services use.
pub const DATABASE: &str = "pleo";

/// A private Postgres, with an empty or older database [`DATABASE`], and a private RabbitMQ.
#[derive(Debug)]
pub struct Stores {
    /// The database server.
    pub postgres: Postgres,
    /// The broker.
    pub rabbitmq: RabbitMq,
}

/// Where the stores listen.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Address of Postgres.
    pub postgres: SocketAddr,
    /// Address for AMQP.
    pub amqp: SocketAddr,
}

impl Addresses {
    /// On any free ports.
    ///
    /// # Errors
    /// When there are none.
    pub fn free() -> Result<Self> {
        Ok(Self {
            postgres: ports::free()?,
            amqp: ports::free()?,
        })
    }
}

impl Stores {
    /// Starts both, with their data in `base`.
    ///
    /// # Errors
    /// When one does not come up; the other is killed then.
    pub async fn start(
        packages: &Packages,
        base: &Base,
        addresses: Addresses,
        durability: Durability,
    ) -> Result<Self> {
        let postgres = async {
            let folder = base.path().join("postgres");
            let server = Postgres::start(packages, &folder, addresses.postgres, durability).await?;
            server.create_database(DATABASE).await?;
            Ok(server)
        };
        let folder = base.path().join("rabbitmq");
        let rabbitmq = RabbitMq::start(packages, &folder, addresses.amqp, Plugins::None);
        let (postgres, rabbitmq) = tokio::try_join!(postgres, rabbitmq)?;
        Ok(Self { postgres, rabbitmq })
    }

    /// Value for the services' `DATABASE_URL`.
    pub fn database_url(&self) -> String {
        self.postgres.url(DATABASE)
    }

    /// Value for the services' `AMQP_URL`.
    pub fn amqp_url(&self) -> String {
        self.rabbitmq.amqp_url()
    }

    /// Stops both in order.
    ///
    /// # Errors
    /// When one had to be killed.
    pub async fn stop(&self) -> Result<()> {
        let (postgres, rabbitmq) = tokio::join!(self.postgres.stop(), self.rabbitmq.stop());
        postgres.and(rabbitmq)
    }
}
