//! The figures of a moment for Prometheus, in the OpenMetrics text format.

use std::sync::atomic::AtomicU64;

use ::page::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use super::live::{Counts, Live, Stage};
use super::records::{NetRow, Records};
use super::views;
use crate::publication::mean_power;

/// Joules of a milliwatt hour.
const JOULES: f64 = 3.6;

type Energy = Family<OfChannel, Counter<f64, AtomicU64>>;
type Power = Family<OfChannel, Gauge<f64, AtomicU64>>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNet {
    net: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfChannel {
    net: String,
    channel: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    net: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    net: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStatus {
    status: u16,
}

/// The figures of all nets, each family once with a label per net.
#[derive(Default)]
struct Nets {
    period: Family<OfNet, Gauge>,
    minimum_group: Family<OfNet, Gauge>,
    net_closed: Family<OfNet, Gauge>,
    members: Family<OfNet, Gauge>,
    absent: Family<OfNet, Gauge>,
    pending: Family<OfNet, Gauge>,
    included: Family<OfNet, Gauge>,
    last_sum_end: Family<OfNet, Gauge>,
    latency: Family<OfNet, Gauge<f64, AtomicU64>>,
    live_minimum: Family<OfNet, Gauge>,
    live_median: Family<OfNet, Gauge>,
    power: Power,
    energy: Energy,
    rounds: Family<OfOutcome, Counter>,
    refused: Family<OfReason, Counter>,
    alarms: Family<OfNet, Counter>,
}

/// The figures of this moment.
///
/// # Errors
/// The database cannot be read, or a log does not verify.
pub(super) fn of(records: &Records, live: &Live) -> anyhow::Result<Metrics> {
    let mut registry = Registry::with_prefix("provider_agent");
    registry.register(
        "connected",
        "1 while the broker is connected and the subscriptions are granted",
        ConstGauge::new(i64::from(live.link().is_connected)),
    );
    if let Some(end) = live.certificate_end() {
        registry.register_with_unit(
            "certificate_end",
            "When the provider's certificate ends, in UTC",
            Unit::Seconds,
            ConstGauge::new(whole(end.as_millis() / 1000)),
        );
    }
    registry.register_with_unit(
        "commit",
        "How long it took to store what a step of the protocol did",
        Unit::Seconds,
        live.commits(),
    );
    let nets = Nets::default();
    for row in records.nets()? {
        let (members, absent) = views::presence(records, &row)?;
        nets.set(&row, live, members, absent);
    }
    nets.register(&mut registry);
    let (answers, wrong) = live.requests();
    let by_status: Family<OfStatus, Counter> = Family::default();
    for (status, count) in answers {
        by_status.get_or_create(&OfStatus { status }).inc_by(count);
    }
    registry.register("page_answers", "Answers of the operator's page", by_status);
    registry.register(
        "page_wrong_passwords",
        "Requests with a wrong user or password",
        ConstCounter::new(wrong),
    );
    let link = registry.sub_registry_with_prefix("link");
    for (name, value) in live.totals().iter() {
        link.register(name, "Of the link to the broker", ConstCounter::new(value));
    }
    Metrics::of(&registry)
}

fn whole(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

impl Nets {
    fn set(&self, row: &NetRow, live: &Live, members: u32, absent: usize) {
        let net = row.net.to_string();
        let label = OfNet { net: net.clone() };
        let set = |family: &Family<OfNet, Gauge>, value: i64| {
            family.get_or_create(&label).set(value);
        };
        let period = row.policy.period;
        set(&self.period, i64::from(period.as_secs()));
        set(&self.minimum_group, i64::from(row.policy.minimum_group));
        set(&self.net_closed, i64::from(row.closed.is_some()));
        set(&self.members, i64::from(members));
        set(&self.absent, whole(absent));
        set(&self.pending, whole(row.pending));
        if let Some(newest) = &row.newest {
            set(&self.included, i64::from(newest.included));
            let end = newest.round.end(period).as_millis() / 1000;
            set(&self.last_sum_end, whole(end));
            for (channel, sum) in row.channels.iter().zip(&newest.sums) {
                let watts = mean_power(*sum, period);
                self.power
                    .get_or_create(&of_channel(&net, channel))
                    .set(watts);
            }
        }
        let rounds = live.rounds(row.net);
        let newest = rounds.iter().find(|round| round.stage == Stage::Final);
        if let Some(latency) = newest.and_then(|round| round.ended_after_s) {
            self.latency.get_or_create(&label).set(latency);
        }
        let edges = rounds.iter().find(|r| r.live_neighbours_minimum.is_some());
        if let Some(minimum) = edges.and_then(|round| round.live_neighbours_minimum) {
            set(&self.live_minimum, whole(minimum));
        }
        if let Some(median) = edges.and_then(|round| round.live_neighbours_median) {
            set(&self.live_median, whole(median));
        }
        self.count(row, &net, &live.counts(row.net));
    }

    fn count(&self, row: &NetRow, net: &str, counts: &Counts) {
        for (channel, energy) in row.channels.iter().zip(&counts.energy) {
            let joules = energy.0 as f64 * JOULES;
            self.energy
                .get_or_create(&of_channel(net, channel))
                .inc_by(joules);
        }
        for (outcome, count) in [
            ("final", counts.finals),
            ("lost", counts.lost),
            ("no_roster", counts.no_roster),
            ("late", counts.pending),
        ] {
            let net = net.to_owned();
            let label = OfOutcome { net, outcome };
            self.rounds.get_or_create(&label).inc_by(count);
        }
        for (reason, count) in &counts.refused {
            let (net, reason) = (net.to_owned(), reason.clone());
            let label = OfReason { net, reason };
            self.refused.get_or_create(&label).inc_by(*count);
        }
        let net = net.to_owned();
        self.alarms
            .get_or_create(&OfNet { net })
            .inc_by(counts.alarms);
    }

    fn register(self, registry: &mut Registry) {
        let seconds = || Unit::Seconds;
        registry.register_with_unit("period", "Length of a round", seconds(), self.period);
        registry.register(
            "minimum_group",
            "Fewest meters in a sum, by the net's rules",
            self.minimum_group,
        );
        registry.register(
            "net_closed",
            "1 once the operator has closed the net: it has no rounds any more",
            self.net_closed,
        );
        registry.register("members", "Members of the net", self.members);
        registry.register(
            "absent_members",
            "Members that are not on the newest roster; none of a closed net",
            self.absent,
        );
        registry.register(
            "pending_rounds",
            "Rounds that wait for reveals",
            self.pending,
        );
        registry.register("group", "Meters in the newest sum", self.included);
        registry.register_with_unit(
            "last_sum_end",
            "End of the interval of the newest sum, in UTC",
            seconds(),
            self.last_sum_end,
        );
        registry.register_with_unit(
            "last_sum_latency",
            "From the end of that interval until the sum was there",
            seconds(),
            self.latency,
        );
        registry.register(
            "live_neighbours_minimum",
            "Fewest full drawn edges of a meter on the newest roster",
            self.live_minimum,
        );
        registry.register("live_neighbours_median", "Their median", self.live_median);
        registry.register(
            "power_watts",
            "Mean power of all meters of the newest sum together",
            self.power,
        );
        registry.register_with_unit(
            "energy",
            "The sums since the start of the agent, added up",
            Unit::Joules,
            self.energy,
        );
        registry.register(
            "rounds",
            "Rounds since the start of the agent, by how they ended; late ones may still get a sum",
            self.rounds,
        );
        registry.register(
            "refused_inputs",
            "Inputs of meters that were refused",
            self.refused,
        );
        registry.register(
            "alarms",
            "Alarms of the protocol since the start of the agent; lost rounds are no alarms",
            self.alarms,
        );
    }
}

fn of_channel(net: &str, channel: &str) -> OfChannel {
    OfChannel {
        net: net.to_owned(),
        channel: channel.to_owned(),
    }
}
