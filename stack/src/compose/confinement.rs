//! Checks that containers cannot do more than their work needs: new privileges, capabilities, unlimited
//! processes, writing into their image, reaching the outside.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::project::Project;

/// These write outside their volumes: RabbitMQ its configuration, Grafana various files.
const WRITING: [&str; 2] = ["rabbitmq", "grafana"];
/// The entrypoints of these images start as root and switch to another account.
const STORES: [&str; 2] = ["postgres", "rabbitmq"];
const OF_STORES: [&str; 5] = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"];
/// One receives webhooks, the other notifies people of alerts.
const GOING_OUT: [&str; 2] = ["proxy", "alertmanager"];
const MASQUERADES: &str = "com.docker.network.bridge.enable_ip_masquerade";

/// Fields of `docker inspect` for a container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    host_config: HostConfig,
    network_settings: NetworkSettings,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    cap_add: Option<Vec<String>>,
    cap_drop: Option<Vec<String>>,
    security_opt: Option<Vec<String>>,
    pids_limit: Option<i64>,
    readonly_rootfs: bool,
    privileged: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    networks: HashMap<String, serde_json::Value>,
}

/// Fields of `docker network inspect` for a network.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Network {
    internal: bool,
    options: Option<HashMap<String, String>>,
}

/// Checks every container.
///
/// # Errors
/// Names the first container that has too many rights, and which.
pub(super) async fn holds(project: &Project) -> Result<()> {
    for container in project.containers().await? {
        let service = &*container.service;
        let inspected = project.docker(&["inspect", &container.id]).await?;
        let inspected: Vec<Inspected> = serde_json::from_str(&inspected)?;
        let Inspected {
            host_config,
            network_settings,
        } = inspected.into_iter().next().context("nothing to inspect")?;
        host_config
            .check(service)
            .with_context(|| container.name.clone())?;
        let mut goes_out = false;
        for name in network_settings.networks.keys() {
            let network = project.docker(&["network", "inspect", name]).await?;
            let networks: Vec<Network> = serde_json::from_str(&network)?;
            goes_out |= networks.iter().any(Network::leads_out);
        }
        ensure!(
            goes_out == GOING_OUT.contains(&service),
            "{} {} the outside",
            container.name,
            if goes_out { "reaches" } else { "cannot reach" },
        );
    }
    Ok(())
}

impl HostConfig {
    fn check(&self, service: &str) -> Result<()> {
        ensure!(!self.privileged, "is privileged");
        let has = |list: &Option<Vec<String>>, item: &str| {
            list.iter().flatten().any(|entry| entry.contains(item))
        };
        ensure!(
            has(&self.security_opt, "no-new-privileges"),
            "may get new privileges"
        );
        ensure!(has(&self.cap_drop, "ALL"), "keeps capabilities");
        let allowed: &[&str] = match STORES.contains(&service) {
            true => &OF_STORES,
            false => &[],
        };
        for added in self.cap_add.iter().flatten() {
            let name = added.trim_start_matches("CAP_");
            ensure!(allowed.contains(&name), "has the capability {name}");
        }
        ensure!(
            self.pids_limit.is_some_and(|limit| limit > 0),
            "may start processes without end"
        );
        ensure!(
            self.readonly_rootfs != WRITING.contains(&service),
            "its image is read-only: {}",
            self.readonly_rootfs
        );
        Ok(())
    }
}

impl Network {
    fn leads_out(&self) -> bool {
        let masquerades = self.options.as_ref().and_then(|o| o.get(MASQUERADES));
        !self.internal && masquerades.is_none_or(|value| value != "false")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(service: &str, changes: &Value) -> Result<()> {
        let mut config = json!({
            "CapAdd": null, "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges:true"],
            "PidsLimit": 512, "ReadonlyRootfs": true, "Privileged": false,
        });
        let changes = changes.as_object().expect("an object");
        config
            .as_object_mut()
            .expect("an object")
            .extend(changes.clone());
        serde_json::from_value::<HostConfig>(config)?.check(service)
    }

    #[test]
    fn each_right_too_many_is_found() {
        check("ingest", &json!({})).expect("confined");
        check("postgres", &json!({ "CapAdd": ["CAP_CHOWN"] })).expect("it needs that");
        for changes in [
            json!({ "CapAdd": ["CHOWN"] }),
            json!({ "CapDrop": null }),
            json!({ "SecurityOpt": null }),
            json!({ "PidsLimit": null }),
            json!({ "ReadonlyRootfs": false }),
            json!({ "Privileged": true }),
        ] {
            check("ingest", &changes).expect_err(&changes.to_string());
        }
    }

    #[test]
    fn a_network_leads_out_unless_it_is_internal_or_hides_nobody() {
        for (internal, masquerades, leads_out) in [
            (false, None, true),
            (false, Some("true"), true),
            (false, Some("false"), false),
            (true, None, false),
        ] {
            let options = masquerades
                .map(|value| HashMap::from([(MASQUERADES.to_owned(), value.to_owned())]));
            assert_eq!(Network { internal, options }.leads_out(), leads_out);
        }
    }
}
