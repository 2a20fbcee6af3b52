//! `ringmaster coordinator`: runs the control plane until it is told to stop.

use std::net::SocketAddr;

use ringmaster::server::{Server, ServerOptions};
use tokio::signal::unix::{SignalKind, signal};

use super::args;
use super::error::Error;

/// Serves until SIGINT or SIGTERM.
pub(crate) async fn run(args: &args::Coordinator) -> Result<(), Error> {
    let listeners = [
        ("--listen", args.listen),
        ("--fleet-listen", args.fleet_listen),
        ("--health-listen", args.health_listen),
    ];
    refuse_open_listeners(&listeners, args.insecure)?;
    super::log_to_stderr(args.log_json);
    // Every agent and every rank that calls is a connection.
    if let Err(error) = super::open_files::raise_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let failed = |source| Error::io("listen for signals", source);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;

    let mut options =
        ServerOptions::new(&args.state_dir, args.listen, args.fleet_listen, args.health_listen);
    options.insecure = args.insecure;
    options.intervals.exclude_after = args.exclude_after;
    for deadline in &args.deadline {
        let deadlines = &mut options.intervals.deadlines;
        match deadline.phase {
            Some(phase) => deadlines.set(phase, deadline.time),
            None => deadlines.first_step = deadline.time,
        }
    }
    let server_error = |source: ringmaster::server::Error| Error::Server {
        state_dir: args.state_dir.clone(),
        source: Box::new(source),
    };
    let mut server = Server::start(options).await.map_err(server_error)?;
    let ended = tokio::select! {
        _ = interrupt.recv() => {
            tracing::info!("interrupted; jobs go on without a coordinator");
            Ok(())
        }
        _ = terminate.recv() => {
            tracing::info!("told to stop; jobs go on without a coordinator");
            Ok(())
        }
        failed = server.failed() => failed.map_err(server_error),
    };
    server.shutdown().await.map_err(server_error)?;
    ended
}

/// Refuses listeners that other machines could reach, as there is no TLS yet.
fn refuse_open_listeners(
    listeners: &[(&'static str, SocketAddr)],
    insecure: bool,
) -> Result<(), Error> {
    match listeners.iter().find(|(_, address)| !address.ip().is_loopback()) {
        Some(&(flag, address)) if !insecure => Err(Error::Insecure { flag, address }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_beyond_loopback_needs_the_insecure_flag() {
        let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let open: SocketAddr = "0.0.0.0:7071".parse().unwrap();
        let listeners = [("--listen", local), ("--fleet-listen", open)];
        let error = refuse_open_listeners(&listeners, false).unwrap_err();
        assert!(error.to_string().starts_with("--fleet-listen 0.0.0.0:7071 is not"), "{error}");
        assert!(refuse_open_listeners(&listeners, true).is_ok());
        assert!(refuse_open_listeners(&listeners[..1], false).is_ok());
    }
}
