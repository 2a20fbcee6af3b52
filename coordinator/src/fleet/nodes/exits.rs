//! What an agent says of a rank that has ended.

use ringmaster_proto::v1;
use ringmaster_proto::v1::coordinator_message::Message;

use super::table::Nodes;
use crate::fleet::batch::Batch;
use crate::fleet::jobs::Jobs;

impl Nodes {
    /// Takes in that a rank's process has ended, and acknowledges it.
    pub(crate) fn exited(
        &mut self,
        jobs: &mut Jobs,
        batch: &mut Batch,
        session: u64,
        exited: &v1::RankExited,
    ) {
        let Some(name) = self.sessions.get(&session) else { return };
        let node = self.by_name.get_mut(name).expect("sessions belong to nodes");
        if let Some(session) = &node.session {
            let ack = v1::ExitAck { exit_id: exited.exit_id.clone() };
            batch.send(&session.outbound, Message::ExitAck(ack));
        }

        // Is it news of the process that has the rank's place?
        let generation = exited.generation.unwrap_or_default();
        let key = (exited.job_id.clone(), exited.rank);
        let reached = match node.processes.get(&key) {
            // About an earlier process of the rank: the report was repeated, or is late.
            Some(process) if generation < process.started => return,
            Some(process) => Some(process.generation),
            None => None,
        };
        let doomed = node.processes.remove(&key).is_some_and(|process| process.doomed);
        let Some(job) = jobs.by_id.get_mut(&exited.job_id).filter(|_| !doomed) else { return };
        let awaited = reached.is_some() || job.attach_until.is_some();
        if !awaited || !job.sits(exited.rank, name) || job.is_done(exited.rank) {
            return;
        }
        if job.record.state.is_ended() {
            return;
        }

        // It ended well: it is done, or it was told to stop in a ring that has broken meanwhile. The one that
        // is being formed has not begun, and waits for this seat.
        let reaches_its_end = job.record.formed || job.is_stopping() || job.is_finished();
        if exited.code == Some(0) && !reaches_its_end {
            let how = format!("it ended before {} was formed", job.generation());
            return job.lose_blameless(batch, exited.rank, how, false);
        }
        if exited.code == Some(0) {
            job.record.done[exited.rank as usize] = true;
            job.movement.forget(exited.rank);
            job.dirty = true;
            return;
        }

        // It failed: the job does, too, if another try would not help.
        let how = describe(exited);
        if !exited.retryable && !job.is_finished() && !job.is_stopping() {
            job.event(batch, "rank_lost", format!("rank {} on {name}: {how}", exited.rank));
            let reason = format!("rank {}: {how}; running it again would not help", exited.rank);
            return job.fail(batch, &reason);
        }
        let counts = reached.unwrap_or(generation) == job.generation();
        job.lose(batch, exited.rank, how, counts);
    }
}

fn describe(exited: &v1::RankExited) -> String {
    // The agent's reason says how it ended, too.
    if !exited.reason.is_empty() {
        return exited.reason.clone();
    }
    match (exited.code, exited.signal) {
        (_, Some(signal)) => format!("ended by signal {signal}"),
        (Some(code), None) => format!("ended with code {code}"),
        (None, None) => "ended".to_owned(),
    }
}
