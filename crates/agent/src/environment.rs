//! What a rank is told at exec: nothing is inherited but an allow-list.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use ringmaster_proto::v1::StartRank;

use crate::env;
use crate::secret::Secret;

/// Variables of the agent's own environment that ranks get, and why nothing else: a rank must run
/// the same from a terminal, a service manager and a batch system. Proxies are among them under every
/// name: stores and the model hub are asked through the same one as from the command line.
const INHERITED: [&str; 25] = [
    "ALL_PROXY",
    "ATEN_CPU_CAPABILITY",
    "CUDA_VISIBLE_DEVICES",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "LD_LIBRARY_PATH",
    "NO_PROXY",
    "PATH",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
    "XDG_CACHE_HOME",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    env::DATA_TLS_CA,
    env::DATA_TLS_CERT,
    env::DATA_TLS_KEY,
    env::FAULT,
    LOG_FORMAT,
];
/// The same by prefix: NCCL's settings, and what object stores and the model hub are configured by.
const INHERITED_PREFIXES: [&str; 6] =
    ["AWS_", "AZURE_", "GOOGLE_", "HF_", "NCCL_", "RINGMASTER_STORE_"];
/// How logs are written: text or json.
pub const LOG_FORMAT: &str = "RINGMASTER_LOG_FORMAT";

/// What all ranks of a node have in common.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) coordinator: String,
    pub(super) agent_socket: PathBuf,
    pub(super) runs_dir: PathBuf,
    pub(super) address: String,
    /// Threads of a rank when the coordinator names none.
    pub(super) threads: u32,
}

/// The files of one process.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) manifest: PathBuf,
    pub(super) status: PathBuf,
    pub(super) log: PathBuf,
}

/// Returns what ranks get of the agent's own environment.
pub(super) fn inherited(
    agent: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (OsString, OsString)> {
    agent.filter(|(name, _)| is_inherited(name))
}

/// Returns the complete environment of a rank; `agent` is the agent's own.
pub(super) fn of_rank(
    start: &StartRank,
    secret: &Secret,
    node: &Node,
    files: &Files,
    agent: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let mut all: Vec<_> = inherited(agent).collect();
    let mut set = |name: &str, value: &dyn AsRef<OsStr>| {
        all.push((name.into(), value.as_ref().to_owned()));
    };
    set(env::JOB_ID, &start.job_id);
    set(env::GENERATION, &start.generation.unwrap_or_default().to_string());
    set(env::COORDINATOR, &node.coordinator);
    set(env::AGENT_SOCKET, &node.agent_socket);
    set(env::SECRET, &secret.reveal());
    set(env::MANIFEST, &files.manifest);
    set(env::STATUS_FILE, &files.status);
    set(env::RUNS_DIR, &node.runs_dir);
    set(env::ADDRESS, &node.address);
    if !start.resume_from.is_empty() {
        set(env::RESUME_FROM, &start.resume_from);
    }
    set(env::RANK, &start.rank.to_string());
    set(env::LOCAL_RANK, &start.local_rank.to_string());
    // Over what the agent itself sees: no other rank's GPU is in reach.
    if !start.device.is_empty() {
        set("CUDA_VISIBLE_DEVICES", &start.device);
        set(env::DEVICE, &start.device);
    }
    set(env::WORLD_SIZE, &start.world_size.to_string());
    set(env::LOCAL_WORLD_SIZE, &start.local_world_size.to_string());

    let threads = if start.threads == 0 { node.threads } else { start.threads };
    for name in [env::THREADS, "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"] {
        set(name, &threads.max(1).to_string());
    }
    // Ranks share the node's cores: a thread that spins while it waits takes them from a peer.
    set("OMP_WAIT_POLICY", &"passive");
    set("KMP_BLOCKTIME", &"0");
    all
}

fn is_inherited(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        INHERITED.contains(&name)
            || INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;

    use ringmaster_proto::v1::Generation;

    use super::*;
    use crate::env::RankEnv;

    fn environment(start: &StartRank, agent: &[(&str, &str)]) -> HashMap<OsString, OsString> {
        let node = Node {
            coordinator: "http://127.0.0.1:7071".into(),
            agent_socket: "/tmp/a/agent.sock".into(),
            runs_dir: "/runs".into(),
            address: "127.0.0.1".into(),
            threads: 3,
        };
        let files = Files {
            manifest: "/srv/m.json".into(),
            status: "/srv/s.json".into(),
            log: "/srv/log".into(),
        };
        let agent = agent.iter().map(|&(name, value)| (name.into(), value.into()));
        of_rank(start, &Secret::of("s3cret".into()), &node, &files, agent).into_iter().collect()
    }

    fn start() -> StartRank {
        StartRank {
            job_id: "emoji-abc".into(),
            generation: Some(Generation::new(1, 7)),
            rank: 1,
            world_size: 2,
            local_rank: 1,
            local_world_size: 2,
            ..StartRank::default()
        }
    }

    #[test]
    fn a_rank_can_read_all_it_needs() {
        let variables = environment(&StartRank { threads: 5, ..start() }, &[(env::FAULT, "kill")]);
        let env = RankEnv::from_lookup(|name| variables.get(OsStr::new(name)).cloned()).unwrap();
        assert_eq!((env.job_id.as_str(), env.seat.0, env.world_size), ("emoji-abc", 1, 2));
        assert_eq!((env.generation, env.threads), (Generation::new(1, 7), 5));
        assert_eq!((env.resume_from, env.fault), (None, Some("kill".into())));
    }

    /// A rank that saw all GPUs of its node could take another's.
    #[test]
    fn a_rank_with_a_device_sees_no_other_and_knows_it() {
        let agent = [("CUDA_VISIBLE_DEVICES", "0,1,2,3")];
        let uuid = "GPU-00112233-4455-6677-8899-aabbccddeeff";
        let variables = environment(&StartRank { device: uuid.into(), ..start() }, &agent);
        let visible = OsStr::new("CUDA_VISIBLE_DEVICES");
        assert_eq!(variables[visible], uuid);
        assert_eq!(variables[OsStr::new("LOCAL_RANK")], "1");
        let env = RankEnv::from_lookup(|name| variables.get(OsStr::new(name)).cloned()).unwrap();
        assert_eq!((env.device.as_str(), env.local_rank), (uuid, 1));

        let variables = environment(&start(), &agent);
        assert_eq!(variables[visible], "0,1,2,3");
        assert!(!variables.contains_key(OsStr::new(env::DEVICE)));
    }

    #[test]
    fn the_nodes_share_of_threads_is_the_default() {
        assert_eq!(environment(&start(), &[])[OsStr::new("OMP_NUM_THREADS")], "3");
    }

    /// Ranks had HTTPS_PROXY and NO_PROXY in capitals only: where stores are reached through a proxy,
    /// commands found a checkpoint and the job's ranks did not.
    #[test]
    fn a_rank_asks_stores_through_the_same_proxy_as_the_command_line() {
        let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];
        for name in names.iter().flat_map(|name| [(*name).to_owned(), name.to_lowercase()]) {
            let variables = environment(&start(), &[(&name, "http://proxy:3128")]);
            assert_eq!(
                variables.get(OsStr::new(&name)),
                Some(&"http://proxy:3128".into()),
                "{name}"
            );
        }
    }

    #[test]
    fn only_the_allow_list_is_inherited_and_no_job_variable_is() {
        let agent = [
            ("PATH", "/bin"),
            ("NCCL_DEBUG", "INFO"),
            ("AWS_REGION", "eu"),
            ("SECRET", "x"),
            ("RANK", "9"),
            ("RINGMASTER_STATUS_FILE", "/elsewhere"),
        ];
        let variables = environment(&start(), &agent);
        for (name, value) in [("PATH", "/bin"), ("NCCL_DEBUG", "INFO"), ("AWS_REGION", "eu")] {
            assert_eq!(variables[OsStr::new(name)], value);
        }
        assert!(!variables.contains_key(OsStr::new("SECRET")));
        assert_eq!(variables[OsStr::new("RANK")], "1");
        assert_eq!(variables[OsStr::new("RINGMASTER_STATUS_FILE")], "/srv/s.json");
    }
}
