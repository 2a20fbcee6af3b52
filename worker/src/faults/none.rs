//! A build in which no fault can be asked for.

use ringmaster_proto::Seat;

use super::FaultPoint;

/// No faults.
#[derive(Debug, Default)]
pub(crate) struct Faults;

impl Faults {
    /// Refuses what asks for a fault.
    ///
    /// # Errors
    /// Any text, with what to build instead.
    pub(crate) fn parse(text: Option<&str>, _seat: Seat) -> Result<Self, String> {
        match text.map(str::trim) {
            None | Some("") => Ok(Self),
            Some(text) => Err(format!(
                "RINGMASTER_FAULT={text}: this ringmaster-worker cannot be made to fail; unset it, or build it \
                 with --features ringmaster-worker/faults"
            )),
        }
    }

    pub(crate) fn strike(&self, _step: u64, _at: FaultPoint) {}

    pub(crate) fn corrupts(&self, _step: u64) -> bool {
        false
    }

    pub(crate) fn ready_is_lost(&self, _step: u64) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_refused_with_what_to_build() {
        assert!(Faults::parse(None, Seat(0)).is_ok());
        let refused = Faults::parse(Some("rank=0,step=1,at=in_eval,marker=/tmp/x"), Seat(0)).err();
        assert!(refused.is_some_and(|text| text.contains("--features ringmaster-worker/faults")));
    }
}
