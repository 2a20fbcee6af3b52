//! `ringmaster logs` and `ringmaster events`.

use ringmaster_proto::v1::{LogLine, LogsRequest};

use super::client::Client;
use super::error::Error;
use super::text::{time_of_day, timestamp};
use super::{args, json, output};

/// Prints log lines until they end, or as long as the job runs with `--follow`.
pub(crate) async fn logs(args: &args::Logs) -> Result<(), Error> {
    let client = Client::new(&args.remote.coordinator)?;
    let request = LogsRequest {
        job_id: args.job.clone(),
        rank: args.rank,
        follow: args.follow,
        tail: args.tail,
    };
    let mut lines = client.logs(request).await?;
    loop {
        let line = match lines.message().await {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(status) => return Err(client.error(status).await),
        };
        let text = if args.json { json::log_line(&line).to_string() } else { text_line(&line) };
        if !output::print_until_closed(&text) {
            return Ok(());
        }
    }
}

/// Prints a job's history, oldest event first.
pub(crate) async fn events(args: &args::Events) -> Result<(), Error> {
    let client = Client::new(&args.remote.coordinator)?;
    let events = client.events(&args.job).await?;
    if args.json {
        return output::print_json(&events.iter().map(json::event).collect());
    }
    for event in &events {
        let text = format!("{}  {:<12} {}", timestamp(event.at_ms), event.kind, event.message);
        if !output::print_until_closed(text.trim_end()) {
            return Ok(());
        }
    }
    Ok(())
}

/// Returns a log line for people: rank, time, text.
pub(crate) fn text_line(line: &LogLine) -> String {
    format!("[rank {}] {} {}", line.rank, time_of_day(line.at_ms), line.text)
}
