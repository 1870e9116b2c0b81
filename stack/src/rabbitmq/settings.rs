//! The environment with which Debian's RabbitMQ scripts are configured.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use crate::packages::Packages;
use crate::process::{Process, Spec};

/// Two scheduler threads that sleep when idle, not bound to cores; distribution on loopback only.
const VM_ARGS: &str = "+S 2:2 +sbwt none +stbt u -start_epmd false \
                       -kernel inet_dist_use_interface {127,0,0,1}";

/// The paths of a broker's files, and its ports.
pub(super) struct Settings<'a> {
    /// It is the same at every start, because the broker's data depends on it.
    pub(super) node: &'a str,
    pub(super) folder: &'a Path,
    pub(super) address: SocketAddr,
    pub(super) distribution: SocketAddr,
    pub(super) mapper_address: SocketAddr,
}

impl Settings<'_> {
    pub(super) fn spawn(&self, packages: &Packages) -> Result<Process> {
        let program = packages.rabbitmq.join("rabbitmq-server");
        let mut spec = self.environment(packages.spec("rabbitmq", program));
        spec = spec.log(self.folder.join("rabbitmq.log"));
        spec.pid_file = Some(self.folder.join("rabbitmq.pid"));
        Process::spawn(spec)
    }

    /// Configures a RabbitMQ program for this broker only.
    pub(super) fn environment(&self, spec: Spec) -> Spec {
        let file = |name: &str| self.folder.join(name);
        spec.env("HOME", self.folder)
            .env("LANG", "C.UTF-8")
            // Makes the script exec the Erlang VM, so that signals reach it and not a shell.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("ERL_EPMD_PORT", self.mapper_address.port().to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", self.node)
            .env("RABBITMQ_NODE_IP_ADDRESS", self.address.ip().to_string())
            .env("RABBITMQ_NODE_PORT", self.address.port().to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution.port().to_string())
            .env("RABBITMQ_MNESIA_BASE", file("mnesia"))
            .env("RABBITMQ_LOG_BASE", self.folder)
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins"))
            .env("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf"))
            // Names of files that do not exist, so that the system's broker configuration is not used.
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", file("advanced.config"))
            .env("RABBITMQ_CONF_ENV_FILE", file("rabbitmq-env.conf"))
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", VM_ARGS)
    }
}
