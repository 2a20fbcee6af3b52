//! A rank that does what its manifest says in a word: the test binary itself, started by the agent
//! with a filter that selects the one test below.

use std::path::Path;
use std::process::Command as Process;
use std::sync::mpsc::Receiver;

use ringmaster_agent::env::{self, RankEnv};
use ringmaster_agent::exit::{self, Class, ExitStatus};
use ringmaster_inputs::panics;
use ringmaster_proto::v1::{JoinRequest, Phase};
use ringmaster_worker::control::agent::{Command, Control};
use ringmaster_worker::control::coordinator::{Error, RanksClient};
use ringmaster_worker::control::panic_hook;

/// What selects the probe.
pub(crate) const ARGUMENTS: [&str; 4] =
    ["--exact", "probe::acts_as_a_rank_when_an_agent_starts_it", "--nocapture", "--test-threads=1"];

#[test]
fn acts_as_a_rank_when_an_agent_starts_it() {
    if std::env::var_os(env::AGENT_SOCKET).is_none() {
        return;
    }
    let env = RankEnv::from_env().unwrap();
    let script = std::fs::read_to_string(&env.manifest_path).unwrap();
    let (verb, rest) = script.split_once(' ').unwrap_or((&script, ""));
    let code = match verb {
        "exit" => rest.parse().unwrap(),
        "words" => {
            let status = ExitStatus {
                reason: rest.into(),
                class: Class::Node,
                operation: "open data".into(),
                cause: "data: missing".into(),
            };
            exit::write_status(&env.status_file, &status).unwrap();
            status.class.exit_code()
        }
        "panic" => {
            panic_hook::install(env.status_file.clone());
            let thread = std::thread::Builder::new().name("loader".into());
            drop(thread.spawn(|| panic!("the flywheel came off")).unwrap().join());
            unreachable!("the hook ends the process")
        }
        "catch" => {
            panic_hook::install(env.status_file.clone());
            match panics::caught(|| panic!("the decoder meets a file")) {
                Ok(()) => exit::FAILED,
                Err(message) => {
                    say(&format!("caught {message}"));
                    exit::SUCCESS
                }
            }
        }
        "print" => {
            for line in 0..rest.parse().unwrap() {
                say(&format!("line {line}"));
            }
            exit::SUCCESS
        }
        "abandon" => {
            start_child();
            exit::SUCCESS
        }
        "daemon" => {
            start_daemon();
            exit::SUCCESS
        }
        "train" => train(&env, true),
        "stubborn" => train(&env, false),
        "family" => {
            start_child();
            train(&env, true)
        }
        "join" => join(&env),
        other => panic!("unknown script {other:?}"),
    };
    std::process::exit(code);
}

#[expect(clippy::zombie_processes, reason = "what a rank leaves behind is the agent's to end")]
fn start_child() {
    let child = Process::new("/bin/sleep").arg("600").spawn().unwrap();
    say(&format!("child {}", child.id()));
}

/// Starts a process that leads a session of its own, and waits until it does.
#[expect(clippy::zombie_processes, reason = "what a rank leaves behind is the agent's to end")]
fn start_daemon() {
    let child = Process::new("/usr/bin/setsid").args(["/bin/sleep", "600"]).spawn().unwrap();
    let name = format!("/proc/{}/comm", child.id());
    while std::fs::read_to_string(&name).unwrap() != "sleep\n" {
        std::thread::yield_now();
    }
    say(&format!("child {}", child.id()));
}

fn connect(
    env: &RankEnv,
    hook: impl Fn(&Command) + Send + 'static,
) -> (Control, Receiver<Command>) {
    let socket: &Path = &env.agent_socket;
    let (told, commands) = std::sync::mpsc::channel();
    let on_command = move |command: &Command| {
        hook(command);
        drop(told.send(command.clone()));
    };
    (Control::connect(socket, &env.job_id, env.seat, &env.secret, on_command).unwrap(), commands)
}

/// Reports a step, then follows commands; a stubborn rank does not stop when asked.
fn train(env: &RankEnv, obedient: bool) -> i32 {
    let hook = |command: &Command| {
        if let Command::Regenerate(generation) = command {
            say(&format!("hook {generation}"));
        }
    };
    let (control, commands) = connect(env, hook);
    control.status(|status| {
        status.generation = Some(env.generation);
        status.phase = Phase::Compute as i32;
        status.step = 5;
    });
    for command in commands {
        match command {
            Command::Regenerate(generation) => {
                control.status(|status| status.generation = Some(generation));
            }
            Command::Stop { graceful, reason } => {
                say(&format!("stop graceful={graceful} {reason}"));
                if obedient {
                    return exit::SUCCESS;
                }
            }
        }
    }
    unreachable!("the line stays open")
}

/// Joins its generation until it is told another one by a command that interrupts the wait.
fn join(env: &RankEnv) -> i32 {
    let client = RanksClient::start(&env.coordinator).unwrap();
    let interrupter = client.clone();
    let (_control, commands) = connect(env, move |_| interrupter.interrupt());
    let mut generation = env.generation;
    loop {
        let request = JoinRequest {
            job_id: env.job_id.clone(),
            rank: env.seat.0,
            generation: Some(generation),
            ..JoinRequest::default()
        };
        match client.join(request, client.interruptions()) {
            Ok(reply) => {
                say(&format!("joined {generation} of {}", reply.world_size));
                return exit::SUCCESS;
            }
            Err(Error::Interrupted) => match commands.recv().unwrap() {
                Command::Regenerate(newer) => generation = newer,
                Command::Stop { .. } => return exit::SUCCESS,
            },
            Err(error) => panic!("{error}"),
        }
    }
}

/// Writes a line to the rank's log; libtest's own `println!` would be captured in a thread.
fn say(line: &str) {
    use std::io::Write as _;
    // A new line first: libtest leaves "test probe::… ..." without one.
    let text = format!("\n{line}\n");
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}
