//! What a ring has to say for its job's history.

use ringmaster_proto::v1;

use crate::fake::{Agent, Coordinator, killed, patient, run_two};

#[tokio::test]
async fn a_note_stands_in_the_history_once_and_a_stale_or_unknown_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let note = v1::NoteRequest {
        job_id: running.job_id.clone(),
        generation: Some(running.generation),
        kind: v1::NoteKind::SlowLink.into(),
        message: "the link from ring rank 0 to 1 is slow".to_owned(),
    };
    let mut client = coordinator.ranks().await.client;
    client.note(note.clone()).await.unwrap();
    client.note(note.clone()).await.unwrap();
    let events = coordinator.events(&running.job_id).await;
    let notes: Vec<&str> =
        events.iter().filter(|e| e.kind == "slow_link").map(|e| e.message.as_str()).collect();
    assert_eq!(notes, [note.message.as_str()]);

    let unknown = v1::NoteRequest { kind: 0, ..note.clone() };
    let refused = client.note(unknown).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    agent.exit(killed(&running.starts[1])).await;
    let refused = client.note(note).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Aborted, "{refused}");
}

#[tokio::test]
async fn evaluations_and_what_befalls_a_store_are_events_and_ranks_that_say_the_same_make_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let mut client = coordinator.ranks().await.client;
    let (evaluation, store) = (v1::NoteKind::Evaluation, v1::NoteKind::Store);
    for (kind, message) in [
        (evaluation, "step 5: top-1 1.0 %"),
        (store, "nothing answers"),
        (store, "nothing answers"),
        (store, "it answers again"),
        (store, "nothing answers"),
    ] {
        let note = v1::NoteRequest {
            job_id: running.job_id.clone(),
            generation: Some(running.generation),
            kind: kind.into(),
            message: message.to_owned(),
        };
        client.note(note).await.unwrap();
    }
    let events = coordinator.events(&running.job_id).await;
    let said = |kind: &str| -> Vec<String> {
        events.iter().filter(|e| e.kind == kind).map(|e| e.message.clone()).collect()
    };
    assert_eq!(said("evaluation"), ["step 5: top-1 1.0 %"]);
    assert_eq!(said("store"), ["nothing answers", "it answers again", "nothing answers"]);
}
