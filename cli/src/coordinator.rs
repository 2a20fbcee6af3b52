//! `ringmaster coordinator`: runs the control plane until it is told to stop.

use std::net::SocketAddr;
use std::time::Duration;

use ringmaster_coordinator::server::{Server, ServerOptions};
use ringmaster_manifest::ModelCatalogue;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::error::Error;
use super::{LogFormat, args};

/// Shortest lease: a rank speaks to its agent every second, and may be late.
const SHORTEST_LEASE: Duration = Duration::from_secs(3);

/// Serves until SIGINT, SIGTERM or, if asked, the end of stdin.
pub(crate) async fn run(args: &args::Coordinator) -> Result<(), Error> {
    let listeners = [
        ("--listen", args.listen),
        ("--fleet-listen", args.fleet_listen),
        ("--health-listen", args.health_listen),
    ];
    refuse_open_listeners(&listeners, args.insecure)?;
    refuse_short_lease(args.heartbeat, args.lease)?;
    super::log_to_stderr(if args.log_json { LogFormat::Json } else { LogFormat::Text });
    // Every agent and every rank that calls is a connection.
    if let Err(error) = ringmaster_coordinator::open_files::raise_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let failed = |source| Error::io("listen for signals", source);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut parent = if args.parent_pipe { Some(end_of_stdin()?) } else { None };

    let mut options =
        ServerOptions::new(&args.state_dir, args.listen, args.fleet_listen, args.health_listen);
    options.models = ModelCatalogue::from_env().map_err(Error::Models)?;
    options.insecure = args.insecure;
    options.intervals.exclude_after = args.exclude_after;
    options.intervals.heartbeat = args.heartbeat;
    options.intervals.lease = args.lease;
    options.intervals.grace = args.grace;
    for deadline in &args.deadline {
        let deadlines = &mut options.intervals.deadlines;
        match deadline.phase {
            Some(phase) => deadlines.set(phase, deadline.time),
            None => deadlines.first_step = deadline.time,
        }
    }
    let server_error = |source: ringmaster_coordinator::server::Error| Error::Server {
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
        _ = async { parent.as_mut().expect("it is there").await }, if parent.is_some() => {
            tracing::info!("the parent process is gone");
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

/// Refuses a lease in which too few signs of life fit.
fn refuse_short_lease(heartbeat: Duration, lease: Duration) -> Result<(), Error> {
    let shortest = SHORTEST_LEASE.max(heartbeat * 3);
    if lease >= shortest {
        return Ok(());
    }
    let shortest = shortest.as_secs_f64();
    Err(Error::Flag {
        flag: "--lease",
        value: lease.as_secs_f64().to_string(),
        constraint: "a lease holds three heartbeats, and is 3 s at least".to_owned(),
        remedy: format!("give {shortest} or more, or a shorter --heartbeat"),
    })
}

/// Returns what is ready once stdin has ended.
fn end_of_stdin() -> Result<oneshot::Receiver<()>, Error> {
    let (ended, end) = oneshot::channel();
    let wait = move || {
        // A pipe that cannot be read has nobody behind it either.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        // Nobody listens any more when the command is ending for another reason.
        let _ = ended.send(());
    };
    let thread = std::thread::Builder::new().name("parent-pipe".to_owned()).spawn(wait);
    thread.map_err(|source| Error::io("start a thread", source))?;
    Ok(end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_must_hold_a_few_signs_of_life() {
        let seconds = Duration::from_secs_f64;
        assert!(refuse_short_lease(seconds(1.0), seconds(5.0)).is_ok());
        assert!(refuse_short_lease(seconds(0.2), seconds(3.0)).is_ok());
        let error = refuse_short_lease(seconds(2.0), seconds(5.0)).unwrap_err().to_string();
        assert!(error.starts_with("--lease 5 does not fit: ") && error.contains("6"), "{error}");
        assert!(refuse_short_lease(seconds(0.1), seconds(2.0)).is_err());
    }

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
