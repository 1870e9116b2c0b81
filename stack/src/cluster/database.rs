//! A pair of Postgres servers with automatic failover: Patroni on both, and etcd.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::network::Link;
use super::node::{File, Folders, Node, Setup};
use super::rest;
use crate::stores::Login;

pub(super) const NAMES: [&str; 2] = ["postgres-1", "postgres-2"];
pub(super) const ETCD: &str = "etcd";
pub(super) const POSTGRES: u16 = 5432;
pub(super) const PATRONI: u16 = 8008;
const READY_WITHIN: Duration = Duration::from_secs(120);
/// The primary's lease, 20 s, and then an election on a busy machine.
const FAILOVER_WITHIN: Duration = Duration::from_secs(90);

/// When the primary's commits return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// Always when the standby has them on disk.
    Synchronous,
    /// When the primary has them on disk. Commits that the standby does not have yet are lost with the
    /// primary.
    Asynchronous,
}

/// The two servers, by their index.
#[derive(Debug)]
pub struct Database {
    nodes: Vec<Node>,
    _etcd: Node,
    http: reqwest::Client,
    owner: Login,
}

impl Database {
    pub(super) async fn start(
        folders: Folders<'_>,
        etcd: Link,
        links: &[Link],
        hosts: &str,
        replication: Replication,
    ) -> Result<Self> {
        let owner = Login {
            user: "pleo".to_owned(),
            password: format!("{:032x}", rand::random::<u128>()),
        };
        let mut etcd = Node::new(folders, etcd, hosts, etcd_setup(etcd))?;
        etcd.boot()?;
        let bin = newest_bin(folders)?;
        let mut nodes = Vec::new();
        for link in links {
            let config = patroni_config(*link, etcd.link(), &bin, &owner, replication);
            let setup = Setup {
                files: vec![File {
                    path: "/etc/patroni.yml",
                    text: serde_json::to_string_pretty(&config)?,
                    owner: "postgres",
                }],
                account: "postgres",
                command: vec!["/usr/bin/patroni".to_owned(), "/etc/patroni.yml".to_owned()],
                env: vec![("HOME", "/var/lib/postgresql".to_owned())],
            };
            nodes.push(Node::new(folders, *link, hosts, setup)?);
        }
        let mut database = Self {
            nodes,
            _etcd: etcd,
            http: rest::client()?,
            owner,
        };
        for node in &mut database.nodes {
            node.boot()?;
        }
        database.until_whole(replication).await?;
        Ok(database)
    }

    /// The superuser.
    pub fn owner(&self) -> Login {
        self.owner.clone()
    }

    /// Both addresses.
    pub fn addresses(&self) -> Vec<std::net::SocketAddr> {
        self.nodes
            .iter()
            .map(|node| node.socket(POSTGRES))
            .collect()
    }

    /// The server that accepts writes.
    ///
    /// # Errors
    /// When there is no such server.
    pub async fn primary(&self) -> Result<usize> {
        for (index, node) in self.nodes.iter().enumerate() {
            if node.is_running() && rest::get(&self.http, &api(node, "primary")).await.is_ok() {
                return Ok(index);
            }
        }
        anyhow::bail!("no server is the primary")
    }

    /// Waits until this server is the primary.
    ///
    /// # Errors
    /// When it is not promoted in time.
    pub async fn until_primary(&self, index: usize) -> Result<()> {
        let node = &self.nodes[index];
        node.until("the primary", FAILOVER_WITHIN, async || {
            rest::get(&self.http, &api(node, "primary")).await.map(drop)
        })
        .await
    }

    /// Waits until there is a primary and the other server replicates it as required.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn until_whole(&self, replication: Replication) -> Result<()> {
        self.nodes[0]
            .until("in a pair", READY_WITHIN, async || {
                self.ensure_whole(replication).await
            })
            .await
    }

    async fn ensure_whole(&self, replication: Replication) -> Result<()> {
        let standby = other(self.primary().await?);
        let path = match replication {
            Replication::Synchronous => "synchronous",
            Replication::Asynchronous => "asynchronous",
        };
        let node = &self.nodes[standby];
        rest::get(&self.http, &api(node, path)).await.map(drop)
    }

    /// Switches a server off.
    ///
    /// # Errors
    /// When the network cannot be changed.
    pub fn switch_off(&self, index: usize) -> Result<()> {
        self.nodes[index].switch_off()
    }

    /// Switches a server on again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn boot(&mut self, index: usize) -> Result<()> {
        self.nodes[index].boot()
    }

    /// Takes a server off the network; its processes keep running.
    ///
    /// # Errors
    /// When the network cannot be changed.
    pub fn cut(&self, index: usize) -> Result<()> {
        self.nodes[index].link().cut()
    }

    /// Ends [`Database::cut`].
    ///
    /// # Errors
    /// When the network cannot be changed.
    pub fn join(&self, index: usize) -> Result<()> {
        self.nodes[index].link().join()
    }

    /// Restarts the server in order, without a failover.
    ///
    /// # Errors
    /// When it does not come up again.
    pub async fn restart(&self, index: usize) -> Result<()> {
        let url = api(&self.nodes[index], "restart");
        rest::post(&self.http, &url, &json!({}), READY_WITHIN).await
    }

    /// Destroys a server with its disk.
    ///
    /// # Errors
    /// When the disk cannot be removed.
    pub fn destroy(&self, index: usize) -> Result<()> {
        self.nodes[index].switch_off()?;
        self.nodes[index].wipe()
    }

    /// A planned switchover to the other server.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn switch_over(&self, from: usize) -> Result<()> {
        let to = other(from);
        let plan = json!({"leader": NAMES[from], "candidate": NAMES[to]});
        let url = api(&self.nodes[from], "switchover");
        rest::post(&self.http, &url, &plan, FAILOVER_WITHIN).await?;
        self.until_primary(to).await
    }

    /// Promotes this server although it may not have the lost primary's last commits. Only an operator can
    /// decide that.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn fail_over_to(&self, index: usize) -> Result<()> {
        let node = &self.nodes[index];
        let plan = json!({"candidate": NAMES[index]});
        let url = api(node, "failover");
        node.until("the primary", FAILOVER_WITHIN, async || {
            // Patroni refuses while the lost primary's lease lasts.
            let asked = rest::post(&self.http, &url, &plan, Duration::from_secs(20)).await;
            let promoted = rest::get(&self.http, &api(node, "primary")).await;
            promoted
                .map(drop)
                .or(asked.and(Err(anyhow::anyhow!("it is still being promoted"))))
        })
        .await
    }
}

/// The index of the other server.
pub fn other(index: usize) -> usize {
    1 - index
}

fn api(node: &Node, path: &str) -> String {
    format!("http://{}/{path}", node.socket(PATRONI))
}

fn etcd_setup(link: Link) -> Setup {
    let command = [
        "/usr/bin/etcd",
        "--name=etcd",
        "--data-dir=/var/lib/etcd/data",
        "--listen-client-urls=http://0.0.0.0:2379",
        // Long timeouts, because the processors are busy during a drill.
        "--heartbeat-interval=500",
        "--election-timeout=5000",
        "--unsafe-no-fsync",
    ];
    let advertised = format!("--advertise-client-urls=http://{}:2379", link.address);
    Setup {
        files: Vec::new(),
        account: "etcd",
        command: command
            .map(str::to_owned)
            .into_iter()
            .chain([advertised])
            .collect(),
        env: Vec::new(),
    }
}

/// The programs of the newest Postgres in the root.
fn newest_bin(folders: Folders<'_>) -> Result<String> {
    let versions = std::fs::read_dir(folders.root.join("usr/lib/postgresql"))?;
    let newest = versions
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .max();
    let newest = newest.context("there is no postgres in the Debian root")?;
    ensure!(newest >= 15, "postgres {newest} is too old");
    Ok(format!("/usr/lib/postgresql/{newest}/bin"))
}

/// Patroni's settings; JSON is YAML. Lease and waits are the shortest that Patroni accepts, to make drills
/// shorter.
fn patroni_config(
    link: Link,
    etcd: Link,
    bin: &str,
    owner: &Login,
    replication: Replication,
) -> Value {
    let synchronous = replication == Replication::Synchronous;
    let login = |user: &str| json!({"username": user, "password": owner.password});
    json!({
        "scope": "pleo",
        "name": link.name,
        "restapi": {
            "listen": format!("0.0.0.0:{PATRONI}"),
            "connect_address": format!("{}:{PATRONI}", link.address),
        },
        "etcd3": {"hosts": [format!("{}:2379", etcd.address)]},
        "bootstrap": {
            "dcs": {
                "ttl": 20,
                "loop_wait": 4,
                "retry_timeout": 6,
                "maximum_lag_on_failover": 100 << 20,
                "synchronous_mode": synchronous,
                // Without it Patroni stops waiting when the standby is away.
                "synchronous_mode_strict": synchronous,
                "postgresql": {
                    "use_pg_rewind": true,
                    "parameters": {
                        "max_connections": 200,
                        "wal_sender_timeout": "10s",
                        "wal_receiver_timeout": "10s",
                        "max_wal_size": "256MB",
                        // Processes are killed here, and not the machine below them.
                        "fsync": "off",
                        "wal_log_hints": "on",
                        "timezone": "UTC",
                    },
                },
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "no-sync"],
        },
        "postgresql": {
            "listen": format!("0.0.0.0:{POSTGRES}"),
            "connect_address": format!("{}:{POSTGRES}", link.address),
            "data_dir": "/var/lib/postgresql/pleo",
            "bin_dir": bin,
            "pgpass": "/tmp/pgpass",
            "authentication": {
                "superuser": login(&owner.user),
                "replication": login("replicator"),
            },
            "parameters": {"unix_socket_directories": "/tmp"},
            // If a former primary cannot be rewound, it is copied again.
            "remove_data_directory_on_rewind_failure": true,
            "remove_data_directory_on_diverged_timelines": true,
            "pg_hba": [
                "local all all scram-sha-256",
                "host replication replicator 0.0.0.0/0 scram-sha-256",
                "host all all 0.0.0.0/0 scram-sha-256",
            ],
        },
        "watchdog": {"mode": "off"},
    })
}
