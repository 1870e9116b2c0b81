//! The configured secrets, each with a name. Several are live at once: one per subscription, and
//! two during a rotation. A secret may be tied to the companies whose events it may sign.

use std::collections::HashMap;

use anyhow::{Context, bail};
use secrecy::{ExposeSecret, SecretString};
use shared::{Companies, text_file};

use crate::{
    headers::WebhookHeaders,
    signature::{self, Key, Signatures},
};

/// The secret of the local stack and of examples. It is public, so it must never sign real events.
pub const DEVELOPMENT_SECRET: &str = "whsec_cGxlby13ZWJob29rcy1kZXZlbG9wbWVudC1zZWNyZXQ=";

const MAX_NAME_LEN: usize = 32;

/// The name of a secret that is given without one.
const DEFAULT_NAME: &str = "default";

/// The prefix of each company id that a secret is tied to.
const COMPANY: &str = "company=";

/// Whether [`DEVELOPMENT_SECRET`] may be among the secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevelopmentSecret {
    /// Refused: it is public, so anybody could forge events.
    Refused,
    /// Allowed, because this is not a production system.
    Allowed,
}

/// All keys that a webhook may be signed with. Never empty, and the names are unique.
#[derive(Debug)]
pub struct Secrets {
    keys: Vec<(String, Key)>,
    /// The companies of the tied secrets, by the secret's name.
    companies: HashMap<String, Companies>,
    development: Option<String>,
}

impl Secrets {
    /// Parses `name=whsec_…` entries, separated by commas or line ends. Lines that start with `#`
    /// are comments. One entry may lack a name; its name is then `default`. After the key,
    /// `company=ID` may follow, once for each company that the secret is tied to. Errors name the
    /// entry and never show its key.
    pub fn parse(text: &SecretString) -> anyhow::Result<Self> {
        let known = Key::parse(DEVELOPMENT_SECRET).expect("the development secret is a key");
        let mut keys: Vec<(String, Key)> = Vec::new();
        let mut companies = HashMap::new();
        let mut development = None;
        let entries = text_file::without_mark(text.expose_secret())
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .flat_map(|line| line.split(','))
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        for (index, entry) in entries.enumerate() {
            let position = index + 1;
            let (name, key) = if signature::looks_like_key(entry) {
                (DEFAULT_NAME, entry)
            } else if let Some(named) = entry.split_once('=') {
                named
            } else {
                bail!("secret {position} is no secret: write it as name=whsec_…");
            };
            let name = name.trim();
            if !is_name(name) {
                bail!(
                    "the name of secret {position} must be 1 to {MAX_NAME_LEN} lower-case letters, \
                     digits, `-` or `_`"
                );
            }
            if keys.iter().any(|(other, _)| other == name) {
                bail!(
                    "the secret name `{name}` is there twice: write each as name=whsec_…, under a \
                     name of its own"
                );
            }
            let of_this = || format!("the secret `{name}`");
            let mut words = key.split_whitespace();
            let key = Key::parse(words.next().unwrap_or_default()).with_context(of_this)?;
            if let Some(tied) = tied_companies(words).with_context(of_this)? {
                companies.insert(name.to_owned(), tied);
            }
            if key == known {
                development = Some(name.to_owned());
            }
            keys.push((name.to_owned(), key));
        }
        if keys.is_empty() {
            bail!("no secret is configured: give at least one, as name=whsec_…");
        }
        Ok(Self {
            keys,
            companies,
            development,
        })
    }

    /// Returns the list, or an error if it has the development secret and `policy` refuses that.
    pub fn permitted(self, policy: DevelopmentSecret) -> anyhow::Result<Self> {
        if let (Some(name), DevelopmentSecret::Refused) = (&self.development, policy) {
            bail!(
                "the secret `{name}` is the development secret, which everybody knows; it is \
                 refused unless DEVELOPMENT=true"
            );
        }
        Ok(self)
    }

    /// The name of the entry that is the development secret.
    pub fn development_secret(&self) -> Option<&str> {
        self.development.as_deref()
    }

    /// The name of the key that verifies the webhook, if there is one.
    ///
    /// ```
    /// use ingest::{headers::WebhookHeaders, secrets::Secrets};
    ///
    /// let text = "main=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned();
    /// let secrets = Secrets::parse(&text.into())?;
    /// let headers = WebhookHeaders::parse(|name| {
    ///     let value: &[u8] = match name {
    ///         "webhook-id" => b"msg_p5jXN8AQM9LWM0D4loKWxJek",
    ///         "webhook-timestamp" => b"1614265330",
    ///         "webhook-signature" => b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ///         _ => return None.into_iter(),
    ///     };
    ///     Some(value).into_iter()
    /// })?;
    /// assert_eq!(secrets.verify(&headers, br#"{"test": 2432232314}"#), Some("main"));
    /// assert_eq!(secrets.verify(&headers, b"another body"), None);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn verify(&self, headers: &WebhookHeaders, body: &[u8]) -> Option<&str> {
        self.matching(&Signatures::of(headers), headers, body)
    }

    /// As [`Self::verify`], with the signatures already parsed.
    pub fn matching(
        &self,
        signatures: &Signatures,
        headers: &WebhookHeaders,
        body: &[u8],
    ) -> Option<&str> {
        signatures.matching_key(&self.keys, headers, body)
    }

    /// Whether one of the signatures has the form of one of the keys.
    pub fn fit(&self, signatures: &Signatures) -> bool {
        signatures.fit(&self.keys)
    }

    /// The most bytes that must be hashed to verify a body of this length.
    pub fn work(&self, signatures: &Signatures, body: usize) -> usize {
        signatures.work(&self.keys, body)
    }

    /// How many times the body of a request without a valid signature is hashed at most.
    pub fn most_passes(&self) -> usize {
        signature::most_passes(&self.keys)
    }

    /// The keys with their names, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Key)> {
        self.keys.iter().map(|(name, key)| (name.as_str(), key))
    }

    /// The companies that this secret is tied to, if any.
    pub fn companies_of(&self, name: &str) -> Option<&Companies> {
        self.companies.get(name)
    }

    /// The number of secrets that are tied to companies.
    pub fn tied(&self) -> usize {
        self.companies.len()
    }

    /// The names of the untied secrets, if some others are tied.
    pub fn left_untied(&self) -> Vec<&str> {
        let is_untied =
            |name: &&str| !self.companies.is_empty() && self.companies_of(name).is_none();
        self.names().filter(is_untied).collect()
    }

    /// The configured names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|(name, _)| name.as_str())
    }
}

fn tied_companies<'t>(words: impl Iterator<Item = &'t str>) -> anyhow::Result<Option<Companies>> {
    let ids: Option<Vec<&str>> = words.map(|word| word.strip_prefix(COMPANY)).collect();
    let Some(ids) = ids else {
        bail!("only {COMPANY}ID may follow its key, for each company that it speaks for");
    };
    if ids.is_empty() {
        return Ok(None);
    }
    if ids.iter().any(|id| signature::looks_like_key(id)) {
        bail!("a key stands where the id of a company should be");
    }
    Ok(Some(Companies::new(ids)?))
}

/// A name is used as a metric label and a column value.
fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn parse(text: &str) -> anyhow::Result<Secrets> {
        Secrets::parse(&SecretString::from(text))
    }

    #[test]
    fn several_named_secrets_are_read() {
        let text =
            format!("# rotated in spring\ncurrent={KEY}, previous={KEY}\n\nentity-2 = {KEY}\n");
        let secrets = parse(&text).expect("valid");
        assert_eq!(
            secrets.names().collect::<Vec<_>>(),
            ["current", "previous", "entity-2"]
        );
    }

    #[test]
    fn a_lone_secret_needs_no_name() {
        let names = |text: &str| {
            let secrets = parse(text).expect("valid");
            secrets.names().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(names(KEY), ["default"]);
        assert_eq!(names(&format!("{KEY}\nother={KEY}")), ["default", "other"]);
        assert_eq!(names(&format!("whatever={KEY}")), ["whatever"]);
    }

    #[test]
    fn a_file_of_another_system_is_read() {
        let text = format!("\u{feff}current={KEY} \r\n\tprevious = {KEY}\t\r\n");
        let secrets = parse(&text).expect("valid");
        assert_eq!(secrets.names().collect::<Vec<_>>(), ["current", "previous"]);
    }

    #[test]
    fn a_secret_is_tied_to_companies() {
        let text = format!(
            "acme={KEY} company=8d5d company=77aa\r\nother = {KEY}\tcompany=8d5d ,untied={KEY}"
        );
        let secrets = parse(&text).expect("valid");
        let companies = |name| secrets.companies_of(name).map(Companies::as_str);
        assert_eq!(companies("acme"), Some("8d5d 77aa"));
        assert_eq!(companies("other"), Some("8d5d"));
        assert_eq!(companies("untied"), None);
        assert_eq!((secrets.tied(), secrets.left_untied()), (2, vec!["untied"]));
        let alone = parse(&format!("{KEY} company=8d5d")).expect("valid");
        assert_eq!(
            alone.companies_of("default").map(Companies::as_str),
            Some("8d5d")
        );
        let untied = parse(&format!("a={KEY},b={KEY}")).expect("valid");
        assert_eq!((untied.tied(), untied.left_untied().len()), (0, 0));
    }

    #[rstest]
    #[case("company=", "the id of company 1")]
    #[case("company=a company=größe", "the id of company 2")]
    #[case(&format!("company={}", "x".repeat(65)), "the id of company 1")]
    #[case("company=a company=b company=a", "company 3 is there twice")]
    #[case(&(0..101).map(|i| format!("company={i} ")).collect::<String>(), "more than 100")]
    #[case("companies=a", "only company=ID may follow")]
    #[case("company=a b", "only company=ID may follow")]
    #[case(KEY, "only company=ID may follow")]
    #[case(&format!("company={KEY}"), "a key stands where")]
    fn companies_that_make_no_sense_are_refused(#[case] companies: &str, #[case] expected: &str) {
        let text = format!("acme={KEY} {companies}");
        let error = format!("{:#}", parse(&text).expect_err("refused"));
        assert!(error.contains("the secret `acme`"), "{error}");
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("MfKQ9"), "{error}");
    }

    #[rstest]
    #[case(DEVELOPMENT_SECRET)]
    #[case(DEVELOPMENT_SECRET.trim_end_matches('='))]
    fn the_development_secret_is_known_in_every_spelling(#[case] spelling: &str) {
        let secrets = parse(spelling).expect("valid");
        assert_eq!(secrets.development_secret(), Some("default"));
    }

    #[test]
    fn the_development_secret_is_for_development_only() {
        let ours = || parse(&format!("a={KEY}")).expect("valid");
        assert!(ours().permitted(DevelopmentSecret::Refused).is_ok());
        let known = || parse(&format!("a={KEY},b={DEVELOPMENT_SECRET}")).expect("valid");
        assert_eq!(known().development_secret(), Some("b"));
        assert!(known().permitted(DevelopmentSecret::Allowed).is_ok());
        let refusal = known().permitted(DevelopmentSecret::Refused);
        let error = refusal.expect_err("refused").to_string();
        assert!(
            error.contains("`b`") && !error.contains("cGxlby"),
            "{error}"
        );
    }

    #[rstest]
    #[case("")]
    #[case(" , \n# only a comment")]
    #[case(&format!("{KEY},{KEY}"))]
    #[case(&format!("default={KEY}\n{KEY}"))]
    #[case(&KEY["whsec_".len()..])]
    #[case(&format!("={KEY}"))]
    #[case(&format!("Current={KEY}"))]
    #[case(&format!("a={KEY},a={KEY}"))]
    #[case("current=whsec_c2hvcnQ=")]
    #[case("current=")]
    fn a_bad_list_is_refused_without_showing_a_key(#[case] text: &str) {
        let error = format!("{:#}", parse(text).expect_err("refused"));
        assert!(
            !error.contains("MfKQ9") && !error.contains("c2hvcnQ"),
            "{error}"
        );
    }
}
