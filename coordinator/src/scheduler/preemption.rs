//! Who has to go so that the head of a queue can start.

use std::cmp::Reverse;

use super::Gang;

/// Returns which candidates to stop so that `lack` slots become free; none if all together do not
/// suffice.
///
/// A candidate comes with the slots it would free. Lowest priority goes first, then the youngest;
/// nobody is returned without whom the others suffice.
pub(super) fn victims<'a>(candidates: &[(&'a Gang, u32)], lack: u32) -> Vec<&'a Gang> {
    let mut order: Vec<_> = candidates.iter().filter(|(_, slots)| *slots > 0).copied().collect();
    order.sort_by_key(|(gang, _)| (gang.priority, Reverse(gang.sequence)));
    let mut freed = 0;
    let mut chosen = Vec::new();
    for (gang, slots) in order {
        if freed >= lack {
            break;
        }
        freed += slots;
        chosen.push((gang, slots));
    }
    if freed < lack {
        return Vec::new();
    }
    // A large one found later may make small ones found before it needless.
    let mut kept = Vec::new();
    for (gang, slots) in chosen.into_iter().rev() {
        if freed - slots >= lack {
            freed -= slots;
        } else {
            kept.push(gang);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::Standing;
    use super::*;

    fn gang(job_id: &str, priority: i32, sequence: u64) -> Gang {
        Gang {
            job_id: job_id.to_owned(),
            priority,
            sequence,
            accelerator: "cpu".to_owned(),
            min_ranks: 1,
            standing: Standing::Held,
            seats: Vec::new(),
            preferred: Vec::new(),
            avoids: BTreeMap::new(),
        }
    }

    fn chosen(candidates: &[(&Gang, u32)], lack: u32) -> Vec<String> {
        let mut chosen: Vec<_> =
            victims(candidates, lack).into_iter().map(|gang| gang.job_id.clone()).collect();
        chosen.sort();
        chosen
    }

    #[test]
    fn the_lowest_priority_goes_first_then_the_youngest_and_no_more_than_needed() {
        let (low, old, young) = (gang("low", -1, 1), gang("old", 0, 2), gang("young", 0, 3));
        let all = [(&old, 2), (&young, 2), (&low, 1)];
        assert_eq!(chosen(&all, 1), ["low"]);
        assert_eq!(chosen(&all, 2), ["young"], "low's slot is not enough, and young's are");
        assert_eq!(chosen(&all, 3), ["low", "young"]);
        assert_eq!(chosen(&all, 5), ["low", "old", "young"]);
        assert_eq!(chosen(&all, 6), [""; 0], "not enough: nobody is stopped in vain");
    }
}
