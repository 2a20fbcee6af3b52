//! What disturbs the formation of a ring, and what does not.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::hello::{ANSWER_LEN, Answer, HELLO_LEN, Member, NONCE_LEN, nonce};
use super::*;

/// Much less than the timeout of a formation, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Speaks to rank 0 as a rank with these options; returns the connection and the answer.
fn speak(listener: &TcpListener, options: &Options) -> (TcpStream, Answer) {
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut challenge, mut answer) = ([0; NONCE_LEN], [0; ANSWER_LEN]);
    let own = nonce();
    let member = Member::of(options).unwrap();
    stream.read_exact(&mut challenge).unwrap();
    stream.write_all(&member.hello(0, challenge, own)).unwrap();
    stream.read_exact(&mut answer).unwrap();
    (stream, member.read_answer(0, challenge, own, &answer).unwrap())
}

#[test]
fn a_rank_that_leaves_ends_the_formation_for_those_who_wait_for_others() {
    // Rank 1 never comes; it only lets rank 2 dial, which rank 0 has welcomed by then.
    for leaver in [0, 2] {
        let (listeners, options) = ring_options(3);
        let began = Instant::now();
        let (leaves, stays) = (AbortFlag::new(), AbortFlag::new());
        std::thread::scope(|scope| {
            let (listeners, options) = (&listeners, &options);
            let join = |rank: usize| {
                let abort = if rank == leaver { &leaves } else { &stays };
                scope.spawn(move || Tcp::connect(&listeners[rank], &options[rank], abort))
            };
            let ranks = [(0, join(0)), (2, join(2))];
            let _dialed = listeners[1].accept().unwrap();
            leaves.set("this rank leaves");
            for (rank, thread) in ranks {
                let error = thread.join().unwrap().unwrap_err();
                let text = error.to_string();
                let left = format!(
                    "lost rank {leaver} in connect #0: it has left while the ring was being formed"
                );
                assert!(rank == leaver || text.contains(&left), "{text}");
            }
        });
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
}

#[test]
fn a_place_that_is_taken_is_free_again_once_its_connection_has_died() {
    let (listeners, options) = ring_options(3);
    std::thread::scope(|scope| {
        let (listeners, options) = (&listeners, &options);
        let join = |rank: usize| {
            scope.spawn(move || Tcp::connect(&listeners[rank], &options[rank], &AbortFlag::new()))
        };
        let first = join(0);
        let (dying, answer) = speak(&listeners[0], &options[1]);
        assert_eq!(answer, Answer::Welcome);
        assert_eq!(speak(&listeners[0], &options[1]).1, Answer::Taken);
        let second = join(1);
        drop(dying);
        let third = join(2);
        let rings = [first, second, third].map(|thread| thread.join().unwrap().unwrap());
        // Each closes when all have said goodbye.
        for ring in rings {
            scope.spawn(move || drop(ring));
        }
    });
}

#[test]
fn three_hundred_silent_connections_leave_room_for_the_ranks() {
    // Without making room, a place is free only when the first of them have timed out.
    let limit = Duration::from_secs(4);
    let took = fastest_of(limit, || {
        let (listeners, options) = ring_options(2);
        std::thread::scope(|scope| {
            let (listeners, options) = (&listeners, &options);
            let first = scope.spawn(|| Tcp::connect(&listeners[0], &options[0], &AbortFlag::new()));
            let address = listeners[0].local_addr().unwrap();
            let _silent: Vec<TcpStream> =
                (0..300).map(|_| TcpStream::connect(address).unwrap()).collect();
            let began = Instant::now();
            let second = Tcp::connect(&listeners[1], &options[1], &AbortFlag::new()).unwrap();
            let first = first.join().unwrap().unwrap();
            let took = began.elapsed();
            scope.spawn(move || drop(first));
            drop(second);
            took
        })
    });
    assert!(took < limit, "{took:?}");
}

/// Answers whoever dials as rank 0 would, without knowing the token, until told to stop; returns
/// the hellos.
fn impersonate(listener: &TcpListener, is_over: &AtomicBool) -> Vec<[u8; HELLO_LEN]> {
    let mut hellos = Vec::new();
    while let Ok((mut stream, _)) = listener.accept()
        && !is_over.load(Ordering::SeqCst)
    {
        let mut hello = [0; HELLO_LEN];
        stream.write_all(&nonce()).unwrap();
        if stream.read_exact(&mut hello).is_err() {
            continue;
        }
        hellos.push(hello);
        // What a welcome looks like: a one, and a proof that is the dialer's own.
        let mut answer = [1; ANSWER_LEN];
        answer[1..].copy_from_slice(&hello[HELLO_LEN - (ANSWER_LEN - 1)..]);
        let _ = stream.write_all(&answer);
    }
    hellos
}

#[test]
fn an_acceptor_without_the_token_is_not_accepted_and_does_not_learn_it() {
    // Until it has come to a hello, on a busy machine.
    let mut timeouts = [1, 5, 25, 125].map(Duration::from_secs).into_iter();
    let token: Vec<u8> = (100..132).collect();
    let hellos = loop {
        let timeout = timeouts.next().expect("it says hello in time");
        let hellos = hellos_to_an_impostor(&token, timeout);
        if !hellos.is_empty() {
            break hellos;
        }
    };
    for hello in hellos {
        assert!(!hello.windows(4).any(|bytes| token.windows(4).any(|part| part == bytes)));
    }
}

/// What a rank that waits for so long says to somebody who does not know the token.
fn hellos_to_an_impostor(token: &[u8], connect_timeout: Duration) -> Vec<[u8; HELLO_LEN]> {
    let (listeners, mut options) = ring_options(2);
    options[1].token = token.to_vec();
    options[1].connect_timeout = connect_timeout;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let impostor = scope.spawn(|| impersonate(&listeners[0], &is_over));
        let error = Tcp::connect(&listeners[1], &options[1], &AbortFlag::new()).unwrap_err();
        assert!(error.to_string().contains("cannot reach rank 0"), "{error}");
        is_over.store(true, Ordering::SeqCst);
        let _woken = TcpStream::connect(listeners[0].local_addr().unwrap()).unwrap();
        impostor.join().unwrap()
    })
}

#[test]
fn a_peer_that_does_not_speak_tls_is_dialed_again_until_the_true_one_listens() {
    let (listeners, options) = tls_options(2);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| Tcp::connect(&listeners[1], &options[1], &AbortFlag::new()));
        let (mut stranger, _) = listeners[0].accept().unwrap();
        stranger.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let first = Tcp::connect(&listeners[0], &options[0], &AbortFlag::new()).unwrap();
        let second = second.join().unwrap().unwrap();
        scope.spawn(move || drop(first));
        drop(second);
        drop(stranger);
    });
}
