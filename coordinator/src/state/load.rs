//! Reading back what was stored.

use std::collections::BTreeMap;

use ringmaster_proto::RingRank;
use ringmaster_proto::v1::Generation;
use rusqlite::{Connection, Row, params};

use super::record::{
    AgentProcess, Closure, ClosureKind, EventRecord, FaultScore, Halt, HaltKind, JobRecord,
    Rollback, ShardRecord, State,
};
use super::{Error, objects, sql};

/// Returns one of the coordinator's counters.
pub(super) fn meta(connection: &Connection, key: &str) -> Result<u32, Error> {
    connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
        .map_err(sql("reading a counter"))
}

/// Returns the id of the newest event, or zero.
pub(super) fn last_event(connection: &Connection) -> Result<u64, Error> {
    connection
        .query_row("SELECT coalesce(max(id), 0) FROM events", [], |row| row.get(0))
        .map_err(sql("reading the newest event"))
}

/// Returns every job in the order of submission.
pub(super) fn jobs(connection: &Connection) -> Result<Vec<JobRecord>, Error> {
    let mut statement = connection
        .prepare(
            "SELECT jobs.*, numeric_plans.plan FROM jobs LEFT JOIN numeric_plans USING (job_id)
             ORDER BY sequence",
        )
        .map_err(sql("preparing to read jobs"))?;
    let mut rows = statement.query([]).map_err(sql("reading jobs"))?;
    let mut jobs = Vec::new();
    while let Some(row) = rows.next().map_err(sql("reading jobs"))? {
        jobs.push(job(row)?);
    }
    Ok(jobs)
}

fn job(row: &Row<'_>) -> Result<JobRecord, Error> {
    let job_id: String = column(row, "job_id")?;
    let word: String = column(row, "state")?;
    let Some(state) = State::from_word(&word) else {
        return Err(Error::Corrupt { column: "state", key: job_id, value: word });
    };
    let incarnation: Option<u32> = column(row, "incarnation")?;
    let counter: Option<u32> = column(row, "counter")?;
    Ok(JobRecord {
        sequence: column(row, "sequence")?,
        name: column(row, "name")?,
        state,
        reason: column(row, "reason")?,
        request_id: column(row, "request_id")?,
        manifest: column(row, "manifest")?,
        manifest_yaml: column(row, "manifest_yaml")?,
        file_name: column(row, "file_name")?,
        resume_from: column(row, "resume_from")?,
        priority: column(row, "priority")?,
        labels: json(row, "labels", &job_id)?,
        ranks: column(row, "world_size")?,
        submitted_at_ms: column(row, "submitted_at_ms")?,
        started_at_ms: column(row, "started_at_ms")?,
        ended_at_ms: column(row, "ended_at_ms")?,
        generation: incarnation
            .zip(counter)
            .map(|(incarnation, counter)| Generation::new(incarnation, counter)),
        formed: column(row, "formed")?,
        recoveries: column(row, "recoveries")?,
        without_progress: column(row, "without_progress")?,
        high_step: column(row, "high_step")?,
        cancel_reason: column(row, "cancel_reason")?,
        summary_json: column(row, "summary_json")?,
        checkpoint_step: column(row, "checkpoint_step")?,
        checkpoint_url: column(row, "checkpoint_url")?,
        numeric_plan: column(row, "plan")?,
        threads: column(row, "threads")?,
        seats: json(row, "seats", &job_id)?,
        slots: json(row, "slots", &job_id)?,
        done: json(row, "done", &job_id)?,
        ring: json(row, "ring", &job_id)?,
        halt: halt(row, &job_id)?,
        rollback: rollback(row, &job_id)?,
        given_up: given_up(row, &job_id)?,
        job_id,
    })
}

fn halt(row: &Row<'_>, job_id: &str) -> Result<Option<Halt>, Error> {
    let word: Option<String> = column(row, "halt")?;
    let Some(word) = word else { return Ok(None) };
    let Some(kind) = HaltKind::from_word(&word) else {
        return Err(Error::Corrupt { column: "halt", key: job_id.to_owned(), value: word });
    };
    let reason: Option<String> = column(row, "halt_reason")?;
    Ok(Some(Halt { kind, reason: reason.unwrap_or_default() }))
}

fn rollback(row: &Row<'_>, job_id: &str) -> Result<Option<Rollback>, Error> {
    let text: Option<String> = column(row, "rollback")?;
    let Some(text) = text else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|_| Error::Corrupt {
        column: "rollback",
        key: job_id.to_owned(),
        value: text,
    })
}

fn given_up(row: &Row<'_>, job_id: &str) -> Result<Option<Generation>, Error> {
    let text: Option<String> = column(row, "given_up")?;
    let Some(text) = text else { return Ok(None) };
    match serde_json::from_str(&text) {
        Ok((incarnation, counter)) => Ok(Some(Generation::new(incarnation, counter))),
        Err(_) => Err(Error::Corrupt { column: "given_up", key: job_id.to_owned(), value: text }),
    }
}

fn column<T: rusqlite::types::FromSql>(row: &Row<'_>, name: &'static str) -> Result<T, Error> {
    row.get(name).map_err(sql(name))
}

fn json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    name: &'static str,
    key: &str,
) -> Result<T, Error> {
    let text: String = column(row, name)?;
    serde_json::from_str(&text).map_err(|_| Error::Corrupt {
        column: name,
        key: key.to_owned(),
        value: text,
    })
}

/// Returns the shards of every checkpoint that was not published.
pub(super) fn shards(connection: &Connection) -> Result<Vec<ShardRecord>, Error> {
    let mut statement = connection
        .prepare("SELECT * FROM checkpoint_shards")
        .map_err(sql("preparing to read shards"))?;
    let mut rows = statement.query([]).map_err(sql("reading shards"))?;
    let mut shards = Vec::new();
    while let Some(row) = rows.next().map_err(sql("reading shards"))? {
        let job_id: String = column(row, "job_id")?;
        let text: String = column(row, "objects")?;
        let Ok(objects) = objects::decode(&text) else {
            return Err(Error::Corrupt { column: "objects", key: job_id, value: text });
        };
        let generation = Generation::new(column(row, "incarnation")?, column(row, "counter")?);
        let (step, rank) = (column(row, "step")?, RingRank(column(row, "rank")?));
        let failure = column(row, "failure")?;
        shards.push(ShardRecord { job_id, generation, step, rank, objects, failure });
    }
    Ok(shards)
}

/// Returns the nodes that take no ranks, by name.
pub(super) fn closures(connection: &Connection) -> Result<BTreeMap<String, Closure>, Error> {
    let mut statement =
        connection.prepare("SELECT * FROM nodes").map_err(sql("preparing to read nodes"))?;
    let mut rows = statement.query([]).map_err(sql("reading nodes"))?;
    let mut closures = BTreeMap::new();
    while let Some(row) = rows.next().map_err(sql("reading nodes"))? {
        let node: String = column(row, "node")?;
        let word: String = column(row, "availability")?;
        let Some(kind) = ClosureKind::from_word(&word) else {
            return Err(Error::Corrupt { column: "availability", key: node, value: word });
        };
        let (reason, since_ms) = (column(row, "reason")?, column(row, "since_ms")?);
        closures.insert(node, Closure { kind, reason, since_ms });
    }
    Ok(closures)
}

/// Returns what nodes are charged with, by name.
pub(super) fn scores(connection: &Connection) -> Result<BTreeMap<String, FaultScore>, Error> {
    let mut statement = connection
        .prepare("SELECT node, score, at_ms FROM node_faults")
        .map_err(sql("preparing to read the faults of nodes"))?;
    let rows = statement
        .query_map([], |row| {
            Ok((row.get(0)?, FaultScore { faults: row.get(1)?, at_ms: row.get(2)? }))
        })
        .map_err(sql("reading the faults of nodes"))?;
    rows.collect::<Result<_, _>>().map_err(sql("reading the faults of nodes"))
}

/// Returns which process the agent of each node is, by the node's name.
pub(super) fn agents(connection: &Connection) -> Result<BTreeMap<String, AgentProcess>, Error> {
    let mut statement = connection
        .prepare("SELECT node, instance, pid FROM agents")
        .map_err(sql("preparing to read agents"))?;
    let rows = statement
        .query_map([], |row| {
            Ok((row.get(0)?, AgentProcess { instance: row.get(1)?, pid: row.get(2)? }))
        })
        .map_err(sql("reading agents"))?;
    rows.collect::<Result<_, _>>().map_err(sql("reading agents"))
}

/// Returns a job's history, oldest first.
pub(super) fn events(connection: &Connection, job_id: &str) -> Result<Vec<EventRecord>, Error> {
    let mut statement = connection
        .prepare_cached(
            "SELECT id, at_ms, job_id, kind, message FROM events WHERE job_id = ?1 ORDER BY id",
        )
        .map_err(sql("preparing to read events"))?;
    let rows = statement
        .query_map(params![job_id], |row| {
            Ok(EventRecord {
                id: row.get(0)?,
                at_ms: row.get(1)?,
                job_id: row.get(2)?,
                kind: row.get(3)?,
                message: row.get(4)?,
            })
        })
        .map_err(sql("reading events"))?;
    rows.collect::<Result<_, _>>().map_err(sql("reading events"))
}
