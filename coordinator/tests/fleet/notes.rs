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
