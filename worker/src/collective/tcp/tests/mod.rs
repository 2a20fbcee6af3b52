//! The contract over plain and TLS sockets, and who is turned away.
#![allow(clippy::unwrap_used)]

mod forming;
mod mismatch;
mod pipeline;

use std::io::{ErrorKind, Read as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ringmaster_proto::v1::Generation;
use ringmaster_tests::timing::fastest_of;
use tch::{Device, Kind, Tensor};

use super::super::contract_tests::{Backend, contract};
use super::super::testing::{ring_options, run_ring, with_ring};
use super::super::{Collective, Error, Pending, ReduceOp};
use super::frame::{Frame, Operation, Terms};
use super::tls::rank_name;
use super::{AbortFlag, Options, Tcp, Tls};
use ringmaster_kernels::reduce::Dtype;

const JOB: &str = "emoji-abc";

/// An authority that lives for one test.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Returns what a rank with a certificate of this name would present.
    fn tls(&self, name: &str) -> Tls {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let (root, chain, key) = (self.0.pem(), certificate.pem(), key.serialize_pem());
        Tls::from_pem(JOB, root.as_bytes(), chain.as_bytes(), key.as_bytes()).unwrap()
    }
}

fn tls_options(world_size: usize) -> (Vec<TcpListener>, Vec<Options>) {
    let authority = Authority::new();
    let (listeners, mut options) = ring_options(world_size);
    for options in &mut options {
        let name = rank_name(JOB, options.generation, options.rank);
        options.tls = Some(authority.tls(&name));
    }
    (listeners, options)
}

#[derive(Default)]
struct Plain;

impl Backend for Plain {
    const WORLD_SIZES: &'static [usize] = &[2, 3, 4];

    fn ring<T: Send>(
        &self,
        world_size: usize,
        deadline: Duration,
        body: impl Fn(&dyn Collective) -> T + Sync,
    ) -> Vec<T> {
        let (listeners, mut options) = ring_options(world_size);
        options.iter_mut().for_each(|options| options.deadline = Some(deadline));
        run_ring(listeners, options, body)
    }
}

#[derive(Default)]
struct Encrypted;

impl Backend for Encrypted {
    const WORLD_SIZES: &'static [usize] = &[2, 4];

    fn ring<T: Send>(
        &self,
        world_size: usize,
        deadline: Duration,
        body: impl Fn(&dyn Collective) -> T + Sync,
    ) -> Vec<T> {
        let (listeners, mut options) = tls_options(world_size);
        options.iter_mut().for_each(|options| options.deadline = Some(deadline));
        run_ring(listeners, options, body)
    }
}

contract!(plain, Plain);
contract!(encrypted, Encrypted);

#[test]
fn ranks_in_different_operations_are_told_so() {
    let errors = with_ring(2, |ring| {
        let tensor = Tensor::zeros([4], (Kind::Float, Device::Cpu));
        let pending = match ring.rank() {
            0 => ring.all_reduce(&tensor, ReduceOp::Sum),
            _ => ring.broadcast(&tensor, 0),
        };
        pending.and_then(Pending::wait).unwrap_err().to_string()
    });
    assert!(
        errors.iter().any(|e| e.contains("all ranks must start the same collectives")),
        "{errors:?}"
    );
}

/// Lets the intruders try to be rank 1, then the true rank 1.
fn turn_away(
    (listeners, options): (Vec<TcpListener>, Vec<Options>),
    intruders: &[(Options, &str)],
) {
    std::thread::scope(|scope| {
        let first = scope.spawn(|| Tcp::connect(&listeners[0], &options[0], &AbortFlag::new()));
        for (intruder, answer) in intruders {
            let error = Tcp::connect(&listeners[1], intruder, &AbortFlag::new()).unwrap_err();
            assert!(error.to_string().contains(answer), "{answer}: {error}");
        }
        let second = scope.spawn(|| Tcp::connect(&listeners[1], &options[1], &AbortFlag::new()));
        // Both ends close politely, each waiting for the other's goodbye.
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        let closing = scope.spawn(move || drop(first.unwrap()));
        drop(second.unwrap());
        closing.join().unwrap();
    });
}

fn strangers(options: &Options) -> [(Options, &'static str); 2] {
    let mut wrong_token = options.clone();
    wrong_token.token = vec![8; 32];
    let mut stale = options.clone();
    stale.generation.counter = 0;
    [(wrong_token, "WrongToken"), (stale, "WrongGeneration")]
}

#[test]
fn a_wrong_token_and_a_stale_generation_are_turned_away_without_disturbing_the_ring() {
    let ring = ring_options(2);
    let intruders = strangers(&ring.1[1]);
    turn_away(ring, &intruders);
}

#[test]
fn with_tls_a_wrong_token_is_turned_away_and_so_is_a_certificate_of_another_rank_or_authority() {
    let authority = Authority::new();
    let (listeners, mut options) = ring_options(2);
    for options in &mut options {
        let name = rank_name(JOB, options.generation, options.rank);
        options.tls = Some(authority.tls(&name));
    }
    let with = |tls: Tls| Options { tls: Some(tls), ..options[1].clone() };
    let generation = options[1].generation;
    let own_name = rank_name(JOB, generation, 1);
    let [wrong_token, _] = strangers(&options[1]);
    let old_name = rank_name(JOB, Generation::new(1, 0), 1);
    let other_job = rank_name("other", generation, 1);
    let intruders = [
        wrong_token,
        (with(authority.tls(&rank_name(JOB, generation, 0))), "WrongCertificate"),
        (with(authority.tls(&old_name)), "WrongCertificate"),
        (with(authority.tls(&other_job)), "WrongCertificate"),
        // It does not trust rank 0 either.
        (with(Authority::new().tls(&own_name)), "invalid peer certificate"),
    ];
    turn_away((listeners, options), &intruders);
}

#[test]
fn a_rank_that_dials_somebody_elses_certificate_refuses_to_speak() {
    let authority = Authority::new();
    let (listeners, mut options) = ring_options(2);
    // Rank 0's place is taken by somebody with a good certificate of another rank.
    let generation = options[0].generation;
    options[0].tls = Some(authority.tls(&rank_name(JOB, generation, 3)));
    options[1].tls = Some(authority.tls(&rank_name(JOB, generation, 1)));
    let abort = AbortFlag::new();
    std::thread::scope(|scope| {
        let impostor = scope.spawn(|| Tcp::connect(&listeners[0], &options[0], &abort));
        let error = Tcp::connect(&listeners[1], &options[1], &AbortFlag::new()).unwrap_err();
        assert!(error.to_string().contains("not valid for name"), "{error}");
        abort.set("the test is over");
        assert!(impostor.join().unwrap().is_err());
    });
}

#[test]
fn connections_that_say_nothing_do_not_keep_the_ring_from_forming() {
    let limit = Duration::from_secs(3);
    for new_ring in [ring_options, tls_options] {
        let mut silent = Vec::new();
        let took = fastest_of(limit, || {
            let (listeners, options) = new_ring(2);
            let address = listeners[0].local_addr().unwrap();
            // They are first in the queue and never speak; alone, each would cost its hello timeout.
            silent = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
            let began = Instant::now();
            run_ring(listeners, options, |ring| ring.barrier().unwrap());
            began.elapsed()
        });
        assert!(took < limit, "{took:?}");
        // After the challenge, the end.
        silent[0].set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let end = silent[0].read_to_end(&mut Vec::new());
        let let_go = match &end {
            Ok(_) => true,
            Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
        assert!(let_go, "the ring has not let go of a stranger: {end:?}");
    }
}

#[test]
fn a_missing_peer_is_an_error_and_an_abort_ends_the_wait_for_it() {
    let (listeners, mut options) = ring_options(2);
    options[0].connect_timeout = Duration::from_millis(200);
    let error = Tcp::connect(&listeners[0], &options[0], &AbortFlag::new()).unwrap_err();
    assert!(error.to_string().contains("rank 1 did not connect in time"), "{error}");
    assert!(matches!(&error, Error::Connect { peers, .. } if peers == &[1]), "{error:?}");

    // Rank 0 waits for rank 1, which listens but never answers; so does rank 1 for rank 0.
    for rank in [0, 1] {
        options[rank].connect_timeout = Duration::from_secs(600);
        let abort = AbortFlag::new();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| Tcp::connect(&listeners[rank], &options[rank], &abort));
            abort.set("a newer generation begins");
            let error = waiting.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Aborted { .. }), "{error}");
        });
    }
}

#[test]
fn a_certificate_without_its_key_and_an_empty_authority_are_named() {
    let authority = Authority::new();
    let root = authority.0.pem();
    let key = KeyPair::generate().unwrap().serialize_pem();
    let unusable = Tls::from_pem(JOB, root.as_bytes(), root.as_bytes(), key.as_bytes());
    assert!(unusable.unwrap_err().to_string().contains("certificate with its key"));
    let empty = Tls::from_pem(JOB, b"", root.as_bytes(), key.as_bytes());
    assert!(empty.unwrap_err().to_string().contains("authority holds no certificate"));
}
