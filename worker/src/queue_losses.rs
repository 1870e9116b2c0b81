//! Detects settings that let a queue drop confirmed messages: a policy, an operator policy, or an
//! argument of the queue. The workers and `hookctl doctor` use it.
//!
//! A `dead-letter-*` alone drops nothing: it says where dropped messages go. `max-age` does not
//! either: only streams have it. A stream, or any other queue that is not a quorum queue, is
//! reported as drift by its arguments.

use serde_json::Value;
use shared::topology::DELIVERY_LIMIT;

/// The only `overflow` with which a full quorum queue drops nothing.
const REFUSES: &str = "reject-publish";

/// A queue as described by RabbitMQ's management.
#[derive(Clone, Copy, Debug)]
pub struct Queue<'a>(&'a Value);

impl<'a> Queue<'a> {
    /// From the management's answer for `/api/queues/vhost/name`.
    pub fn new(shown: &'a Value) -> Self {
        Self(shown)
    }

    /// The settings of its policies that let it drop messages, such as `message-ttl 60000`.
    pub fn losses_by_policy(self) -> Vec<String> {
        let policy = &self.0["effective_policy_definition"];
        self.losses(policy, |key| Some(key))
    }

    /// Its own arguments that let it drop messages, such as `x-message-ttl 60000`.
    pub fn losses_by_argument(self) -> Vec<String> {
        self.losses(&self.0["arguments"], |key| key.strip_prefix("x-"))
    }

    /// Its policies by kind and name, such as `policy short-lived`.
    pub fn policies(self) -> Vec<String> {
        [("policy", "policy"), ("operator_policy", "operator policy")]
            .into_iter()
            .filter_map(|(key, kind)| Some(format!("{kind} {}", self.0[key].as_str()?)))
            .collect()
    }

    fn losses(self, of: &Value, limit: impl Fn(&str) -> Option<&str>) -> Vec<String> {
        let refuses_when_full = self.refuses_when_full();
        // RabbitMQ shows an empty definition as an empty list, not an object.
        let all = of.as_object().into_iter().flatten();
        all.filter(|(key, value)| {
            limit(key).is_some_and(|limit| loses(limit, value, refuses_when_full))
        })
        .map(|(key, value)| format!("{key} {value}"))
        .collect()
    }

    /// A policy's value takes precedence over the queue's own argument.
    fn refuses_when_full(self) -> bool {
        let overflow = (self.0["effective_policy_definition"]["overflow"].as_str())
            .or_else(|| self.0["arguments"]["x-overflow"].as_str());
        overflow == Some(REFUSES)
    }
}

fn loses(limit: &str, value: &Value, refuses_when_full: bool) -> bool {
    match limit {
        "expires" | "message-ttl" => true,
        "max-length" | "max-length-bytes" => !refuses_when_full,
        "overflow" => value.as_str() != Some(REFUSES),
        // A negative value means no limit.
        "delivery-limit" => value
            .as_i64()
            .is_none_or(|limit| (0..DELIVERY_LIMIT).contains(&limit)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    // RabbitMQ's form of an empty definition.
    #[case(json!([]), "reject-publish", &[])]
    #[case(json!({"queue-leader-locator": "balanced"}), "reject-publish", &[])]
    #[case(json!({"message-ttl": 5}), "reject-publish", &["message-ttl 5"])]
    #[case(json!({"expires": 5}), "reject-publish", &["expires 5"])]
    #[case(json!({"max-length": 5}), "reject-publish", &[])]
    #[case(json!({"max-length-bytes": 5}), "reject-publish", &[])]
    #[case(json!({"max-length": 5}), "", &["max-length 5"])]
    #[case(json!({"max-length-bytes": 5}), "", &["max-length-bytes 5"])]
    #[case(json!({"max-length": 5, "overflow": "reject-publish"}), "", &[])]
    // A quorum queue treats this as drop-head.
    #[case(
        json!({"max-length": 5, "overflow": "reject-publish-dlx"}),
        "reject-publish",
        &["max-length 5", "overflow \"reject-publish-dlx\""]
    )]
    #[case(
        json!({"max-length": 5, "overflow": "drop-head"}),
        "reject-publish",
        &["max-length 5", "overflow \"drop-head\""]
    )]
    #[case(json!({"delivery-limit": 20}), "reject-publish", &["delivery-limit 20"])]
    #[case(json!({"delivery-limit": 2_000_000}), "reject-publish", &[])]
    #[case(json!({"delivery-limit": -1}), "reject-publish", &[])]
    #[case(json!({"dead-letter-exchange": "x", "max-age": "1h"}), "reject-publish", &[])]
    fn what_of_a_policy_drops_messages_is_named(
        #[case] policy: Value,
        #[case] overflow: &str,
        #[case] expected: &[&str],
    ) {
        let arguments = match overflow {
            "" => json!({}),
            overflow => json!({"x-overflow": overflow}),
        };
        let queue = json!({
            "effective_policy_definition": policy,
            "arguments": arguments,
        });
        assert_eq!(Queue::new(&queue).losses_by_policy(), expected);
        assert!(Queue::new(&queue).losses_by_argument().is_empty());
    }

    #[rstest]
    #[case(json!({"x-delivery-limit": 1_000_000, "x-overflow": "reject-publish"}), &[])]
    #[case(json!({"x-delivery-limit": 1_000_000}), &[])]
    #[case(json!({"x-message-ttl": 5}), &["x-message-ttl 5"])]
    #[case(json!({"x-expires": 5}), &["x-expires 5"])]
    #[case(json!({"x-overflow": "drop-head"}), &["x-overflow \"drop-head\""])]
    #[case(json!({"x-max-length": 5}), &["x-max-length 5"])]
    #[case(json!({"x-max-length": 5, "x-overflow": "reject-publish"}), &[])]
    #[case(json!({"x-delivery-limit": 20}), &["x-delivery-limit 20"])]
    fn what_of_its_arguments_drops_messages_is_named(
        #[case] arguments: Value,
        #[case] expected: &[&str],
    ) {
        let queue = json!({"arguments": arguments, "effective_policy_definition": []});
        assert_eq!(Queue::new(&queue).losses_by_argument(), expected);
    }

    #[test]
    fn both_kinds_of_policies_are_named() {
        let queue = json!({"policy": "p", "operator_policy": "o"});
        assert_eq!(
            Queue::new(&queue).policies(),
            ["policy p", "operator policy o"]
        );
        let queue = json!({"policy": null});
        assert!(Queue::new(&queue).policies().is_empty());
    }
}
