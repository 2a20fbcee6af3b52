//! Changes, as SQL.

use ringmaster_proto::v1::Generation;
use rusqlite::{Connection, Params, named_params, params};

use super::record::{
    AgentProcess, Change, CheckpointGrant, Closure, EventRecord, FaultScore, JobRecord, ShardRecord,
};
use super::{Error, objects, sql};

/// Makes all changes durable, or none.
pub(super) fn commit<'a>(
    connection: &mut Connection,
    changes: impl Iterator<Item = &'a Change>,
) -> Result<(), Error> {
    let transaction = connection.transaction().map_err(sql("starting a transaction"))?;
    for change in changes {
        apply(&transaction, change)?;
    }
    transaction.commit().map_err(sql("committing"))
}

/// Writes one change inside the caller's transaction.
fn apply(connection: &Connection, change: &Change) -> Result<(), Error> {
    match change {
        Change::Job(job) => put_job(connection, job),
        Change::Event(event) => put_event(connection, event),
        Change::Generation { generation, job_id, at_ms, reason } => {
            open_generation(connection, *generation, job_id, *at_ms, reason)
        }
        Change::Node { node, closure } => put_node(connection, node, closure.as_ref()),
        Change::NodeFaults { node, score } => put_score(connection, node, *score),
        Change::Agent { node, agent } => put_agent(connection, node, agent.as_ref()),
        Change::Incarnation(incarnation) => set_meta(connection, "incarnation", *incarnation),
        Change::Shard(shard) => put_shard(connection, shard),
        Change::ForgetShards { job_id, up_to_step } => execute(
            connection,
            "forgetting shards",
            "DELETE FROM checkpoint_shards WHERE job_id = ?1 AND step <= ?2",
            params![job_id, up_to_step],
        ),
        Change::ForgetAllShards { job_id } => execute(
            connection,
            "forgetting all shards",
            "DELETE FROM checkpoint_shards WHERE job_id = ?1",
            params![job_id],
        ),
        Change::Grant(grant) => put_grant(connection, grant),
        Change::Published { job_id, generation, step, url } => execute(
            connection,
            "recording a published checkpoint",
            "UPDATE checkpoint_grants SET published_url = ?5
             WHERE job_id = ?1 AND incarnation = ?2 AND counter = ?3 AND step = ?4",
            params![job_id, generation.incarnation, generation.counter, step, url],
        ),
    }
}

/// Runs one statement, which is prepared once; `action` says in an error what was tried.
fn execute(
    connection: &Connection,
    action: &'static str,
    statement: &str,
    values: impl Params,
) -> Result<(), Error> {
    let mut statement = connection.prepare_cached(statement).map_err(sql(action))?;
    statement.execute(values).map(drop).map_err(sql(action))
}

/// Sets one of the coordinator's counters.
pub(super) fn set_meta(connection: &Connection, key: &str, value: u32) -> Result<(), Error> {
    let statement = "UPDATE meta SET value = ?2 WHERE key = ?1";
    execute(connection, "raising a counter", statement, params![key, value])
}

const PUT_JOB: &str = "INSERT INTO jobs VALUES (
    :job_id, :sequence, :name, :state, :reason, :request_id, :manifest, :manifest_yaml, :file_name,
    :resume_from, :priority, :labels, :world_size, :submitted_at_ms, :started_at_ms, :ended_at_ms,
    :incarnation, :counter, :formed, :recoveries, :without_progress, :high_step, :cancel_reason,
    :summary_json, :checkpoint_step, :checkpoint_url, :threads, :seats, :done, :ring, :slots, :halt,
    :halt_reason, :rollback, :given_up)
  ON CONFLICT (job_id) DO UPDATE SET
    state = :state, reason = :reason, started_at_ms = :started_at_ms, ended_at_ms = :ended_at_ms,
    incarnation = :incarnation, counter = :counter, formed = :formed, recoveries = :recoveries,
    without_progress = :without_progress, high_step = :high_step, cancel_reason = :cancel_reason,
    summary_json = :summary_json, checkpoint_step = :checkpoint_step,
    checkpoint_url = :checkpoint_url, threads = :threads, seats = :seats, done = :done,
    ring = :ring, slots = :slots, halt = :halt, halt_reason = :halt_reason,
    rollback = :rollback, given_up = :given_up";

fn put_job(connection: &Connection, job: &JobRecord) -> Result<(), Error> {
    let json = |value: Result<String, serde_json::Error>| value.expect("plain values serialise");
    execute(
        connection,
        "storing a job",
        PUT_JOB,
        named_params! {
            ":job_id": job.job_id, ":sequence": job.sequence, ":name": job.name,
            ":state": job.state.word(), ":reason": job.reason, ":request_id": job.request_id,
            ":manifest": job.manifest, ":manifest_yaml": job.manifest_yaml,
            ":file_name": job.file_name, ":resume_from": job.resume_from,
            ":priority": job.priority, ":labels": json(serde_json::to_string(&job.labels)),
            ":world_size": job.ranks, ":submitted_at_ms": job.submitted_at_ms,
            ":started_at_ms": job.started_at_ms, ":ended_at_ms": job.ended_at_ms,
            ":incarnation": job.generation.map(|generation| generation.incarnation),
            ":counter": job.generation.map(|generation| generation.counter),
            ":formed": job.formed, ":recoveries": job.recoveries,
            ":without_progress": job.without_progress, ":high_step": job.high_step,
            ":cancel_reason": job.cancel_reason, ":summary_json": job.summary_json,
            ":checkpoint_step": job.checkpoint_step, ":checkpoint_url": job.checkpoint_url,
            ":threads": job.threads, ":seats": json(serde_json::to_string(&job.seats)),
            ":done": json(serde_json::to_string(&job.done)),
            ":ring": json(serde_json::to_string(&job.ring)),
            ":slots": json(serde_json::to_string(&job.slots)),
            ":halt": job.halt.as_ref().map(|halt| halt.kind.word()),
            ":halt_reason": job.halt.as_ref().map(|halt| halt.reason.as_str()),
            ":rollback": job.rollback.as_ref().map(|to| json(serde_json::to_string(to))),
            ":given_up": job.given_up.map(|up_to| {
                json(serde_json::to_string(&(up_to.incarnation, up_to.counter)))
            }),
        },
    )?;
    let Some(plan) = &job.numeric_plan else { return Ok(()) };
    let statement = "INSERT INTO numeric_plans VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    execute(connection, "storing a numeric plan", statement, params![job.job_id, plan])
}

fn put_event(connection: &Connection, event: &EventRecord) -> Result<(), Error> {
    let EventRecord { id, at_ms, job_id, kind, message } = event;
    let statement = "INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5)";
    execute(connection, "storing an event", statement, params![id, at_ms, job_id, kind, message])
}

fn open_generation(
    connection: &Connection,
    Generation { incarnation, counter }: Generation,
    job_id: &str,
    at_ms: i64,
    reason: &str,
) -> Result<(), Error> {
    set_meta(connection, "counter", counter)?;
    let statement = "INSERT INTO generations VALUES (?1, ?2, ?3, ?4, ?5)";
    let values = params![incarnation, counter, job_id, at_ms, reason];
    execute(connection, "opening a generation", statement, values)
}

fn put_node(connection: &Connection, node: &str, closure: Option<&Closure>) -> Result<(), Error> {
    let action = "storing a node's availability";
    let Some(Closure { kind, reason, since_ms }) = closure else {
        return execute(connection, action, "DELETE FROM nodes WHERE node = ?1", params![node]);
    };
    let statement = "INSERT OR REPLACE INTO nodes VALUES (?1, ?2, ?3, ?4)";
    execute(connection, action, statement, params![node, kind.word(), reason, since_ms])
}

fn put_score(connection: &Connection, node: &str, score: Option<FaultScore>) -> Result<(), Error> {
    let action = "storing the faults of a node";
    let Some(FaultScore { faults, at_ms }) = score else {
        return execute(
            connection,
            action,
            "DELETE FROM node_faults WHERE node = ?1",
            params![node],
        );
    };
    let statement = "INSERT OR REPLACE INTO node_faults VALUES (?1, ?2, ?3)";
    execute(connection, action, statement, params![node, faults, at_ms])
}

fn put_agent(
    connection: &Connection,
    node: &str,
    agent: Option<&AgentProcess>,
) -> Result<(), Error> {
    let action = "storing a node's agent";
    let Some(AgentProcess { instance, pid }) = agent else {
        return execute(connection, action, "DELETE FROM agents WHERE node = ?1", params![node]);
    };
    let statement = "INSERT OR REPLACE INTO agents VALUES (?1, ?2, ?3)";
    execute(connection, action, statement, params![node, instance, pid])
}

fn put_grant(connection: &Connection, grant: &CheckpointGrant) -> Result<(), Error> {
    execute(
        connection,
        "storing a checkpoint grant",
        "INSERT INTO checkpoint_grants VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, NULL)
         ON CONFLICT DO NOTHING",
        params![
            grant.job_id,
            grant.generation.incarnation,
            grant.generation.counter,
            grant.step,
            grant.digest.cast_signed(),
            grant.at_ms,
            grant.objects_json,
        ],
    )
}

fn put_shard(connection: &Connection, shard: &ShardRecord) -> Result<(), Error> {
    execute(
        connection,
        "storing a shard",
        "INSERT OR REPLACE INTO checkpoint_shards VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            shard.job_id,
            shard.generation.incarnation,
            shard.generation.counter,
            shard.step,
            shard.rank.0,
            objects::encode(&shard.objects),
            shard.failure,
        ],
    )
}
