//! Parses the address of a store:
//! `scheme://user:password@host:port,host:port/path?parameter=value`.
//!
//! Parsing is strict. In an ambiguous address, a part of the password may be in the place of a
//! host, a path or a parameter, so it is refused. Errors and debug output repeat no part of an
//! address, except the name of an unknown parameter that looks like a name.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use secrecy::SecretString;
use thiserror::Error;

/// One server and its port, if the address gives one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The server's name or IP address, or the folder of its Unix socket.
    pub name: HostName,
    /// The port, if it is not the default one.
    pub port: Option<u16>,
}

/// The form of a server's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostName {
    /// A name to resolve, or an IPv4 address.
    Name(String),
    /// An IPv6 address, without its brackets.
    Ipv6(Ipv6Addr),
    /// The folder of a Unix socket.
    Socket(PathBuf),
}

impl HostName {
    /// Parses a name, an IPv4 address, an IPv6 address with or without brackets, or a folder.
    fn parse(text: &str) -> Result<Self, AddressError> {
        if text.starts_with('/') {
            return Ok(Self::Socket(text.into()));
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            return inner
                .parse()
                .map(Self::Ipv6)
                .map_err(|_| AddressError::Host);
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Ipv6(address));
        }
        let well_formed = !text.is_empty()
            && text.len() <= 253
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        // Text that ends in a number is an IPv4 address or a mistake, never a name.
        let last = text.rsplit('.').find(|label| !label.is_empty());
        let numeric = last.is_none_or(|label| label.bytes().all(|b| b.is_ascii_digit()));
        if !well_formed || (numeric && text.parse::<Ipv4Addr>().is_err()) {
            return Err(AddressError::Host);
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl HostName {
    /// Whether it is on this machine: a socket, or loopback.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Name(name) => {
                let address: Option<Ipv4Addr> = name.parse().ok();
                name == "localhost" || address.is_some_and(|address| address.is_loopback())
            }
            Self::Ipv6(address) => address.is_loopback(),
            Self::Socket(_) => true,
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ipv6(address) => write!(f, "[{address}]"),
            Self::Socket(folder) => folder.display().fmt(f),
        }
    }
}

/// The parts of an address, decoded.
pub struct Address {
    /// One of the schemes that were allowed.
    pub scheme: String,
    /// The user's name.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<SecretString>,
    /// The servers, in the order of the address. There are none in `postgres:///database`.
    pub hosts: Vec<Host>,
    /// The path after the first `/`: the database or the virtual host.
    pub path: Option<String>,
    /// The parameters after the `?`.
    pub parameters: Vec<(String, String)>,
}

/// Why an address is refused. No variant contains a part of it that may be secret.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AddressError {
    /// The scheme is not allowed.
    #[error("its scheme is not the expected one")]
    Scheme,
    /// It has blanks or control characters.
    #[error("it contains a blank or a control character: write it as %20 and the like")]
    Blank,
    /// It has a delimiter where none is allowed.
    #[error(
        "it can be read in more than one way: in a user, password or path write \
         % as %25, / as %2F, ? as %3F, # as %23, @ as %40 and , as %2C"
    )]
    Ambiguous,
    /// It has an invalid escape.
    #[error("a % is not followed by two hexadecimal digits of UTF-8 text: write % itself as %25")]
    Escape,
    /// A host is missing, or is neither a name nor an IP address.
    #[error("a host is missing or is neither a name nor an IP address (IPv6 goes into brackets)")]
    Host,
    /// A port is invalid.
    #[error("a port is not a number from 1 to 65535")]
    Port,
    /// A parameter is unknown.
    #[error("its parameter `{0}` is not known")]
    UnknownParameter(String),
    /// A parameter has no value, or its name is not shown because it does not look like a name.
    #[error("its part after the ? is not a list of known parameters, name=value&name=value")]
    Parameters,
    /// A known parameter has an invalid value.
    #[error("the value of its parameter `{0}` is not {1}")]
    Value(&'static str, &'static str),
    /// Something is given twice.
    #[error("it gives {0} twice")]
    Twice(&'static str),
}

impl Address {
    /// Parses an address with one of these schemes. `authority_may_be_empty` is for addresses that
    /// give the host as a parameter.
    pub fn parse(
        text: &str,
        schemes: &[&str],
        authority_may_be_empty: bool,
    ) -> Result<Self, AddressError> {
        let (scheme, rest) = text.split_once("://").ok_or(AddressError::Scheme)?;
        if !schemes.contains(&scheme) {
            return Err(AddressError::Scheme);
        }
        if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(AddressError::Blank);
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let (location, query) = match rest.split_once('?') {
            Some((location, query)) => (location, Some(query)),
            None => (rest, None),
        };
        let path = location.strip_prefix('/');
        // An unescaped delimiter in a password shifts the rest, including the `@`, to the right. A
        // list of whole addresses looks the same.
        let shifted = authority.matches('@').count() > 1
            || rest.contains(['@', '#'])
            || path.unwrap_or(location).contains(['/', ','])
            || query.is_some_and(|query| query.contains('?'));
        if shifted {
            return Err(AddressError::Ambiguous);
        }
        let (userinfo, hosts) = match authority.split_once('@') {
            Some((userinfo, hosts)) => (Some(userinfo), hosts),
            None => (None, authority),
        };
        let (user, password) = match userinfo.map(|userinfo| userinfo.split_once(':')) {
            Some(Some((user, password))) => (Some(user), Some(password)),
            Some(None) => (userinfo, None),
            None => (None, None),
        };
        if user.is_some_and(|user| user.contains(',')) {
            return Err(AddressError::Ambiguous);
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            user: user
                .filter(|user| !user.is_empty())
                .map(decode)
                .transpose()?,
            password: password.map(decode).transpose()?.map(Into::into),
            hosts: if hosts.is_empty() && authority_may_be_empty {
                Vec::new()
            } else {
                parse_hosts(hosts)?
            },
            path: path.map(decode).transpose()?,
            parameters: parse_parameters(query.unwrap_or_default())?,
        })
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

fn parse_hosts(text: &str) -> Result<Vec<Host>, AddressError> {
    text.split(',').map(parse_host).collect()
}

fn parse_host(text: &str) -> Result<Host, AddressError> {
    // The colons of an IPv6 address are inside its brackets.
    let after_brackets = text.find(']').map_or(0, |end| end + 1);
    let (name, port) = match text[after_brackets..].split_once(':') {
        Some((rest, port)) => (&text[..after_brackets + rest.len()], Some(port)),
        None => (text, None),
    };
    if after_brackets > 0 && !text.starts_with('[') {
        return Err(AddressError::Host);
    }
    Ok(Host {
        name: HostName::parse(&decode(name)?)?,
        port: port.map(parse_port).transpose()?,
    })
}

pub(crate) fn parse_port(text: &str) -> Result<u16, AddressError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(AddressError::Port),
    }
}

/// Parses the hosts and ports given as parameters: as many ports as hosts, or one port for all.
pub(crate) fn hosts_of_parameters(
    hosts: &str,
    ports: Option<&str>,
) -> Result<Vec<Host>, AddressError> {
    let names: Vec<_> = hosts
        .split(',')
        .map(HostName::parse)
        .collect::<Result<_, _>>()?;
    let ports: Vec<_> = ports
        .into_iter()
        .flat_map(|ports| ports.split(','))
        .map(parse_port)
        .collect::<Result<_, _>>()?;
    if ports.len() > 1 && ports.len() != names.len() {
        return Err(AddressError::Port);
    }
    let port = |n: usize| match ports.as_slice() {
        [only] => Some(*only),
        several => several.get(n).copied(),
    };
    Ok(names
        .into_iter()
        .enumerate()
        .map(|(n, name)| Host {
            name,
            port: port(n),
        })
        .collect())
}

fn parse_parameters(query: &str) -> Result<Vec<(String, String)>, AddressError> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').ok_or(AddressError::Parameters)?;
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

/// The error for an unknown parameter. It shows the name only if it looks like one.
pub(crate) fn unknown_parameter(name: &str) -> AddressError {
    let looks_like_one = (1..=32).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || matches!(b, b'_' | b'-'));
    if looks_like_one {
        AddressError::UnknownParameter(name.to_owned())
    } else {
        AddressError::Parameters
    }
}

fn decode(text: &str) -> Result<String, AddressError> {
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        rest = &rest[at + 1..];
        let digits = rest.as_bytes().get(..2);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(AddressError::Escape);
        }
    }
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| AddressError::Escape)
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;
    use rstest::rstest;
    use secrecy::ExposeSecret;

    use super::*;

    fn parse(text: &str) -> Result<Address, AddressError> {
        Address::parse(text, &["amqp"], false)
    }

    fn hosts(text: &str) -> Vec<(String, Option<u16>)> {
        let hosts = parse(text).expect("valid").hosts;
        let pair = |host: Host| (host.name.to_string(), host.port);
        hosts.into_iter().map(pair).collect()
    }

    #[rstest]
    #[case::name("amqp://h", &[("h", None)])]
    #[case::several("amqp://u:p@h1:5672,h_2.example.com,10.0.0.3:7/v", &[
        ("h1", Some(5672)), ("h_2.example.com", None), ("10.0.0.3", Some(7)),
    ])]
    #[case::ipv6("amqp://u:p@[2001:db8::5]:5672,[::1]/%2f", &[
        ("[2001:db8::5]", Some(5672)), ("[::1]", None),
    ])]
    #[case::socket("amqp://%2Frun%2Fpostgresql/v", &[("/run/postgresql", None)])]
    fn every_host_is_read(#[case] text: &str, #[case] expected: &[(&str, Option<u16>)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(h, p)| ((*h).to_owned(), *p))
            .collect();
        assert_eq!(hosts(text), expected);
    }

    #[rstest]
    #[case::query("amqp://weird:12?hunter2@127.0.0.1:5432/pleo", AddressError::Ambiguous)]
    #[case::path("amqp://u:hun/ter2@h/v", AddressError::Ambiguous)]
    #[case::fragment("amqp://u:hun#ter2@h/v", AddressError::Ambiguous)]
    #[case::at("amqp://u:hun@ter2@h/v", AddressError::Ambiguous)]
    #[case::list_of_addresses("amqp://u:p@h1/v,amqp://u:hunter2@h2/v", AddressError::Ambiguous)]
    #[case::list_without_users("amqp://h1:5672,amqp://h2:5672/", AddressError::Ambiguous)]
    #[case::escape("amqp://u:hunter2%zz@h/v", AddressError::Escape)]
    #[case::escape_cut_off("amqp://u:hunter2%4@h/v", AddressError::Escape)]
    #[case::not_utf8("amqp://u:hunter2%ff@h/v", AddressError::Escape)]
    #[case::blank("amqp://u:hunter2 @h/v", AddressError::Blank)]
    #[case::line("amqp://u:hunter2@h/v\n", AddressError::Blank)]
    #[case::no_host("amqp://u:hunter2@/v", AddressError::Host)]
    #[case::one_host_missing("amqp://u:hunter2@h1,,h2/v", AddressError::Host)]
    #[case::bare_ipv6("amqp://u:hunter2@2001:db8::5:5672/v", AddressError::Host)]
    #[case::bad_ipv6("amqp://u:hunter2@[2001:db8]:5672/v", AddressError::Host)]
    #[case::bad_ipv4("amqp://u:hunter2@10.0.0.300/v", AddressError::Host)]
    #[case::bad_name("amqp://u:hunter2@h$/v", AddressError::Host)]
    #[case::bad_port("amqp://u:hunter2@h:port/v", AddressError::Port)]
    #[case::large_port("amqp://u:hunter2@h:65536/v", AddressError::Port)]
    #[case::zero_port("amqp://u:hunter2@h:0/v", AddressError::Port)]
    #[case::empty_port("amqp://u:hunter2@h:/v", AddressError::Port)]
    #[case::signed_port("amqp://u:hunter2@h:+5/v", AddressError::Port)]
    #[case::scheme("http://u:hunter2@h/v", AddressError::Scheme)]
    #[case::nothing("", AddressError::Scheme)]
    #[case::no_value("amqp://u:p@h/v?hunter2", AddressError::Parameters)]
    fn what_is_doubtful_is_refused(#[case] text: &str, #[case] expected: AddressError) {
        assert_eq!(parse(text).expect_err("refused"), expected);
    }

    #[test]
    fn an_unknown_parameter_is_named_only_if_it_looks_like_a_name() {
        let named = unknown_parameter("sslmod");
        assert_eq!(named, AddressError::UnknownParameter("sslmod".to_owned()));
        for odd in ["hunter2", "", "a b", &"a".repeat(33)] {
            assert_eq!(unknown_parameter(odd), AddressError::Parameters);
        }
    }

    #[test]
    fn a_port_parameter_is_for_all_hosts_or_for_each() {
        let ports = |hosts, ports| {
            let hosts = hosts_of_parameters(hosts, ports)?;
            Ok::<_, AddressError>(hosts.into_iter().map(|h| h.port).collect::<Vec<_>>())
        };
        assert_eq!(ports("a,b", None), Ok(vec![None, None]));
        assert_eq!(ports("a,b", Some("7")), Ok(vec![Some(7), Some(7)]));
        assert_eq!(ports("a,b", Some("7,8")), Ok(vec![Some(7), Some(8)]));
        assert_eq!(ports("a,b", Some("7,8,9")), Err(AddressError::Port));
    }

    proptest! {
        #[test]
        fn what_is_escaped_comes_back(user in ".{1,20}", password in ".{0,40}", path in ".{0,20}") {
            let escape = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let text = format!(
                "amqp://{}:{}@h1,[::1]:7/{}",
                escape(&user), escape(&password), escape(&path)
            );
            let address = parse(&text).expect("valid");
            prop_assert_eq!(address.user.as_deref(), Some(user.as_str()));
            let read = address.password.as_ref().map(|p| p.expose_secret().to_owned());
            prop_assert_eq!(read, Some(password));
            prop_assert_eq!(address.path.as_deref(), Some(path.as_str()));
            prop_assert_eq!(address.hosts.len(), 2);
        }

        /// The password contains delimiters of an address, so its pieces may be taken for any part.
        /// None may appear in an error or in debug output.
        #[test]
        fn an_unescaped_password_is_read_whole_or_refused_and_never_shown(
            pieces in prop::collection::vec("Zx[a-z0-9]{4,8}", 1..4),
            joints in prop::collection::vec("[@:/?#&=,%\\[\\] .!~+-]", 3),
            host in "[a-z0-9.:,\\[\\]%_-]{0,20}",
        ) {
            let mut password = String::new();
            for (piece, joint) in pieces.iter().zip(&joints) {
                password.push_str(piece);
                password.push_str(joint);
            }
            let text = format!("amqp://user:{password}@{host}/v?heartbeat=5");
            let shown = match parse(&text) {
                Ok(address) => {
                    let read = address.password.as_ref().map(|p| p.expose_secret().to_owned());
                    prop_assert_eq!(read, decode(&password).ok());
                    format!("{address:?}")
                }
                Err(error) => format!("{error} {error:?}"),
            };
            for piece in &pieces {
                prop_assert!(!shown.contains(piece.as_str()), "{}", shown);
            }
        }
    }
}
