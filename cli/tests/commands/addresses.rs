//! The coordinator's address, and who answers there.

use crate::process::{BAD_REQUEST, Coordinator, TLS_ALERT, answering, ringmaster, said};

/// Every command that calls a coordinator.
const VERBS: [&[&str]; 10] = [
    &["ls"],
    &["describe", "a-bcdefg"],
    &["logs", "a-bcdefg"],
    &["events", "a-bcdefg"],
    &["cancel", "a-bcdefg"],
    &["pause", "a-bcdefg"],
    &["resume", "a-bcdefg"],
    &["nodes"],
    &["nodes", "drain", "n0"],
    &["nodes", "undrain", "n0"],
];

/// Whoever wrote https:// was connected in plain text.
#[test]
fn an_address_with_https_is_refused_by_every_command_and_not_answered_in_plain_text() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(folder.path(), &[]);
    let plain = format!("http://{}", coordinator.people);
    let (code, text) = said(&ringmaster(&["ls", "--coordinator", &plain]).output().unwrap());
    assert_eq!(code, 0, "{text}");
    let url = format!("https://{}", coordinator.people);
    for verb in VERBS {
        let (code, text) = said(&ringmaster(verb).args(["--coordinator", &url]).output().unwrap());
        assert_eq!(code, 2, "{verb:?}: {text}");
        assert!(text.contains("asks for TLS") && text.contains(&plain), "{verb:?}: {text}");
    }
    let by_variable = ringmaster(&["ls"]).env("RINGMASTER_COORDINATOR", &url).output().unwrap();
    let (code, text) = said(&by_variable);
    assert!(code == 2 && text.contains("RINGMASTER_COORDINATOR"), "{code}: {text}");
}

/// `--coordinator host:port` was answered "refused the request (Unknown error)".
#[test]
fn an_address_that_can_never_work_is_refused_with_what_to_write() {
    for (url, remedy) in [
        ("head:7070", "write http://head:7070"),
        ("", "write http://HOST:7070"),
        ("http://head", "write http://head:7070"),
        ("unix:///run/ringmaster.sock", "is a Unix socket"),
        ("http://::1:7070", "write http://[::1]:7070"),
        ("http://head:7070/jobs", "which no coordinator looks at"),
    ] {
        let (code, text) = said(&ringmaster(&["ls", "--coordinator", url]).output().unwrap());
        assert_eq!(code, 2, "{url}: {text}");
        assert!(text.contains(remedy), "{url}: {text}");
    }
}

#[test]
fn who_is_no_coordinator_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(folder.path(), &[]);
    let tls = answering(TLS_ALERT).to_string();
    let web = answering(BAD_REQUEST).to_string();
    for (address, why) in [
        (&tls, "does not speak gRPC without TLS"),
        (&web, "does not speak gRPC without TLS"),
        (&coordinator.fleet, "has no service for commands, as its listener for agents"),
    ] {
        let url = format!("http://{address}");
        let (code, text) = said(&ringmaster(&["ls", "--coordinator", &url]).output().unwrap());
        assert!(text.contains(why) && text.contains(&url), "{text}");
        assert!(text.contains("--listen") && code == 3, "{code}: {text}");
    }
}

#[test]
fn a_coordinator_is_reached_past_every_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(folder.path(), &[]);
    let url = format!("http://{}", coordinator.people);
    let mut command = ringmaster(&["ls", "--coordinator", &url]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"] {
        command.env(name, "http://127.0.0.1:1");
    }
    let (code, text) = said(&command.output().unwrap());
    assert_eq!(code, 0, "{text}");
}

#[test]
fn the_log_of_a_coordinator_in_a_file_has_no_colour_codes() {
    let folder = tempfile::tempdir().unwrap();
    drop(Coordinator::start(folder.path(), &[("RUST_LOG", "debug")]));
    let log = std::fs::read_to_string(folder.path().join("coordinator.log")).unwrap();
    assert!(!log.is_empty() && !log.contains('\u{1b}'), "{log:?}");
}
