//! Proxies: the HTTP client takes them from the environment by itself; here they are checked, since it
//! passes over what it cannot read and connects directly, and named in messages.

use std::fmt;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

use super::endpoint;

/// The variables of each kind; the first that is set counts, even if it is empty.
const HTTP: [&str; 2] = ["HTTP_PROXY", "http_proxy"];
const HTTPS: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
const ALL: [&str; 2] = ["ALL_PROXY", "all_proxy"];
const NONE: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// What the environment says about proxies.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Proxies {
    /// Name and value, in no order.
    variables: Vec<(String, String)>,
}

/// A proxy on the way to a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    /// Where it is, without a password.
    pub(super) url: String,
    /// The variable that names it.
    pub(super) variable: String,
}

/// Values may hold passwords.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.variables.iter().map(|(name, _)| name);
        f.debug_list().entries(names).finish()
    }
}

impl Proxies {
    /// Whether a variable says something about proxies.
    pub(super) fn is_one(name: &str) -> bool {
        [HTTP, HTTPS, ALL, NONE].iter().flatten().any(|known| *known == name)
    }

    pub(super) fn new(variables: Vec<(String, String)>) -> Self {
        Self { variables }
    }

    /// Checks that every proxy can be used.
    ///
    /// # Errors
    /// The variable, what is wrong with it and what to write.
    pub(super) fn check(&self) -> Result<(), String> {
        for (name, value) in [HTTP, HTTPS, ALL].into_iter().filter_map(|names| self.first(names)) {
            let shown = endpoint::without_user(value);
            let scheme = value.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
            match scheme.as_deref() {
                _ if value.trim().is_empty() => continue,
                None | Some("http" | "https") => {}
                Some(scheme) => {
                    return Err(format!(
                        "{name}={shown}: {scheme}:// proxies are not supported; name an HTTP proxy, or \
                         unset it"
                    ));
                }
            }
            let matcher = Matcher::builder().all(value.to_owned()).build();
            if matcher.intercept(&Uri::from_static("http://store.invalid/")).is_none() {
                return Err(format!(
                    "{name}={shown} is no URL of a proxy; write http://HOST:PORT, or unset it"
                ));
            }
        }
        Ok(())
    }

    /// Returns the proxy through which `url` is asked; none for a direct connection.
    pub(super) fn on_the_way_to(&self, url: &str) -> Option<Proxy> {
        let uri: Uri = url.parse().ok()?;
        let value = |names| self.first(names).map_or("", |(_, value)| value).to_owned();
        let matcher = Matcher::builder()
            .http(value(HTTP))
            .https(value(HTTPS))
            .all(value(ALL))
            .no(value(NONE))
            .build();
        let found = matcher.intercept(&uri)?;
        let own = if uri.scheme_str() == Some("https") { HTTPS } else { HTTP };
        let named = |names| self.first(names).filter(|(_, value)| !value.trim().is_empty());
        let (variable, _) = named(own).or_else(|| named(ALL))?;
        let url = found.uri().to_string().trim_end_matches('/').to_owned();
        Some(Proxy { url, variable: variable.to_owned() })
    }

    fn first(&self, names: [&str; 2]) -> Option<(&str, &str)> {
        let value = |wanted: &str| {
            let found = self.variables.iter().find(|(name, _)| name == wanted);
            found.map(|(name, value)| (name.as_str(), value.as_str()))
        };
        names.into_iter().find_map(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        Proxies::new(variables.iter().map(owned).collect())
    }

    #[test]
    fn the_proxy_on_the_way_is_the_one_that_the_http_client_takes() {
        let set = proxies(&[
            ("http_proxy", "http://me:hunter2@plain:3128/"),
            ("HTTPS_PROXY", ""),
            ("https_proxy", "http://not-this-one:1"),
            ("ALL_PROXY", "rest:8080"),
            ("NO_PROXY", "127.0.0.1,.internal"),
        ]);
        let through = |url: &str| set.on_the_way_to(url).map(|proxy| (proxy.url, proxy.variable));
        let of = |url: &str, variable: &str| Some((url.to_owned(), variable.to_owned()));
        assert_eq!(through("http://store:9000"), of("http://plain:3128", "http_proxy"));
        assert_eq!(through("https://store:9000"), of("http://rest:8080", "ALL_PROXY"));
        assert_eq!(through("http://127.0.0.1:9000"), None);
        assert_eq!(through("https://s3.internal"), None);
        assert_eq!(proxies(&[]).on_the_way_to("http://store:9000"), None);
        assert!(!format!("{set:?}").contains("hunter2"), "{set:?}");
    }

    #[test]
    fn a_proxy_that_would_be_passed_over_in_silence_is_refused() {
        for value in ["http://proxy:3128", "proxy:3128", "https://me:pw@proxy", "", "  "] {
            assert_eq!(proxies(&[("HTTP_PROXY", value)]).check(), Ok(()), "{value}");
        }
        for (value, said) in [
            ("http://pro xy:3128", "HTTPS_PROXY=http://pro xy:3128 is no URL of a proxy"),
            ("http://", "HTTPS_PROXY=http:// is no URL of a proxy"),
            ("socks5://proxy:1080", "socks5:// proxies are not supported"),
        ] {
            let error = proxies(&[("HTTPS_PROXY", value)]).check().err().unwrap_or_default();
            assert!(error.contains(said), "{value}: {error}");
        }
    }
}
