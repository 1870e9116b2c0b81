//! Both stores, which are started in parallel.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use crate::data_folder::DataFolder;
use crate::packages::Packages;
use crate::ports;
use crate::postgres::{self, Durability, Postgres};
use crate::rabbitmq::{self, Plugins, RabbitMq};

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

/// A user of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// A password that needs no escaping in a URL.
    pub password: String,
}

/// The addresses of the stores.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Address of Postgres.
    pub postgres: SocketAddr,
    /// Address for AMQP.
    pub amqp: SocketAddr,
}

impl Addresses {
    /// Free ports.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn free() -> Result<Self> {
        Ok(Self {
            postgres: ports::free()?,
            amqp: ports::free()?,
        })
    }
}

/// How clients reach the stores: a host and port, or several separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    /// For Postgres.
    pub postgres: String,
    /// For AMQP.
    pub amqp: String,
}

impl Hosts {
    /// One address for each store.
    pub fn one(postgres: SocketAddr, amqp: SocketAddr) -> Self {
        Self {
            postgres: postgres.to_string(),
            amqp: amqp.to_string(),
        }
    }

    /// A `DATABASE_URL` for [`DATABASE`] on these hosts.
    pub fn database_url(&self, login: &Login) -> String {
        postgres::url(&self.postgres, login, DATABASE)
    }

    /// An `AMQP_URL` for the default virtual host on these hosts.
    pub fn amqp_url(&self, login: &Login) -> String {
        rabbitmq::url(&self.amqp, login)
    }
}

impl From<Addresses> for Hosts {
    fn from(addresses: Addresses) -> Self {
        Self::one(addresses.postgres, addresses.amqp)
    }
}

/// The addresses with which the owner of both stores reaches them, for `hookctl`.
#[derive(Debug, Clone)]
pub struct OwnerUrls {
    /// `DATABASE_URL`.
    pub database: String,
    /// `AMQP_URL`.
    pub amqp: String,
    /// `RABBITMQ_MANAGEMENT_URL`.
    pub management: String,
}

impl Stores {
    /// Starts both, with their data in `base`.
    ///
    /// # Errors
    /// When one does not come up; the other is killed then.
    pub async fn start(
        packages: &Packages,
        base: &DataFolder,
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
        let rabbitmq = RabbitMq::start(packages, &folder, addresses.amqp, Plugins::Management);
        let (postgres, rabbitmq) = tokio::try_join!(postgres, rabbitmq)?;
        Ok(Self { postgres, rabbitmq })
    }

    /// The addresses that they listen on.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            postgres: self.postgres.address(),
            amqp: self.rabbitmq.address(),
        }
    }

    /// `DATABASE_URL` of the owner, a superuser.
    pub fn database_url(&self) -> String {
        self.postgres.url(DATABASE)
    }

    /// `AMQP_URL` of the administrator.
    pub fn amqp_url(&self) -> String {
        self.rabbitmq.amqp_url()
    }

    /// All three addresses for the owner.
    ///
    /// # Errors
    /// As [`Stores::management_url`].
    pub fn owner_urls(&self) -> Result<OwnerUrls> {
        Ok(OwnerUrls {
            database: self.database_url(),
            amqp: self.amqp_url(),
            management: self.management_url()?,
        })
    }

    /// `RABBITMQ_MANAGEMENT_URL`: the broker's HTTP API.
    ///
    /// # Errors
    /// When the broker runs without it; [`Stores::start`] always starts it with the API.
    pub fn management_url(&self) -> Result<String> {
        let address = self.rabbitmq.management();
        address
            .map(|address| format!("http://{address}"))
            .context("the broker runs without its management")
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
