//! Bytes on the wire per meter and round.

use broker::{Counters, Traffic};
use dcnet::identity::Role;

/// Traffic of one meter in one round, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Average {
    /// Bytes from the meter to the broker.
    pub bytes_up: u64,
    /// Bytes from the broker to the meter.
    pub bytes_down: u64,
    /// Messages from the meter.
    pub messages_up: f64,
    /// Messages to the meter.
    pub messages_down: f64,
}

/// All traffic of all meters so far.
pub fn of_meters(counters: &Counters) -> Traffic {
    let meters = counters.devices.values();
    let meters = meters.filter(|(role, _)| *role == Role::Meter);
    meters.fold(Traffic::default(), |sum, (_, traffic)| Traffic {
        bytes_in: sum.bytes_in.saturating_add(traffic.bytes_in),
        bytes_out: sum.bytes_out.saturating_add(traffic.bytes_out),
        messages_in: sum.messages_in.saturating_add(traffic.messages_in),
        messages_out: sum.messages_out.saturating_add(traffic.messages_out),
    })
}

/// The average between two moments; `None` without meters or rounds.
pub fn average(before: Traffic, after: Traffic, meters: u32, rounds: u64) -> Option<Average> {
    let parts = u64::from(meters).checked_mul(rounds).filter(|n| *n > 0)?;
    let whole = |before: u64, after: u64| after.saturating_sub(before) / parts;
    let exact = |before: u64, after: u64| after.saturating_sub(before) as f64 / parts as f64;
    Some(Average {
        bytes_up: whole(before.bytes_in, after.bytes_in),
        bytes_down: whole(before.bytes_out, after.bytes_out),
        messages_up: exact(before.messages_in, after.messages_in),
        messages_down: exact(before.messages_out, after.messages_out),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_per_meter_and_round() {
        let before = Traffic {
            bytes_in: 1000,
            bytes_out: 2000,
            messages_in: 10,
            messages_out: 20,
        };
        let after = Traffic {
            bytes_in: 7000,
            bytes_out: 14_000,
            messages_in: 22,
            messages_out: 50,
        };
        let average = average(before, after, 2, 3).unwrap();
        assert_eq!((average.bytes_up, average.bytes_down), (1000, 2000));
        assert_eq!((average.messages_up, average.messages_down), (2.0, 5.0));
        assert_eq!(super::average(before, after, 2, 0), None);
    }
}
