//! Collectives over TCP sockets, plain or TLS, for CPU tensors.
//!
//! Every pair of ranks shares one full-duplex connection (`connect`, `accept`, `hello`, `channel`,
//! `tls`).
//! One thread per rank runs the operations in the order they were started (`ops`) and drives all
//! its connections both ways without ever blocking on one of them (`links`). Reductions
//! ([`ringmaster_kernels::reduce`]) add in rank order. A peer's death shows as a closed connection and ends
//! the whole ring at once: each rank that notices closes its own connections, so the news needs no timeout.

mod abort;
mod accept;
mod channel;
mod connect;
mod frame;
mod hello;
mod links;
mod ops;
#[cfg(test)]
mod tests;
pub mod tls;

use std::cell::Cell;
use std::net::TcpListener;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ringmaster_kernels::reduce::Dtype;
use ringmaster_proto::v1::Generation;
use tch::{Kind, Tensor};

pub use self::abort::AbortFlag;
use self::abort::AbortHandle;
use self::links::Links;
use self::ops::Job;
pub use self::tls::Tls;
use super::{Aborter, Collective, Error, Pending, ReduceOp};
use crate::ffi::memory::HostBytes;

/// The dtype of a tensor that [`HostBytes::of`] accepted.
fn dtype_of(kind: Kind) -> Dtype {
    match kind {
        Kind::Double => Dtype::F64,
        Kind::BFloat16 => Dtype::Bf16,
        Kind::Int64 => Dtype::I64,
        _ => Dtype::F32,
    }
}

/// What a rank needs to know to join its generation's ring.
#[derive(Debug, Clone)]
pub struct Options {
    /// The attempt this ring belongs to; peers of another one are refused.
    pub generation: Generation,
    /// This process's rank.
    pub rank: usize,
    /// `host:port` of every rank's listener, by rank.
    pub peers: Vec<String>,
    /// The generation's shared secret.
    pub token: Vec<u8>,
    /// Time for all peers to connect.
    pub connect_timeout: Duration,
    /// Time after which an operation that makes no progress fails; none leaves that to the control plane.
    pub deadline: Option<Duration>,
    /// Certificates for mutual TLS; without them the ring is plaintext.
    pub tls: Option<Tls>,
}

/// The TCP back end.
#[derive(Debug)]
pub struct Tcp {
    rank: usize,
    world_size: usize,
    sequence: Cell<u64>,
    jobs: Option<Sender<Job>>,
    links: AbortHandle,
    thread: Option<JoinHandle<()>>,
}

impl Tcp {
    /// Connects to every peer; `listener` is the socket whose address the peers were told.
    ///
    /// # Errors
    /// [`Error::Connect`] when a peer does not come, is of another generation, has another token or
    /// cannot prove its rank; [`Error::PeerLost`] when one leaves before all have come; [`Error::Aborted`] when
    /// `abort` is used meanwhile.
    pub fn connect(
        listener: &TcpListener,
        options: &Options,
        abort: &AbortFlag,
    ) -> Result<Self, Error> {
        let channels = connect::mesh(listener, options, abort)?;
        let links = Links::new(options.rank, channels, options.deadline, abort.clone());
        let handle = links.abort_handle().clone();
        let (jobs, queue) = channel::<Job>();
        let thread = std::thread::Builder::new()
            .name(format!("tcp-{}", options.rank))
            .spawn(move || ops::run(links, queue))
            .map_err(|e| Error::Connect {
                world_size: options.peers.len(),
                peers: Vec::new(),
                reason: format!("cannot start a thread: {e}"),
            })?;
        Ok(Self {
            rank: options.rank,
            world_size: options.peers.len(),
            sequence: Cell::new(0),
            jobs: Some(jobs),
            links: handle,
            thread: Some(thread),
        })
    }

    fn check_rank(&self, operation: &'static str, what: &str, rank: usize) -> Result<(), Error> {
        if rank < self.world_size {
            return Ok(());
        }
        let reason = format!("{what} {rank} is not a rank below {}", self.world_size);
        Err(Error::Tensor { operation, reason })
    }

    fn start(&self, kind: ops::Kind, tensors: &[&Tensor]) -> Result<Pending, Error> {
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        let (done, result) = sync_channel(1);
        let job = Job { sequence, kind, done };
        let jobs = self.jobs.as_ref().expect("jobs are taken only by drop");
        jobs.send(job).map_err(|_| Error::Aborted { reason: self.links.reason() })?;
        Ok(Pending::new(result, tensors.iter().map(|t| t.shallow_clone()).collect()))
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        // Closing the queue lets the thread finish what was started, say goodbye and close.
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bytes(operation: &'static str, tensor: &Tensor) -> Result<HostBytes, Error> {
    HostBytes::of(tensor).map_err(|reason| Error::Tensor { operation, reason })
}

/// Checks that dimension 0 of `tensor` has `rows` rows and returns the bytes of one row.
fn row_bytes(operation: &'static str, tensor: &Tensor, rows: usize) -> Result<usize, Error> {
    let shape = tensor.size();
    if shape.first().copied() != Some(rows as i64) {
        let reason = format!("shape {shape:?} does not have {rows} rows");
        return Err(Error::Tensor { operation, reason });
    }
    let per_row: i64 = shape[1..].iter().product();
    Ok(per_row as usize * tensor.kind().elt_size_in_bytes())
}

/// Checks that a rank's share and the whole tensor have these many rows, of the same width, and
/// returns the bytes of one row.
fn row_bytes_of_both(
    operation: &'static str,
    (share, share_rows): (&Tensor, usize),
    (whole, whole_rows): (&Tensor, usize),
) -> Result<usize, Error> {
    let of_share = row_bytes(operation, share, share_rows)?;
    if row_bytes(operation, whole, whole_rows)? == of_share {
        return Ok(of_share);
    }
    let (share, whole) = (share.size(), whole.size());
    let reason = format!("the rows of shape {share:?} are not as wide as those of {whole:?}");
    Err(Error::Tensor { operation, reason })
}

/// Checks that `counts` has a share for every rank.
fn check_counts(operation: &'static str, counts: &[usize], world_size: usize) -> Result<(), Error> {
    if counts.len() == world_size {
        return Ok(());
    }
    let reason = format!("{} counts for {world_size} ranks", counts.len());
    Err(Error::Tensor { operation, reason })
}

fn check_same_kind(operation: &'static str, a: &Tensor, b: &Tensor) -> Result<Kind, Error> {
    if a.kind() != b.kind() {
        let reason = format!("dtypes {:?} and {:?} differ", a.kind(), b.kind());
        return Err(Error::Tensor { operation, reason });
    }
    Ok(a.kind())
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Pending, Error> {
        let data = bytes("all_reduce", tensor)?;
        let dtype = dtype_of(tensor.kind());
        self.start(ops::Kind::AllReduce { data, dtype, op }, &[tensor])
    }

    fn all_gather(
        &self,
        input: &Tensor,
        output: &Tensor,
        counts: &[usize],
    ) -> Result<Pending, Error> {
        const NAME: &str = "all_gather";
        check_counts(NAME, counts, self.world_size)?;
        let dtype = dtype_of(check_same_kind(NAME, input, output)?);
        let (own, all) = (counts[self.rank], counts.iter().sum());
        let row = row_bytes_of_both(NAME, (input, own), (output, all))?;
        let shares = counts.iter().map(|count| count * row).collect();
        let (from, to) = (bytes(NAME, input)?, bytes(NAME, output)?);
        self.start(ops::Kind::AllGather { from, to, shares, dtype }, &[input, output])
    }

    fn reduce_scatter(
        &self,
        input: &Tensor,
        output: &Tensor,
        counts: &[usize],
    ) -> Result<Pending, Error> {
        const NAME: &str = "reduce_scatter";
        check_counts(NAME, counts, self.world_size)?;
        let dtype = dtype_of(check_same_kind(NAME, input, output)?);
        let (own, all) = (counts[self.rank], counts.iter().sum());
        let row = row_bytes_of_both(NAME, (output, own), (input, all))?;
        let shares = counts.iter().map(|count| count * row).collect();
        let (from, to) = (bytes(NAME, input)?, bytes(NAME, output)?);
        self.start(ops::Kind::ReduceScatter { from, to, shares, dtype }, &[input, output])
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending, Error> {
        self.check_rank("broadcast", "root", root)?;
        let data = bytes("broadcast", tensor)?;
        let dtype = dtype_of(tensor.kind());
        self.start(ops::Kind::Broadcast { data, root, dtype }, &[tensor])
    }

    fn exchange(
        &self,
        send: &Tensor,
        to: usize,
        recv: &Tensor,
        from: usize,
    ) -> Result<Pending, Error> {
        const NAME: &str = "exchange";
        self.check_rank(NAME, "to", to)?;
        self.check_rank(NAME, "from", from)?;
        let (send_bytes, recv_bytes) = (bytes(NAME, send)?, bytes(NAME, recv)?);
        let (to_self, from_self) = (to == self.rank, from == self.rank);
        if to_self != from_self || (to_self && send_bytes.len() != recv_bytes.len()) {
            let reason = format!(
                "{} bytes to rank {to}, {} from rank {from}: a rank's exchange with itself has the \
                 same bytes both ways",
                send_bytes.len(),
                recv_bytes.len()
            );
            return Err(Error::Tensor { operation: NAME, reason });
        }
        let parcel = |data, tensor: &Tensor, peer| ops::Parcel {
            data,
            dtype: dtype_of(tensor.kind()),
            peer,
        };
        let kind = ops::Kind::Exchange {
            send: parcel(send_bytes, send, to),
            recv: parcel(recv_bytes, recv, from),
        };
        self.start(kind, &[send, recv])
    }

    fn barrier(&self) -> Result<(), Error> {
        self.start(ops::Kind::Barrier, &[])?.wait()
    }

    fn aborter(&self) -> Aborter {
        let links = self.links.clone();
        Aborter::new(move |reason| links.abort(reason))
    }

    fn sequence(&self) -> u64 {
        self.sequence.get()
    }
}
