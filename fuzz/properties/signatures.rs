//! What holds for the signatures of every request: only the holder of a secret can make one that
//! verifies, and other entries in the list do not invalidate it.

use std::sync::LazyLock;

use ingest::{
    headers::WebhookHeaders,
    secrets::Secrets,
    signature::{SignatureToken, sign},
};

use super::request::Request;

/// That of the committed requests, so that the fuzzer starts from good signatures.
const KNOWN: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Signs nothing that is committed, so that no input can hold a signature of its.
const STRANGER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// More well-formed entries are not looked at.
const ENTRIES: usize = SignatureToken::MAX_PER_REQUEST;

static KNOWN_ONLY: LazyLock<Secrets> = LazyLock::new(|| secrets(&format!("known={KNOWN}")));
static STRANGER_ONLY: LazyLock<Secrets> =
    LazyLock::new(|| secrets(&format!("stranger={STRANGER}")));
static BOTH: LazyLock<Secrets> =
    LazyLock::new(|| secrets(&format!("stranger={STRANGER},known={KNOWN}")));

fn secrets(text: &str) -> Secrets {
    Secrets::parse(&text.into()).expect("good secrets")
}

pub(crate) fn check(input: &[u8]) {
    let request = Request::parse(input);
    let Ok(headers) = WebhookHeaders::parse(|name| request.values(name)) else {
        return;
    };
    let (id, digits, body) = (headers.id(), headers.timestamp_digits(), request.body);
    assert_eq!(STRANGER_ONLY.verify(&headers, body), None);

    let seconds = headers.timestamp().timestamp();
    if digits != seconds.to_string() {
        // `sign` writes no leading zeros, so that there is nothing to compare with.
        return;
    }
    let good = sign(KNOWN, id, seconds, body).expect("a good secret");
    let verified = KNOWN_ONLY.verify(&headers, body);
    let listed = headers.signatures().iter().flat_map(|list| entries(list));
    let expected = well_formed(listed).any(|entry| entry == good);
    assert_eq!(verified, expected.then_some("known"));

    // A good entry among the others, in a place that the input chooses.
    let place = body.len() % (headers.signatures().len() + 1);
    let mut lists = headers.signatures().to_vec();
    match (lists.get_mut(place), body.len() % 4) {
        (Some(list), 0) => *list = format!("{list} {good}"),
        // As a proxy joins two lines.
        (Some(list), 1) => *list = format!("{list}, {good}"),
        (Some(list), 2) => *list = format!("{good}, {list}"),
        _ => lists.insert(place, good.clone()),
    }
    let others = well_formed(lists.iter().flat_map(|list| entries(list)));
    let reached = others.take(ENTRIES).any(|entry| entry == good);
    let Some(among_others) = with(id, digits, &lists) else {
        return; // The list is too long now.
    };
    assert_eq!(BOTH.verify(&among_others, body), reached.then_some("known"));
    assert_eq!(STRANGER_ONLY.verify(&among_others, body), None);

    // The same good entry, and one thing that is not what was signed.
    let lists = [good];
    let signed = with(id, digits, &lists).expect("fits");
    assert_eq!(KNOWN_ONLY.verify(&signed, body), Some("known"));
    let position = seconds.unsigned_abs() as usize;
    let mut other_body = body.to_vec();
    match other_body.get_mut(position % (body.len() + 1)) {
        Some(byte) => *byte ^= 1 << (position % 8),
        None => other_body.push(0),
    }
    assert_eq!(KNOWN_ONLY.verify(&signed, &other_body), None);
    let other_id = format!("{id}0");
    let other_digits = format!("0{digits}");
    for (id, digits) in [(other_id.as_str(), digits), (id, other_digits.as_str())] {
        if let Some(tampered) = with(id, digits, &lists) {
            assert_eq!(KNOWN_ONLY.verify(&tampered, body), None);
        }
    }
    let mut entry = lists[0].clone().into_bytes();
    let position = position % entry.len();
    entry[position] = if entry[position] == b'A' { b'B' } else { b'A' };
    let tampered = String::from_utf8(entry).expect("ASCII");
    let tampered = with(id, digits, &[tampered]).expect("fits");
    assert_eq!(KNOWN_ONLY.verify(&tampered, body), None);
}

/// Everything that could be an entry: two texts without commas, joined by a comma.
fn entries(list: &str) -> Vec<String> {
    let pairs = |part: &str| {
        let texts: Vec<&str> = part.split(',').collect();
        texts
            .windows(2)
            .map(|pair| pair.join(","))
            .collect::<Vec<_>>()
    };
    list.split(' ').flat_map(pairs).collect()
}

fn well_formed(entries: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    entries
        .filter(|entry| SignatureToken::parse_list(entry).next().is_some())
        .take(ENTRIES)
}

fn with(id: &str, digits: &str, lists: &[String]) -> Option<WebhookHeaders> {
    WebhookHeaders::parse(|name| {
        let values = match name {
            "webhook-id" => vec![id.as_bytes()],
            "webhook-timestamp" => vec![digits.as_bytes()],
            "webhook-signature" => lists.iter().map(String::as_bytes).collect(),
            _ => Vec::new(),
        };
        values.into_iter()
    })
    .ok()
}
