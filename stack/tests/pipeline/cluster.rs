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

/// Takes `pleo.vendor` from all nodes but the third. If RabbitMQ 3.10 removes a member that is the leader, it may keep
/// it in its own list for ever. So the third member becomes the leader first.
const KEEP_THE_THIRD: &str = r#"
    Nodes = ['stack-1@localhost', 'stack-2@localhost'],
    Third = {'%2F_pleo.vendor', 'stack-3@localhost'},
    case ra:members(Third) of
        {ok, _, Third} ->
            [rabbit_quorum_queue:delete_member(<<"/">>, <<"pleo.vendor">>, Node) || Node <- Nodes];
        {ok, _, Leader} -> ra:transfer_leadership(Leader, Third);
        Other -> Other
    end."#;

/// RabbitMQ may refuse a change of members for a moment after an election. So it is asked until doctor finds one.
async fn keep_the_third(hookctl: &std::path::Path, third: &RabbitMq) {
    let deadline = Instant::now() + SOON;
    loop {
        let answer = third.ctl(&["eval", KEEP_THE_THIRD]).await;
        let findings = examine(hookctl, third).await;
        let members = &findings["members of pleo.vendor"].1;
        if members.starts_with("1 of 1") {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "members stay: {members}; RabbitMQ answered {answer:?}"
        );
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

    keep_the_third(&hookctl, third).await;
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
