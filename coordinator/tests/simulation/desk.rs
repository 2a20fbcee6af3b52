//! Where people ask for roll-backs. The real service would look the checkpoint up in its object store
//! and verify it; here somebody at the coordinator's host does, and asks the fleet as the service does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use ringmaster_coordinator::fleet::{Error, Handle};

use super::history::{Name, WentBack, url};
use super::world::World;

const POLL: Duration = Duration::from_millis(20);

/// Requests that nobody has taken up, and answers that nobody has fetched.
#[derive(Default)]
pub(crate) struct Desk {
    last: u64,
    requests: VecDeque<(u64, String, Name)>,
    /// True for one that was granted.
    answers: BTreeMap<u64, bool>,
    /// Jobs of which it is asked, until the answer is known.
    asked: Vec<String>,
}

impl Desk {
    pub(crate) fn is_asked_of(&self, job_id: &str) -> bool {
        self.asked.iter().any(|asked| asked == job_id)
    }
}

impl World {
    /// Asks until there is an answer; returns whether the job goes back.
    pub(crate) async fn ask_to_go_back(&self, job_id: &str, to: Name, patience: Duration) -> bool {
        self.with(|state| state.desk.asked.push(job_id.to_owned()));
        let granted = loop {
            let id = self.with(|state| {
                state.desk.last += 1;
                let request = (state.desk.last, job_id.to_owned(), to);
                state.desk.requests.push_back(request);
                state.desk.last
            });
            match tokio::time::timeout(patience, self.answer(id)).await {
                Ok(granted) => break granted,
                // Whoever has taken it up may still do it; then it is done twice.
                Err(_) => self.with(|state| state.desk.requests.retain(|request| request.0 != id)),
            }
        };
        self.with(|state| {
            let asked = &mut state.desk.asked;
            let index = asked.iter().position(|asked| asked == job_id).expect("it is asked of");
            asked.remove(index);
        });
        granted
    }

    async fn answer(&self, id: u64) -> bool {
        loop {
            if let Some(granted) = self.with(|state| state.desk.answers.remove(&id)) {
                return granted;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Serves the desk for as long as the coordinator lives.
pub(crate) async fn serve(world: World, handle: Handle, seed: u64) {
    let random = Mutex::new(StdRng::seed_from_u64(seed.rotate_left(21)));
    loop {
        let request = world.with(|state| state.desk.requests.pop_front());
        let Some((id, job_id, to)) = request else {
            tokio::time::sleep(POLL).await;
            continue;
        };
        // Looks for it, and verifies it.
        let millis = random.lock().unwrap().random_range(20..300);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        match handle.roll_back(job_id.clone(), url(&job_id, to), to.1).await {
            Ok(done) => {
                if let Some(up_to) = done.at_rest {
                    world.mark_rollback(&job_id, WentBack { to, up_to });
                }
                world.with(|state| state.desk.answers.insert(id, true));
            }
            // It dies with the fleet, or is asked again.
            Err(Error::Stopped) => return,
            Err(_) => {
                world.with(|state| state.desk.answers.insert(id, false));
            }
        }
    }
}
