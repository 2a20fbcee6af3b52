//! The coordinator's host: the real services over the real database.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use ringmaster_coordinator::fleet::{self, Config, Deadlines};
use ringmaster_coordinator::logs::LogIndex;
use ringmaster_coordinator::server;
use ringmaster_coordinator::service::{FleetService, JobsService, RanksService};
use ringmaster_coordinator::state::{Change, Hooks, Store};
use ringmaster_manifest::ModelCatalogue;
use ringmaster_proto::v1::Phase;
use tokio::sync::watch;

use super::desk;
use super::net::{self, FLEET, PEOPLE};
use super::world::World;

/// How long a rank may stand still: longer than anything that a rank waits for without a fault.
const STANDSTILL: Duration = Duration::from_secs(12);
/// How long a node is waited for that is not heard of.
pub(crate) const LEASE: Duration = Duration::from_millis(1500);
/// Unix seconds at which a run begins.
const BEGIN: u64 = 1_700_000_000;
/// Seconds by which the clock that people go by was put forward. One run at a time.
static STEPPED: AtomicI64 = AtomicI64::new(0);

/// Sets the clock that people go by.
pub(crate) fn start_clock() {
    STEPPED.store(0, Ordering::Relaxed);
}

/// Puts the clock that people go by forward, or back.
pub(crate) fn step_clock(seconds: i64) {
    STEPPED.fetch_add(seconds, Ordering::Relaxed);
}

fn wall_clock() -> SystemTime {
    let begin = BEGIN.saturating_add_signed(STEPPED.load(Ordering::Relaxed));
    UNIX_EPOCH + Duration::from_secs(begin) + turmoil::sim_elapsed().unwrap_or_default()
}

/// Intervals under which a run of a minute holds many leases.
fn config(settling_cost: Duration) -> Config {
    let mut deadlines = Deadlines::default();
    (deadlines.first_step, deadlines.most) = (STANDSTILL, STANDSTILL);
    for phase in (0..).map_while(|number| Phase::try_from(number).ok()) {
        deadlines.set(phase, STANDSTILL);
    }
    Config {
        heartbeat: Duration::from_millis(250),
        lease: LEASE,
        grace: Duration::from_secs(3),
        kill_deadline: Duration::from_secs(1),
        early_loss: Duration::from_millis(750),
        dial_deadline: Duration::from_secs(1),
        commit_patience: Duration::from_secs(6),
        deadlines,
        wall_clock,
        settling_cost,
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
pub(crate) async fn run(
    world: World,
    state_dir: PathBuf,
    settling_cost: Duration,
    seed: u64,
) -> turmoil::Result {
    let random = Mutex::new(StdRng::seed_from_u64(seed));
    let disk = Arc::new(Disk { world: world.clone(), random });
    let (store, loaded) = Store::open_inline(&state_dir.join("ringmaster.db"), disk)?;
    world.log(format!("coordinator: incarnation {}", loaded.incarnation));
    world.with(|state| {
        state.forget_progress();
        state.forget_idle_holders();
    });
    let logs = LogIndex::new(state_dir);
    let (_stop, stopped) = watch::channel(false);
    let (handle, mut task) =
        fleet::start(config(settling_cost), store.clone(), loaded, logs.clone(), stopped.clone());
    tokio::task::spawn_local(desk::serve(world.clone(), handle.clone(), seed));
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
