//! One change, as SQL.

use ringmaster_proto::v1::Generation;
use rusqlite::{Connection, named_params, params};

use super::record::{Change, CheckpointGrant, Closure, EventRecord, JobRecord, ShardRecord};
use super::{Error, objects, sql};

/// Writes one change inside the caller's transaction.
pub(super) fn apply(connection: &Connection, change: &Change) -> Result<(), Error> {
    match change {
        Change::Job(job) => put_job(connection, job),
        Change::Event(event) => put_event(connection, event),
        Change::Generation { generation, job_id, at_ms, reason } => {
            open_generation(connection, *generation, job_id, *at_ms, reason)
        }
        Change::Node { node, closure } => put_node(connection, node, closure.as_ref()),
        Change::Incarnation(incarnation) => set_meta(connection, "incarnation", *incarnation),
        Change::Shard(shard) => put_shard(connection, shard),
        Change::ForgetShards { job_id, up_to_step } => connection
            .prepare_cached("DELETE FROM checkpoint_shards WHERE job_id = ?1 AND step <= ?2")
            .and_then(|mut statement| statement.execute(params![job_id, up_to_step]))
            .map(drop)
            .map_err(sql("forgetting shards")),
        Change::Grant(grant) => put_grant(connection, grant),
        Change::Published { job_id, generation, step, url } => connection
            .prepare_cached(
                "UPDATE checkpoint_grants SET published_url = ?5
                 WHERE job_id = ?1 AND incarnation = ?2 AND counter = ?3 AND step = ?4",
            )
            .and_then(|mut statement| {
                statement.execute(params![
                    job_id,
                    generation.incarnation,
                    generation.counter,
                    step,
                    url
                ])
            })
            .map(drop)
            .map_err(sql("recording a published checkpoint")),
    }
}

/// Sets one of the coordinator's counters.
pub(super) fn set_meta(connection: &Connection, key: &str, value: u32) -> Result<(), Error> {
    connection
        .prepare_cached("UPDATE meta SET value = ?2 WHERE key = ?1")
        .and_then(|mut statement| statement.execute(params![key, value]))
        .map(drop)
        .map_err(sql("raising a counter"))
}

const PUT_JOB: &str = "INSERT INTO jobs VALUES (
    :job_id, :sequence, :name, :state, :reason, :request_id, :manifest, :manifest_yaml, :file_name,
    :resume_from, :priority, :labels, :world_size, :submitted_at_ms, :started_at_ms, :ended_at_ms,
    :incarnation, :counter, :formed, :recoveries, :without_progress, :high_step, :cancel_reason,
    :summary_json, :checkpoint_step, :checkpoint_url, :threads, :seats, :done, :ring, :slots, :halt,
    :halt_reason, :rollback)
  ON CONFLICT (job_id) DO UPDATE SET
    state = :state, reason = :reason, started_at_ms = :started_at_ms, ended_at_ms = :ended_at_ms,
    incarnation = :incarnation, counter = :counter, formed = :formed, recoveries = :recoveries,
    without_progress = :without_progress, high_step = :high_step, cancel_reason = :cancel_reason,
    summary_json = :summary_json, checkpoint_step = :checkpoint_step,
    checkpoint_url = :checkpoint_url, threads = :threads, seats = :seats, done = :done,
    ring = :ring, slots = :slots, halt = :halt, halt_reason = :halt_reason,
    rollback = :rollback";

fn put_job(connection: &Connection, job: &JobRecord) -> Result<(), Error> {
    let json = |value: Result<String, serde_json::Error>| value.expect("plain values serialise");
    connection
        .prepare_cached(PUT_JOB)
        .and_then(|mut statement| {
            statement.execute(named_params! {
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
            })
        })
        .map_err(sql("storing a job"))?;
    let Some(plan) = &job.numeric_plan else { return Ok(()) };
    connection
        .prepare_cached("INSERT INTO numeric_plans VALUES (?1, ?2) ON CONFLICT DO NOTHING")
        .and_then(|mut statement| statement.execute(params![job.job_id, plan]))
        .map(drop)
        .map_err(sql("storing a numeric plan"))
}

fn put_event(connection: &Connection, event: &EventRecord) -> Result<(), Error> {
    connection
        .prepare_cached("INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5)")
        .and_then(|mut statement| {
            statement.execute(params![
                event.id,
                event.at_ms,
                event.job_id,
                event.kind,
                event.message
            ])
        })
        .map(drop)
        .map_err(sql("storing an event"))
}

fn open_generation(
    connection: &Connection,
    generation: Generation,
    job_id: &str,
    at_ms: i64,
    reason: &str,
) -> Result<(), Error> {
    set_meta(connection, "counter", generation.counter)?;
    connection
        .prepare_cached("INSERT INTO generations VALUES (?1, ?2, ?3, ?4, ?5)")
        .and_then(|mut statement| {
            statement.execute(params![
                generation.incarnation,
                generation.counter,
                job_id,
                at_ms,
                reason
            ])
        })
        .map(drop)
        .map_err(sql("opening a generation"))
}

fn put_node(connection: &Connection, node: &str, closure: Option<&Closure>) -> Result<(), Error> {
    let done = match closure {
        Some(Closure { kind, reason, since_ms }) => connection
            .prepare_cached("INSERT OR REPLACE INTO nodes VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut put| put.execute(params![node, kind.word(), reason, since_ms])),
        None => connection
            .prepare_cached("DELETE FROM nodes WHERE node = ?1")
            .and_then(|mut delete| delete.execute(params![node])),
    };
    done.map(drop).map_err(sql("storing a node's availability"))
}

fn put_grant(connection: &Connection, grant: &CheckpointGrant) -> Result<(), Error> {
    connection
        .prepare_cached(
            "INSERT INTO checkpoint_grants VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, NULL)
             ON CONFLICT DO NOTHING",
        )
        .and_then(|mut statement| {
            statement.execute(params![
                grant.job_id,
                grant.generation.incarnation,
                grant.generation.counter,
                grant.step,
                grant.digest.cast_signed(),
                grant.at_ms,
                grant.objects_json,
            ])
        })
        .map(drop)
        .map_err(sql("storing a checkpoint grant"))
}

fn put_shard(connection: &Connection, shard: &ShardRecord) -> Result<(), Error> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO checkpoint_shards VALUES (?1, ?2, ?3, ?4, ?5, ?6)")
        .and_then(|mut statement| {
            statement.execute(params![
                shard.job_id,
                shard.generation.incarnation,
                shard.generation.counter,
                shard.step,
                shard.rank,
                objects::encode(&shard.objects),
            ])
        })
        .map(drop)
        .map_err(sql("storing a shard"))
}
