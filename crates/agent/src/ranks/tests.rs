//! Tests of the table of ranks: what it takes, refuses and tells.

use ringmaster_proto::v1::Phase;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::entry::NotStarted;
use crate::processes::Sessions;

fn table(slots: usize) -> (Table, UnboundedReceiver<Key>) {
    let (launches, queue) = mpsc::unbounded_channel();
    let silence = Duration::from_secs(10);
    (Table::new(slots, silence, Exits::new("n".into()), launches, Arc::new(Sessions)), queue)
}

/// What is to be launched.
fn queued(queue: &mut UnboundedReceiver<Key>) -> Vec<Key> {
    std::iter::from_fn(|| queue.try_recv().ok()).collect()
}

fn start(rank: u32, counter: u32) -> StartRank {
    let generation = Some(Generation::new(1, counter));
    StartRank { job_id: "job".into(), rank, generation, ..StartRank::default() }
}

fn refused(table: &Table) -> Vec<RankExited> {
    table.exits.due(Instant::now(), Duration::ZERO)
}

fn refusals(table: &Table) -> Vec<(u32, Generation, String)> {
    let due = refused(table).into_iter();
    due.map(|exit| (exit.rank, exit.generation.unwrap(), exit.reason)).collect()
}

/// Class, operation and cause of the first refusal.
fn identity(table: &Table) -> (Class, String, String) {
    let exit = refused(table).remove(0);
    (exit.class().into(), exit.operation, exit.cause)
}

fn serves_later(cause: &str) -> (Class, String, String) {
    (Class::Retry, operation::START.to_owned(), cause.to_owned())
}

#[test]
fn a_repeated_start_is_taken_once_and_one_beyond_the_slots_is_refused() {
    let (table, mut queue) = table(1);
    table.start(start(0, 1));
    table.start(start(0, 1));
    table.start(start(1, 1));
    assert_eq!(queued(&mut queue), [("job".to_owned(), Seat(0))]);
    let refusals = refusals(&table);
    assert_eq!(refusals.len(), 1);
    assert_eq!((refusals[0].0, refusals[0].1), (1, Generation::new(1, 1)));
    assert!(refusals[0].2.contains("all 1 slots"), "{}", refusals[0].2);
    assert_eq!(identity(&table), serves_later("slots"));
}

#[test]
fn a_rank_to_regenerate_that_does_not_run_is_reported_as_gone_in_the_new_generation() {
    let (table, _queue) = table(1);
    let generation = Generation::new(1, 4);
    table.regenerate(Regenerate { job_id: "job".into(), rank: 2, generation: Some(generation) });
    let refusals = refusals(&table);
    assert_eq!((refusals[0].0, refusals[0].1), (2, generation));
    assert_eq!(table.registration().1, generation, "it was seen all the same");
    assert_eq!(identity(&table), serves_later("not running"));
}

#[test]
fn nothing_is_launched_after_everything_was_killed() {
    let (table, _queue) = table(2);
    table.start(start(0, 1));
    table.kill_all("test");
    table.start(start(1, 1));
    for rank in [0, 1] {
        let exec =
            |_: &StartRank, _: &Secret| -> Result<(u32, ()), NotStarted> { panic!("must not run") };
        assert!(table.launch(&("job".to_owned(), Seat(rank)), exec).is_none());
    }
    assert!(table.wait_until_empty(Duration::ZERO));
}

#[test]
fn a_node_that_leaves_takes_no_rank() {
    let (table, mut queue) = table(2);
    table.leave(Duration::from_secs(3), "told to end");
    assert_eq!(table.leaving().map(|leaving| leaving.grace_ms), Some(3000));
    table.start(start(0, 1));
    assert_eq!(queued(&mut queue).len(), 0);
    assert!(refusals(&table)[0].2.contains("told to end"));
    assert_eq!(identity(&table), serves_later("leaving"));
}

#[test]
fn only_milestones_of_a_generation_are_worth_a_heartbeat_of_their_own() {
    let mut entry = Entry::new(start(0, 1));
    let mut says = |counter: u32, phase: Phase, step: u64| {
        let generation = Some(Generation::new(1, counter));
        let phase = phase.into();
        entry.update(RankStatus { generation, phase, step, ..RankStatus::default() })
    };
    assert!(!says(1, Phase::Join, 0) && !says(1, Phase::Load, 0));
    // What it received is no step of its own.
    assert!(!says(1, Phase::Load, 7));
    assert!(says(1, Phase::Data, 7), "it has its state");
    assert!(!says(1, Phase::Compute, 7) && !says(1, Phase::Apply, 7));
    assert!(says(1, Phase::Data, 8), "the first step");
    assert!(!says(1, Phase::Compute, 8) && !says(1, Phase::Data, 9));
    assert!(says(1, Phase::Join, 9), "its ring broke");
    assert!(says(2, Phase::Join, 9), "it follows into the next generation");
    assert!(says(2, Phase::Data, 9) && says(2, Phase::Apply, 10));
}

#[test]
fn a_queued_start_is_replaced_by_a_newer_one_before_anything_ran() {
    let (table, mut queue) = table(1);
    table.start(start(0, 1));
    table.start(start(0, 2));
    assert_eq!(queued(&mut queue).len(), 1);
    let mut launched = None;
    let exec = |start: &StartRank, _: &Secret| {
        launched = start.generation;
        Err::<(u32, ()), NotStarted>(std::io::Error::other("enough").into())
    };
    assert!(table.launch(&("job".to_owned(), Seat(0)), exec).is_none());
    assert_eq!(launched, Some(Generation::new(1, 2)));
    assert_eq!(refusals(&table)[0].1, Generation::new(1, 2));
    let (class, operation, cause) = identity(&table);
    assert_eq!((class, operation.as_str(), cause.as_str()), (Class::Node, "exec", "Other"));
}

/// A work folder on a file system that hung held the lock, and with it the heartbeats: all jobs of the node
/// lost their ranks.
#[test]
fn what_a_rank_needs_of_files_holds_up_nobody_and_is_made_anew_for_a_newer_start() {
    let (table, _queue) = table(2);
    let key = ("job".to_owned(), Seat(0));
    table.start(start(0, 1));
    let (entered, has_entered) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // Dropped by whatever fails below: the thread ends then as well.
        let release = release;
        let launch = scope.spawn({
            let (table, key) = (&table, &key);
            move || {
                let prepare = |start: &StartRank| {
                    entered.send(start.generation.unwrap()).unwrap();
                    released.recv().map_err(|_| NotStarted::from(std::io::Error::other("failed")))
                };
                let exec = |start: &StartRank, _: &Secret, file: u32| {
                    Ok((40 + file, start.generation.unwrap()))
                };
                table.launch_prepared(key, prepare, exec).map(|(generation, _)| generation)
            }
        });
        assert_eq!(has_entered.recv().unwrap(), Generation::new(1, 1));
        // The table answers while it waits.
        assert_eq!(table.heartbeat().ranks.len(), 0);
        table.start(start(1, 1));
        table.start(start(0, 2));
        table.enforce(Instant::now());
        assert_eq!(table.registration().0.len(), 2);
        release.send(1).unwrap();
        assert_eq!(has_entered.recv().unwrap(), Generation::new(1, 2), "prepared anew");
        release.send(2).unwrap();
        assert_eq!(launch.join().unwrap(), Some(Generation::new(1, 2)));
    });
    assert_eq!(table.heartbeat().ranks[0].pid, 42);
}

#[test]
fn a_rank_that_is_killed_before_it_has_a_process_never_starts() {
    let (table, mut queue) = table(1);
    table.start(start(0, 1));
    table.stop(StopRank { job_id: "job".into(), reason: "test".into(), ..StopRank::default() });
    assert_eq!(refusals(&table), [(0, Generation::new(1, 1), "killed: test".to_owned())]);
    let (class, operation, cause) = identity(&table);
    assert_eq!((class, operation.as_str(), cause.as_str()), (Class::Retry, "run", "killed"));
    for key in queued(&mut queue) {
        let exec =
            |_: &StartRank, _: &Secret| -> Result<(u32, ()), NotStarted> { panic!("must not run") };
        assert!(table.launch(&key, exec).is_none());
    }
    // And its slot is free.
    table.start(start(1, 1));
    assert_eq!(queued(&mut queue), [("job".to_owned(), Seat(1))]);
}

/// It was known by its process id, which is another one in a container.
#[test]
fn who_shows_the_secret_of_a_rank_is_that_rank_and_nobody_else() {
    let (table, _queue) = table(2);
    let mut secrets = Vec::new();
    let mut children = Vec::new();
    for rank in [0, 1] {
        table.start(start(rank, 1));
        let exec = |_: &StartRank, secret: &Secret| {
            secrets.push(secret.clone());
            let child = std::process::Command::new("/bin/sleep").arg("600").spawn()?;
            Ok((child.id(), child))
        };
        children.push(table.launch(&("job".to_owned(), Seat(rank)), exec).unwrap().0);
    }
    let shows = |rank: u32, secret: &Secret| {
        table.connected(&("job".to_owned(), Seat(rank)), secret, mpsc::unbounded_channel().0)
    };
    assert_eq!(shows(0, &secrets[0]), Some(children[0].id()));
    assert_eq!(shows(1, &secrets[1]), Some(children[1].id()));
    assert_eq!(shows(0, &secrets[1]), None, "another rank's");
    assert_eq!(shows(2, &secrets[0]), None, "no such rank");
    assert_eq!(shows(0, &Secret::of(String::new())), None);
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
