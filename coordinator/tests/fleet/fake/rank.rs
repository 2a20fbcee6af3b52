//! What ranks ask of the coordinator.

use ringmaster_proto::v1;
use ringmaster_proto::v1::ranks_client::RanksClient;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

use super::within;

/// What a rank would form its GPUs' communicator with; only rank 0's counts.
pub(crate) fn communicator_id(rank: u32, generation: v1::Generation) -> Vec<u8> {
    format!("made by rank {rank} for {generation}").into_bytes()
}

/// What ranks call.
#[derive(Clone)]
pub(crate) struct Rank {
    pub(crate) client: RanksClient<Channel>,
}

impl Rank {
    /// Starts to join; the reply comes once all have.
    pub(crate) fn join(
        &self,
        job_id: &str,
        generation: v1::Generation,
        rank: u32,
        held: Option<v1::HeldState>,
    ) -> JoinHandle<Result<v1::JoinReply, Status>> {
        self.join_at(job_id, generation, rank, held, format!("127.0.0.1:{}", 9000 + rank))
    }

    /// The same with another address for its peers.
    pub(crate) fn join_at(
        &self,
        job_id: &str,
        generation: v1::Generation,
        rank: u32,
        held: Option<v1::HeldState>,
        data_address: String,
    ) -> JoinHandle<Result<v1::JoinReply, Status>> {
        let request = request(job_id, generation, rank, held);
        self.ask(v1::JoinRequest { data_address, ..request })
    }

    /// The same by a rank that says how it left its last ring.
    pub(crate) fn leave(
        &self,
        job_id: &str,
        generation: v1::Generation,
        rank: u32,
        held: Option<v1::HeldState>,
        left: v1::RingLoss,
        port: u32,
    ) -> JoinHandle<Result<v1::JoinReply, Status>> {
        let data_address = format!("127.0.0.1:{port}");
        let request = request(job_id, generation, rank, held);
        self.ask(v1::JoinRequest { data_address, left: Some(left), ..request })
    }

    fn ask(&self, request: v1::JoinRequest) -> JoinHandle<Result<v1::JoinReply, Status>> {
        let mut client = self.client.clone();
        tokio::spawn(async move { Ok(client.join(request).await?.into_inner()) })
    }

    /// Joins these seats and returns what each was told, in the order given.
    pub(crate) async fn join_all(
        &self,
        job_id: &str,
        generation: v1::Generation,
        seats: &[(u32, Option<v1::HeldState>)],
    ) -> Vec<v1::JoinReply> {
        let joins: Vec<_> =
            seats.iter().map(|(seat, held)| self.join(job_id, generation, *seat, *held)).collect();
        let mut replies = Vec::new();
        for join in joins {
            replies.push(joined(join).await);
        }
        replies
    }

    /// Uploads, commits and publishes a checkpoint of a ring of `world_size`.
    pub(crate) async fn checkpoint(
        &self,
        job_id: &str,
        generation: v1::Generation,
        world_size: u32,
        step: u64,
    ) {
        let url = format!("file:///runs/step-{step}");
        self.checkpoint_at(job_id, generation, world_size, step, &url).await;
    }

    /// The same at this URL; returns what of the job's checkpoints somebody is about to read.
    pub(crate) async fn checkpoint_at(
        &self,
        job_id: &str,
        generation: v1::Generation,
        world_size: u32,
        step: u64,
        url: &str,
    ) -> Vec<String> {
        let mut client = self.client.clone();
        for rank in 0..world_size {
            let shard = v1::ReportShardRequest {
                job_id: job_id.to_owned(),
                generation: Some(generation),
                rank,
                step,
                ..Default::default()
            };
            client.report_shard(shard).await.unwrap();
        }
        let commit = v1::CommitCheckpointRequest {
            job_id: job_id.to_owned(),
            generation: Some(generation),
            step,
            digest: 7,
        };
        within("the grant", client.commit_checkpoint(commit)).await.unwrap();
        let published = v1::CheckpointPublishedRequest {
            job_id: job_id.to_owned(),
            generation: Some(generation),
            step,
            url: url.to_owned(),
        };
        client.checkpoint_published(published).await.unwrap().into_inner().in_use
    }

    pub(crate) async fn finish(&self, job_id: &str, generation: v1::Generation) {
        let request = v1::FinishRequest {
            job_id: job_id.to_owned(),
            generation: Some(generation),
            summary_json: "{\"steps\":3}".to_owned(),
        };
        self.client.clone().finish(request).await.unwrap();
    }
}

fn request(
    job_id: &str,
    generation: v1::Generation,
    rank: u32,
    held: Option<v1::HeldState>,
) -> v1::JoinRequest {
    v1::JoinRequest {
        job_id: job_id.to_owned(),
        generation: Some(generation),
        rank,
        data_address: format!("127.0.0.1:{}", 9000 + rank),
        held,
        numeric_plan: format!("{{\"of\":\"rank {rank} in {generation}\"}}"),
        communicator_id: communicator_id(rank, generation),
        left: None,
    }
}

pub(crate) async fn joined(join: JoinHandle<Result<v1::JoinReply, Status>>) -> v1::JoinReply {
    within("joining", join).await.unwrap().unwrap()
}

pub(crate) async fn refused(join: JoinHandle<Result<v1::JoinReply, Status>>) -> Status {
    within("the refusal", join).await.unwrap().unwrap_err()
}
