//! Calls to the coordinator: made until they are answered, and now and then once more.

use std::sync::Mutex;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use tonic::{Code, Response, Status};

use super::ring::RingKey;
use super::world::World;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How often a request is sent again although it was answered, and how long that is waited for.
const DUPLICATES: f64 = 0.1;
const DUPLICATE: Duration = Duration::from_secs(2);

/// As [`insist`], for a call that speaks for a generation. Sent after a newer one was durable, it
/// must be refused, whoever sends it and why.
pub(crate) async fn insist_for<T, F>(
    world: &World,
    key: &RingKey,
    random: &Mutex<StdRng>,
    mut send: impl FnMut() -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let fenced = || {
        let (superseded, reply) = (world.is_superseded(key), send());
        async move {
            let reply = reply.await;
            if superseded && reply.is_ok() {
                let what = format!("{} {}: {}", key.0, key.1, std::any::type_name::<T>());
                world.violate("a stale generation is refused", what);
            }
            reply
        }
    };
    insist(random, fenced).await
}

/// Sends a call until it is answered, and now and then once more.
pub(crate) async fn insist<T, F>(
    random: &Mutex<StdRng>,
    mut send: impl FnMut() -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        match send().await {
            Ok(reply) => {
                if random.lock().unwrap().random_bool(DUPLICATES) {
                    let _ = tokio::time::timeout(DUPLICATE, send()).await;
                }
                return Ok(reply.into_inner());
            }
            Err(status) if !is_transient(&status) => return Err(status),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// True when the network, not the coordinator's judgement, ended a call.
fn is_transient(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
        || matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded)
}
