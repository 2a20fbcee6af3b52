//! The coordinator's listeners and their life.
//!
//! Three listeners: people (`Jobs` and reflection), fleet (`Fleet` and `Ranks`), health (nothing but
//! the standard health service, which the other two answer as well). Until connections are
//! encrypted they listen on loopback only.

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::Stream;
use futures::future::BoxFuture;
use ringmaster_manifest::ModelCatalogue;
use ringmaster_proto::limits;
use ringmaster_proto::v1::fleet_server::FleetServer;
use ringmaster_proto::v1::jobs_server::JobsServer;
use ringmaster_proto::v1::ranks_server::RanksServer;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic_health::pb::health_server::{Health, HealthServer};

use crate::fleet;
use crate::logs::LogIndex;
use crate::service::{FleetService, JobsService, RanksService};
use crate::state::{self, Store};

/// File in the state directory that holds the real [`Addresses`] while the coordinator serves.
pub const ADDRESSES_FILE: &str = "addresses.json";
/// Time open calls get to end when the coordinator does.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// Sets the sizes of messages that both ends agreed on.
macro_rules! limited {
    ($service:expr) => {
        $service
            .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(limits::MAX_MESSAGE_BYTES)
    };
}

/// How a coordinator is started.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Database, logs and `addresses.json`; created if missing. One coordinator at a time.
    pub state_dir: PathBuf,
    /// Where people's clients connect. Port 0 takes any free one, here and below.
    pub people: SocketAddr,
    /// Where agents and ranks connect.
    pub fleet: SocketAddr,
    /// Where probes connect.
    pub health: SocketAddr,
    /// Allows addresses other than loopback although nothing is encrypted.
    pub insecure: bool,
    /// Heartbeats, leases, grace.
    pub intervals: fleet::Config,
    /// Models that manifests may name without bringing them.
    pub models: ModelCatalogue,
}

impl ServerOptions {
    /// Returns options with the default intervals and this build's models, for loopback addresses only.
    pub fn new(
        state_dir: &Path,
        people: SocketAddr,
        fleet: SocketAddr,
        health: SocketAddr,
    ) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            people,
            fleet,
            health,
            insecure: false,
            intervals: fleet::Config::default(),
            models: ModelCatalogue::builtin(),
        }
    }
}

/// Where a coordinator really listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// `Jobs` and reflection.
    pub people: SocketAddr,
    /// `Fleet` and `Ranks`.
    pub fleet: SocketAddr,
    /// Health only.
    pub health: SocketAddr,
}

/// Why a coordinator did not start, or ended.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that others could reach, without encryption.
    #[error(
        "the {listener} address {address} is not loopback, and connections are not encrypted yet: \
         anybody who reaches it could run jobs; listen on 127.0.0.1, or pass --insecure on an \
         isolated network"
    )]
    NotLoopback { listener: &'static str, address: SocketAddr },
    /// A file or folder of the state directory.
    #[error("{action} failed for {path}", path = path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Another coordinator works here.
    #[error(
        "another coordinator uses the state directory {path}; stop it, or choose another directory",
        path = path.display()
    )]
    InUse { path: PathBuf },
    /// A port is taken or forbidden.
    #[error(
        "the {listener} listener cannot use {address}; choose another port, or 0 for a free one"
    )]
    Bind {
        listener: &'static str,
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    /// The database failed.
    #[error("the coordinator's state is unusable")]
    State(#[from] state::Error),
    /// The service descriptions are damaged.
    #[error("gRPC reflection cannot be set up")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A coordinator that serves. Dropping it without [`Server::shutdown`] stops it at once.
#[derive(Debug)]
pub struct Server {
    addresses: Addresses,
    stop: watch::Sender<bool>,
    task: fleet::Task,
    listeners: Vec<JoinHandle<()>>,
    state_dir: PathBuf,
    /// Held as long as the coordinator may write to the state directory.
    _lock: File,
}

impl Server {
    /// Starts a coordinator on the current tokio runtime and returns once it serves.
    ///
    /// # Errors
    /// When the state directory is in use or unusable, an address is taken, or would be open to
    /// others without `insecure`.
    pub fn start(options: ServerOptions) -> BoxFuture<'static, Result<Self, Error>> {
        // Boxed here so that all of it is compiled here, and not at its caller's optimisation level.
        Box::pin(Self::start_all(options))
    }

    async fn start_all(options: ServerOptions) -> Result<Self, Error> {
        check_loopback(&options)?;

        // ---- State directory
        let state_dir = options.state_dir.clone();
        let lock = prepare(&state_dir)?;
        let (store, loaded) = Store::open(&state_dir.join("ringmaster.db"))?;
        let incarnation = loaded.incarnation;
        let logs = LogIndex::new(state_dir.join("logs"));

        // ---- Listeners, before anything runs
        let people = bind("people", options.people).await?;
        let fleet = bind("fleet", options.fleet).await?;
        let health = bind("health", options.health).await?;
        let addresses = Addresses { people: people.1, fleet: fleet.1, health: health.1 };

        // ---- The fleet's task and the services over it
        let (stop, stopped) = watch::channel(false);
        let (handle, task) =
            fleet::start(options.intervals, store.clone(), loaded, logs.clone(), stopped.clone());
        let (models, stop_jobs) = (options.models, stopped.clone());
        let jobs = JobsService::new(handle.clone(), store, logs.clone(), models, stop_jobs);
        let fleet_service = FleetService::new(handle.clone(), logs, stopped.clone());
        let routes = routes(jobs, fleet_service, RanksService::new(handle)).await?;
        let listeners = routes
            .into_iter()
            .zip([people.0, fleet.0, health.0])
            .map(|(routes, listener)| {
                let incoming = TcpListenerStream::new(listener);
                tokio::spawn(serve(routes, incoming, stopped.clone()))
            })
            .collect();

        let server = Self { addresses, stop, task, listeners, state_dir, _lock: lock };
        server.write_addresses()?;
        tracing::info!(
            people = %addresses.people, fleet = %addresses.fleet, health = %addresses.health,
            incarnation, "the coordinator serves"
        );
        Ok(server)
    }

    /// Returns where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Waits until the coordinator cannot go on. While all is well it never returns.
    ///
    /// # Errors
    /// The reason, once the database has failed. Call [`Server::shutdown`] and start again.
    pub async fn failed(&mut self) -> Result<(), Error> {
        Ok(self.task.ended().await?)
    }

    /// Ends sessions and calls, waits for them briefly, and releases the state directory. Ranks go
    /// on without a coordinator.
    ///
    /// # Errors
    /// When the database failed before or while it ended.
    pub async fn shutdown(mut self) -> Result<(), Error> {
        self.stop.send_replace(true);
        let deadline = tokio::time::Instant::now() + SHUTDOWN;
        for listener in &mut self.listeners {
            if tokio::time::timeout_at(deadline, &mut *listener).await.is_err() {
                listener.abort();
            }
        }
        match tokio::time::timeout_at(deadline, self.task.ended()).await {
            Ok(ended) => Ok(ended?),
            Err(_) => {
                tracing::warn!("the fleet's task still waits for the database; leaving it behind");
                Ok(())
            }
        }
    }

    fn write_addresses(&self) -> Result<(), Error> {
        let path = self.state_dir.join(ADDRESSES_FILE);
        let error = |action| file_error(action, &path);
        let text = serde_json::to_vec_pretty(&self.addresses).expect("addresses serialise");
        let new = self.state_dir.join(".addresses.json.new");
        let mut file = File::create(&new).map_err(error("writing"))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(error("writing"))?;
        std::fs::rename(&new, &path).map_err(error("writing"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for listener in &self.listeners {
            listener.abort();
        }
        // Clients that find no file start their own coordinator or say that none runs.
        let _ = std::fs::remove_file(self.state_dir.join(ADDRESSES_FILE));
    }
}

fn check_loopback(options: &ServerOptions) -> Result<(), Error> {
    let listeners =
        [("people", options.people), ("fleet", options.fleet), ("health", options.health)];
    for (listener, address) in listeners {
        if !options.insecure && !address.ip().is_loopback() {
            return Err(Error::NotLoopback { listener, address });
        }
    }
    Ok(())
}

/// Makes the state directory, takes its lock and removes a dead coordinator's addresses.
fn prepare(state_dir: &Path) -> Result<File, Error> {
    let logs = state_dir.join("logs");
    std::fs::create_dir_all(&logs).map_err(file_error("creating", &logs))?;
    let path = state_dir.join("coordinator.lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(file_error("opening", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::InUse { path: state_dir.to_owned() });
        }
        Err(TryLockError::Error(source)) => {
            return Err(Error::File { action: "locking", path, source });
        }
    }
    match std::fs::remove_file(state_dir.join(ADDRESSES_FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(file_error("removing", &state_dir.join(ADDRESSES_FILE))(error))
        }
        _ => Ok(lock),
    }
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}

async fn bind(
    listener: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), Error> {
    let error = |source| Error::Bind { listener, address, source };
    let socket = TcpListener::bind(address).await.map_err(error)?;
    let real = socket.local_addr().map_err(error)?;
    Ok((socket, real))
}

/// Returns what people, fleet and health listener answer, in this order.
///
/// # Errors
/// When the service descriptions are damaged.
pub async fn routes(
    jobs: JobsService,
    fleet: FleetService,
    ranks: RanksService,
) -> Result<[Routes; 3], Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<JobsServer<JobsService>>().await;
    reporter.set_serving::<FleetServer<FleetService>>().await;
    reporter.set_serving::<RanksServer<RanksService>>().await;
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(ringmaster_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Some clients, as Python's, ask for reflection by the name it had before it was version 1.
    let people = with_health(&health)
        .add_service(limited!(JobsServer::new(jobs)))
        .add_service(described().build_v1()?)
        .add_service(described().build_v1alpha()?);
    let fleet = with_health(&health)
        .add_service(limited!(FleetServer::new(fleet)))
        .add_service(limited!(RanksServer::new(ranks)));
    Ok([people, fleet, with_health(&health)])
}

fn with_health<H: Health>(health: &HealthServer<H>) -> Routes {
    Routes::new(health.clone())
}

/// Serves what comes in until the coordinator stops. An error of the listener itself ends it; the
/// log says so.
pub async fn serve<I, C, E>(routes: Routes, incoming: I, mut stop: watch::Receiver<bool>)
where
    I: Stream<Item = Result<C, E>>,
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stopped = async move {
        // An error means that the server was dropped.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(limits::KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(limits::KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(limits::MAX_CONCURRENT_STREAMS)
        .tcp_nodelay(true)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stopped)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "a listener failed");
    }
}
