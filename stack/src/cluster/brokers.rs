//! Three brokers, each on a machine of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::network::Link;
use super::node::{File, Folders, Node, Setup};
use super::rest;
use crate::rabbitmq::{self, COUNT_MESSAGES};

pub(super) const NAMES: [&str; 3] = ["broker-1", "broker-2", "broker-3"];
pub(super) const AMQP: u16 = 5672;
const MANAGEMENT: u16 = 15672;
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
const READY_WITHIN: Duration = Duration::from_secs(180);
const COOKIE: &str = "PLEODRILL";
/// A node that is silent for twelve seconds counts as down; the default of a minute would only make drills
/// longer. Two scheduler threads that sleep when idle.
const VM_ARGS: &str = "+S 2:2 +sbwt none +stbt u -kernel net_ticktime 10";
const CONFIG: &str = "\
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = rabbit@broker-1
cluster_formation.classic_config.nodes.2 = rabbit@broker-2
cluster_formation.classic_config.nodes.3 = rabbit@broker-3
cluster_partition_handling = pause_minority
queue_leader_locator = balanced
loopback_users.guest = false
raft.wal_max_size_bytes = 67108864
disk_free_limit.absolute = 64MB
log.console = true
log.console.level = info
";

/// What a broker does when it sees only a minority of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartitionHandling {
    /// It continues. Its queues have their majority elsewhere, so it cannot confirm anything.
    Ignore,
    /// It closes its ports until it sees the majority again.
    PauseMinority,
}

/// The brokers, by their index.
#[derive(Debug)]
pub struct Brokers {
    nodes: Vec<Node>,
    http: reqwest::Client,
}

impl Brokers {
    pub(super) async fn start(folders: Folders<'_>, links: &[Link], hosts: &str) -> Result<Self> {
        let nodes = links.iter().map(|link| {
            let file = |path, text: &str, owner| File {
                path,
                text: text.to_owned(),
                owner,
            };
            let setup = Setup {
                files: vec![
                    file("/etc/rabbitmq/rabbitmq.conf", CONFIG, "rabbitmq"),
                    file(
                        "/etc/rabbitmq/enabled_plugins",
                        "[rabbitmq_management].",
                        "rabbitmq",
                    ),
                    file("/var/lib/rabbitmq/.erlang.cookie", COOKIE, "rabbitmq"),
                ],
                account: "rabbitmq",
                command: vec![format!("{PROGRAMS}/rabbitmq-server")],
                env: vec![
                    ("HOME", "/var/lib/rabbitmq".to_owned()),
                    ("RABBITMQ_LOGS", "-".to_owned()),
                    // Makes the script exec the Erlang VM.
                    ("RUNNING_UNDER_SYSTEMD", "true".to_owned()),
                    ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", VM_ARGS.to_owned()),
                ],
            };
            Node::new(folders, *link, hosts, setup)
        });
        let mut brokers = Self {
            nodes: nodes.collect::<Result<_>>()?,
            http: rest::client()?,
        };
        for node in &mut brokers.nodes {
            node.boot()?;
        }
        for index in 0..NAMES.len() {
            brokers.ready(index).await?;
        }
        brokers.until_whole(READY_WITHIN).await?;
        Ok(brokers)
    }

    /// The addresses for AMQP.
    pub fn addresses(&self) -> Vec<std::net::SocketAddr> {
        self.nodes.iter().map(|node| node.socket(AMQP)).collect()
    }

    /// The address of one broker's management API.
    pub fn management_url(&self) -> String {
        format!("http://{}", self.nodes[0].socket(MANAGEMENT))
    }

    /// The broker that leads the queue.
    ///
    /// # Errors
    /// When no broker can answer.
    pub async fn leader(&self, queue: &str) -> Result<usize> {
        let queue = self.ask(&format!("queues/%2F/{queue}")).await?;
        let leader = queue["leader"]
            .as_str()
            .context("the queue has no leader")?;
        index_of(leader)
    }

    /// The broker with the most clients.
    ///
    /// # Errors
    /// As [`Brokers::leader`].
    pub async fn connected(&self) -> Result<usize> {
        let connections = self.ask("connections").await?;
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for connection in connections.as_array().context("no list of connections")? {
            if let Some(node) = connection["node"].as_str() {
                *counts.entry(index_of(node)?).or_default() += 1;
            }
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        most.map(|(index, _)| index).context("nobody is connected")
    }

    /// Waits until every broker sees all three, and every queue has all its members.
    ///
    /// Brokers that ignore partitions may notice one only after they see each other again, and it then
    /// stays. RabbitMQ's documentation asks operators to restart one side, so this function does that.
    ///
    /// # Errors
    /// When that takes too long; the error says what is missing.
    pub async fn until_whole(&mut self, within: Duration) -> Result<()> {
        while let Some(index) = self.until_whole_or_partitioned(within).await? {
            self.boot(index)?;
            self.ready(index).await?;
        }
        Ok(())
    }

    /// The broker to restart, if there is a partition.
    async fn until_whole_or_partitioned(&self, within: Duration) -> Result<Option<usize>> {
        let node = &self.nodes[0];
        node.until("in a whole cluster", within, async || {
            match self.most_partitioned().await? {
                Some(index) => Ok(Some(index)),
                None => self.ensure_whole().await.map(|()| None),
            }
        })
        .await
    }

    /// The broker that is partitioned from most others: the minority, if there is one.
    async fn most_partitioned(&self) -> Result<Option<usize>> {
        let nodes = self.ask("nodes").await?;
        let most = nodes
            .as_array()
            .into_iter()
            .flatten()
            .map(|node| (partitions(node), &node["name"]))
            .filter(|(partitions, _)| *partitions > 0)
            .max_by_key(|(partitions, _)| *partitions);
        most.map(|(_, name)| index_of(name.as_str().unwrap_or_default()))
            .transpose()
    }

    async fn ensure_whole(&self) -> Result<()> {
        for node in &self.nodes {
            let nodes = rest::get(&self.http, &api(node, "nodes")).await?;
            let running = |node: &&Value| node["running"] == true && partitions(node) == 0;
            let seen = nodes
                .as_array()
                .map_or(0, |nodes| nodes.iter().filter(running).count());
            ensure!(seen == NAMES.len(), "{} sees {seen} brokers", node.name());
        }
        for queue in self.ask("queues").await?.as_array().into_iter().flatten() {
            let online = queue["online"].as_array().map_or(0, Vec::len);
            ensure!(
                online == NAMES.len(),
                "{} has {online} members online",
                queue["name"]
            );
        }
        Ok(())
    }

    /// Messages in all queues.
    ///
    /// # Errors
    /// When the first broker cannot answer.
    pub async fn queued(&self) -> Result<u64> {
        let listed = self.ctl(0, &COUNT_MESSAGES).await?;
        rabbitmq::sum_of_counts(&listed)
    }

    /// Kills a broker.
    pub fn kill(&self, index: usize) {
        self.nodes[index].kill();
    }

    /// Starts a killed broker; see [`Brokers::ready`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn boot(&mut self, index: usize) -> Result<()> {
        self.nodes[index].boot()
    }

    /// Waits until the broker accepts clients.
    ///
    /// # Errors
    /// When it ends or takes too long.
    pub async fn ready(&self, index: usize) -> Result<()> {
        let node = &self.nodes[index];
        node.until("ready", READY_WITHIN, async || {
            rabbitmq::handshake(node.socket(AMQP)).await
        })
        .await
    }

    /// Drains and restarts all brokers, one after the other, as in an upgrade.
    ///
    /// # Errors
    /// When one does not stop or does not come up.
    pub async fn roll(&mut self) -> Result<()> {
        for index in 0..NAMES.len() {
            self.nodes[index]
                .run(&[&program("rabbitmq-upgrade"), "drain"])
                .await?;
            let shutdown = program("rabbitmqctl");
            self.nodes[index]
                .stop(&[&shutdown, "shutdown", "--no-wait"])
                .await?;
            self.boot(index)?;
            self.ready(index).await?;
            // Stopping the next broker must not take away a queue's majority.
            self.until_whole(READY_WITHIN).await?;
        }
        Ok(())
    }

    /// Changes from now on what all brokers do in a partition.
    ///
    /// # Errors
    /// When a broker cannot be reached.
    pub async fn set_partition_handling(&self, handling: PartitionHandling) -> Result<()> {
        let handling = match handling {
            PartitionHandling::Ignore => "ignore",
            PartitionHandling::PauseMinority => "pause_minority",
        };
        let set = format!(
            "rpc:multicall([node()|nodes()],application,set_env,[rabbit,cluster_partition_handling,{handling}])."
        );
        self.ctl(0, &["eval", &set]).await.map(drop)
    }

    /// Cuts a broker off from the two others; clients reach it.
    ///
    /// # Errors
    /// When the network cannot be changed.
    pub fn cut_from_peers(&self, index: usize) -> Result<()> {
        self.for_peers(index, Link::cut_from)
    }

    /// Ends [`Brokers::cut_from_peers`].
    ///
    /// # Errors
    /// When the network cannot be changed.
    pub fn join_peers(&self, index: usize) -> Result<()> {
        self.for_peers(index, Link::join_with)
    }

    /// Cuts a broker off the network.
    ///
    /// # Errors
    /// When the network cannot be changed.
    pub fn cut(&self, index: usize) -> Result<()> {
        self.nodes[index].link().cut()
    }

    /// Ends [`Brokers::cut`].
    ///
    /// # Errors
    /// When the network cannot be changed.
    pub fn join(&self, index: usize) -> Result<()> {
        self.nodes[index].link().join()
    }

    /// Waits until the broker, which was cut off, sees the others again. If brokers ignore partitions, the
    /// partition stays, and RabbitMQ's documentation asks operators to restart the minority.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn end_partition(&mut self, index: usize) -> Result<()> {
        let node = &self.nodes[index];
        let partitioned = node
            .until("back", READY_WITHIN, async || {
                self.is_partitioned(index).await
            })
            .await?;
        if partitioned {
            self.boot(index)?;
        }
        self.ready(index).await
    }

    /// An error means that it is not known yet.
    async fn is_partitioned(&self, index: usize) -> Result<bool> {
        let nodes = rest::get(&self.http, &api(&self.nodes[index], "nodes")).await?;
        let nodes = nodes.as_array().context("no list of nodes")?;
        let partitioned = nodes.iter().any(|node| partitions(node) > 0);
        let all_run = nodes.iter().all(|node| node["running"] == true);
        ensure!(partitioned || all_run, "it does not see all brokers");
        Ok(partitioned)
    }

    fn for_peers(&self, index: usize, change: fn(Link, Link) -> Result<()>) -> Result<()> {
        for (other, node) in self.nodes.iter().enumerate() {
            if other != index {
                change(self.nodes[index].link(), node.link())?;
            }
        }
        Ok(())
    }

    async fn ctl(&self, index: usize, arguments: &[&str]) -> Result<String> {
        let ctl = program("rabbitmqctl");
        let command: Vec<&str> = [ctl.as_str(), "--quiet"]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        self.nodes[index].run(&command).await
    }

    /// Asks the first broker that answers.
    async fn ask(&self, path: &str) -> Result<Value> {
        let mut failed = None;
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            match rest::get(&self.http, &api(node, path)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.context("no broker runs")?)
    }
}

fn program(name: &str) -> String {
    format!("{PROGRAMS}/{name}")
}

fn api(node: &Node, path: &str) -> String {
    format!("http://guest:guest@{}/api/{path}", node.socket(MANAGEMENT))
}

/// From how many others a broker is partitioned.
fn partitions(node: &Value) -> usize {
    node["partitions"].as_array().map_or(0, Vec::len)
}

fn index_of(node: &str) -> Result<usize> {
    NAMES
        .iter()
        .position(|name| node.strip_prefix("rabbit@") == Some(name))
        .with_context(|| format!("{node} is no broker of the cluster"))
}
