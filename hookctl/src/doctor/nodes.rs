//! The cluster's nodes, and how its queues are spread over them.

use serde_json::Value;

use super::finding::Finding;

/// With fewer nodes, a quorum queue does not survive the loss of a member.
pub(super) const FEWEST_MEMBERS: usize = 3;

/// The nodes of the cluster, including those that are down.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    all: Vec<String>,
    down: Vec<String>,
}

impl Nodes {
    /// From the management API's `/api/nodes`.
    pub(super) fn of(nodes: &Value) -> Self {
        let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
        let down = nodes.iter().filter(|node| node["running"] == false);
        Self {
            all: names(nodes.iter().map(|node| &node["name"])),
            down: names(down.map(|node| &node["name"])),
        }
    }

    /// How many members of a queue are alive, and whether it has as many as this cluster allows.
    pub(super) fn judge_members(&self, queue: &Value, name: &str) -> Finding {
        let check = format!("members of {name}");
        let members = list(&queue["members"]);
        // If the leader is gone, the management API keeps showing the leader's last report.
        let is_online = |node: &&String| members.contains(node) && !self.down.contains(node);
        let online = list(&queue["online"]).iter().filter(is_online).count();
        let all = members.len();
        let found = format!("{online} of {all} online");
        let gone: Vec<&str> = members
            .iter()
            .filter(|member| !self.all.is_empty() && !self.all.contains(member))
            .map(String::as_str)
            .collect();
        if all == 0 {
            Finding::problem(
                check,
                "it is no quorum queue: one node holds it",
                format!(
                    "let its worker empty it, delete it, and run `hookctl setup`: an event must be on \
                     {FEWEST_MEMBERS} nodes to outlive one of them"
                ),
            )
        } else if online <= all / 2 {
            Finding::problem(
                check,
                format!("{found}: it takes and gives nothing"),
                "bring its nodes back: `rabbitmq-queues quorum_status` shows which",
            )
        } else if all < FEWEST_MEMBERS.min(self.all.len()) {
            Finding::problem(
                check,
                format!(
                    "{found}, although the cluster has {} nodes: it is lost, or stands still, with \
                     one of them",
                    self.all.len()
                ),
                format!(
                    "run `rabbitmq-queues grow <node> all --queue-pattern '{name}'` for each node \
                     that has no member"
                ),
            )
        } else if !gone.is_empty() {
            Finding::warning(
                check,
                format!("{found}; of no node of this cluster: {}", gone.join(", ")),
                format!("run `rabbitmq-queues shrink {}`", gone.join("` and `")),
            )
        } else if online < all {
            Finding::warning(check, found, "bring the absent node back")
        } else if all < FEWEST_MEMBERS {
            Finding::warning(
                check,
                found,
                format!(
                    "make it a cluster of {FEWEST_MEMBERS} nodes, then run `rabbitmq-queues grow \
                     <node> all --queue-pattern '{name}'` for each new one: an event must be on \
                     {FEWEST_MEMBERS} nodes to outlive one of them"
                ),
            )
        } else {
            Finding::ok(check, found)
        }
    }

    /// Whether the leaders of the queues, given with the queues' names, are spread over the nodes. No
    /// finding for a single node.
    pub(super) fn judge_leaders(&self, leaders: &[(String, String)]) -> Option<Finding> {
        const CHECK: &str = "leaders";
        if self.all.len() - self.down.len() < 2 || leaders.len() < 2 {
            return None;
        }
        let (_, first) = leaders.first()?;
        let shared = leaders.iter().any(|(_, leader)| leader != first);
        Some(if shared {
            let of = |(queue, leader): &(String, String)| format!("{queue} on {leader}");
            Finding::ok(CHECK, leaders.iter().map(of).collect::<Vec<_>>().join(", "))
        } else {
            Finding::warning(
                CHECK,
                format!("all on {first}: it does the work of the whole cluster"),
                "run `rabbitmq-queues rebalance quorum`",
            )
        })
    }
}

/// The node that leads a queue; `None` if there is no leader.
pub(super) fn leader(queue: &Value) -> Option<String> {
    let leader = queue["leader"].as_str()?;
    (!leader.is_empty()).then(|| leader.to_owned())
}

fn list(names_of: &Value) -> Vec<String> {
    names(names_of.as_array().into_iter().flatten())
}

fn names<'v>(values: impl Iterator<Item = &'v Value>) -> Vec<String> {
    values
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn cluster(names: &[&str]) -> Nodes {
        let nodes: Vec<_> = names
            .iter()
            .map(|name| json!({"name": name, "running": true}))
            .collect();
        Nodes::of(&nodes.into())
    }

    #[rstest]
    #[case(json!({}), "PROBLEM", "no quorum queue")]
    #[case(json!({"members": ["a", "b", "c"], "online": ["a"]}), "PROBLEM", "takes and gives nothing")]
    #[case(json!({"members": ["a"], "online": ["a"]}), "PROBLEM", "the cluster has 3 nodes")]
    #[case(json!({"members": ["a", "b"], "online": ["a", "b"]}), "PROBLEM", "the cluster has 3 nodes")]
    #[case(json!({"members": ["a", "b", "c"], "online": ["a", "b"]}), "warning", "2 of 3")]
    #[case(json!({"members": ["a", "b", "x"], "online": ["a", "b"]}), "warning", "of no node of this cluster: x")]
    #[case(json!({"members": ["a", "b", "c"], "online": ["c", "a", "b"]}), "ok", "3 of 3")]
    fn a_queue_needs_its_majority_and_as_many_members_as_the_cluster_can_give(
        #[case] queue: Value,
        #[case] verdict: &str,
        #[case] found: &str,
    ) {
        let finding = cluster(&["a", "b", "c"]).judge_members(&queue, "q");
        assert_eq!(finding.verdict(), verdict, "{finding:?}");
        assert!(format!("{finding:?}").contains(found), "{finding:?}");
    }

    #[test]
    fn what_a_lost_leader_said_last_does_not_count() {
        let nodes = json!([
            {"name": "a", "running": true},
            {"name": "b", "running": true},
            {"name": "c", "running": false},
        ]);
        let queue = json!({"members": ["c"], "online": ["a", "b", "c"]});
        let finding = Nodes::of(&nodes).judge_members(&queue, "q");
        assert_eq!(finding.verdict(), "PROBLEM", "{finding:?}");
        let found = format!("{finding:?}");
        assert!(
            found.contains("0 of 1 online: it takes and gives nothing"),
            "{found}"
        );
    }

    #[test]
    fn a_single_node_is_worth_a_warning_only() {
        let queue = json!({"members": ["a"], "online": ["a"], "leader": "a"});
        let finding = cluster(&["a"]).judge_members(&queue, "q");
        assert_eq!(finding.verdict(), "warning", "{finding:?}");
    }

    #[rstest]
    #[case(&["a", "b", "c"], &["a", "a", "a"], Some("warning"))]
    #[case(&["a", "b", "c"], &["a", "b", "a"], Some("ok"))]
    #[case(&["a", "b", "c"], &["a"], None)]
    #[case(&["a"], &["a", "a", "a"], None)]
    fn leaders_on_one_node_of_several_are_worth_a_warning(
        #[case] nodes: &[&str],
        #[case] leaders: &[&str],
        #[case] verdict: Option<&str>,
    ) {
        let leaders: Vec<_> = leaders
            .iter()
            .enumerate()
            .map(|(i, leader)| (format!("q{i}"), (*leader).to_owned()))
            .collect();
        let finding = cluster(nodes).judge_leaders(&leaders);
        assert_eq!(
            finding.as_ref().map(Finding::verdict),
            verdict,
            "{finding:?}"
        );
    }

    #[test]
    fn a_queue_whose_leader_is_unknown_has_none() {
        assert_eq!(leader(&json!({"leader": "a"})), Some("a".to_owned()));
        assert_eq!(leader(&json!({"leader": ""})), None);
        assert_eq!(leader(&json!({})), None);
    }
}
