//! Standard Webhooks signatures (specification 1.0.0): `v1` is HMAC-SHA256 under a `whsec_` secret,
//! `v1a` is ed25519 under a `whpk_` public key.
//!
//! The signed content is `{webhook-id}.{webhook-timestamp}.{raw body}`, byte for byte as received:
//! the timestamp is not parsed and printed again. Whether the timestamp is fresh is checked in
//! [`crate::headers`].

use std::{cell::LazyCell, fmt};

use base64::{
    Engine, alphabet,
    engine::{
        DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig,
        general_purpose::STANDARD as BASE64,
    },
};
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, KeyInit, Mac, digest::CtOutput};
use sha2::Sha256;
use thiserror::Error;

use crate::headers::WebhookHeaders;

const SYMMETRIC_PREFIX: &str = "whsec_";
const PUBLIC_PREFIX: &str = "whpk_";

/// The length of a symmetric secret, by the specification.
const SECRET_LEN: std::ops::RangeInclusive<usize> = 24..=64;

/// People copy keys from dashboards and password managers. So both base64 alphabets are accepted,
/// with or without padding, as in the reference libraries.
const KEY_BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY_PADDING);
const KEY_BASE64_URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY_PADDING);
const ANY_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

type HmacSha256 = Hmac<Sha256>;

/// Why a key is refused. No variant contains the key.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// It has neither prefix.
    #[error("must start with whsec_ (shared secret) or whpk_ (public key)")]
    Prefix,
    /// The part after the prefix is not base64.
    #[error("is not base64 after its prefix")]
    Base64,
    /// The secret is too short or too long.
    #[error("has {0} bytes after decoding; a whsec_ secret has 24 to 64")]
    Length(usize),
    /// It is not 32 bytes, or not a point on the curve.
    #[error("is not an ed25519 public key")]
    PublicKey,
    /// A public key cannot sign.
    #[error("is a public key, which cannot sign")]
    CannotSign,
}

/// A key that verifies signatures. Debug output never shows it.
#[derive(Clone)]
pub enum Key {
    /// `whsec_…`: HMAC-SHA256, with a precomputed key schedule.
    Symmetric(Box<HmacSha256>),
    /// `whpk_…`: ed25519.
    Public(Box<VerifyingKey>),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Symmetric(_) => "Key::Symmetric(…)",
            Self::Public(_) => "Key::Public(…)",
        })
    }
}

/// Keys are equal if they verify the same signatures, however they were written.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            // Keys that make the same tag are the same key.
            (Self::Symmetric(a), Self::Symmetric(b)) => {
                a.clone().finalize() == b.clone().finalize()
            }
            (Self::Public(a), Self::Public(b)) => a == b,
            (Self::Symmetric(_), Self::Public(_)) | (Self::Public(_), Self::Symmetric(_)) => false,
        }
    }
}

impl Key {
    /// Parses a `whsec_…` or `whpk_…` key.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if let Some(encoded) = text.strip_prefix(SYMMETRIC_PREFIX) {
            let secret = decode_key(encoded)?;
            if !SECRET_LEN.contains(&secret.len()) {
                return Err(KeyError::Length(secret.len()));
            }
            let mac = HmacSha256::new_from_slice(&secret).expect("HMAC takes keys of any length");
            Ok(Self::Symmetric(Box::new(mac)))
        } else if let Some(encoded) = text.strip_prefix(PUBLIC_PREFIX) {
            let bytes = decode_key(encoded)?;
            let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| KeyError::PublicKey)?;
            let key = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::PublicKey)?;
            Ok(Self::Public(Box::new(key)))
        } else {
            Err(KeyError::Prefix)
        }
    }

    /// Signs as a sender does and returns `v1,<base64>`. Only a symmetric key can sign.
    pub fn sign(&self, id: &str, timestamp_s: i64, body: &[u8]) -> Result<String, KeyError> {
        let Self::Symmetric(mac) = self else {
            return Err(KeyError::CannotSign);
        };
        let tag = authenticate(mac, id, &timestamp_s.to_string(), body).finalize();
        Ok(format!("v1,{}", BASE64.encode(tag.into_bytes())))
    }

    /// Whether one of the signatures is valid under this key. The HMAC is computed once for all
    /// signatures, and each comparison takes constant time.
    fn verifies(&self, signatures: &Signatures, headers: &WebhookHeaders, body: &[u8]) -> bool {
        match self {
            Self::Symmetric(_) if signatures.v1.is_empty() => false,
            Self::Symmetric(mac) => {
                let expected =
                    authenticate(mac, headers.id(), headers.timestamp_digits(), body).finalize();
                let is_expected = |tag: &[u8; 32]| expected == CtOutput::new((*tag).into());
                signatures.v1.iter().any(is_expected)
            }
            Self::Public(key) => {
                let parts = [
                    headers.id().as_bytes(),
                    headers.timestamp_digits().as_bytes(),
                    body,
                ];
                // Joined once for all signatures.
                let signed = LazyCell::new(|| parts.join(&b'.'));
                signatures.v1a.iter().any(|bytes| {
                    key.verify_strict(&signed, &Signature::from_bytes(bytes))
                        .is_ok()
                })
            }
        }
    }

    /// Whether one of the signatures has this key's form.
    fn fits(&self, signatures: &Signatures) -> bool {
        match self {
            Self::Symmetric(_) => !signatures.v1.is_empty(),
            Self::Public(_) => !signatures.v1a.is_empty(),
        }
    }

    /// The bytes to hash until all of these signatures are rejected. The arithmetic of ed25519
    /// counts as the bytes that could be hashed in the same time.
    fn work(&self, v1: usize, v1a: usize, signed: usize) -> usize {
        const ARITHMETIC: usize = 64 * 1024;
        match self {
            // One pass for any number of signatures.
            Self::Symmetric(_) => signed * v1.min(1),
            Self::Public(_) => (signed + ARITHMETIC) * v1a,
        }
    }
}

/// Whether a text starts like a key. The rest may still be invalid.
pub fn looks_like_key(text: &str) -> bool {
    text.starts_with(SYMMETRIC_PREFIX) || text.starts_with(PUBLIC_PREFIX)
}

fn decode_key(encoded: &str) -> Result<Vec<u8>, KeyError> {
    let engine = if encoded.contains(['-', '_']) {
        KEY_BASE64_URL
    } else {
        KEY_BASE64
    };
    engine.decode(encoded).map_err(|_| KeyError::Base64)
}

fn authenticate(mac: &HmacSha256, id: &str, timestamp: &str, body: &[u8]) -> HmacSha256 {
    #[cfg(test)]
    tests::PASSES.set(tests::PASSES.get() + 1);
    let mut mac = mac.clone();
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    mac
}

/// As [`Key::sign`], under a `whsec_…` secret.
///
/// ```
/// // The example of the Standard Webhooks specification's reference libraries.
/// let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
/// let signature = ingest::signature::sign(secret, id, 1_614_265_330, br#"{"test": 2432232314}"#)?;
/// assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
/// # Ok::<(), ingest::signature::KeyError>(())
/// ```
pub fn sign(secret: &str, id: &str, timestamp_s: i64, body: &[u8]) -> Result<String, KeyError> {
    Key::parse(secret)?.sign(id, timestamp_s, body)
}

/// One entry of `webhook-signature`, decoded.
#[derive(Debug, PartialEq, Eq)]
pub enum SignatureToken {
    /// HMAC-SHA256.
    V1([u8; 32]),
    /// ed25519.
    V1a([u8; 64]),
}

impl SignatureToken {
    /// How many well-formed entries of a request are used. A sender sends up to 11 during a
    /// rotation; the limit bounds the cost of an unauthenticated request.
    pub const MAX_PER_REQUEST: usize = 16;

    /// Parses a space-separated list of `version,base64`. Unknown versions and malformed entries
    /// are skipped, as the specification requires: one good signature is enough.
    ///
    /// HTTP allows a proxy to join several header lines with commas. So a comma may also separate
    /// two entries, and each version that is followed by a comma and a signature is an entry.
    pub fn parse_list(list: &str) -> impl Iterator<Item = Self> + '_ {
        list.split(' ').flat_map(|entries| {
            let versions = entries.split(',');
            let signatures = entries.split(',').skip(1);
            versions
                .zip(signatures)
                .filter_map(|(version, signature)| Self::parse(version, signature))
        })
    }

    fn parse(version: &str, signature: &str) -> Option<Self> {
        // Check the version first, because decoding is expensive.
        match version {
            "v1" => decode(signature).map(Self::V1),
            "v1a" => decode(signature).map(Self::V1a),
            _ => None,
        }
    }
}

fn decode<const LEN: usize>(signature: &str) -> Option<[u8; LEN]> {
    BASE64.decode(signature).ok()?.try_into().ok()
}

/// The well-formed signatures of one request, not yet verified.
#[derive(Debug, Default)]
pub struct Signatures {
    v1: Vec<[u8; 32]>,
    v1a: Vec<[u8; 64]>,
}

impl Signatures {
    /// Parses the signatures of a request's headers.
    pub fn of(headers: &WebhookHeaders) -> Self {
        let mut signatures = Self::default();
        let tokens = headers
            .signatures()
            .iter()
            .flat_map(|list| SignatureToken::parse_list(list))
            .take(SignatureToken::MAX_PER_REQUEST);
        for token in tokens {
            match token {
                SignatureToken::V1(tag) => signatures.v1.push(tag),
                SignatureToken::V1a(bytes) => signatures.v1a.push(bytes),
            }
        }
        signatures
    }

    /// Whether one of them has the form of one of these keys.
    pub fn fit(&self, keys: &[(String, Key)]) -> bool {
        keys.iter().any(|(_, key)| key.fits(self))
    }

    /// The most bytes that must be hashed to compare them with these keys, for a body of this
    /// length.
    pub fn work(&self, keys: &[(String, Key)], body: usize) -> usize {
        let work = |key: &Key| key.work(self.v1.len(), self.v1a.len(), body);
        keys.iter().map(|(_, key)| work(key)).sum()
    }

    /// The name of the first key that verifies one of them.
    pub fn matching_key<'k>(
        &self,
        keys: &'k [(String, Key)],
        headers: &WebhookHeaders,
        body: &[u8],
    ) -> Option<&'k str> {
        keys.iter()
            .find(|(_, key)| key.verifies(self, headers, body))
            .map(|(name, _)| name.as_str())
    }
}

/// How many times the body of a request without a valid signature is hashed at most.
pub fn most_passes(keys: &[(String, Key)]) -> usize {
    let passes = |key: &Key| match key {
        Key::Symmetric(_) => 1,
        Key::Public(_) => SignatureToken::MAX_PER_REQUEST,
    };
    keys.iter().map(|(_, key)| passes(key)).sum()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rstest::rstest;

    use super::*;

    thread_local! {
        /// How many times this thread has hashed a body for an HMAC.
        pub(super) static PASSES: Cell<usize> = const { Cell::new(0) };
    }

    #[rstest]
    #[case("", KeyError::Prefix)]
    #[case("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", KeyError::Prefix)]
    #[case("whsec_", KeyError::Length(0))]
    #[case("whsec_c2hvcnQ=", KeyError::Length(5))]
    #[case("whsec_not base64", KeyError::Base64)]
    #[case("whpk_AAAA", KeyError::PublicKey)]
    fn a_weak_or_malformed_key_is_refused(#[case] text: &str, #[case] expected: KeyError) {
        assert_eq!(Key::parse(text).expect_err("refused"), expected);
    }

    #[test]
    fn a_key_does_not_show_in_debug_output() {
        let key = Key::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("valid");
        assert_eq!(format!("{key:?}"), "Key::Symmetric(…)");
    }

    #[rstest]
    #[case("whsec_cGxlby13ZWJob29rcy1kZXZlbG9wbWVudC1zZWNyZXQ=")]
    #[case("whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=")]
    fn padding_is_optional(#[case] padded: &str) {
        let key = Key::parse(padded).expect("a key");
        assert_eq!(Key::parse(padded.trim_end_matches('=')), Ok(key));
    }

    #[test]
    fn both_alphabets_are_read_and_not_mixed() {
        let standard = "whsec_++++////MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let url_safe = "whsec_----____MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let key = Key::parse(standard).expect("a key");
        assert_eq!(Key::parse(url_safe), Ok(key));
        let mixed = standard.replace('/', "_");
        assert_eq!(Key::parse(&mixed), Err(KeyError::Base64));
    }

    #[test]
    fn malformed_entries_and_unknown_versions_are_skipped() {
        let good = BASE64.encode([7; 32]);
        let list = format!("v1 v1, v1,@@@ v1,AAAA v2,{good} ,, v1a,{good}  v1,{good}");
        let tokens: Vec<_> = SignatureToken::parse_list(&list).collect();
        assert_eq!(tokens, [SignatureToken::V1([7; 32])]);
    }

    #[rstest]
    #[case("v1,#, v1,%")]
    #[case("v1,# , v1,%")]
    #[case("v1,# ,v1,%")]
    #[case("v1,#,v1,%")]
    #[case(",v1,#,,x,v1,v1,%,")]
    fn lines_that_a_proxy_joined_are_read(#[case] list: &str) {
        let (a, b) = (BASE64.encode([1; 32]), BASE64.encode([2; 32]));
        let list = list.replace('#', &a).replace('%', &b);
        let tokens: Vec<_> = SignatureToken::parse_list(&list).collect();
        let expected = [[1; 32], [2; 32]].map(SignatureToken::V1);
        assert_eq!(tokens, expected, "{list}");
    }

    #[test]
    fn a_shared_secret_hashes_the_body_once_for_all_signatures() {
        let list = vec![format!("v1,{}", BASE64.encode([1; 32])); 16].join(" ");
        let headers = WebhookHeaders::parse(|name| {
            let value: &[u8] = match name {
                "webhook-id" => b"id",
                "webhook-timestamp" => b"1",
                "webhook-signature" => list.as_bytes(),
                _ => return None.into_iter(),
            };
            Some(value).into_iter()
        });
        let headers = headers.expect("good headers");
        let signatures = Signatures::of(&headers);
        let keys = [1, 2, 3].map(|number| {
            let secret = BASE64.encode([number; 32]);
            let key = Key::parse(&format!("whsec_{secret}")).expect("a key");
            (number.to_string(), key)
        });
        PASSES.set(0);
        assert_eq!(signatures.matching_key(&keys, &headers, b"body"), None);
        assert_eq!(PASSES.get(), 3);
        assert_eq!(signatures.work(&keys, 100), 300);
    }

    #[test]
    fn the_secret_of_an_example_signs_it_as_documented() {
        let signature = sign(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(
            signature.as_deref(),
            Ok("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
        );
    }
}
