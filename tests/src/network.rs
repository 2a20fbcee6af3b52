//! Several hosts on one machine: network namespaces on a bridge, or simply the loopback interface.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use tokio::net::TcpSocket;

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
            (Self::Namespaces(_), Host::Node(node)) => format!("10.77.0.{}", 10 + node),
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
            let address = format!("10.77.0.{}/24", 10 + node);
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

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output();
    let output = output.map_err(|e| format!("cannot start ip (Debian: iproute2): {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(format!("ip {}: {said}", args.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn nobody_answers_and_nobody_else_is_given_the_port() {
        let nobody = Nobody::there();
        let refused = TcpStream::connect(nobody.address).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let taken = TcpListener::bind(nobody.address).expect_err("it is taken");
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    }
}
