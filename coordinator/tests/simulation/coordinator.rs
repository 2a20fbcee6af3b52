//! The coordinator's host: the real services over the real database.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use ringmaster_coordinator::fleet::{self, Config};
use ringmaster_coordinator::logs::LogIndex;
use ringmaster_coordinator::server;
use ringmaster_coordinator::service::{FleetService, JobsService, RanksService};
use ringmaster_coordinator::state::{Change, Hooks, Store};
use ringmaster_manifest::ModelCatalogue;
use tokio::sync::watch;

use super::net::{self, FLEET, PEOPLE};
use super::world::World;

/// Intervals under which a run of a minute holds many leases.
pub(crate) fn intervals() -> Config {
    Config {
        heartbeat: Duration::from_millis(250),
        lease: Duration::from_millis(1500),
        grace: Duration::from_secs(3),
        ..Config::default()
    }
}

/// The disk: commits take time, and the world sees what is durable.
struct Disk {
    world: World,
    random: Mutex<StdRng>,
}

impl Hooks for Disk {
    fn pause(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut random = self.random.lock().unwrap();
        // Mostly quick, sometimes a disk that thinks about it.
        let most = if random.random_bool(0.05) { 400 } else { 20 };
        let pause = Duration::from_millis(random.random_range(0..=most));
        Box::pin(tokio::time::sleep(pause))
    }

    fn committed(&self, changes: &[Change]) {
        self.world.committed(changes);
    }
}

/// Runs until it is crashed. It never ends by itself; if it does, that is a violation.
pub(crate) async fn run(world: World, state_dir: PathBuf, seed: u64) -> turmoil::Result {
    let random = Mutex::new(StdRng::seed_from_u64(seed));
    let disk = Arc::new(Disk { world: world.clone(), random });
    let (store, loaded) = Store::open_inline(&state_dir.join("ringmaster.db"), disk)?;
    world.log(format!("coordinator: incarnation {}", loaded.incarnation));
    let logs = LogIndex::new(state_dir);
    let (_stop, stopped) = watch::channel(false);
    let (handle, mut task) =
        fleet::start(intervals(), store.clone(), loaded, logs.clone(), stopped.clone());
    let models = ModelCatalogue::builtin();
    let jobs = JobsService::new(handle.clone(), store, logs.clone(), models, stopped.clone());
    let fleet = FleetService::new(handle.clone(), logs, stopped.clone());
    let [people, agents, _] = server::routes(jobs, fleet, RanksService::new(handle)).await?;
    let people_incoming = Box::pin(net::listen(PEOPLE).await?);
    let agents_incoming = Box::pin(net::listen(FLEET).await?);
    tokio::task::spawn_local(server::serve(people, people_incoming, stopped.clone()));
    tokio::task::spawn_local(server::serve(agents, agents_incoming, stopped));
    let ended = task.ended().await;
    world.violate("the coordinator does not fail by itself", format!("{ended:?}"));
    Ok(())
}
