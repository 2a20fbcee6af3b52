//! Several hosts on one machine: network namespaces on a bridge, or simply the loopback interface.

mod loss;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use tokio::net::TcpSocket;

pub use self::loss::Loss;

/// An address of a link that nobody has.
const NOBODYS_LINK: &str = "02:00:00:00:00:99";

/// Where a process runs: beside the coordinator, or on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// The coordinator's host, and its clients'.
    Coordinator,
    /// A node's host.
    Node(usize),
}

/// How the hosts reach one another.
#[derive(Debug)]
pub enum Network {
    /// All on 127.0.0.1.
    Loopback,
    /// Each in a namespace of its own.
    Namespaces(Namespaces),
}

/// An address of the loopback interface at which nothing answers, as long as this lives: its port is
/// taken, so that nobody else is given it, and nobody listens.
#[derive(Debug)]
pub struct Nobody {
    /// Where connections are refused.
    pub address: SocketAddr,
    _socket: TcpSocket,
}

impl Nobody {
    /// Returns such an address.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub fn there() -> Self {
        let bound = TcpSocket::new_v4().and_then(|socket| {
            socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
            Ok((socket.local_addr()?, socket))
        });
        let (address, socket) = bound.expect("loopback has a free port");
        Self { address, _socket: socket }
    }
}

/// Namespaces that end with this value. Making them needs root and iproute2.
#[derive(Debug)]
pub struct Namespaces {
    prefix: String,
    nodes: usize,
}

impl Network {
    /// Returns the address of a host.
    pub fn address(&self, host: Host) -> String {
        match (self, host) {
            (Self::Loopback, _) => "127.0.0.1".to_owned(),
            (Self::Namespaces(_), Host::Coordinator) => "10.77.0.1".to_owned(),
            (Self::Namespaces(_), Host::Node(node)) => address_of(node),
        }
    }

    /// Returns a command that runs `program` on a host.
    pub fn command(&self, host: Host, program: &Path) -> Command {
        match self {
            Self::Loopback => Command::new(program),
            Self::Namespaces(namespaces) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &namespaces.name(host)]).arg(program);
                command
            }
        }
    }
}

impl Namespaces {
    /// Makes a host for the coordinator with a bridge, and `nodes` hosts on that bridge.
    ///
    /// # Errors
    /// What `ip` printed: no permission, or no bridge and veth in this kernel.
    pub fn new(nodes: usize) -> Result<Self, String> {
        // A namespace's name is a file's, a link's has 15 characters at most.
        let made = Self { prefix: format!("rm{}", std::process::id()), nodes };
        let hub = made.name(Host::Coordinator);
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "set", "lo", "up"])?;
        ip(&["-n", &hub, "link", "add", "hub", "type", "bridge"])?;
        ip(&["-n", &hub, "addr", "add", "10.77.0.1/24", "dev", "hub"])?;
        ip(&["-n", &hub, "link", "set", "hub", "up"])?;
        for node in 0..nodes {
            let name = made.name(Host::Node(node));
            let link = format!("to{node}");
            ip(&["netns", "add", &name])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&[
                "-n", &hub, "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns",
                &name,
            ])?;
            ip(&["-n", &hub, "link", "set", &link, "master", "hub", "up"])?;
            let address = format!("{}/24", address_of(node));
            ip(&["-n", &name, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        }
        Ok(made)
    }

    /// Cuts a node off: its packets are lost without a word.
    ///
    /// # Errors
    /// What `ip` printed.
    pub fn cut(&self, node: usize) -> Result<(), String> {
        self.link(node, "down")
    }

    /// Plugs a node in again.
    ///
    /// # Errors
    /// What `ip` printed.
    pub fn restore(&self, node: usize) -> Result<(), String> {
        self.link(node, "up")
    }

    /// Keeps two nodes from each other: what one sends the other is lost without a word, on connections
    /// that stand, too. Everybody else reaches both.
    ///
    /// # Errors
    /// What `ip` printed.
    pub fn part(&self, one: usize, other: usize) -> Result<(), String> {
        for (from, to) in [(one, other), (other, one)] {
            let (host, address) = (self.name(Host::Node(from)), address_of(to));
            let link = ["lladdr", NOBODYS_LINK, "nud", "permanent", "dev", "eth0"];
            let neighbour = ["-n", &host, "neigh", "replace", &address];
            ip(&[neighbour.as_slice(), link.as_slice()].concat())?;
        }
        Ok(())
    }

    /// Lets two nodes that were parted reach each other again.
    ///
    /// # Errors
    /// What `ip` printed.
    pub fn rejoin(&self, one: usize, other: usize) -> Result<(), String> {
        for (from, to) in [(one, other), (other, one)] {
            let (host, address) = (self.name(Host::Node(from)), address_of(to));
            ip(&["-n", &host, "neigh", "del", &address, "dev", "eth0"])?;
        }
        Ok(())
    }

    /// Loses `share` of the packets that each host sends, as long as the result lives.
    ///
    /// # Errors
    /// What `tc` printed: no permission, or nothing in this kernel that loses packets.
    pub fn lose(&self, share: f64) -> Result<Loss, String> {
        let nodes = (0..self.nodes).map(|node| (self.name(Host::Node(node)), "eth0"));
        let hub = (self.name(Host::Coordinator), "hub");
        Loss::begin(nodes.chain([hub]).collect(), share)
    }

    fn link(&self, node: usize, state: &str) -> Result<(), String> {
        let hub = self.name(Host::Coordinator);
        ip(&["-n", &hub, "link", "set", &format!("to{node}"), state])
    }

    fn name(&self, host: Host) -> String {
        match host {
            Host::Coordinator => format!("{}h", self.prefix),
            Host::Node(node) => format!("{}n{node}", self.prefix),
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let nodes = (0..self.nodes).map(Host::Node);
        for host in nodes.chain([Host::Coordinator]) {
            // One that was never made, when making them failed half-way.
            let _ = ip(&["netns", "del", &self.name(host)]);
        }
    }
}

/// The address of a node in its namespace.
fn address_of(node: usize) -> String {
    format!("10.77.0.{}", 10 + node)
}

fn ip(args: &[&str]) -> Result<(), String> {
    run("ip", args)
}

/// Runs one of the programs of iproute2, and returns what it says where it fails.
fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|e| format!("cannot start {program} (Debian: iproute2): {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(format!("{program} {}: {said}", args.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::skips;

    #[test]
    fn nobody_answers_and_nobody_else_is_given_the_port() {
        let nobody = Nobody::there();
        let refused = TcpStream::connect(nobody.address).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let taken = TcpListener::bind(nobody.address).expect_err("it is taken");
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    }

    /// What becomes of a connection from a host to a node's port where nobody listens: refused, or
    /// nothing is heard for a second.
    fn reaches(network: &Network, from: Host, node: usize) -> bool {
        let to = network.address(Host::Node(node));
        let script = format!("< /dev/tcp/{to}/9");
        let mut command = network.command(from, Path::new("timeout"));
        let status = command.args(["1", "bash", "-c", &script]).output().expect("ip starts").status;
        match status.code() {
            Some(1) => true,
            Some(124) => false,
            other => panic!("neither refused nor silent: {other:?}"),
        }
    }

    #[test]
    fn nodes_that_are_parted_are_silent_to_each_other_alone_and_lost_packets_are_lost_for_all() {
        let namespaces = match Namespaces::new(3) {
            Ok(namespaces) => namespaces,
            Err(why) => {
                skips::skip("namespaces", &format!("no network namespaces (needs root): {why}"));
                return;
            }
        };
        let network = Network::Namespaces(namespaces);
        let Network::Namespaces(namespaces) = &network else { panic!("it was just made") };
        let (zero, one) = (Host::Node(0), Host::Node(1));
        assert!(reaches(&network, zero, 1) && reaches(&network, Host::Coordinator, 0));
        namespaces.part(0, 1).expect("neighbours can be set");
        assert!(!reaches(&network, zero, 1) && !reaches(&network, one, 0));
        assert!(reaches(&network, zero, 2) && reaches(&network, Host::Coordinator, 0));
        namespaces.rejoin(0, 1).expect("they were set");
        assert!(reaches(&network, zero, 1) && reaches(&network, one, 0));

        match namespaces.lose(1.0) {
            Ok(loss) => {
                assert!(!reaches(&network, zero, 1) && !reaches(&network, Host::Coordinator, 0));
                drop(loss);
                assert!(reaches(&network, zero, 1) && reaches(&network, Host::Coordinator, 0));
            }
            Err(why) => skips::skip_part("loss", &format!("packets cannot be lost: {why}")),
        }
    }
}
