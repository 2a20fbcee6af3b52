//! The line between an agent and its rank.

use std::sync::Mutex;

use ringmaster_proto::v1::{self, Generation};

/// What the agent tells its rank, and the rank its agent.
pub(crate) struct Orders(Mutex<Line>);

struct Line {
    newest: Generation,
    stop: bool,
    status: v1::RankStatus,
}

impl Orders {
    pub(crate) fn new(generation: Generation) -> Self {
        let status = v1::RankStatus {
            generation: Some(generation),
            phase: v1::Phase::Start.into(),
            ..Default::default()
        };
        Self(Mutex::new(Line { newest: generation, stop: false, status }))
    }

    pub(crate) fn regenerate(&self, generation: Generation) {
        let mut line = self.0.lock().unwrap();
        line.newest = line.newest.max(generation);
    }

    pub(crate) fn stop(&self) {
        self.0.lock().unwrap().stop = true;
    }

    pub(crate) fn status(&self) -> v1::RankStatus {
        self.0.lock().unwrap().status.clone()
    }

    pub(crate) fn newest(&self) -> Generation {
        self.0.lock().unwrap().newest
    }

    pub(crate) fn stops(&self) -> bool {
        self.0.lock().unwrap().stop
    }

    pub(crate) fn show(&self, generation: Generation, phase: v1::Phase, step: u64) {
        let mut line = self.0.lock().unwrap();
        if line.status.generation != Some(generation) {
            line.status.collective_sequence = 0;
        }
        // Every wait for the others is one collective.
        line.status.collective_sequence += u64::from(phase == v1::Phase::Collective);
        line.status.generation = Some(generation);
        line.status.phase = phase.into();
        line.status.step = step;
        line.status.progress += 1;
    }
}
