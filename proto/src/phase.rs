//! What a rank does, in a word.

use crate::v1::Phase;

impl Phase {
    /// Returns the phase as one lower-case word; none for one that nobody has named yet.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::Unspecified => None,
            Self::Start => Some("start"),
            Self::Join => Some("join"),
            Self::Load => Some("load"),
            Self::Data => Some("data"),
            Self::Compute => Some("compute"),
            Self::Collective => Some("collective"),
            Self::Apply => Some("apply"),
            Self::Eval => Some("eval"),
            Self::Save => Some("save"),
            Self::Done => Some("done"),
        }
    }
}
