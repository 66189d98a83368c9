//! The figures of a moment for Prometheus, in the OpenMetrics text format.

use std::sync::atomic::AtomicU64;

use anyhow::Context;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::status::{CheckState, Status};

/// Joules of a milliwatt hour.
const JOULES: f64 = 3.6;

/// The text of a status and of what the link has counted.
pub(super) fn text(status: &Status, link: &link::Totals) -> anyhow::Result<String> {
    let mut registry = Registry::with_prefix("meter_agent");
    for channel in &status.channels {
        of_channel(&mut registry, channel);
    }
    let mut gauge = |name: &str, help: &str, value: i64| {
        registry.register(name, help, ConstGauge::new(value));
    };
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let flag = i64::from;
    gauge(
        "unsaved_pulses",
        "Pulses that a crash would lose",
        number(status.unsaved_pulses),
    );
    gauge(
        "register_saved",
        "1 while the register can be saved",
        flag(status.save_error.is_none()),
    );
    gauge(
        "connected",
        "1 while the broker is connected",
        flag(status.link.is_connected),
    );
    gauge(
        "clock_synchronised",
        "1 while UTC is known to be right",
        flag(status.synchronised),
    );
    gauge(
        "paused",
        "1 while the household has paused the meter",
        flag(status.paused),
    );
    gauge(
        "stopped",
        "1 after an alarm stopped the meter for good",
        flag(status.is_stopped),
    );
    gauge(
        "member",
        "1 while the meter is a member of its net",
        flag(status.is_member),
    );
    gauge(
        "net_members",
        "Members of the net",
        i64::from(status.members),
    );
    let mut known = |name: &str, help: &str, value: Option<usize>| {
        if let Some(value) = value.and_then(|value| i64::try_from(value).ok()) {
            gauge(name, help, value);
        }
    };
    known("neighbours_drawn", "Neighbours drawn by lot", status.drawn);
    known(
        "neighbours_live",
        "Those of them that hid the last submission",
        status.live,
    );
    let answered = status
        .rounds
        .iter()
        .find(|round| round.reveal.state == CheckState::Passed);
    known(
        "group",
        "Meters in the newest sum that was answered",
        answered.and_then(|r| r.included),
    );
    let answered = answered.map_or(0, |round| round.until_ms / 1000);
    registry.register_with_unit(
        "last_answered_round_end",
        "End of the newest round that was answered, in UTC; 0 for none since the start",
        Unit::Seconds,
        ConstGauge::new(number(answered)),
    );
    registry.register(
        "refused_inputs",
        "Inputs that the meter refused",
        ConstCounter::new(status.refused),
    );
    let link_metrics = registry.sub_registry_with_prefix("link");
    for (name, value) in link.iter() {
        link_metrics.register(name, "Of the link to the broker", ConstCounter::new(value));
    }
    let mut text = String::new();
    encode(&mut text, &registry).context("cannot write the metrics")?;
    Ok(text)
}

fn of_channel(registry: &mut Registry, channel: &crate::status::ChannelView) {
    let label = ("channel".into(), channel.name.clone().into());
    let registry = registry.sub_registry_with_label(label);
    registry.register_with_unit(
        "energy",
        "Energy by the register's total",
        Unit::Joules,
        ConstCounter::new(channel.energy_mwh as f64 * JOULES),
    );
    registry.register(
        "pulses",
        "Pulses by the register's total",
        ConstCounter::new(channel.pulses),
    );
    if let Some(power) = channel.power {
        let gauge: Gauge<f64, AtomicU64> = Gauge::default();
        gauge.set(power.milliwatts as f64 / 1000.0);
        registry.register("power_watts", "Power, or the most that it can be", gauge);
        registry.register(
            "power_is_upper_bound",
            "1 while the power may be less, since no pulse has come",
            ConstGauge::new(i64::from(power.is_upper_bound)),
        );
    }
    if let Some(line) = &channel.line {
        registry.register(
            "rejected_edges",
            "Too short",
            ConstCounter::new(line.rejected),
        );
        registry.register("lost_edges", "Missing", ConstCounter::new(line.lost));
        registry.register(
            "line_stuck",
            "1 while active for too long",
            ConstGauge::new(i64::from(line.is_stuck)),
        );
    }
    if let Some(input) = &channel.input {
        registry.register(
            "input_readings",
            "Totals that were read",
            ConstCounter::new(input.readings),
        );
        let faults: u64 = input.faults.values().sum();
        registry.register(
            "input_faults",
            "What could not be used",
            ConstCounter::new(faults),
        );
    }
}
