//! Exchanges and bindings: whether each event reaches the queue of its family.

use serde_json::Value;
use shared::{Family, topology::Topology};

use super::finding::Finding;
use crate::management::{Management, encode};

const DECLARE: &str = "run `hookctl setup`, or start a service with DECLARE_TOPOLOGY=true";

pub(super) async fn check(
    management: &Management,
    vhost: &str,
    topology: &Topology,
) -> anyhow::Result<Vec<Finding>> {
    let (events, unrouted) = (topology.events_exchange(), topology.unrouted_exchange());
    let path = |name: &str| format!("/api/exchanges/{}/{}", encode(vhost), encode(name));
    let mut findings = Vec::new();
    for (name, kind, alternate) in [
        (&unrouted, "fanout", None),
        (&events, "direct", Some(&*unrouted)),
    ] {
        let exchange = management.find(&path(name)).await?;
        let check = format!("exchange {name}");
        let Some(exchange) = exchange else {
            findings.push(Finding::problem(check, "does not exist", DECLARE));
            continue;
        };
        let differences = exchange_differences(&exchange, kind, alternate);
        findings.push(if differences.is_empty() {
            Finding::ok(check, "as it should be")
        } else {
            Finding::problem(
                check,
                differences.join(", "),
                "delete it and run `hookctl setup` at once: meanwhile ingest spools",
            )
        });
        let bindings = management
            .get(&format!("{}/bindings/source", path(name)))
            .await?;
        for family in Family::ALL {
            let key = family.resource();
            // Events of no bound family arrive through the alternate exchange.
            if key.is_some() == (name == &events) {
                findings.push(route(&bindings, name, key, &topology.queue(family)));
            }
        }
    }
    Ok(findings)
}

fn exchange_differences(exchange: &Value, kind: &str, alternate: Option<&str>) -> Vec<String> {
    let mut differences = Vec::new();
    if exchange["type"] != kind {
        differences.push(format!("its type is {}, not {kind}", exchange["type"]));
    }
    if exchange["durable"] != true {
        differences.push("it is not durable".to_owned());
    }
    let actual = &exchange["arguments"]["alternate-exchange"];
    match alternate {
        Some(expected) if actual != expected => {
            let actual = actual.as_str().unwrap_or("none");
            differences.push(format!(
                "its alternate exchange is {actual}, not {expected}"
            ));
        }
        _ => {}
    }
    differences
}

fn route(bindings: &Value, exchange: &str, key: Option<&str>, queue: &str) -> Finding {
    let check = format!("binding of {queue}");
    let bound = bindings.as_array().into_iter().flatten().any(|binding| {
        binding["destination"] == queue
            && binding["destination_type"] == "queue"
            && key.is_none_or(|key| binding["routing_key"] == key)
    });
    let from = match key {
        Some(key) => format!("{key} from {exchange}"),
        None => format!("all from {exchange}"),
    };
    if bound {
        Finding::ok(check, from)
    } else {
        Finding::problem(check, format!("lacks {from}"), DECLARE)
    }
}
