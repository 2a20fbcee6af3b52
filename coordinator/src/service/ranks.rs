//! `Ranks`: what ranks call themselves.

use ringmaster_proto::v1;
use ringmaster_proto::v1::ranks_server::Ranks;
use tonic::{Request, Response, Status};

use super::to_status;
use crate::fleet::Handle;

/// The `Ranks` service. Calls wait as long as the other ranks need; a caller that goes away may
/// call again.
#[derive(Debug, Clone)]
pub struct RanksService {
    fleet: Handle,
}

impl RanksService {
    /// Returns the service over this fleet.
    pub fn new(fleet: Handle) -> Self {
        Self { fleet }
    }
}

#[tonic::async_trait]
impl Ranks for RanksService {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinReply>, Status> {
        let reply = self.fleet.join(request.into_inner()).await.map_err(to_status)?;
        Ok(Response::new(reply))
    }

    async fn report_shard(
        &self,
        request: Request<v1::ReportShardRequest>,
    ) -> Result<Response<v1::ReportShardReply>, Status> {
        self.fleet.report_shard(request.into_inner()).await.map_err(to_status)?;
        Ok(Response::new(v1::ReportShardReply {}))
    }

    async fn commit_checkpoint(
        &self,
        request: Request<v1::CommitCheckpointRequest>,
    ) -> Result<Response<v1::CommitCheckpointReply>, Status> {
        let objects = self.fleet.commit(request.into_inner()).await.map_err(to_status)?;
        Ok(Response::new(v1::CommitCheckpointReply { objects }))
    }

    async fn checkpoint_published(
        &self,
        request: Request<v1::CheckpointPublishedRequest>,
    ) -> Result<Response<v1::CheckpointPublishedReply>, Status> {
        let in_use = self.fleet.published(request.into_inner()).await.map_err(to_status)?;
        Ok(Response::new(v1::CheckpointPublishedReply { in_use }))
    }

    async fn note(
        &self,
        request: Request<v1::NoteRequest>,
    ) -> Result<Response<v1::NoteReply>, Status> {
        self.fleet.note(request.into_inner()).await.map_err(to_status)?;
        Ok(Response::new(v1::NoteReply {}))
    }

    async fn finish(
        &self,
        request: Request<v1::FinishRequest>,
    ) -> Result<Response<v1::FinishReply>, Status> {
        self.fleet.finish(request.into_inner()).await.map_err(to_status)?;
        Ok(Response::new(v1::FinishReply {}))
    }
}
