//! Which requests go through a proxy, and through which one.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use super::no_proxy::NoProxy;

/// An HTTP proxy, which is reached over http or https. `Debug` and `Display` show no login.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// `scheme://host:port/`, without the login.
    uri: Uri,
    /// The value of `Proxy-Authorization`.
    login: Option<HeaderValue>,
    /// The part of the text that is secret.
    userinfo: Option<String>,
    named_by: String,
}

impl Proxy {
    /// Reads `[scheme://][user[:password]@]host[:port]`, as curl does: user and password are
    /// percent-encoded, and without a scheme it is http. The default port is the scheme's.
    /// `named_by` is the key or the variable that it comes from.
    ///
    /// # Errors
    /// Why it is no proxy, without any part of the text.
    pub fn parse(text: &str, named_by: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        let with_scheme =
            if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = with_scheme
            .parse()
            .map_err(|_| "it is not a URL (write special characters of the login as %XX)")?;
        let parts = uri.into_parts();
        let scheme = parts.scheme.unwrap_or(Scheme::HTTP);
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err("the scheme of a proxy must be http or https");
        }
        if parts.path_and_query.is_some_and(|path| !matches!(path.as_str(), "" | "/")) {
            return Err("a proxy has neither a path nor a query");
        }
        let authority = parts.authority.ok_or("it names no host")?;
        let (userinfo, host) = match authority.as_str().rsplit_once('@') {
            Some((userinfo, _)) => (Some(userinfo.to_owned()), authority.host()),
            None => (None, authority.host()),
        };
        if host.is_empty() || has_invalid_port(&authority) {
            return Err("it names no host, or its port is no number");
        }
        let port = authority.port_u16().unwrap_or(if scheme == Scheme::HTTPS { 443 } else { 80 });
        let uri = Uri::builder().scheme(scheme).authority(format!("{host}:{port}"));
        let uri = uri.path_and_query("/").build().map_err(|_| "its host is not valid")?;
        let login = userinfo.as_deref().map(basic).transpose()?;
        Ok(Self { uri, login, userinfo, named_by: named_by.to_owned() })
    }

    /// The key or the variable that names it.
    pub fn named_by(&self) -> &str {
        &self.named_by
    }

    /// `user:password` as it was written, to keep it out of copies of that text.
    pub fn secret(&self) -> Option<&str> {
        self.userinfo.as_deref()
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        self.uri.authority().map_or("", Authority::as_str)
    }

    /// Whether the connection to it is encrypted.
    pub fn is_https(&self) -> bool {
        self.uri.scheme() == Some(&Scheme::HTTPS)
    }

    pub(super) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(super) fn login(&self) -> Option<&HeaderValue> {
        self.login.as_ref()
    }
}

/// A port that is there and no number counts as absent elsewhere.
fn has_invalid_port(authority: &Authority) -> bool {
    let behind = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, host)| host);
    let port = behind.strip_prefix(authority.host()).unwrap_or_default();
    !port.is_empty() && authority.port_u16().is_none_or(|port| port == 0)
}

/// The header for `user:password`, both percent-encoded (RFC 7617).
fn basic(userinfo: &str) -> Result<HeaderValue, &'static str> {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
    let login = [decoded(user), b":".to_vec(), decoded(password)].concat();
    let mut header = HeaderValue::try_from(format!("Basic {}", BASE64.encode(login)))
        .map_err(|_| "its login cannot be sent")?;
    header.set_sensitive(true);
    Ok(header)
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.address())
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("uri", &self.uri)
            .field("has_login", &self.login.is_some())
            .field("named_by", &self.named_by)
            .finish_non_exhaustive()
    }
}

/// Which proxy each request takes. The default is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyRules {
    pub(super) https: Option<Proxy>,
    pub(super) http: Option<Proxy>,
    exceptions: NoProxy,
}

/// The way of a request to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyChoice<'a> {
    /// No proxy is named for the scheme.
    Direct,
    /// Past this proxy, because of this entry of `NO_PROXY`.
    Exempt(&'a Proxy, &'a str),
    /// Through this proxy.
    Through(&'a Proxy),
}

impl<'a> ProxyChoice<'a> {
    /// The proxy that is used.
    pub fn proxy(self) -> Option<&'a Proxy> {
        match self {
            Self::Through(proxy) => Some(proxy),
            Self::Direct | Self::Exempt(..) => None,
        }
    }
}

/// The variables of proxies for one scheme, in the order in which curl reads them.
const HTTPS: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
const HTTP: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
const NO: [&str; 2] = ["no_proxy", "NO_PROXY"];

impl ProxyRules {
    /// Everything goes through this proxy.
    pub fn always(proxy: Proxy) -> Self {
        let (https, http) = (Some(proxy.clone()), Some(proxy));
        Self { https, http, exceptions: NoProxy::default() }
    }

    /// What `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say. Lower-case names win, and
    /// an empty variable counts as absent.
    ///
    /// # Errors
    /// The variable that is no proxy, and why.
    pub fn of_variables<'a>(
        get: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Self, (&'static str, &'static str)> {
        let first =
            |names: &[&'static str]| names.iter().find_map(|name| Some((*name, get(name)?)));
        let proxy = |names: &[&'static str]| {
            let found = first(names);
            found
                .map(|(name, text)| Proxy::parse(text, name).map_err(|why| (name, why)))
                .transpose()
        };
        let exceptions = first(&NO).map(|(_, list)| NoProxy::parse(list)).unwrap_or_default();
        Ok(Self { https: proxy(&HTTPS)?, http: proxy(&HTTP)?, exceptions })
    }

    /// Whether a variable has a meaning here.
    pub fn is_variable(name: &str) -> bool {
        [&HTTPS[..], &HTTP, &NO].concat().contains(&name)
    }

    /// The way to the server of this URI.
    pub fn choose(&self, uri: &Uri) -> ProxyChoice<'_> {
        let is_https = uri.scheme() == Some(&Scheme::HTTPS);
        let proxy = if is_https { &self.https } else { &self.http };
        match (proxy, self.exceptions.entry(uri)) {
            (None, _) => ProxyChoice::Direct,
            (Some(proxy), Some(entry)) => ProxyChoice::Exempt(proxy, entry),
            (Some(proxy), None) => ProxyChoice::Through(proxy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Proxy, &'static str> {
        Proxy::parse(text, "TEST")
    }

    #[test]
    fn a_proxy_is_read_as_curl_reads_it() {
        for (text, address, is_https) in [
            ("http://proxy.example.com:3128", "proxy.example.com:3128", false),
            ("proxy.example.com:3128/", "proxy.example.com:3128", false),
            ("http://proxy.example.com", "proxy.example.com:80", false),
            ("https://proxy.example.com/", "proxy.example.com:443", true),
            ("https://u:p@[fd00::1]:8443", "[fd00::1]:8443", true),
        ] {
            let proxy = parse(text).unwrap();
            assert_eq!((proxy.address(), proxy.is_https()), (address, is_https), "{text}");
        }
    }

    #[test]
    fn user_and_password_are_decoded_and_shown_nowhere() {
        for (text, login) in [
            ("http://me:hunter2@p:1", "Basic bWU6aHVudGVyMg=="),
            // me@corp : h:nter#2
            ("http://me%40corp:h:nter%232@p:1", "Basic bWVAY29ycDpoOm50ZXIjMg=="),
            ("http://me@p:1", "Basic bWU6"),
        ] {
            let proxy = parse(text).unwrap();
            assert_eq!(proxy.login().unwrap(), login, "{text}");
            let shown = format!("{proxy} {proxy:?} {:?}", ProxyRules::always(proxy.clone()));
            assert!(!shown.contains("nter") && !shown.contains("bWU"), "{shown}");
            assert!(shown.contains("p:1"), "{shown}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_its_login() {
        for (text, why) in [
            ("", "it is not a URL"),
            ("socks5://u:hunter2@p:1", "must be http or https"),
            ("http://u:hunter2@p:1/proxy.pac", "neither a path nor"),
            ("http://u:hunter2@p:x", "no number"),
            ("http://u:hunter2@p:0", "no number"),
            ("http://u:hun ter2@p:1", "it is not a URL"),
            ("http://u:hunter2@", "it is not a URL"),
            ("http://u:hun#ter2@p:1", "number"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why) && !error.contains("hun"), "{text}: {error}");
        }
    }

    #[test]
    fn variables_are_read_in_the_order_of_curl() {
        let choice = |variables: &[(&str, &'static str)], url: &str| {
            let get = |name: &str| {
                let found = variables.iter().find(|(other, _)| *other == name);
                found.map(|(_, value)| *value)
            };
            let rules = ProxyRules::of_variables(get).unwrap();
            match rules.choose(&url.parse().unwrap()) {
                ProxyChoice::Direct => "direct".to_owned(),
                ProxyChoice::Exempt(_, entry) => format!("exempt by {entry}"),
                ProxyChoice::Through(proxy) => format!("{proxy} of {}", proxy.named_by()),
            }
        };
        let both = [("HTTPS_PROXY", "upper:1"), ("https_proxy", "lower:2")];
        assert_eq!(choice(&both, "https://x/"), "lower:2 of https_proxy");
        assert_eq!(choice(&both, "http://x/"), "direct");
        assert_eq!(choice(&[("HTTP_PROXY", "h:1")], "http://x/"), "h:1 of HTTP_PROXY");
        assert_eq!(choice(&[("HTTP_PROXY", "h:1")], "https://x/"), "direct");
        let all = [("ALL_PROXY", "a:1"), ("HTTPS_PROXY", "s:2")];
        assert_eq!(choice(&all, "https://x/"), "s:2 of HTTPS_PROXY");
        assert_eq!(choice(&all, "http://x/"), "a:1 of ALL_PROXY");
        let exempt = [("HTTPS_PROXY", "s:2"), ("no_proxy", "x"), ("NO_PROXY", "y")];
        assert_eq!(choice(&exempt, "https://x/"), "exempt by x");
        assert_eq!(choice(&exempt, "https://y/"), "s:2 of HTTPS_PROXY");
        let broken = ProxyRules::of_variables(|name| (name == "HTTPS_PROXY").then_some("a://b"));
        assert_eq!(broken.unwrap_err().0, "HTTPS_PROXY");
    }
}
