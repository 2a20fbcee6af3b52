//! Whose fault it is that weights or a tokenizer are not to be had, or do not fit.

use ringmaster_inputs::text;
use ringmaster_weights::{self as files, hub};

use super::class::{Fault, at, checkpoint, job, model, node, of_io, retry};
use crate::factory::{self, lookup, tokenizer as of_model};

const LOAD: &str = "load weights";
const TOKENIZER: &str = "open tokenizer";

pub(super) fn fault(error: &factory::Error) -> Fault {
    use factory::Error as E;
    match error {
        E::Lookup(error) => looked_up(error),
        E::Weights(error) => file(error),
        E::Checkpoint(error) => checkpoint(LOAD, error),
        E::Misfit { .. } => job(LOAD, "weights: do not fit"),
        E::GeluMismatch { .. } => job(LOAD, "weights: other GELU"),
        E::OtherLoss { .. } => job(LOAD, "weights: other loss"),
        E::Model(error) => model(error),
    }
}

pub(super) fn tokenizer(error: &of_model::Error) -> Fault {
    match error {
        of_model::Error::NotFound { source, .. } => of_hub(TOKENIZER, source),
        of_model::Error::Text(error) => match error {
            text::Error::Read { source, .. } => node(TOKENIZER, of_io("file", source)),
            text::Error::Missing { .. } => node(TOKENIZER, "tokenizer: missing"),
            text::Error::Format { .. } => job(TOKENIZER, "tokenizer: format"),
        },
    }
}

fn looked_up(error: &lookup::Error) -> Fault {
    use lookup::Error as E;
    match error {
        E::UnknownModel { .. } => job(LOAD, "weights: unknown model"),
        // The folder is this node's.
        E::Catalogue(_) => node(LOAD, "weights: models of the node"),
        E::Read { source, .. } => node(LOAD, of_io("file", source)),
        E::Other { .. } | E::Config { .. } => job(LOAD, "weights: configuration"),
        E::Hub(error) => of_hub(LOAD, error),
        E::Checkpoint(error) => checkpoint(LOAD, error),
        E::NoCheckpoint { url } | E::Nothing { url } => at(url, LOAD, "weights: missing"),
        E::WebFolder { .. } => job(LOAD, "weights: no file"),
        E::Index(error) => file(error),
        // A full disk may have room again.
        E::Cache { source, .. } => retry(LOAD, of_io("cache", source)),
    }
}

fn file(error: &files::Error) -> Fault {
    use files::Error as E;
    match error {
        E::Read { source, .. } => node(LOAD, of_io("file", source)),
        E::Index { .. } => job(LOAD, "weights: index"),
        E::Corrupt { .. } => job(LOAD, "weights: corrupt"),
        E::Refused { .. } => job(LOAD, "weights: runs code"),
        E::Training { .. } => job(LOAD, "weights: no training state"),
        E::NoTensor { .. } | E::Unreadable { .. } | E::Shape { .. } => {
            job(LOAD, "weights: do not fit")
        }
        E::Folder { .. }
        | E::NoWeights { .. }
        | E::UnknownFormat { .. }
        | E::NoTensors { .. }
        | E::Unsupported { .. } => job(LOAD, "weights: no file"),
    }
}

/// What a cache on this node lacks another node's may have; what a hub refuses it refuses to all.
fn of_hub(operation: &'static str, error: &hub::Error) -> Fault {
    use hub::Error as E;
    let cause = match error {
        E::NoFile { .. } => return node(operation, "hub: no such file here"),
        E::NotCached { .. } => return node(operation, "hub: not cached"),
        E::Start(source) => return node(operation, of_io("thread", source)),
        E::NoWeights { .. } | E::NoIndex { .. } => "hub: no weights",
        E::Index { .. } => "hub: index",
        E::NoPart { .. } | E::NoSuchFile { .. } => "hub: no such file",
        E::UnknownTag { .. } => "hub: unknown tag",
        E::Name { .. } => "hub: name",
        E::NoRepository { .. } => "hub: no repository",
        E::Denied { .. } => "hub: denied",
        E::Status { .. } => "hub: status",
        E::Answer { .. } => "hub: answer",
        E::Network { .. } => "hub: network",
        E::BrokenOff { .. } => "hub: broken off",
        E::Content { .. } => "hub: content",
        E::Locked { .. } => "hub: locked",
        E::Cache { .. } => "hub: cache",
    };
    if error.may_pass() { retry(operation, cause) } else { job(operation, cause) }
}
