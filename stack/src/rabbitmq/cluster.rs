//! Several private brokers on this host that form one cluster.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Plugins, RabbitMq, start_mapper, started_once};
use crate::packages::Packages;
use crate::process::Process;
use crate::{data_folder, ports};

/// The cluster's nodes, all on loopback. The others have joined the first one.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<RabbitMq>,
    _mapper: Process,
}

impl Cluster {
    /// Starts `size` brokers with their data in `folder`, and joins them.
    ///
    /// # Errors
    /// When one does not come up or does not join.
    pub async fn start(packages: &Packages, folder: &Path, size: usize) -> Result<Self> {
        data_folder::create(folder)?;
        let (mapper, mapper_address) = start_mapper(packages, folder)?;
        let cookie = format!("{:032x}", rand::random::<u128>());
        let mut nodes = Vec::new();
        for number in 1..=size {
            let folder = folder.join(format!("node-{number}"));
            data_folder::create(&folder)?;
            give_cookie(&folder, &cookie).context("cannot write the cookie")?;
            let name = format!("stack-{number}@localhost");
            nodes.push(RabbitMq::spawn(
                packages,
                &folder,
                ports::free()?,
                &Plugins::Management.into(),
                &name,
                mapper_address,
            )?);
        }
        for node in &nodes {
            node.until_ready().await?;
            fs::write(started_once(&node.folder), "")?;
        }
        let (first, others) = nodes.split_first().context("a cluster has a node")?;
        for node in others {
            node.ctl(&["stop_app"]).await?;
            node.ctl(&["join_cluster", &first.node]).await?;
            node.ctl(&["start_app"]).await?;
        }
        Ok(Self {
            nodes,
            _mapper: mapper,
        })
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[RabbitMq] {
        &self.nodes
    }
}

/// Nodes with the same cookie trust each other. A broker refuses a cookie file that other accounts can
/// read.
fn give_cookie(folder: &Path, cookie: &str) -> std::io::Result<()> {
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o400)
        .open(folder.join(".erlang.cookie"))?
        .write_all(cookie.as_bytes())
}
