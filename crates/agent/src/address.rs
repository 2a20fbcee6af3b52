//! The address at which other nodes reach this one's ranks.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};

use tonic::transport::Uri;

/// Why a node has no address that others could reach.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
pub enum Error {
    /// One that stands for any.
    #[error(
        "--address {address:?} stands for every address of this machine, and other nodes need one of them \
         to reach its ranks; write an address such as 10.0.0.7, the machine's name, or leave --address out"
    )]
    Unspecified { address: String },
    /// It was not given, and cannot be told.
    #[error(
        "cannot tell at which address other nodes reach this one, since there is no way from here to the \
         coordinator {coordinator}; name the address by --address"
    )]
    Unknown {
        coordinator: String,
        #[source]
        source: io::Error,
    },
}

/// Returns the address that ranks of other nodes are told: the one that is given, else loopback where the
/// coordinator is on loopback, else the one that this machine has on the way to the coordinator.
///
/// Names are resolved, and nothing is sent to the coordinator.
///
/// # Errors
/// [`Error`]: an address that stands for any, or none that could be found.
pub fn advertised(coordinator: &str, given: Option<&str>) -> Result<String, Error> {
    if let Some(given) = given {
        let bare = given.trim_matches(['[', ']']);
        let is_any = bare.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
        if is_any || bare.is_empty() {
            return Err(Error::Unspecified { address: given.to_owned() });
        }
        // Without the brackets of a URL: ranks bind it.
        return Ok(bare.to_owned());
    }
    let (host, port) = host_and_port(coordinator);
    if let Some(loopback) = loopback(&host) {
        return Ok(loopback.to_string());
    }
    let address = on_the_way(&host, port)
        .map_err(|source| Error::Unknown { coordinator: coordinator.to_owned(), source })?;
    tracing::info!(%address, coordinator, "no --address is given: other nodes reach this one where it reaches the coordinator from");
    Ok(address.to_string())
}

/// Returns what a URL says; it was checked before.
fn host_and_port(url: &str) -> (String, u16) {
    let uri: Uri = url.parse().unwrap_or_default();
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    (host.to_owned(), uri.port_u16().unwrap_or_default())
}

/// Returns the loopback address of a host's family if the host is this machine by name or address.
fn loopback(host: &str) -> Option<IpAddr> {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    match host.parse::<IpAddr>().ok()?.to_canonical() {
        IpAddr::V4(address) => address.is_loopback().then_some(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(address) => address.is_loopback().then_some(Ipv6Addr::LOCALHOST.into()),
    }
}

/// Returns the address of this machine from which a host is reached.
fn on_the_way(host: &str, port: u16) -> io::Result<IpAddr> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in (host, port).to_socket_addrs()? {
        match towards(address) {
            Ok(own) => return Ok(own),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn towards(address: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // Sends nothing: the kernel only chooses the route, and with it the address.
    socket.connect(address)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_on_loopback_is_joined_on_loopback_of_its_family() {
        for (coordinator, expected) in [
            ("http://127.0.0.1:7071", "127.0.0.1"),
            ("http://127.8.8.8:7071", "127.0.0.1"),
            ("http://localhost:7071", "127.0.0.1"),
            ("http://LOCALHOST.:7071/", "127.0.0.1"),
            ("http://head.localhost:7071", "127.0.0.1"),
            ("http://[::1]:7071", "::1"),
            ("http://[::ffff:127.0.0.1]:7071", "127.0.0.1"),
        ] {
            assert_eq!(advertised(coordinator, None).unwrap(), expected, "{coordinator}");
        }
    }

    #[test]
    fn what_is_given_is_taken_as_it_is() {
        for given in ["10.0.0.7", "node-7.cluster", "fd00::7", "127.0.0.1"] {
            assert_eq!(advertised("http://10.0.0.1:7071", Some(given)).unwrap(), given);
        }
    }

    /// It was told to the ranks of other nodes, which then connected to themselves.
    #[test]
    fn an_address_that_stands_for_any_is_refused_with_the_remedy() {
        for given in ["0.0.0.0", "::", "[::]", ""] {
            let error = advertised("http://127.0.0.1:7071", Some(given)).unwrap_err();
            assert!(matches!(&error, Error::Unspecified { address } if address == given));
            let text = error.to_string();
            assert!(text.contains(&format!("{given:?}")) && text.contains("10.0.0.7"), "{text}");
        }
    }

    #[test]
    fn the_way_to_a_host_begins_at_an_address_of_this_machine() {
        assert_eq!(towards("127.0.0.1:7071".parse().unwrap()).unwrap(), Ipv4Addr::LOCALHOST);
        // An address for documentation: nobody has it, and a machine without a network has no way there.
        match advertised("http://192.0.2.1:7071", None) {
            Ok(address) => {
                let address: IpAddr = address.parse().unwrap();
                assert!(!address.is_unspecified() && !address.is_loopback(), "{address}");
            }
            Err(error) => {
                assert!(matches!(error, Error::Unknown { .. }), "{error:?}");
                assert!(error.to_string().contains("by --address"), "{error}");
            }
        }
    }
}
