//! The figures of a moment for Prometheus, in the OpenMetrics text format.

use std::sync::atomic::AtomicU64;

use ::page::metrics::Metrics;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::reach::NoLinkKind;
use crate::status::{ChannelView, CheckState, Status};

/// Joules of a milliwatt hour.
const JOULES: f64 = 3.6;

/// What a figure is of: `channel="import"`.
type OfChannel = Vec<(&'static str, String)>;

/// Why something is so: `why="clock"`.
type OfReason = Vec<(&'static str, String)>;

/// The figures of all channels, each family once with a label per channel.
#[derive(Default)]
struct Channels {
    energy: Family<OfChannel, Counter<f64, AtomicU64>>,
    pulses: Family<OfChannel, Counter>,
    power: Family<OfChannel, Gauge<f64, AtomicU64>>,
    power_is_upper_bound: Family<OfChannel, Gauge>,
    rejected_edges: Family<OfChannel, Counter>,
    lost_edges: Family<OfChannel, Counter>,
    line_stuck: Family<OfChannel, Gauge>,
    line_read: Family<OfChannel, Gauge>,
    input_readings: Family<OfChannel, Counter>,
    input_faults: Family<OfChannel, Counter>,
}

/// The figures of a status and what the link has counted.
pub(super) fn of(status: &Status, link: &link::Totals) -> anyhow::Result<Metrics> {
    let mut registry = Registry::with_prefix("meter_agent");
    let channels = Channels::default();
    for channel in &status.channels {
        channels.set(channel);
    }
    channels.register(&mut registry);
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
    if let Some(end) = status.certificate_end_ms {
        registry.register_with_unit(
            "certificate_end",
            "When the first certificate that the link needs ends, in UTC",
            Unit::Seconds,
            ConstGauge::new(number(end / 1000)),
        );
    }
    let no_link = Family::<OfReason, Gauge>::default();
    for (kind, name) in NoLinkKind::ALL {
        let is_why = status.no_link.as_ref().is_some_and(|why| why.kind == kind);
        let why = no_link.get_or_create(&vec![("why", name.to_owned())]);
        why.set(i64::from(is_why));
    }
    registry.register(
        "no_link",
        "1 while there is no link to the broker at all, for this reason",
        no_link,
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
    Metrics::of(&registry)
}

impl Channels {
    fn set(&self, channel: &ChannelView) {
        let label = vec![("channel", channel.name.clone())];
        let count = |family: &Family<OfChannel, Counter>, value: u64| {
            family.get_or_create(&label).inc_by(value);
        };
        let flag = |family: &Family<OfChannel, Gauge>, value: bool| {
            family.get_or_create(&label).set(i64::from(value));
        };
        // Counters that jumped from zero to all that a device shows would look like use.
        if let Some(energy) = channel.energy_mwh {
            let joules = energy as f64 * JOULES;
            self.energy.get_or_create(&label).inc_by(joules);
            count(&self.pulses, channel.pulses);
        }
        if let Some(power) = channel.power {
            let watts = power.milliwatts as f64 / 1000.0;
            self.power.get_or_create(&label).set(watts);
            flag(&self.power_is_upper_bound, power.is_upper_bound);
        }
        if let Some(line) = &channel.line {
            count(&self.rejected_edges, line.rejected);
            count(&self.lost_edges, line.lost);
            flag(&self.line_stuck, line.is_stuck);
            flag(&self.line_read, channel.line_trouble.is_none());
        }
        if let Some(input) = &channel.input {
            count(&self.input_readings, input.readings);
            count(&self.input_faults, input.faults.values().sum());
        }
    }

    fn register(self, registry: &mut Registry) {
        registry.register_with_unit(
            "energy",
            "Energy by the register's total",
            Unit::Joules,
            self.energy,
        );
        registry.register("pulses", "Pulses by the register's total", self.pulses);
        registry.register(
            "power_watts",
            "Power, or the most that it can be",
            self.power,
        );
        registry.register(
            "power_is_upper_bound",
            "1 while the power may be less, since no pulse has come",
            self.power_is_upper_bound,
        );
        registry.register("rejected_edges", "Too short", self.rejected_edges);
        registry.register("lost_edges", "Missing", self.lost_edges);
        registry.register("line_stuck", "1 while active for too long", self.line_stuck);
        registry.register("line_read", "1 while the line can be read", self.line_read);
        registry.register(
            "input_readings",
            "Totals that were read",
            self.input_readings,
        );
        registry.register("input_faults", "What could not be used", self.input_faults);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::status::samples;

    fn text(sample: &str) -> String {
        let totals = link::Counters::default().totals();
        let metrics = of(&samples::named(sample), &totals).unwrap();
        metrics.as_str().to_owned()
    }

    #[test]
    fn each_family_is_described_once_however_many_channels_there_are() {
        let text = text("taking-part");
        let lines: Vec<&str> = text.lines().collect();
        for line in [
            "meter_agent_pulses_total{channel=\"import\"} 123456",
            "meter_agent_pulses_total{channel=\"export\"} 54321",
            "meter_agent_energy_joules_total{channel=\"export\"} 195555600.0",
            "meter_agent_line_stuck{channel=\"import\"} 0",
            "meter_agent_group 55",
            "meter_agent_certificate_end_seconds 2023000000",
        ] {
            assert!(lines.contains(&line), "{line}: {lines:#?}");
        }
        let described = |kind: &str| {
            let names = lines.iter().filter_map(|line| {
                let (name, _) = line.strip_prefix(kind)?.split_once(' ')?;
                Some(name)
            });
            names.collect::<Vec<_>>()
        };
        for kind in ["# TYPE ", "# HELP "] {
            let all = described(kind);
            let different: BTreeSet<_> = all.iter().collect();
            assert_eq!(different.len(), all.len(), "{kind}: {lines:#?}");
            assert!(all.len() > 20, "{kind}: {lines:#?}");
        }
        // Figures of a family stand together, right below its description.
        let mut families: Vec<&str> = Vec::new();
        for line in lines.iter().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            if families.last() != Some(&name) {
                assert!(!families.contains(&name), "{name}: {lines:#?}");
                families.push(name);
            }
        }
    }

    #[test]
    fn the_alerts_and_the_dashboard_name_what_is_there() {
        let rules = include_str!("../../../monitoring/dcnet.rules.yaml");
        let dashboard = include_str!("../../../monitoring/dcnet.dashboard.json");
        let text = text("taking-part");
        let has = |metric: &str| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(metric));
            lines.any(|rest| rest.starts_with(['{', ' ']))
        };
        let mut named = 0;
        for watched in [rules, dashboard] {
            let words = watched.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
            for word in words.filter(|word| word.starts_with("meter_agent_")) {
                assert!(has(word), "{word}: {text}");
                named += 1;
            }
        }
        assert!(named > 0);
    }

    #[test]
    fn a_line_that_is_not_read_has_no_power() {
        let text = text("line-trouble");
        assert!(text.contains("meter_agent_line_read{channel=\"import\"} 0\n"));
        assert!(!text.contains("meter_agent_power_watts{channel=\"import\"}"));
        assert!(text.contains("meter_agent_power_watts{channel=\"export\"}"));
    }

    #[test]
    fn the_reason_for_which_there_is_no_link_is_told() {
        let set = |sample| {
            let text = text(sample);
            let ones = text.lines().filter_map(|line| {
                let why = line.strip_prefix("meter_agent_no_link{why=")?;
                why.strip_suffix("} 1").map(str::to_owned)
            });
            ones.collect::<Vec<_>>()
        };
        assert!(set("taking-part").is_empty());
        assert_eq!(set("no-enrolment"), ["\"enrolment\""]);
        assert_eq!(set("left"), ["\"left\""]);
    }

    #[test]
    fn counters_do_not_begin_at_zero_before_a_device_has_shown_its_total() {
        let text = text("first-start");
        assert!(text.contains("meter_agent_energy_joules_total{channel=\"import\"}"));
        for counter in ["energy_joules", "pulses"] {
            let of_device = format!("meter_agent_{counter}_total{{channel=\"export\"}}");
            assert!(!text.contains(&of_device), "{text}");
        }
    }
}
