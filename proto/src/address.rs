//! Where a coordinator is: what clients, agents and ranks are given as its address, checked before
//! anybody connects, and the connection settings that all of them share.
//!
//! An address that can never work is refused here with the reason. Otherwise a request for encryption
//! would be dropped in silence (a channel without TLS sends plain text to https:// as well), and whoever
//! waits for a coordinator to come back would wait for ever.

use std::error::Error as _;
use std::net::Ipv6Addr;

use tonic::Status;
use tonic::transport::Endpoint;

use crate::limits;

/// Which of a coordinator's listeners is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// Jobs, for people and their tools.
    People,
    /// Agents and ranks.
    Fleet,
}

impl Listener {
    /// Returns the port on which it listens unless the coordinator is told otherwise.
    pub const fn usual_port(self) -> u16 {
        match self {
            Self::People => 7070,
            Self::Fleet => 7071,
        }
    }
}

/// Why an address cannot be used. No message repeats a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was given.
    #[error("the address is empty; write {example}")]
    Empty {
        /// What one looks like.
        example: String,
    },
    /// A blank, a line break or another control character.
    #[error("{url:?} holds a blank or a control character; write {example}")]
    Blank {
        /// As given.
        url: String,
        /// What one looks like.
        example: String,
    },
    /// Only host and port.
    #[error("{url:?} does not begin with http://; write http://{rest}")]
    NoScheme {
        /// As given.
        url: String,
        /// What belongs behind the scheme.
        rest: String,
    },
    /// TLS, which there is not.
    #[error(
        "{url:?} asks for TLS, and this version of the coordinator has none: the connection would not \
         be encrypted; write http://{rest} where only the cluster reaches the port, or lead the port \
         through a tunnel (ssh -L {port}:127.0.0.1:{port} HOST) and write http://127.0.0.1:{port}"
    )]
    Tls {
        /// As given.
        url: String,
        /// What belongs behind the scheme.
        rest: String,
        /// On which the listener usually is.
        port: u16,
    },
    /// A Unix socket.
    #[error(
        "{url:?} is a Unix socket, and a coordinator listens on TCP ports only; write {example}"
    )]
    UnixSocket {
        /// As given.
        url: String,
        /// What one looks like.
        example: String,
    },
    /// Another scheme.
    #[error(
        "{url:?} begins with {scheme}://, and a coordinator is reached by http://; write http://{rest}"
    )]
    Scheme {
        /// As given.
        url: String,
        /// Of the URL.
        scheme: String,
        /// What belongs behind the scheme.
        rest: String,
    },
    /// A user or a password.
    #[error(
        "the address has a user or a password before its @, and a coordinator asks for none; write \
         http://{rest}"
    )]
    Credentials {
        /// What comes after the @.
        rest: String,
    },
    /// A path, a query or a fragment.
    #[error(
        "{url:?} has {more:?} behind host and port, which no coordinator looks at; write http://{authority}"
    )]
    More {
        /// As given.
        url: String,
        /// What is too much.
        more: String,
        /// Host and port.
        authority: String,
    },
    /// No host.
    #[error("{url:?} names no host; write {example}")]
    NoHost {
        /// As given.
        url: String,
        /// What one looks like.
        example: String,
    },
    /// No port.
    #[error(
        "{url:?} names no port; write http://{host}:{port}, or the port that the coordinator listens on"
    )]
    NoPort {
        /// As given.
        url: String,
        /// The host.
        host: String,
        /// On which the listener usually is.
        port: u16,
    },
    /// Something else than a port.
    #[error("{url:?}: {found:?} is no port; write a number from 1 to 65535 after the last colon")]
    Port {
        /// As given.
        url: String,
        /// What stands in the port's place.
        found: String,
    },
    /// An IPv6 address that cannot be told from its port.
    #[error("{url:?}: an IPv6 address stands in brackets; write http://{rest}")]
    Brackets {
        /// As given.
        url: String,
        /// What belongs behind the scheme.
        rest: String,
    },
    /// Something else than a host.
    #[error("{url:?}: {host:?} is neither a host name nor an IP address; write {example}")]
    Host {
        /// As given.
        url: String,
        /// What stands in the host's place.
        host: String,
        /// What one looks like.
        example: String,
    },
}

/// Returns how the coordinator at `url` is reached; nothing is sent yet. Keep-alive and time-outs are
/// set. No proxy is used, whatever the environment says.
///
/// # Errors
/// [`Error`] for an address at which no coordinator can ever be reached.
pub fn endpoint(url: &str, listener: Listener) -> Result<Endpoint, Error> {
    check(url, listener)?;
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|_| Error::Host {
        url: url.to_owned(),
        host: authority(url).to_owned(),
        example: example(listener),
    })?;
    Ok(endpoint
        .connect_timeout(limits::CONNECT_TIMEOUT)
        .http2_keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

/// Whether what answered a call speaks no gRPC, or no gRPC without TLS: a web server, or a port behind
/// TLS. A coordinator that goes away in the middle of a call is not taken for one.
pub fn is_foreign(status: &Status) -> bool {
    const WORDS: [&str; 3] = [
        // What HTTP/2 makes of an answer in HTTP/1, of a TLS alert, and of anything else.
        "frame with invalid size",
        "bytes remaining on stream",
        "unspecific protocol error detected",
    ];
    let causes = std::iter::successors(status.source(), |cause| (*cause).source());
    causes.map(ToString::to_string).any(|text| WORDS.iter().any(|words| text.contains(words)))
        // Of a server of HTTP/2 that is no gRPC server.
        || status.message().starts_with("grpc-status header missing")
}

/// Returns what lies at the bottom of a failed call: the layers above it only repeat that it failed.
pub fn innermost(status: &Status) -> String {
    let causes = std::iter::successors(status.source(), |cause| (*cause).source());
    causes.last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}

fn check(url: &str, listener: Listener) -> Result<(), Error> {
    let owned = || url.to_owned();
    let (example, port) = (example(listener), listener.usual_port());
    if url.is_empty() {
        return Err(Error::Empty { example });
    }
    let rest = suggested(url, listener);
    // Before anything that repeats the address; a password may hold a slash.
    if url.contains('@') {
        return Err(Error::Credentials { rest });
    }
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Error::Blank { url: owned(), example });
    }
    match url.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).as_deref() {
        Some("http") => {}
        Some("https") => return Err(Error::Tls { url: owned(), rest, port }),
        _ if url.starts_with("unix:") => return Err(Error::UnixSocket { url: owned(), example }),
        Some(scheme) => {
            return Err(Error::Scheme { url: owned(), scheme: scheme.to_owned(), rest });
        }
        None => return Err(Error::NoScheme { url: owned(), rest }),
    }
    let authority = authority(url);
    let more = &after_scheme(url)[authority.len()..];
    if !matches!(more, "" | "/") {
        let (more, authority) = (more.to_owned(), authority.to_owned());
        return Err(Error::More { url: owned(), more, authority });
    }
    check_authority(url, authority, listener)
}

/// Checks host and port.
fn check_authority(url: &str, authority: &str, listener: Listener) -> Result<(), Error> {
    let owned = || url.to_owned();
    let example = example(listener);
    let (host, port) = match authority.strip_prefix('[') {
        Some(inside) => {
            let Some((host, port)) = inside.split_once(']') else {
                return Err(Error::Brackets { url: owned(), rest: bracketed(inside, listener) });
            };
            if host.parse::<Ipv6Addr>().is_err() {
                return Err(Error::Host { url: owned(), host: host.to_owned(), example });
            }
            (&authority[..authority.len() - port.len()], port.strip_prefix(':'))
        }
        None if authority.matches(':').count() > 1 => {
            return Err(Error::Brackets { url: owned(), rest: bracketed(authority, listener) });
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err(Error::NoHost { url: owned(), example });
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !host.starts_with('[') && !host.chars().all(fits) {
        return Err(Error::Host { url: owned(), host: host.to_owned(), example });
    }
    match port {
        None => {
            let (host, port) = (host.to_owned(), listener.usual_port());
            Err(Error::NoPort { url: owned(), host, port })
        }
        Some(text) if text.parse::<u16>().is_ok_and(|port| port > 0) => Ok(()),
        Some(text) => Err(Error::Port { url: owned(), found: text.to_owned() }),
    }
}

/// Returns what was probably meant to stand behind http://.
fn suggested(url: &str, listener: Listener) -> String {
    let authority = authority(url);
    let authority = authority.rsplit_once('@').map_or(authority, |(_, rest)| rest);
    match authority.matches(':').count() {
        _ if authority.starts_with('[') => authority.to_owned(),
        0 => format!("{authority}:{}", listener.usual_port()),
        1 => authority.to_owned(),
        _ => bracketed(authority, listener),
    }
}

/// Returns how an address of many colons was probably meant: its last group is the port if the rest is
/// an address without it.
fn bracketed(authority: &str, listener: Listener) -> String {
    match authority.rsplit_once(':') {
        Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => format!("[{host}]:{port}"),
        _ => format!("[{authority}]:{}", listener.usual_port()),
    }
}

fn example(listener: Listener) -> String {
    format!("http://HOST:{}", listener.usual_port())
}

/// Returns what comes after the scheme, however its slashes are written.
fn after_scheme(url: &str) -> &str {
    if let Some((_, rest)) = url.split_once("://") {
        return rest;
    }
    let scheme = ["http:", "https:"].into_iter().find_map(|scheme| url.strip_prefix(scheme));
    scheme.unwrap_or(url).trim_start_matches('/')
}

/// Returns host and port, and what stands before their @.
fn authority(url: &str) -> &str {
    let rest = after_scheme(url);
    let host = rest.rfind('@').map_or(0, |at| at + 1);
    let end = rest[host..].find(['/', '?', '#']).map_or(rest.len(), |end| host + end);
    &rest[..end]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_over_http_are_an_address() {
        for url in [
            "http://127.0.0.1:7070",
            "http://head-node.cluster.local:7071/",
            "HTTP://coordinator:80",
            "http://[::1]:7070",
        ] {
            endpoint(url, Listener::People).unwrap_or_else(|error| panic!("{url}: {error}"));
        }
    }

    #[test]
    fn what_can_never_be_reached_is_refused_with_what_to_write_instead() {
        for (url, remedy) in [
            ("", "is empty; write http://HOST:7071"),
            ("head:7071", "write http://head:7071"),
            ("127.0.0.1", "write http://127.0.0.1:7071"),
            ("::1", "write http://[::1]:7071"),
            ("http:head:7071", "write http://head:7071"),
            ("http:/head:7071", "write http://head:7071"),
            ("https://head:7071", "write http://head:7071 where only the cluster reaches the port"),
            ("https://head", "write http://head:7071 where only"),
            ("grpc://head:7071", "begins with grpc://"),
            ("unix:/run/coordinator.sock", "is a Unix socket"),
            ("unix:///run/coordinator.sock", "is a Unix socket"),
            ("http://head:7071 ", "holds a blank"),
            ("http://head 7071", "holds a blank"),
            ("http://head:7071\n", "holds a blank"),
            ("http://head:7071/jobs", "has \"/jobs\" behind host and port"),
            ("http://head:7071?tls=1", "has \"?tls=1\" behind host and port"),
            ("http://head:7071#a", "has \"#a\" behind host and port"),
            ("http://:7071", "names no host"),
            ("http://", "names no host"),
            ("http://head", "names no port; write http://head:7071"),
            ("http://[::1]", "names no port; write http://[::1]:7071"),
            ("http://head:", "\"\" is no port"),
            ("http://head:0", "\"0\" is no port"),
            ("http://head:70710", "\"70710\" is no port"),
            ("http://head:http", "\"http\" is no port"),
            ("http://::1:7071", "write http://[::1]:7071"),
            ("http://fe80::1:2:3:4:5:6", "write http://[fe80::1:2:3:4:5]:6"),
            ("http://[head]:7071", "\"head\" is neither a host name nor an IP address"),
            ("http://[::1", "write http://[::1]:7071"),
            ("http://[::1]7071", "names no port; write http://[::1]:7071"),
            ("http://kopf-künstlich:7071", "is neither a host name nor an IP address"),
        ] {
            let error = endpoint(url, Listener::Fleet).unwrap_err().to_string();
            assert!(error.contains(remedy), "{url}: {error}");
        }
    }

    #[test]
    fn a_password_is_refused_and_never_repeated() {
        for url in [
            "http://me:hunter2@head:7070",
            "me:hunter2@head:7070",
            "https://me:hunter2/@head:7070/x",
            "http://me:hunter2@head",
        ] {
            let error = endpoint(url, Listener::People).unwrap_err();
            assert!(error.to_string().ends_with("write http://head:7070"), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
