//! What `hookctl doctor` finds on a cluster of three brokers.

use std::collections::BTreeMap;

use lapin::{Connection, ConnectionProperties};
use serde_json::Value;
use shared::topology::{Declare, Sight, Topology};
use stack::{
    data_folder::DataFolder,
    packages::Packages,
    programs::Programs,
    rabbitmq::{Cluster, RabbitMq},
};
use tokio::time::{Duration, Instant, sleep};

use crate::pipeline::SOON;

/// The verdict of each check, and its finding.
type Findings = BTreeMap<String, (String, String)>;

/// Doctor's findings on a broker, asked through one of its nodes. There is no Postgres here.
async fn examine(hookctl: &std::path::Path, node: &RabbitMq) -> Findings {
    let management = node.management().expect("it runs");
    let output = tokio::process::Command::new(hookctl)
        .args(["doctor", "--json"])
        .env_clear()
        .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")
        .env("AMQP_URL", node.amqp_url())
        .env("RABBITMQ_MANAGEMENT_URL", format!("http://{management}"))
        .output()
        .await
        .expect("hookctl runs");
    let text = |row: &Value, key: &str| row[key].as_str().expect("text").to_owned();
    String::from_utf8(output.stdout)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .map(|row: Value| {
            let verdict = (text(&row, "verdict"), text(&row, "found"));
            (text(&row, "check"), verdict)
        })
        .collect()
}

/// Waits for this finding; the management API is a few seconds behind.
async fn until_found(
    hookctl: &std::path::Path,
    node: &RabbitMq,
    check: &str,
    verdict: &str,
    found: &str,
) {
    let deadline = Instant::now() + SOON;
    loop {
        let findings = examine(hookctl, node).await;
        let finding = findings.get(check);
        if finding.is_some_and(|(v, f)| v == verdict && f.contains(found)) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "never finds {check}: {verdict}, {found}: {findings:#?}"
        );
        sleep(Duration::from_millis(500)).await;
    }
}

/// Takes the queue from these nodes. RabbitMQ may refuse that for a moment after it has elected a leader, and may
/// also answer "ok" although the member stays. So it is asked until doctor finds one member.
async fn remove_members(hookctl: &std::path::Path, node: &RabbitMq, nodes: &[&str]) {
    let deadline = Instant::now() + SOON;
    loop {
        for gone in nodes {
            let delete = format!(
                r#"rabbit_quorum_queue:delete_member(<<"/">>, <<"pleo.vendor">>, '{gone}')."#
            );
            node.ctl(&["eval", &delete]).await.ok();
        }
        let findings = examine(hookctl, node).await;
        let members = &findings["members of pleo.vendor"].1;
        if members.starts_with("1 of 1") {
            return;
        }
        assert!(Instant::now() < deadline, "members stay: {members}");
        sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_sees_how_the_queues_lie_on_a_cluster() {
    let base = DataFolder::temporary().expect("a folder");
    let packages = Packages::find().expect("RabbitMQ is installed");
    let programs = Programs::find().expect("hookctl is built");
    let hookctl = programs.hookctl();
    let cluster = Cluster::start(&packages, &base.path().join("cluster"), 3)
        .await
        .expect("three brokers come up");
    let [first, second, third] = cluster.nodes() else {
        panic!("three nodes")
    };
    let connection = Connection::connect(&first.amqp_url(), ConnectionProperties::default())
        .await
        .expect("a connection");
    let topology = Topology::new("pleo");
    let declared = topology
        .declare(&connection, Declare::Active, Sight::All)
        .await;
    assert!(declared.expect("a connection").is_empty());

    // The leader is placed on the node where the queue is declared.
    until_found(&hookctl, second, "cluster", "ok", "3 node(s)").await;
    until_found(&hookctl, second, "members of pleo.vendor", "ok", "3 of 3").await;
    until_found(&hookctl, second, "members of pleo.probe", "ok", "3 of 3").await;
    until_found(&hookctl, second, "leaders", "warning", "all on stack-1@").await;

    // The broker moves the leaders that it can; a busy one stays.
    for _ in 0..3 {
        let rebalance = r#"rabbit_amqqueue:rebalance(quorum, ".*", ".*")."#;
        first.ctl(&["eval", rebalance]).await.expect("rebalanced");
    }
    until_found(&hookctl, second, "leaders", "ok", "pleo.vendor on").await;

    remove_members(&hookctl, third, &["stack-1@localhost", "stack-2@localhost"]).await;
    until_found(
        &hookctl,
        second,
        "members of pleo.vendor",
        "problem",
        "1 of 1 online, although the cluster has 3 nodes",
    )
    .await;

    third.kill();
    until_found(
        &hookctl,
        second,
        "cluster",
        "problem",
        "stack-3@localhost is down",
    )
    .await;
    until_found(
        &hookctl,
        second,
        "members of pleo.other",
        "warning",
        "2 of 3",
    )
    .await;
    until_found(
        &hookctl,
        second,
        "members of pleo.vendor",
        "problem",
        "takes and gives",
    )
    .await;
    first.kill();
    until_found(
        &hookctl,
        second,
        "members of pleo.other",
        "problem",
        "takes and gives",
    )
    .await;
}
