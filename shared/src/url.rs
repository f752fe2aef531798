//! Addresses: `HOST[:PORT],...` lists and `quorate://[user@]host[:port][,host...][/database][?name=value&...]`.
//!
//! Parsing and printing are inverse to each other. IPv6 addresses stand in brackets, everything outside RFC 3986's
//! unreserved characters is percent-encoded, a missing port is the default one. A password in a URL is refused by name:
//! there is no authentication yet, and it would end up in shell histories.

use std::fmt;
use std::str::FromStr;

use crate::limits::PORT_DEFAULT;

/// The scheme, with its separator.
pub const SCHEME: &str = "quorate://";

/// Where a node listens.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// An address.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Reads `HOST[:PORT]`; a missing port is `port`.
    pub fn parse(text: &str, port: u16) -> Result<Self, UrlError> {
        let bad = |why: &str| UrlError(format!("{text:?} is not an address (HOST[:PORT]): {why}"));
        let (host, rest) = if let Some(inner) = text.strip_prefix('[') {
            let (host, rest) = inner.split_once(']').ok_or_else(|| bad("the bracket is not closed"))?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| bad("no IPv6 address in the brackets"))?;
            (host, rest)
        } else if text.matches(':').count() > 1 {
            return Err(bad("an IPv6 address needs brackets, e.g. [::1]:7411"));
        } else {
            text.split_at(text.find(':').unwrap_or(text.len()))
        };
        if host.is_empty() {
            return Err(bad("the host is empty"));
        }
        if let Some(c) = host.chars().find(|c| !(c.is_alphanumeric() || "-._:%".contains(*c))) {
            return Err(bad(&format!("{c:?} cannot be part of a host")));
        }
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => port,
            None => return Err(bad("text after the bracket")),
            Some(digits) => parse_port(digits).ok_or_else(|| bad("the port is not a number from 1 to 65535"))?,
        };
        Ok(Self::new(host, port))
    }
}

/// A port in plain digits; 0 is none.
fn parse_port(digits: &str) -> Option<u16> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|port| *port != 0)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = UrlError;
    fn from_str(text: &str) -> Result<Self, UrlError> {
        Address::parse(text, PORT_DEFAULT)
    }
}

/// Reads `HOST[:PORT],...`: at least one, none twice.
pub fn parse_hosts(text: &str, port: u16) -> Result<Vec<Address>, UrlError> {
    let mut hosts = Vec::new();
    for part in text.split(',') {
        let address = Address::parse(part.trim(), port)?;
        if !hosts.contains(&address) {
            hosts.push(address);
        }
    }
    Ok(hosts)
}

/// A parsed `quorate://` URL.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Url {
    /// Who connects, if given.
    pub user: Option<String>,
    /// Where, at least one.
    pub hosts: Vec<Address>,
    /// The database to begin in, if given.
    pub database: Option<String>,
    /// Settings, in order.
    pub settings: Vec<(String, String)>,
}

/// What is wrong with an address or a URL.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("{0}")]
pub struct UrlError(pub String);

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let rest = match text.get(..SCHEME.len()) {
            Some(scheme) if scheme.eq_ignore_ascii_case(SCHEME) => &text[SCHEME.len()..],
            _ => return Err(UrlError(format!("{text:?} is not a URL that begins with {SCHEME}"))),
        };
        if rest.contains('#') {
            return Err(UrlError(format!("{text:?} has a fragment (#), which means nothing here; write %23 for a #")));
        }
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
        let (authority, database) = rest.split_once('/').map_or((rest, None), |(a, b)| (a, Some(b)));
        let (user, hosts) = authority.rsplit_once('@').map_or((None, authority), |(a, b)| (Some(a), b));
        let user = user.filter(|user| !user.is_empty());
        if user.is_some_and(|user| user.contains(':')) {
            return Err(UrlError("a password in the URL: there is no authentication yet, leave it out".into()));
        }
        let hosts = if hosts.is_empty() {
            vec![Address::new("127.0.0.1", PORT_DEFAULT)]
        } else {
            parse_hosts(hosts, PORT_DEFAULT)?
        };
        let database = database.filter(|database| !database.is_empty());
        if database.is_some_and(|database| database.contains('/')) {
            return Err(UrlError(format!(
                "{text:?} has more than one path part: one database, a / in its name is %2F"
            )));
        }
        Ok(Url {
            user: user.map(decode).transpose()?,
            hosts,
            database: database.map(decode).transpose()?,
            settings: query.map_or(Ok(Vec::new()), parse_settings)?,
        })
    }
}

fn parse_settings(query: &str) -> Result<Vec<(String, String)>, UrlError> {
    let mut settings = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| UrlError(format!("{pair:?} in the URL is not of the form name=value")))?;
        if name.is_empty() {
            return Err(UrlError(format!("{pair:?} in the URL has no name before the =")));
        }
        settings.push((decode(name)?, decode(value)?));
    }
    Ok(settings)
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        if let Some(user) = &self.user {
            write!(f, "{}@", Encoded(user))?;
        }
        for (i, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if i == 0 { "" } else { "," })?;
        }
        if let Some(database) = &self.database {
            write!(f, "/{}", Encoded(database))?;
        }
        for (i, (name, value)) in self.settings.iter().enumerate() {
            write!(f, "{}{}={}", if i == 0 { '?' } else { '&' }, Encoded(name), Encoded(value))?;
        }
        Ok(())
    }
}

/// Percent-encodes everything that is not unreserved.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                write!(f, "{}", byte as char)?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

/// Undoes percent-encoding; a `+` stays a `+`.
fn decode(text: &str) -> Result<String, UrlError> {
    let bad = || UrlError(format!("{text:?} in the URL is not percent-encoded UTF-8"));
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| (b as char).to_digit(16));
        let (high, low) = (digit().ok_or_else(bad)?, digit().ok_or_else(bad)?);
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts() {
        let list = parse_hosts("db1, 10.0.0.2:99,[::1],[fe80::1]:7000,db1", PORT_DEFAULT).unwrap();
        let shown: Vec<_> = list.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["db1:7411", "10.0.0.2:99", "[::1]:7411", "[fe80::1]:7000"]);
    }

    #[test]
    fn bad_hosts() {
        for text in
            ["", "a,,b", "a:0", "a:65536", "a:", "a:x", "::1", "[::1", "[x]:1", "[::1]x", "a b", "a:+1", ":7411"]
        {
            assert!(parse_hosts(text, 1).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn urls() {
        let url: Url = "quorate://ann%40x@db1,db2:7500/shop%2F1?read_level=local&x=a%26b".parse().unwrap();
        assert_eq!(url.user.as_deref(), Some("ann@x"));
        assert_eq!(url.hosts, [Address::new("db1", 7411), Address::new("db2", 7500)]);
        assert_eq!(url.database.as_deref(), Some("shop/1"));
        assert_eq!(url.settings, [("read_level".into(), "local".into()), ("x".into(), "a&b".into())]);
        assert_eq!(url.to_string(), "quorate://ann%40x@db1:7411,db2:7500/shop%2F1?read_level=local&x=a%26b");
        assert_eq!("QUORATE:///".parse::<Url>().unwrap().hosts, [Address::new("127.0.0.1", 7411)]);
    }

    #[test]
    fn bad_urls() {
        for text in [
            "",
            "postgres://x",
            "quorate://a:b@c",
            "quorate://h/a/b",
            "quorate://h?x",
            "quorate://h?=1",
            "quorate://%zz@h",
            "quorate://h/%ff",
            "quorate://h/#x",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn prints_what_it_parses(
            user in proptest::option::of("\\PC{1,12}"),
            hosts in proptest::collection::btree_map("[a-z][a-z0-9-]{0,10}(\\.[a-z]{2,5})?", 1u16.., 1..4),
            database in proptest::option::of("\\PC{1,12}"),
            settings in proptest::collection::vec(("[a-z_]{1,8}", "\\PC{0,12}"), 0..3),
        ) {
            let hosts = hosts.into_iter().map(|(host, port)| Address::new(host, port)).collect();
            let url = Url { user, hosts, database, settings };
            prop_assert_eq!(url.to_string().parse::<Url>(), Ok(url));
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = format!("{SCHEME}{text}").parse::<Url>();
            let _ = parse_hosts(&text, 1);
        }
    }
}
