//! The fuzzers' properties (see `fuzz/`), checked on their committed inputs and on inputs from
//! proptest.

#[path = "../../../fuzz/properties/headers.rs"]
mod headers;
#[path = "../../../fuzz/properties/request.rs"]
mod request;
#[path = "../../../fuzz/properties/signatures.rs"]
mod signatures;

use std::{fs, path::Path};

use ingest::{headers::WebhookHeaders, secrets::Secrets};
use proptest::{collection::vec, prelude::*, sample::select, string::string_regex};

use crate::webhook::{SECRET, Webhook};

/// Calls `check` with each committed input of a fuzzer.
#[expect(clippy::print_stdout, reason = "says which one fails")]
fn each_seed(fuzzer: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let seeds: Vec<_> = fs::read_dir(folder.join(fuzzer)).expect("seeds").collect();
    assert!(seeds.len() > 10, "{seeds:?}");
    for seed in seeds {
        let path = seed.expect("a seed").path();
        println!("{}", path.display());
        check(&fs::read(path).expect("a file"));
    }
}

/// Nearly valid requests: each header is usually good.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let matching = |regex| string_regex(regex).expect("a regex").boxed();
    let id = prop_oneof![4 => matching("[!-~&&[^.]]{1,201}"), 1 => matching("[ -~é]{0,9}")];
    let timestamp = prop_oneof![
        4 => matching("[1-9][0-9]{0,12}"),
        1 => matching("[0-9]{0,21}"),
        1 => matching("[0-9+. -]{0,9}"),
    ];
    let list = prop_oneof![
        4 => matching("(v1|v1a|v2|),?[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{42}A=){0,40}"),
        1 => matching("[ -~]{0,80}"),
        1 => matching("[ -~]{4000,4100}"),
    ];
    let header = (select(vec!["webhook", "webhook", "webhook", "svix"]), 0..3);
    let copies = vec(header, 2..6);
    let body = vec(any::<u8>(), 0..40);
    (id, timestamp, vec(list, 0..3), copies, body).prop_map(
        |(id, timestamp, lists, copies, body)| {
            // One set of headers, and sometimes headers of another set or a header twice.
            let extra = copies.iter().skip(4).copied();
            let set = copies[0].0;
            let mut head = String::new();
            for (set, part) in [(set, 0), (set, 1)].into_iter().chain(extra) {
                head += &match part {
                    0 => format!("{set}-id:{id}\n"),
                    1 => format!("{set}-timestamp:{timestamp}\n"),
                    _ => format!("{set}-signature:v1,x\n"),
                };
            }
            for list in lists {
                head += &format!("{set}-signature:{list}\n");
            }
            [head.as_bytes(), b"\n", &body].concat()
        },
    )
}

#[test]
fn committed_headers_are_read_by_the_rules() {
    each_seed("headers", headers::check);
}

#[test]
fn committed_signatures_verify_only_under_their_secret() {
    each_seed("signatures", signatures::check);
}

/// An entry of `webhook-signature`: the good one (`None`) or a wrong one.
fn entries() -> impl Strategy<Value = Option<String>> {
    let wrong = prop_oneof![
        2 => string_regex("(v1|v1a|v2|v1,v1|),[A-Za-z0-9+/]{43}=").expect("a regex"),
        1 => string_regex("[!-~]{0,20}").expect("a regex"),
        1 => select(vec!["v1", "v1,", ",", ",,", "v1,AAAA"]).prop_map(str::to_owned),
    ];
    prop_oneof![1 => Just(None), 4 => wrong.prop_map(Some)]
}

proptest! {
    /// A proxy may join header lines with commas; the sender itself separates entries with spaces.
    #[test]
    fn a_good_signature_counts_wherever_it_is_and_however_the_others_are_joined(
        entries in vec((entries(), select(vec![" ", ", ", ",", "  ", " , ", " ,"])), 1..8),
        svix in any::<bool>(),
    ) {
        let webhook = Webhook::vendor("msg_1");
        let good = webhook.signature.as_str();
        let list: String = entries
            .iter()
            .map(|(entry, joint)| format!("{}{joint}", entry.as_deref().unwrap_or(good)))
            .collect();
        let set = if svix { "svix" } else { "webhook" };
        let headers = WebhookHeaders::parse(|name| {
            let value = match name.strip_prefix(set) {
                Some("-id") => Some(webhook.id.as_bytes()),
                Some("-timestamp") => Some(webhook.timestamp.as_bytes()),
                Some("-signature") => Some(list.as_bytes()),
                _ => None,
            };
            value.into_iter()
        })
        .expect("well-formed headers");
        let secrets = Secrets::parse(&format!("known={SECRET}").into()).expect("a secret");
        let expected = entries.iter().any(|(entry, _)| entry.is_none());
        prop_assert_eq!(secrets.verify(&headers, &webhook.body).is_some(), expected, "{}", list);
    }

    #[test]
    fn headers_are_read_by_the_rules(request in requests()) {
        headers::check(&request);
    }

    #[test]
    fn signatures_verify_only_under_their_secret_and_in_any_company(request in requests()) {
        signatures::check(&request);
    }

    #[test]
    fn no_bytes_break_the_rules(bytes in vec(any::<u8>(), 0..200)) {
        headers::check(&bytes);
        signatures::check(&bytes);
    }
}
