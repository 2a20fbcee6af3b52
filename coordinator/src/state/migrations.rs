//! The schema, as the list of steps that led to it. A step is never edited once released.
//!
//! Not rusqlite_migration, which counts and commits in the same way: 2.6.0, its newest, needs rusqlite 0.40, this
//! crate has 0.43, and cargo links one SQLite only (`links = "sqlite3"`).

use rusqlite::Connection;

use super::{Error, sql};

/// Step n brings a database from `user_version` n to n + 1.
const STEPS: [&str; 5] = [
    include_str!("schema/001-jobs.sql"),
    include_str!("schema/002-elastic.sql"),
    include_str!("schema/003-rollback.sql"),
    include_str!("schema/004-recovery.sql"),
    include_str!("schema/005-agents.sql"),
];

/// Brings the schema to the newest version, each step in its own transaction.
///
/// # Errors
/// [`Error::TooNew`] for a database of a newer coordinator; it is left untouched.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), Error> {
    migrate_with(connection, &STEPS)
}

fn migrate_with(connection: &mut Connection, steps: &[&str]) -> Result<(), Error> {
    let known = u32::try_from(steps.len()).expect("there are few steps");
    let found: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(sql("reading the schema version"))?;
    if found > known {
        return Err(Error::TooNew { found, known });
    }
    for version in found..known {
        let transaction = connection.transaction().map_err(sql("starting a migration"))?;
        transaction.execute_batch(steps[version as usize]).map_err(sql("migrating the schema"))?;
        transaction
            .pragma_update(None, "user_version", version + 1)
            .map_err(sql("recording the schema version"))?;
        transaction.commit().map_err(sql("committing a migration"))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn version(connection: &Connection) -> u32 {
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    }

    #[test]
    fn an_empty_database_gets_the_newest_schema_and_a_second_run_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        assert_eq!(version(&connection), u32::try_from(STEPS.len()).unwrap());
        migrate(&mut connection).unwrap();
        assert_eq!(version(&connection), u32::try_from(STEPS.len()).unwrap());
    }

    #[test]
    fn later_steps_keep_the_rows_of_earlier_ones() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        connection.execute("INSERT INTO events VALUES (1, 5, 'a', 'submitted', 'm')", []).unwrap();
        let mut steps = STEPS.to_vec();
        steps.push("ALTER TABLE events ADD COLUMN node TEXT NOT NULL DEFAULT ''");
        migrate_with(&mut connection, &steps).unwrap();
        let kind: String = connection
            .query_row("SELECT kind FROM events WHERE node = ''", [], |row| row.get(0))
            .unwrap();
        let newest = u32::try_from(steps.len()).unwrap();
        assert_eq!((kind.as_str(), version(&connection)), ("submitted", newest));
    }

    #[test]
    fn a_step_that_fails_leaves_the_version_before_it() {
        let mut connection = Connection::open_in_memory().unwrap();
        let steps = [STEPS[0], "CREATE TABLE half (a); CREATE TABLE jobs (again)"];
        migrate_with(&mut connection, &steps).unwrap_err();
        assert_eq!(version(&connection), 1);
        let half: u32 = connection
            .query_row("SELECT count(*) FROM sqlite_master WHERE name = 'half'", [], |row| {
                row.get(0)
            })
            .unwrap();
        assert_eq!(half, 0);
    }

    #[test]
    fn a_newer_database_is_refused_untouched() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        let error = migrate(&mut connection).unwrap_err();
        assert!(matches!(error, Error::TooNew { found: 99, .. }), "{error}");
        assert_eq!(version(&connection), 99);
    }
}
