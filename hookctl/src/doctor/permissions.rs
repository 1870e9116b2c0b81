//! Whether the services' accounts may do in RabbitMQ what they need to, and no more: what
//! `hookctl setup` grants, asked name by name. Patterns that were set by hand may be spelt otherwise.

use regex::Regex;
use serde_json::Value;
use shared::{Program, topology::Topology};

use super::finding::Finding;
use crate::{
    account::{self, Uses},
    management::{Management, encode},
};

const CHECK: &str = "rabbitmq accounts";

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
        if user.is_some() && !has_a_limit(management, &name).await? {
            findings.push(Finding::warning(
                format!("rabbitmq account {name}"),
                "may open any number of connections",
                "run `hookctl setup`",
            ));
        }
    }
    Ok(findings)
}

async fn has_a_limit(management: &Management, account: &str) -> anyhow::Result<bool> {
    let limits = management
        .get(&format!("/api/user-limits/{}", encode(account)))
        .await?;
    let mut limits = limits.as_array().into_iter().flatten();
    Ok(limits.any(|user| {
        let connections = user["value"]["max-connections"].as_i64();
        connections.is_some_and(|most| most >= 0)
    }))
}

/// What is to be said of an account.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Fine,
    Absent,
    Lacks(String),
    /// Events are published all the same.
    CannotProbe(String),
    HasMore(String),
}

fn finding(check: &str, judgement: Judgement, command: &str) -> Finding {
    let remedy = format!("run `hookctl setup`, or: {command}");
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
    more.extend(tags(user).map(|tag| format!("the tag {tag}")));
    match more.is_empty() {
        true => Judgement::Fine,
        false => Judgement::HasMore(more.join(", ")),
    }
}

/// RabbitMQ looks for the pattern anywhere in a name, and takes an empty one for one that matches
/// nothing.
fn matcher(pattern: &str) -> Option<Regex> {
    let pattern = if pattern.is_empty() { "^$" } else { pattern };
    Regex::new(pattern).ok()
}

/// The names that the pattern does not match. What a pattern means that only RabbitMQ's own engine
/// understands is not known, so it is not said to lack anything.
fn unmatched(pattern: &str, names: &[String]) -> Vec<String> {
    let Some(matcher) = matcher(pattern) else {
        return Vec::new();
    };
    let unmatched = names.iter().filter(|name| !matcher.is_match(name));
    unmatched.cloned().collect()
}

/// Whether the pattern matches something that the service does not use: other names of ours and of
/// the broker, and names that are almost those that it uses.
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

/// A list, or before RabbitMQ 3.9 a text.
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
        let user = json!({"tags": []});
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

    #[test]
    fn a_worker_needs_its_queue_and_no_tag() {
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
        assert_eq!(judge(None, None, vendor, &topology), Judgement::Absent);
    }
}
