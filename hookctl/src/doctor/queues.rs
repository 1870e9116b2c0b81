//! The families' queues: their arguments, their members and their consumers.

use lapin::types::AMQPValue;
use serde_json::Value;
use shared::{Family, topology::Topology};
use worker::queue_losses::Queue;

use super::{
    finding::Finding,
    nodes::{self, Nodes},
};
use crate::management::{Management, encode};

pub(super) async fn check(
    management: &Management,
    vhost: &str,
    topology: &Topology,
    nodes: &Nodes,
) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut leaders = Vec::new();
    for family in Family::ALL {
        let name = topology.queue(family);
        let path = format!("/api/queues/{}/{}", encode(vhost), encode(&name));
        let Some(queue) = management.find(&path).await? else {
            findings.push(Finding::problem(
                format!("queue {name}"),
                "does not exist",
                "run `hookctl setup`, or start a service with DECLARE_TOPOLOGY=true",
            ));
            continue;
        };
        findings.push(arguments(&queue, &name, vhost));
        findings.extend(policy(&queue, &name));
        findings.push(nodes.judge_members(&queue, &name));
        findings.push(consumers(&queue, &name, family));
        leaders.extend(nodes::leader(&queue).map(|leader| (name, leader)));
    }
    findings.extend(nodes.judge_leaders(&leaders));
    findings.push(probe(management, vhost, topology, nodes).await?);
    Ok(findings)
}

/// The queue with which ingest tests whether RabbitMQ confirms. It keeps no event.
async fn probe(
    management: &Management,
    vhost: &str,
    topology: &Topology,
    nodes: &Nodes,
) -> anyhow::Result<Finding> {
    let name = topology.probe();
    let at = |kind: &str| format!("/api/{kind}/{}/{}", encode(vhost), encode(&name));
    let exchange = management.find(&at("exchanges")).await?;
    let queue = management.find(&at("queues")).await?;
    Ok(match (exchange, queue) {
        (Some(_), Some(queue)) => nodes.judge_members(&queue, &name),
        _ => Finding::warning(
            format!("members of {name}"),
            "it does not exist: ingest cannot tell whether RabbitMQ confirms until an event comes",
            "run `hookctl setup`, or start a service with DECLARE_TOPOLOGY=true",
        ),
    })
}

fn arguments(queue: &Value, name: &str, vhost: &str) -> Finding {
    let check = format!("queue {name}");
    let actual = &queue["arguments"];
    let mut differences = Vec::new();
    if queue["durable"] != true {
        differences.push("it is not durable".to_owned());
    }
    let earlier = Topology::earlier_queue_arguments();
    let is_earlier = earlier
        .inner()
        .iter()
        .all(|(argument, value)| actual[argument.as_str()] == json(value))
        && actual
            .as_object()
            .is_some_and(|actual| actual.len() == earlier.inner().len());
    if is_earlier && queue["durable"] == true {
        return earlier_version(check, name, vhost);
    }
    let expected = Topology::queue_arguments();
    for (argument, value) in expected.inner() {
        let value = json(value);
        let actual = &actual[argument.as_str()];
        if *actual != value {
            let actual = match actual {
                Value::Null => "not set".to_owned(),
                actual => actual.to_string(),
            };
            differences.push(format!("{argument} is {actual}, not {value}"));
        }
    }
    for (argument, value) in actual.as_object().into_iter().flatten() {
        if !expected
            .inner()
            .keys()
            .any(|known| known.as_str() == argument)
        {
            differences.push(format!("{argument} is {value}, and should not be set"));
        }
    }
    if differences.is_empty() {
        return Finding::ok(check, "arguments as they should be");
    }
    let waiting = queue["messages"].as_u64().unwrap_or(0);
    Finding::problem(
        check,
        format!("{}; {waiting} message(s) in it", differences.join(", ")),
        format!(
            "let its worker empty it, then `rabbitmqctl delete_queue --if-empty -p {vhost} {name}` \
             and `hookctl setup`; ingest spools what comes meanwhile"
        ),
    )
}

fn json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into(),
        AMQPValue::LongLongInt(number) => (*number).into(),
        other => format!("{other:?}").into(),
    }
}

/// As it is, it loses nothing, but it would lose messages if a policy limited its length.
fn earlier_version(check: String, name: &str, vhost: &str) -> Finding {
    Finding::warning(
        check,
        "declared by an earlier version, without x-overflow: should a policy limit its length, it \
         would drop confirmed messages",
        format!(
            "at a quiet moment, when its worker has emptied it: `rabbitmqctl delete_queue --if-empty \
             -p {vhost} {name}`, then `hookctl setup`; ingest spools what comes meanwhile"
        ),
    )
}

/// A policy changes how a queue behaves without changing its arguments.
fn policy(shown: &Value, name: &str) -> Option<Finding> {
    let queue = Queue::new(shown);
    let losses = queue.losses_by_policy();
    (!losses.is_empty()).then(|| {
        Finding::problem(
            format!("policy of {name}"),
            format!("lets messages be dropped: {}", losses.join(", ")),
            format!(
                "take the queue out of the {}",
                queue.policies().join(" and ")
            ),
        )
    })
}

fn consumers(queue: &Value, name: &str, family: Family) -> Finding {
    let check = format!("consumers of {name}");
    let waiting = queue["messages"].as_u64().unwrap_or(0);
    match queue["consumers"].as_u64().unwrap_or(0) {
        0 => Finding::problem(
            check,
            format!("none; {waiting} message(s) wait"),
            format!(
                "start {}: its log and /readyz say why it does not subscribe",
                shared::Program::Worker(family)
            ),
        ),
        consumers => Finding::ok(
            check,
            format!("{consumers}; {waiting} message(s) in the queue"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(json!({"x-queue-type": "quorum", "x-delivery-limit": 1_000_000, "x-overflow": "reject-publish"}), None)]
    #[case(
        json!({"x-queue-type": "quorum", "x-delivery-limit": 1_000_000, "x-overflow": "drop-head"}),
        Some(r#"x-overflow is \"drop-head\", not \"reject-publish\""#)
    )]
    #[case(json!({"x-queue-type": "quorum", "x-delivery-limit": 20}), Some("x-delivery-limit is 20, not 1000000"))]
    #[case(json!({"x-queue-type": "quorum"}), Some("x-delivery-limit is not set"))]
    #[case(
        json!({"x-queue-type": "quorum", "x-delivery-limit": 1_000_000, "x-message-ttl": 5}),
        Some("x-message-ttl is 5, and should not be set")
    )]
    fn a_drift_names_the_argument_and_both_values(
        #[case] actual: Value,
        #[case] difference: Option<&str>,
    ) {
        let queue = json!({"durable": true, "arguments": actual, "messages": 7});
        let finding = arguments(&queue, "q", "/");
        assert_eq!(finding.is_problem(), difference.is_some());
        let text = format!("{finding:?}");
        assert!(
            difference.is_none_or(|d| text.contains(d) && text.contains("7 message")),
            "{text}"
        );
    }

    #[test]
    fn a_queue_of_an_earlier_version_is_worth_a_warning() {
        let arguments = json!({"x-queue-type": "quorum", "x-delivery-limit": 1_000_000});
        let queue = json!({"durable": true, "arguments": arguments, "messages": 7});
        let finding = super::arguments(&queue, "q", "/");
        assert!(!finding.is_problem(), "{finding:?}");
        assert!(
            format!("{finding:?}").contains("earlier version"),
            "{finding:?}"
        );
    }

    #[test]
    fn a_policy_that_drops_messages_is_a_problem_with_its_name() {
        let shown = |definition| json!({"policy": "p", "effective_policy_definition": definition, "arguments": {}});
        let finding = policy(&shown(json!({"message-ttl": 5})), "q").expect("a finding");
        assert!(finding.is_problem());
        let text = format!("{finding:?}");
        assert!(
            text.contains("message-ttl 5") && text.contains("policy p"),
            "{text}"
        );
        assert!(policy(&shown(json!([])), "q").is_none());
    }
}
