//! RabbitMQ: whether AMQP and the management API can be reached, and the state of the cluster.

use serde_json::Value;
use shared::{
    broker::{self, BrokerUrl},
    topology::{Declare, Sight, Topology},
};

use super::{finding::Finding, nodes::Nodes, permissions, queues, routes};
use crate::management::{Management, Unanswered};

const BROKER: &str = "rabbitmq";
const CLUSTER: &str = "cluster";

/// The oldest tested version.
const OLDEST: (u64, u64) = (3, 10);

/// With fewer nodes, a quorum queue does not survive the loss of a node.
const FEWEST_NODES: usize = 3;

/// All checks of the broker.
pub(super) async fn check(
    broker: &BrokerUrl,
    management: Option<&Management>,
    topology: &Topology,
    prefix: &str,
) -> Vec<Finding> {
    let connection = match broker::connect(broker, "hookctl").await {
        Ok(connection) => connection,
        Err(error) => {
            return vec![
                Finding::problem(
                    BROKER,
                    error.to_string(),
                    "check AMQP_URL, and that RabbitMQ runs and takes connections from here",
                ),
                Finding::skipped("cluster, exchanges, queues", "no RabbitMQ"),
            ];
        }
    };
    let Some(management) = management else {
        let declared = topology
            .declare(&connection, Declare::Passive, Sight::All)
            .await;
        let mut findings = vec![match declared {
            Ok(drifts) if drifts.is_empty() => {
                Finding::ok(BROKER, "exchanges and queues are there")
            }
            Ok(drifts) => {
                let drifts = drifts
                    .iter()
                    .map(|d| format!("{} ({})", d.entity, d.reason));
                Finding::problem(
                    BROKER,
                    format!("differs: {}", drifts.collect::<Vec<_>>().join(", ")),
                    "run `hookctl setup`, or look closer with RABBITMQ_MANAGEMENT_URL",
                )
            }
            Err(error) => {
                Finding::problem(BROKER, shared::reason::one_line(&error), "run doctor again")
            }
        }];
        findings.push(Finding::skipped(
            "cluster, arguments, bindings, consumers, rabbitmq accounts",
            "no RABBITMQ_MANAGEMENT_URL",
        ));
        return findings;
    };
    match look(management, &broker.vhost(), topology, prefix).await {
        Ok(findings) => findings,
        Err(error) => vec![Finding::problem(
            BROKER,
            shared::reason::one_line(&error),
            remedy(&error),
        )],
    }
}

fn remedy(error: &anyhow::Error) -> &'static str {
    if error.is::<Unanswered>() {
        "check RABBITMQ_MANAGEMENT_URL, and enable it with: rabbitmq-plugins enable \
         rabbitmq_management"
    } else {
        "give AMQP_URL a user with the tag monitoring or administrator and rights on the virtual \
         host"
    }
}

async fn look(
    management: &Management,
    vhost: &str,
    topology: &Topology,
    prefix: &str,
) -> anyhow::Result<Vec<Finding>> {
    let nodes = management.get("/api/nodes").await?;
    let mut findings = vec![
        version(&management.get("/api/overview").await?),
        cluster(&nodes),
    ];
    findings.extend(routes::check(management, vhost, topology).await?);
    findings.extend(queues::check(management, vhost, topology, &Nodes::of(&nodes)).await?);
    findings.extend(permissions::check(management, vhost, topology, prefix).await?);
    Ok(findings)
}

fn version(overview: &Value) -> Finding {
    let version = overview["rabbitmq_version"].as_str().unwrap_or("unknown");
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    let found = format!("version {version}");
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST => Finding::ok(BROKER, found),
        _ => Finding::problem(
            BROKER,
            found,
            format!("upgrade to RabbitMQ {}.{} or newer", OLDEST.0, OLDEST.1),
        ),
    }
}

fn cluster(nodes: &Value) -> Finding {
    let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut wrong = Vec::new();
    for node in nodes {
        let name = node["name"].as_str().unwrap_or("a node");
        if node["running"] == false {
            wrong.push(format!("{name} is down"));
        }
        for (alarm, of) in [("mem_alarm", "memory"), ("disk_free_alarm", "disk")] {
            if node[alarm] == true {
                wrong.push(format!("{name} has its {of} alarm raised"));
            }
        }
        if node["partitions"].as_array().is_some_and(|p| !p.is_empty()) {
            wrong.push(format!("{name} sees a network partition"));
        }
    }
    if !wrong.is_empty() {
        return Finding::problem(
            CLUSTER,
            wrong.join(", "),
            "give the node memory or disk, bring it back, or heal the network: meanwhile ingest \
             spools to Postgres",
        );
    }
    let found = format!("{} node(s), no alarm", nodes.len());
    if nodes.len() < FEWEST_NODES {
        Finding::warning(
            CLUSTER,
            found,
            format!(
                "run {FEWEST_NODES} nodes or more: below, queued events are as safe as one disk, \
                 and away while one node is"
            ),
        )
    } else {
        Finding::ok(CLUSTER, found)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case("3.10.8", false)]
    #[case("4.2.1-rc.1", false)]
    #[case("3.9.29", true)]
    #[case("", true)]
    fn an_old_version_is_a_problem(#[case] version: &str, #[case] problem: bool) {
        let finding = super::version(&json!({"rabbitmq_version": version}));
        assert_eq!(finding.is_problem(), problem, "{finding:?}");
    }

    #[rstest]
    #[case(json!({}), false)]
    #[case(json!({"running": false}), true)]
    #[case(json!({"running": true, "mem_alarm": true}), true)]
    #[case(json!({"disk_free_alarm": true}), true)]
    #[case(json!({"partitions": ["b"]}), true)]
    #[case(json!({"running": true, "mem_alarm": false, "partitions": []}), false)]
    fn an_alarm_or_an_absent_node_is_a_problem(#[case] third: Value, #[case] problem: bool) {
        let finding = cluster(&json!([{"name": "a"}, {"name": "b"}, third]));
        assert_eq!(finding.is_problem(), problem, "{finding:?}");
    }
}
