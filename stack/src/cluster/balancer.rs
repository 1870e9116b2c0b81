//! HAProxy in front of the brokers or the database.

use std::net::SocketAddr;

use anyhow::Result;

use super::database::PATRONI;
use super::network::Link;
use super::node::{File, Folders, Node, Setup};

const CONFIG: &str = "/etc/haproxy/haproxy.cfg";
const DEFAULTS: &str = "\
global
  maxconn 2000
defaults
  mode tcp
  timeout connect 2s
  timeout client 30m
  timeout server 30m
  timeout check 4s
  option clitcpka
  option srvtcpka
";

/// The servers that connections are spread over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Behind<'a> {
    /// Any of the brokers.
    Brokers(&'a [SocketAddr]),
    /// The server that Patroni reports as the primary.
    Primary(&'a [SocketAddr]),
}

/// A running balancer.
#[derive(Debug)]
pub struct Balancer {
    node: Node,
    port: u16,
}

impl Balancer {
    /// It uses the same port as the servers behind it.
    pub(super) fn start(
        folders: Folders<'_>,
        link: Link,
        hosts: &str,
        port: u16,
        behind: Behind<'_>,
    ) -> Result<Self> {
        let setup = Setup {
            files: vec![File {
                path: CONFIG,
                text: config(port, behind),
                owner: "haproxy",
            }],
            account: "haproxy",
            command: ["/usr/sbin/haproxy", "-db", "-f", CONFIG]
                .map(str::to_owned)
                .into(),
            env: Vec::new(),
        };
        let mut node = Node::new(folders, link, hosts, setup)?;
        node.boot()?;
        Ok(Self { node, port })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.node.socket(self.port)
    }

    /// Freezes it: connections stay open, new ones are accepted, and no data passes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> Result<()> {
        self.node.freeze()
    }

    /// Ends [`Balancer::freeze`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self) -> Result<()> {
        self.node.thaw()
    }
}

fn config(port: u16, behind: Behind<'_>) -> String {
    let (check, at, servers) = match behind {
        Behind::Brokers(servers) => ("  balance leastconn\n".to_owned(), String::new(), servers),
        Behind::Primary(servers) => (
            "  option httpchk OPTIONS /primary\n  http-check expect status 200\n".to_owned(),
            format!(" port {PATRONI}"),
            servers,
        ),
    };
    let mut config = format!("{DEFAULTS}listen stores\n  bind :{port}\n{check}");
    config.push_str("  default-server inter 1s fall 3 rise 2 on-marked-down shutdown-sessions\n");
    for (number, server) in (1..).zip(servers) {
        config.push_str(&format!("  server store-{number} {server} check{at}\n"));
    }
    config
}
