//! What an agent says of a rank that has ended.

use ringmaster_proto::v1::ExitClass;
use ringmaster_proto::v1::coordinator_message::Message;
use ringmaster_proto::{Seat, v1};

use super::table::Nodes;
use crate::fleet::{Batch, Jobs, Loss, RankEnd};

impl Nodes {
    /// Whether no other node could run a rank that ended for a reason which another attempt on its node
    /// would meet again.
    fn is_alone(
        &mut self,
        jobs: &Jobs,
        batch: &Batch,
        session: u64,
        exited: &v1::RankExited,
    ) -> bool {
        if !matches!(exited.class(), ExitClass::Node | ExitClass::Job) || exited.code == Some(0) {
            return false;
        }
        let name = self.of_session(session).map(|(name, _)| name.to_owned());
        name.is_some_and(|name| !self.runs_elsewhere(jobs, batch, &name, &exited.job_id))
    }

    /// Takes in that a rank's process has ended, and acknowledges it.
    pub(crate) fn exited(
        &mut self,
        jobs: &mut Jobs,
        batch: &mut Batch,
        session: u64,
        exited: &v1::RankExited,
    ) {
        let alone = self.is_alone(jobs, batch, session, exited);
        let Some((name, node)) = self.of_session(session) else { return };
        if let Some(session) = &node.session {
            let ack = v1::ExitAck { exit_id: exited.exit_id.clone() };
            batch.send(&session.outbound, Message::ExitAck(ack));
        }

        // Is it news of the process that has the place of the rank?
        let generation = exited.generation.unwrap_or_default();
        let seat = Seat(exited.rank);
        let key = (exited.job_id.clone(), seat);
        if node.unearth(&key, generation) {
            let job = jobs.by_id.get_mut(&exited.job_id);
            return job.into_iter().for_each(|job| job.evidence.accept(name));
        }
        let reached = match node.processes.get(&key) {
            // About an earlier process of the rank: the report was repeated, or is late.
            Some(process) if generation < process.started => return,
            Some(process) => Some((process.started, process.generation)),
            None => None,
        };
        let doomed = node.processes.remove(&key).is_some_and(|process| process.doomed);
        let Some(job) = jobs.by_id.get_mut(&exited.job_id).filter(|_| !doomed) else { return };
        let awaited = reached.is_some() || job.attach_until.is_some();
        if !awaited || !job.sits(seat, name) || job.is_done(seat) {
            return;
        }
        // Its node's worker cannot run: the node gets no other rank, and the job has no part in that.
        if exited.for_the_worker {
            job.lose(batch, seat, Loss::new(&exited.reason, false));
            return;
        }
        let (started, reached) = reached.unwrap_or((generation, generation));
        let counts = job.counts(started, reached);
        // A process that no signal ends says nothing against its node: its slot is out of service.
        if exited.undead {
            job.lose(batch, seat, Loss::new(&exited.reason, counts));
            return;
        }
        job.rank_ended(batch, &RankEnd { exited, started, counts, alone });
    }
}
