//! Whether the services' accounts have exactly the permissions in RabbitMQ that they need, name by name:
//! `hookctl setup` grants them, but a pattern that was set by hand may be written differently.

use std::collections::HashMap;

use regex::Regex;
use serde_json::Value;
use shared::{Program, topology::Topology};

use super::finding::Finding;
use crate::{
    account::{self, Uses},
    management::{Management, encode},
};

const CHECK: &str = "rabbitmq accounts";

/// About an account's limit of connections.
const MANY_PER_CENT: u64 = 80;

pub(super) async fn check(
    management: &Management,
    vhost: &str,
    topology: &Topology,
    prefix: &str,
) -> anyhow::Result<Vec<Finding>> {
    if management.check().await.is_err() {
        return Ok(vec![Finding::skipped(
            CHECK,
            "only an administrator of RabbitMQ may look at them",
        )]);
    }
    let mut users = Vec::new();
    for program in Program::ALL {
        let name = encode(&account::name(program, prefix));
        users.push(management.find(&format!("/api/users/{name}")).await?);
    }
    if users.iter().all(Option::is_none) {
        let first = account::name(Program::Ingest, prefix);
        return Ok(vec![Finding::skipped(
            CHECK,
            format!("no account {first} and so on: the services use others"),
        )]);
    }
    let open = connections(management).await?;
    let mut findings = Vec::new();
    for (program, user) in Program::ALL.into_iter().zip(users) {
        let name = account::name(program, prefix);
        let path = format!("/api/permissions/{}/{}", encode(vhost), encode(&name));
        let rights = match &user {
            Some(_) => management.find(&path).await?,
            None => None,
        };
        let command = account::permissions(program, topology).command(vhost, &name);
        findings.push(finding(
            &format!("rabbitmq account {name}"),
            judge(user.as_ref(), rights.as_ref(), program, topology),
            &command,
        ));
        if user.is_some() {
            let limit = connection_limit(management, &name).await?;
            let open = open.get(&name).copied().unwrap_or(0);
            findings.extend(judge_connections(&name, open, limit));
        }
    }
    Ok(findings)
}

/// How many open connections each user has.
async fn connections(management: &Management) -> anyhow::Result<HashMap<String, u64>> {
    let all = management.get("/api/connections?columns=user").await?;
    let mut open = HashMap::new();
    for connection in all.as_array().into_iter().flatten() {
        if let Some(user) = connection["user"].as_str() {
            *open.entry(user.to_owned()).or_default() += 1;
        }
    }
    Ok(open)
}

async fn connection_limit(management: &Management, account: &str) -> anyhow::Result<Option<u64>> {
    let limits = management
        .get(&format!("/api/user-limits/{}", encode(account)))
        .await?;
    let mut limits = limits.as_array().into_iter().flatten();
    // A negative value means no limit.
    Ok(limits.find_map(|user| user["value"]["max-connections"].as_u64()))
}

/// RabbitMQ refuses the next connection of an account at its limit, such as when another replica starts.
fn judge_connections(account: &str, open: u64, limit: Option<u64>) -> Option<Finding> {
    let check = format!("connections of {account}");
    let Some(limit) = limit else {
        return Some(Finding::warning(
            format!("rabbitmq account {account}"),
            "may open any number of connections",
            "run `hookctl setup`",
        ));
    };
    let found = format!("{open} of {limit} connections to RabbitMQ are open");
    let remedy = "see who has them with `rabbitmqctl list_connections user name peer_host`: end what should \
                  not run, or run `hookctl setup` with more ACCOUNT_REPLICAS";
    if open >= limit {
        Some(Finding::problem(
            check,
            format!("{found}, so that the next one is refused"),
            remedy,
        ))
    } else if open * 100 >= limit * MANY_PER_CENT {
        Some(Finding::warning(check, found, remedy))
    } else {
        None
    }
}

/// The result for an account.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Fine,
    Absent,
    Lacks(String),
    /// Events are published nevertheless.
    CannotProbe(String),
    /// Its worker works nevertheless.
    LacksTag(&'static str),
    HasMore(String),
}

fn finding(check: &str, judgement: Judgement, command: &str) -> Finding {
    let remedy = format!("run `hookctl setup`, or: {command}");
    let tags = "run `hookctl setup`, or set its tags with `rabbitmqctl set_user_tags`";
    match judgement {
        Judgement::Fine => Finding::ok(check, "has its rights and no others"),
        Judgement::Absent => Finding::problem(
            check,
            "does not exist",
            "run `hookctl setup` as an administrator of RabbitMQ",
        ),
        Judgement::Lacks(lacking) => Finding::problem(check, lacking, remedy),
        Judgement::CannotProbe(lacking) => Finding::warning(
            check,
            format!("{lacking}, so that readiness sees less"),
            remedy,
        ),
        Judgement::LacksTag(tag) => Finding::warning(
            check,
            format!(
                "has no tag {tag}, so that its worker does not see what policies do to its queue"
            ),
            tags,
        ),
        Judgement::HasMore(more) => {
            Finding::warning(check, format!("has more than it needs: {more}"), remedy)
        }
    }
}

fn judge(
    user: Option<&Value>,
    rights: Option<&Value>,
    program: Program,
    topology: &Topology,
) -> Judgement {
    let Some(user) = user else {
        return Judgement::Absent;
    };
    let Uses { write, read } = account::uses(program, topology);
    let pattern = |kind: &str| rights.map_or("", |r| r[kind].as_str().unwrap_or_default());
    let (may_write, may_read) = (pattern("write"), pattern("read"));
    let unwritable = unmatched(may_write, &write);
    let lacking: Vec<_> = [
        ("write to", &unwritable),
        ("read", &unmatched(may_read, &read)),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(what, names)| format!("may not {what} {}", names.join(", ")))
    .collect();
    if unwritable == [topology.probe()] && lacking.len() == 1 {
        return Judgement::CannotProbe(lacking.join("; "));
    }
    if !lacking.is_empty() {
        return Judgement::Lacks(lacking.join("; "));
    }
    let mut more: Vec<_> = [
        ("configure", pattern("configure"), &[][..]),
        ("write", may_write, &write[..]),
        ("read", may_read, &read[..]),
    ]
    .into_iter()
    .filter(|(_, pattern, needed)| is_wider(pattern, needed, topology))
    .map(|(kind, pattern, _)| format!("{kind} {pattern}"))
    .collect();
    let tag = account::tag(program);
    let other = tags(user).filter(|other| *other != tag);
    more.extend(other.map(|tag| format!("the tag {tag}")));
    if !more.is_empty() {
        Judgement::HasMore(more.join(", "))
    } else if tag.is_empty() || tags(user).any(|has| has == tag) {
        Judgement::Fine
    } else {
        Judgement::LacksTag(tag)
    }
}

/// RabbitMQ searches for the pattern anywhere in a name, and treats an empty pattern as one that matches
/// nothing.
fn matcher(pattern: &str) -> Option<Regex> {
    let pattern = if pattern.is_empty() { "^$" } else { pattern };
    Regex::new(pattern).ok()
}

/// The names that the pattern does not match. If only RabbitMQ's own engine understands the pattern, its
/// meaning is unknown, so nothing is reported as missing.
fn unmatched(pattern: &str, names: &[String]) -> Vec<String> {
    let Some(matcher) = matcher(pattern) else {
        return Vec::new();
    };
    let unmatched = names.iter().filter(|name| !matcher.is_match(name));
    unmatched.cloned().collect()
}

/// Whether the pattern matches names that the service does not use: other names of the pipeline and of the
/// broker, and names that are similar to those that it uses.
fn is_wider(pattern: &str, needed: &[String], topology: &Topology) -> bool {
    let Some(matcher) = matcher(pattern) else {
        return true;
    };
    let ours = topology.exchanges().into_iter().chain(topology.queues());
    let almost = needed.iter().flat_map(|name| {
        [
            format!("{name}-2"),
            format!("2-{name}"),
            name.replace('.', "-"),
        ]
    });
    let of_the_broker = ["amq.default", "amq.direct", "amq.gen-x", "another"].map(str::to_owned);
    ours.chain(almost)
        .chain(of_the_broker)
        .any(|name| !needed.contains(&name) && matcher.is_match(&name))
}

/// A list, or a string before RabbitMQ 3.9.
fn tags(user: &Value) -> impl Iterator<Item = &str> {
    let listed = user["tags"].as_array().into_iter().flatten();
    let joined = user["tags"].as_str().unwrap_or_default().split(',');
    listed
        .filter_map(Value::as_str)
        .chain(joined)
        .filter(|tag| !tag.is_empty())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;
    use shared::Family;

    use super::*;

    fn judged(program: Program, write: &str, read: &str) -> Judgement {
        let rights = json!({"configure": "^$", "write": write, "read": read});
        let user = json!({"tags": [account::tag(program)]});
        judge(Some(&user), Some(&rights), program, &Topology::new("a.b"))
    }

    #[rstest]
    #[case(r"^(a\.b\.events|a\.b\.probe)$", Judgement::Fine)]
    #[case(r"^a[.]b[.](probe|events)$", Judgement::Fine)]
    #[case("", Judgement::Lacks("may not write to a.b.events, a.b.probe".into()))]
    #[case("^$", Judgement::Lacks("may not write to a.b.events, a.b.probe".into()))]
    #[case(r"^a\.b\.probe$", Judgement::Lacks("may not write to a.b.events".into()))]
    #[case(r"^a\.b\.events$", Judgement::CannotProbe("may not write to a.b.probe".into()))]
    #[case(".*", Judgement::HasMore("write .*".into()))]
    #[case(r"a\.b\.(events|probe)", Judgement::HasMore(r"write a\.b\.(events|probe)".into()))]
    #[case("^(a.b.events|a.b.probe)$", Judgement::HasMore("write ^(a.b.events|a.b.probe)$".into()))]
    #[case("^(?!x)", Judgement::HasMore("write ^(?!x)".into()))]
    fn what_ingest_may_write_is_judged_by_names(#[case] write: &str, #[case] expected: Judgement) {
        assert_eq!(judged(Program::Ingest, write, "^$"), expected);
    }

    #[test]
    fn what_setup_grants_is_fine_for_every_program() {
        let topology = Topology::new("a.b");
        for program in Program::ALL {
            let granted = account::permissions(program, &topology);
            assert_eq!(
                judged(program, &granted.write, &granted.read),
                Judgement::Fine
            );
        }
    }

    #[rstest]
    #[case(3, Some(5), None)]
    #[case(4, Some(5), Some(false))]
    #[case(5, Some(5), Some(true))]
    #[case(0, Some(0), Some(true))]
    #[case(0, None, Some(false))]
    fn few_connections_left_are_a_warning_and_none_a_problem(
        #[case] open: u64,
        #[case] limit: Option<u64>,
        #[case] problem: Option<bool>,
    ) {
        let finding = judge_connections("a", open, limit);
        assert_eq!(finding.map(|finding| finding.is_problem()), problem);
    }

    #[test]
    fn a_worker_needs_its_queue_and_one_tag() {
        let vendor = Program::Worker(Family::Vendor);
        let lacks = Judgement::Lacks("may not read a.b.vendor".into());
        assert_eq!(judged(vendor, "", "^a.b.other$"), lacks);
        let user = json!({"tags": ["monitoring"]});
        let topology = Topology::new("a.b");
        assert_eq!(judge(Some(&user), None, vendor, &topology), lacks);
        let rights = json!({"configure": "", "write": "", "read": r"^a\.b\.vendor$"});
        assert_eq!(
            judge(Some(&user), Some(&rights), vendor, &topology),
            Judgement::HasMore("the tag monitoring".into())
        );
        let user = json!({"tags": "management"});
        assert_eq!(
            judge(Some(&user), Some(&rights), vendor, &topology),
            Judgement::Fine
        );
        let user = json!({"tags": []});
        assert_eq!(
            judge(Some(&user), Some(&rights), vendor, &topology),
            Judgement::LacksTag("management")
        );
        assert_eq!(judge(None, None, vendor, &topology), Judgement::Absent);
    }
}
