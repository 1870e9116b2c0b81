//! A network of its own for each machine of the cluster, joined by a bridge.
//!
//! The bridge is in the drill's own network namespace, so everything here ends with the drill.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The drill's own address on the bridge.
pub(super) const HUB: Ipv4Addr = Ipv4Addr::new(10, 83, 0, 1);
const BRIDGE: &str = "hub";
/// An address that no machine has.
const NOBODY: &str = "02:00:00:00:00:01";

/// One machine's connection to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    /// The machine's name, and that of its network namespace; at most 15 bytes long.
    pub(super) name: &'static str,
    /// Its only address.
    pub(super) address: Ipv4Addr,
}

/// Creates the bridge.
pub(super) fn create_bridge() -> Result<()> {
    ip("link set lo up")?;
    ip(&format!("link add name {BRIDGE} type bridge"))?;
    ip(&format!("link set {BRIDGE} up"))?;
    ip(&format!("address add {HUB}/24 dev {BRIDGE}"))
}

impl Link {
    /// Creates the machine's namespace and joins it to the bridge.
    pub(super) fn create(name: &'static str, number: u8) -> Result<Self> {
        let address = Ipv4Addr::new(10, 83, 0, number);
        ip(&format!("netns add {name}"))?;
        ip(&format!(
            "link add name {name} type veth peer name eth0 netns {name}"
        ))?;
        ip(&format!("link set {name} master {BRIDGE} up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} address add {address}/24 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        Ok(Self { name, address })
    }

    /// Unplugs the machine: packets to it and from it are dropped without an error.
    pub(super) fn cut(self) -> Result<()> {
        ip(&format!("link set {} down", self.name))
    }

    /// Plugs it in again.
    pub(super) fn join(self) -> Result<()> {
        ip(&format!("link set {} up", self.name))
    }

    /// Drops all packets between these two machines, in both directions.
    pub(super) fn cut_from(self, other: Self) -> Result<()> {
        for (from, to) in [(self, other), (other, self)] {
            ip(&format!(
                "-n {} neighbour replace {} lladdr {NOBODY} dev eth0 nud permanent",
                from.name, to.address
            ))?;
        }
        Ok(())
    }

    /// Ends [`Link::cut_from`].
    pub(super) fn join_with(self, other: Self) -> Result<()> {
        for (from, to) in [(self, other), (other, self)] {
            ip(&format!(
                "-n {} neighbour delete {} dev eth0",
                from.name, to.address
            ))?;
        }
        Ok(())
    }

    /// Arguments of `nsenter` that run a program in this network.
    pub(super) fn enter(self) -> [String; 2] {
        [format!("--net=/run/netns/{}", self.name), "--".to_owned()]
    }
}

fn ip(arguments: &str) -> Result<()> {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

/// Runs a program that takes milliseconds.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let command = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {}", command()))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        command(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
