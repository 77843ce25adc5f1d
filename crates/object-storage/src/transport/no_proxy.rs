//! What goes past a proxy: `NO_PROXY`.

use std::net::IpAddr;

use http::Uri;
use http::uri::Scheme;

use super::range::AddressRange;

/// Hosts that are reached directly, in the form that curl and most other clients read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NoProxy(Vec<Exception>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    /// As it is written.
    text: String,
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    All,
    /// Lower case, without leading and trailing dots: this domain and all below it.
    Domain(String),
    Addresses(AddressRange),
}

impl NoProxy {
    /// Reads a list that is separated by commas or blanks. Every entry means something, since a
    /// word that is no address is a name.
    pub(super) fn parse(list: &str) -> Self {
        let entries = list.split([',', ' ', '\t', '\n']).filter(|entry| !entry.is_empty());
        Self(entries.map(Exception::parse).collect())
    }

    /// The entry that exempts the host of this URI.
    pub(super) fn entry(&self, uri: &Uri) -> Option<&str> {
        let host = uri.host()?.trim_start_matches('[').trim_end_matches([']', '.']);
        let host = host.to_ascii_lowercase();
        let default = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default);
        let matching = self.0.iter().find(|one| one.matches(&host, port));
        matching.map(|one| one.text.as_str())
    }
}

impl Exception {
    fn parse(text: &str) -> Self {
        let (host, port) = split_port(text);
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let hosts = match (bare, bare.parse()) {
            ("*", _) => Hosts::All,
            (_, Ok(range)) => Hosts::Addresses(range),
            (name, Err(_)) => {
                let name = name.trim_start_matches('*').trim_matches('.');
                Hosts::Domain(name.to_ascii_lowercase())
            }
        };
        Self { text: text.to_owned(), hosts, port }
    }

    /// `host` is in lower case and has no brackets.
    fn matches(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|own| own != port) {
            return false;
        }
        match &self.hosts {
            Hosts::All => true,
            Hosts::Addresses(range) => {
                host.parse::<IpAddr>().is_ok_and(|address| range.contains(address))
            }
            Hosts::Domain(domain) if domain.is_empty() => false,
            Hosts::Domain(domain) => host
                .strip_suffix(domain.as_str())
                .is_some_and(|left| left.is_empty() || left.ends_with('.')),
        }
    }
}

/// The port of `host:port` and `[address]:port`; the colons of a bare IPv6 address are none.
fn split_port(text: &str) -> (&str, Option<u16>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (text, None),
        },
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_suffixes_ports_addresses_and_networks_are_exempt() {
        for (list, url, entry) in [
            ("example.com", "https://example.com/", Some("example.com")),
            ("example.com", "https://EXAMPLE.com./", Some("example.com")),
            ("example.com", "https://a.b.example.com/", Some("example.com")),
            ("example.com", "https://notexample.com/", None),
            (".example.com", "https://a.example.com/", Some(".example.com")),
            ("*.example.com", "https://a.example.com/", Some("*.example.com")),
            ("a.com, b.com", "https://b.com/", Some("b.com")),
            ("a.com b.com", "http://b.com/", Some("b.com")),
            ("*", "https://anything/", Some("*")),
            ("", "https://anything/", None),
            (",, .", "https://anything/", None),
            ("example.com:443", "https://example.com/", Some("example.com:443")),
            ("example.com:8443", "https://example.com/", None),
            ("example.com:80", "http://example.com/", Some("example.com:80")),
            ("127.0.0.1", "http://127.0.0.1:8080/", Some("127.0.0.1")),
            ("127.0.0.1:9", "http://127.0.0.1:8080/", None),
            ("10.0.0.0/8", "https://10.20.30.40/", Some("10.0.0.0/8")),
            ("10.0.0.0/8", "https://11.0.0.1/", None),
            ("10.0.0.0/8", "https://10.example.com/", None),
            ("fd00::/8", "https://[fd00:1::1]/", Some("fd00::/8")),
            ("::1", "http://[::1]:8080/", Some("::1")),
            ("[::1]:8080", "http://[::1]:8080/", Some("[::1]:8080")),
            ("[::1]:8081", "http://[::1]:8080/", None),
        ] {
            let uri = url.parse().unwrap();
            assert_eq!(NoProxy::parse(list).entry(&uri), entry, "{list:?} {url}");
        }
    }
}
