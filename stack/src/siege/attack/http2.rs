//! The bytes of an HTTP/2 connection (RFC 9113) whose requests have unfinished bodies. Written by hand,
//! because a client library would wait for the server.

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const STREAMS: u32 = 100;

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
/// The flag of a frame with all headers of its request.
const END_HEADERS: u8 = 4;

/// As many requests as a connection may have at once by default, each announcing a body.
pub(super) fn posts(timestamp: &str, signature: &str) -> Vec<u8> {
    let block = headers(timestamp, signature);
    let mut bytes = PREFACE.to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    for stream in 0..STREAMS {
        // A client's stream ids are odd.
        frame(&mut bytes, HEADERS, END_HEADERS, 2 * stream + 1, &block);
    }
    bytes
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a short payload");
    bytes.extend(&length.to_be_bytes()[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
}

/// HPACK (RFC 7541): two entries of the static table, and literals without indexing.
fn headers(timestamp: &str, signature: &str) -> Vec<u8> {
    const METHOD_POST: u8 = 0x83;
    const SCHEME_HTTP: u8 = 0x86;
    const PATH: u8 = 4;
    const AUTHORITY: u8 = 1;
    let mut block = vec![METHOD_POST, SCHEME_HTTP];
    for (name, value) in [(PATH, "/webhooks/pleo"), (AUTHORITY, "x")] {
        block.push(name);
        text(&mut block, value);
    }
    for (name, value) in [
        ("webhook-id", "stranger"),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", signature),
        ("content-length", "262144"),
    ] {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

fn text(block: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).expect("a short text");
    assert!(length < 127, "longer texts have a longer length");
    block.push(length);
    block.extend(text.as_bytes());
}
