//! How a rank joins a generation: it says what it holds, is told its place, and connects to its peers.

use std::net::TcpListener;
use std::time::Duration;

use ringmaster_proto::RingRank;
use ringmaster_proto::v1::{Generation, HeldState, JoinReply, JoinRequest};
use tch::Device;

use crate::collective::nccl::{self, Nccl, UniqueId};
use crate::collective::tcp::{AbortFlag, Options, Tcp, Tls};
use crate::collective::{ByDevice, Collective, Solo};
use crate::error::Error;
use crate::plan::NumericPlan;
use crate::rank::Rank;

/// Time all peers have to connect once they know one another.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// The same for their GPUs: NCCL explores the network first.
const COMMUNICATOR_TIMEOUT: Duration = Duration::from_secs(120);
/// Time their GPUs have to drop all work when the ring breaks.
const ABORT_DEADLINE: Duration = Duration::from_secs(20);

impl Rank {
    /// Says what this rank holds and how its last ring ended, and waits for the plan of all.
    pub(crate) fn join(
        &mut self,
        generation: Generation,
        listener: &TcpListener,
        interruptions: u64,
    ) -> Result<JoinReply, Error> {
        // A state that was never found to be that of a whole ring is nobody's source.
        self.joined_digest = self.replica.agreed.is_some().then(|| self.replica.digest());
        let held = self.joined_digest.map(|digest| HeldState {
            applied_step: self.replica.applied,
            digest,
            entered_ready: self.replica.held.is_some(),
            agreed: self.replica.agreed,
        });
        let plan = NumericPlan::propose(&self.job, &self.env, self.device);
        let data_address = listener
            .local_addr()
            .map_err(|source| Error::Listen { address: self.env.address.clone(), source })?
            .to_string();
        let request = JoinRequest {
            job_id: self.env.job_id.clone(),
            generation: Some(generation),
            rank: self.env.seat.0,
            data_address,
            held,
            numeric_plan: serde_json::to_string(&plan).expect("a plan is plain data"),
            communicator_id: self.communicator_id()?,
            left: self.left.clone(),
        };
        let reply = self.client.join(request, interruptions)?;
        self.left = None;
        Ok(reply)
    }

    /// What the GPUs' communicator of the next generation is formed with. Every rank makes one, since
    /// which of them is first in the ring is known only once all have joined; the others' are dropped.
    fn communicator_id(&self) -> Result<Vec<u8>, Error> {
        if self.env.world_size == 1 || self.device == Device::Cpu {
            return Ok(Vec::new());
        }
        let id = UniqueId::create().map_err(|source| Error::Nccl { source })?;
        Ok(id.as_bytes().to_vec())
    }

    pub(crate) fn connect(
        &self,
        generation: Generation,
        listener: &TcpListener,
        reply: &JoinReply,
        abort: &AbortFlag,
    ) -> Result<Box<dyn Collective>, Error> {
        if reply.peers.len() == 1 {
            return Ok(Box::new(Solo::new()));
        }
        let options = Options {
            generation,
            rank: RingRank(reply.rank).index(),
            peers: reply.peers.clone(),
            token: reply.token.clone(),
            connect_timeout: CONNECT_TIMEOUT,
            // Progress is the control plane's to judge: it knows slow from dead.
            deadline: None,
            tls: self.tls()?,
        };
        // Waits until all peers have connected, for CONNECT_TIMEOUT at most; `abort` ends the wait.
        let host = Tcp::connect(listener, &options, abort)?;
        match self.device {
            Device::Cuda(ordinal) => self.connect_gpus(host, ordinal, reply, abort),
            _ => Ok(Box::new(host)),
        }
    }

    /// Joins the ranks' GPUs beside their connections over `host`.
    fn connect_gpus(
        &self,
        host: Tcp,
        ordinal: usize,
        reply: &JoinReply,
        abort: &AbortFlag,
    ) -> Result<Box<dyn Collective>, Error> {
        let id = UniqueId::from_bytes(&reply.communicator_id).ok_or_else(|| {
            let bytes = reply.communicator_id.len();
            Error::CommunicatorId { bytes, expected: UniqueId::LEN }
        })?;
        // A GPU that has failed once stays failed for this process; another one may do better.
        nccl::check_device(ordinal).map_err(|source| Error::Gpu { ordinal, source })?;
        let options = nccl::Options {
            id,
            rank: host.rank(),
            world_size: host.world_size(),
            ordinal,
            connect_timeout: COMMUNICATOR_TIMEOUT,
            // As for `host`.
            deadline: None,
            abort_deadline: ABORT_DEADLINE,
            on_failure: Some(host.aborter()),
        };
        // collective: NCCL's initialisation. Waits until all ranks have joined the communicator, for
        // COMMUNICATOR_TIMEOUT at most; `abort` ends the wait.
        let device = Nccl::connect(options, abort)?;
        Ok(Box::new(ByDevice::new(Box::new(device), Box::new(host))))
    }

    /// The certificate names the generation, so its file is read anew for each.
    fn tls(&self) -> Result<Option<Tls>, Error> {
        let Some(files) = &self.env.data_tls else { return Ok(None) };
        let tls =
            Tls::from_files(&self.env.job_id, &files.authority, &files.certificate, &files.key)?;
        Ok(Some(tls))
    }

    /// Keeps the plan that the job's first generation fixed, and says where that is impossible.
    pub(crate) fn note_numeric_plan(&mut self, reply: &JoinReply) {
        let world_size = reply.world_size as usize;
        let proposed = NumericPlan::propose(&self.job, &self.env, self.device);
        let now = proposed.among(&self.job, world_size);
        let Ok(fixed) = serde_json::from_str::<NumericPlan>(&reply.numeric_plan) else {
            tracing::warn!(plan = reply.numeric_plan, "cannot read the job's numeric plan");
            self.plan = now.keeping(&NumericPlan { ring_group: 1, ..now.clone() });
            return;
        };
        self.plan = now.keeping(&fixed);
        tch::set_num_threads(self.plan.threads.max(1) as i32);
        let departures = self.plan.departures(&fixed);
        if !departures.is_empty() {
            tracing::warn!(
                step = self.replica.applied,
                departures = departures.join("; "),
                "bit-exactness ends here: the numeric plan cannot be kept"
            );
        }
    }
}
