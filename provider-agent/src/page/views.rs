//! What the page shows, as people and their programs read it: energy in kWh, power in W,
//! moments in RFC 3339. Of meters there are pseudonyms and who took part, nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dcnet::graph::MemberIndex;
use dcnet::identity::DeviceId;
use dcnet::membership::{Member, Membership};
use dcnet::time::{Period, Round, Timestamp};
use dcnet::units::MilliwattHours;
use serde::Serialize;

use super::alarms::Told;
use super::live::{LinkView, Live, RoundView};
use super::records::{BinRow, FinalRow, NetRow, NewestRoster, Records};
use crate::publication::{ByChannel, kwh, mean_power};
use crate::utc;

/// Most bins of a load curve.
const BINS: u64 = 800;

/// Lengths of bins in seconds; what the period does not divide is left out.
const BIN_LENGTHS: [u64; 13] = [
    1, 2, 5, 10, 30, 60, 120, 300, 900, 1800, 3600, 21_600, 86_400,
];

/// Absent members that a net's view names; the list of members has all of them.
const ABSENT: usize = 50;

/// Pending and lost rounds that a net's view names.
const UNFINISHED: u32 = 50;

/// Most members that the key graph is drawn of.
pub(super) const DRAWN: usize = 200;

/// Periods without a new sum, after which it is said.
const PATIENCE: u32 = 3;

/// The agent and its nets.
#[derive(Debug, Serialize)]
pub(super) struct Overview {
    version: &'static str,
    at: String,
    link: LinkView,
    nets: Vec<NetView>,
    /// What holds now, then what was told since the start, newest first.
    alarms: Vec<Told>,
}

/// A net in one line.
#[derive(Debug, Serialize)]
pub(super) struct NetView {
    net: String,
    name: String,
    period_s: u32,
    window_ms: u32,
    channels: Vec<String>,
    minimum_group: u32,
    minimum_neighbours: u32,
    degree: u32,
    /// When it was closed.
    closed: Option<String>,
    /// It was restored, and no round that started after this moment has a sum yet.
    resume: Option<String>,
    members: u32,
    absent: usize,
    pending: u64,
    newest: Option<SumView>,
}

/// A sum.
#[derive(Debug, Serialize)]
pub(super) struct SumView {
    round: u64,
    start: String,
    end: String,
    included: u32,
    energy_kwh: ByChannel<f64>,
    power_w: ByChannel<f64>,
}

/// A net with what its page shows at once.
#[derive(Debug, Serialize)]
pub(super) struct NetDetails {
    #[serde(flatten)]
    net: NetView,
    log_index: u64,
    left: usize,
    rounds: Vec<RoundView>,
    absent_members: Vec<MemberView>,
    privacy: Privacy,
    unfinished: Vec<UnfinishedView>,
    refused: BTreeMap<String, u64>,
    alarms: Vec<Told>,
}

/// How well each meter is hidden.
#[derive(Debug, Serialize)]
struct Privacy {
    /// Fewest meters in a sum, by the net's rules.
    minimum_group: u32,
    /// Meters on the newest roster; 0 if there is none.
    group: usize,
    /// Fewest full drawn edges of a meter, by the net's rules.
    minimum_neighbours: u32,
    /// Of the newest roster since the start of the agent.
    live_neighbours_minimum: Option<usize>,
    live_neighbours_median: Option<usize>,
    /// Edges of the newest roster that only one end used.
    half_open_edges: usize,
}

/// A round without a sum.
#[derive(Debug, Serialize)]
struct UnfinishedView {
    round: u64,
    start: String,
    end: String,
    status: &'static str,
    included: u32,
    why: Option<String>,
}

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum MemberState {
    /// It owes a reveal to a round that waits for it.
    OwesReveal,
    /// It is not on the newest roster.
    Absent,
    /// It was away for so long that no draw names it.
    Lapsed,
    /// It has not drawn its neighbours yet.
    Joining,
    /// It is on the newest roster.
    Included,
}

/// A member.
#[derive(Debug, Serialize)]
struct MemberView {
    meter: String,
    state: MemberState,
    /// Neighbours that it drew and that are still members.
    drawn: usize,
    /// Those and who drew it.
    neighbours: usize,
    /// End of the newest interval with this member on the roster.
    last_included: Option<String>,
}

/// A part of the members.
#[derive(Debug, Serialize)]
pub(super) struct MemberPage {
    total: usize,
    offset: usize,
    /// Those that need a look first.
    members: Vec<MemberView>,
}

/// The key graph, or a part of it.
#[derive(Debug, Serialize)]
pub(super) struct GraphView {
    members: usize,
    /// Whether members were left out: evenly, in the order of their joins.
    is_sample: bool,
    nodes: Vec<NodeView>,
    /// Pairs of places in `nodes`.
    edges: Vec<(usize, usize)>,
}

#[derive(Debug, Serialize)]
struct NodeView {
    meter: String,
    state: MemberState,
    neighbours: usize,
}

/// A load curve.
#[derive(Debug, Serialize)]
pub(super) struct Course {
    net: String,
    channels: Vec<String>,
    from: String,
    until: String,
    bin_s: u64,
    bins: Vec<BinView>,
}

/// The rounds of a bin, as far as it is over and within the net's time.
#[derive(Debug, Serialize)]
struct BinView {
    start: String,
    end: String,
    /// Rounds with a sum.
    #[serde(rename = "final")]
    finals: u64,
    /// Rounds that wait for reveals.
    pending: u64,
    /// Rounds that ended without a sum.
    lost: u64,
    /// Rounds that got no roster.
    without_roster: u64,
    /// Mean over the rounds with a sum; absent without one.
    power_w: ByChannel<f64>,
    energy_kwh: ByChannel<f64>,
}

/// The agent and all its nets.
///
/// # Errors
/// The database cannot be read, or a log does not verify.
pub(super) fn overview(records: &Records, live: &Live) -> anyhow::Result<Overview> {
    let mut nets = Vec::new();
    let mut alarms = standing(live);
    for row in records.nets()? {
        alarms.extend(standstill(&row));
        nets.push(net_view(records, &row)?);
    }
    alarms.extend(live.alarms());
    Ok(Overview {
        version: env!("CARGO_PKG_VERSION"),
        at: utc::text(utc::now()),
        link: live.link(),
        nets,
        alarms,
    })
}

/// What is wrong with the agent now.
fn standing(live: &Live) -> Vec<Told> {
    let link = live.link();
    let told = (!link.is_connected).then(|| {
        Told::now(
            "link",
            link.text,
            "No round goes on without the broker. Look whether it runs and can be reached from here; \
             `provider-agent check-config` tells whether certificates and host name fit. The agent tries again by itself.",
        )
    });
    let slow = live.slow_commit().map(|took| {
        Told::now(
            "slow-disk",
            format!("the newest write to the database took {:.1} s", took.as_secs_f64()),
            "Nothing is lost, but rounds are late by as much. Look whether the disk is busy or failing (`dmesg`), and \
             whether another process writes to the database.",
        )
    });
    told.into_iter().chain(slow).collect()
}

/// Whether a net that is to have sums has none.
fn standstill(row: &NetRow) -> Option<Told> {
    if row.closed.is_some() {
        return None;
    }
    let mut told = match row.waits_since() {
        Some(resume) => restored(row, resume),
        None => silence(row)?,
    };
    told.net = Some(row.net.to_string());
    Some(told)
}

fn restored(row: &NetRow, resume: Timestamp) -> Told {
    Told::now(
        "restored",
        format!(
            "{} was restored from a backup, and no round that started after {} has a sum yet",
            row.name,
            utc::text(resume)
        ),
        "Nobody joins, leaves or draws until one has. If none comes within some rounds although the meters are \
         connected, they know rosters or log entries that the backup lacks, and never answer this net again: close it \
         (`provider-agent net close`) and make a new one.",
    )
}

/// Whether a net that had sums has none any more.
fn silence(row: &NetRow) -> Option<Told> {
    let newest = row.newest.as_ref()?;
    let period = row.policy.period;
    let silent = utc::now().since(newest.round.end(period));
    if silent <= period.duration() * PATIENCE + Duration::from_millis(row.policy.window_ms.into()) {
        return None;
    }
    Some(Told::now(
        "silence",
        format!(
            "{} has had no sum since {}",
            row.name,
            utc::text(newest.round.end(period))
        ),
        "Look at the list of absent members and at the last rounds: without enough submissions there is no roster, \
         without all reveals no sum. If everybody is absent, look at the broker.",
    ))
}

fn by_channel(
    channels: &[String],
    sums: &[MilliwattHours],
    value: impl Fn(MilliwattHours) -> f64,
) -> ByChannel<f64> {
    let values = sums.iter().copied().map(value);
    ByChannel(channels.iter().cloned().zip(values).collect())
}

fn sum_view(row: &NetRow, newest: &FinalRow) -> SumView {
    let period = row.policy.period;
    SumView {
        round: newest.round.0,
        start: utc::text(newest.round.start(period)),
        end: utc::text(newest.round.end(period)),
        included: newest.included,
        energy_kwh: by_channel(&row.channels, &newest.sums, kwh),
        power_w: by_channel(&row.channels, &newest.sums, |sum| mean_power(sum, period)),
    }
}

/// How many members there are, and how many of them are not on the newest roster; of a closed
/// net nobody is waited for.
///
/// # Errors
/// The database cannot be read, or the log does not verify.
pub(super) fn presence(records: &Records, row: &NetRow) -> anyhow::Result<(u32, usize)> {
    let roster = records.newest_roster(row.net)?;
    records.membership(row.net, |membership| {
        if row.closed.is_some() {
            return (membership.size(), 0);
        }
        let absent = active(membership).filter(|(_, member)| !roster.included.contains(&member.id));
        (membership.size(), absent.count())
    })
}

fn net_view(records: &Records, row: &NetRow) -> anyhow::Result<NetView> {
    let (members, absent) = presence(records, row)?;
    let policy = row.policy;
    Ok(NetView {
        net: row.net.to_string(),
        name: row.name.clone(),
        period_s: policy.period.as_secs(),
        window_ms: policy.window_ms,
        channels: row.channels.clone(),
        minimum_group: policy.minimum_group,
        minimum_neighbours: policy.minimum_neighbours,
        degree: policy.degree,
        closed: row.closed.map(utc::text),
        resume: row.waits_since().map(utc::text),
        members,
        absent,
        pending: row.pending,
        newest: row.newest.as_ref().map(|newest| sum_view(row, newest)),
    })
}

/// Members now, with their places.
fn active(membership: &Membership) -> impl Iterator<Item = (MemberIndex, &Member)> {
    (0..)
        .zip(membership.members())
        .filter(|(_, member)| member.is_active())
}

/// Members with their states; those that need a look first, then in the order of their joins.
fn states(
    membership: &Membership,
    roster: &NewestRoster,
    owing: &BTreeSet<DeviceId>,
) -> Vec<(MemberState, MemberIndex, DeviceId)> {
    let state = |index: MemberIndex, member: &Member| {
        if owing.contains(&member.id) {
            MemberState::OwesReveal
        } else if roster.included.contains(&member.id) {
            MemberState::Included
        } else if member.is_lapsed() {
            MemberState::Lapsed
        } else if membership.graph().newest(index, u64::MAX).is_none() {
            MemberState::Joining
        } else {
            MemberState::Absent
        }
    };
    let mut all: Vec<_> = active(membership)
        .map(|(index, member)| (state(index, member), index, member.id))
        .collect();
    all.sort_unstable();
    all
}

/// Views of some members of a net.
fn member_views(
    records: &Records,
    row: &NetRow,
    some: &[(MemberState, MemberIndex, DeviceId)],
) -> anyhow::Result<Vec<MemberView>> {
    let ids: Vec<DeviceId> = some.iter().map(|(_, _, id)| *id).collect();
    let last = records.last_included(row.net, &ids)?;
    records.membership(row.net, |membership| {
        let graph = membership.graph();
        let view = |(state, index, id): &(MemberState, MemberIndex, DeviceId)| MemberView {
            meter: id.to_string(),
            state: *state,
            drawn: graph.drawn(*index, u64::MAX).len(),
            neighbours: graph.neighbours(*index, u64::MAX).len(),
            last_included: last
                .get(id)
                .map(|round| utc::text(round.end(row.policy.period))),
        };
        some.iter().map(view).collect()
    })
}

/// A net with what its page shows at once.
///
/// # Errors
/// The database cannot be read, or the log does not verify.
pub(super) fn net(records: &Records, live: &Live, row: &NetRow) -> anyhow::Result<NetDetails> {
    let roster = records.newest_roster(row.net)?;
    let owing: BTreeSet<DeviceId> = live.owing(row.net).into_iter().collect();
    let (log_index, left, mut absent, half_open_edges) =
        records.membership(row.net, |membership| {
            let half_open = roster.read(membership).map_or(0, |r| r.half_open.len());
            let left = membership.members().iter().filter(|m| !m.is_active());
            let states = states(membership, &roster, &owing);
            (membership.head().index, left.count(), states, half_open)
        })?;
    absent.retain(|(state, ..)| match row.closed {
        Some(_) => *state == MemberState::OwesReveal,
        None => *state != MemberState::Included,
    });
    absent.truncate(ABSENT);
    let rounds = live.rounds(row.net);
    let with_edges = rounds.iter().find(|r| r.live_neighbours_minimum.is_some());
    let period = row.policy.period;
    let unfinished = records.unfinished(row.net, UNFINISHED)?;
    let unfinished = unfinished.into_iter().map(|round| UnfinishedView {
        round: round.round.0,
        start: utc::text(round.round.start(period)),
        end: utc::text(round.round.end(period)),
        status: round.status.as_str(),
        included: round.included,
        why: round.why,
    });
    let id = row.net.to_string();
    let mut alarms: Vec<Told> = standing(live).into_iter().chain(standstill(row)).collect();
    alarms.extend(live.alarms());
    alarms.retain(|told| told.net.as_ref().is_none_or(|net| *net == id));
    Ok(NetDetails {
        net: net_view(records, row)?,
        log_index,
        left,
        privacy: Privacy {
            minimum_group: row.policy.minimum_group,
            group: roster.included.len(),
            minimum_neighbours: row.policy.minimum_neighbours,
            live_neighbours_minimum: with_edges.and_then(|r| r.live_neighbours_minimum),
            live_neighbours_median: with_edges.and_then(|r| r.live_neighbours_median),
            half_open_edges,
        },
        rounds,
        absent_members: member_views(records, row, &absent)?,
        unfinished: unfinished.collect(),
        refused: live.counts(row.net).refused,
        alarms,
    })
}

/// Some members of a net.
///
/// # Errors
/// The database cannot be read, or the log does not verify.
pub(super) fn members(
    records: &Records,
    live: &Live,
    row: &NetRow,
    (offset, most): (usize, usize),
) -> anyhow::Result<MemberPage> {
    let roster = records.newest_roster(row.net)?;
    let owing: BTreeSet<DeviceId> = live.owing(row.net).into_iter().collect();
    let all = records.membership(row.net, |log| states(log, &roster, &owing))?;
    let some: Vec<_> = all.iter().skip(offset).take(most).copied().collect();
    Ok(MemberPage {
        total: all.len(),
        offset,
        members: member_views(records, row, &some)?,
    })
}

/// The key graph of a net; of a large one a sample.
///
/// # Errors
/// The database cannot be read, or the log does not verify.
pub(super) fn graph(records: &Records, live: &Live, row: &NetRow) -> anyhow::Result<GraphView> {
    let roster = records.newest_roster(row.net)?;
    let owing: BTreeSet<DeviceId> = live.owing(row.net).into_iter().collect();
    records.membership(row.net, |membership| {
        let mut all = states(membership, &roster, &owing);
        all.sort_unstable_by_key(|(_, index, _)| *index);
        let members = all.len();
        let step = members.div_ceil(DRAWN).max(1);
        let shown: Vec<_> = all.into_iter().step_by(step).collect();
        let places = (0..)
            .zip(&shown)
            .map(|(place, (_, index, _))| (*index, place));
        let places: BTreeMap<MemberIndex, usize> = places.collect();
        let graph = membership.graph();
        let (mut nodes, mut edges) = (Vec::new(), Vec::new());
        for (place, (state, index, id)) in shown.iter().enumerate() {
            let neighbours = graph.neighbours(*index, u64::MAX);
            let later = neighbours.iter().filter_map(|peer| places.get(peer));
            edges.extend(
                later
                    .filter(|other| **other > place)
                    .map(|other| (place, *other)),
            );
            nodes.push(NodeView {
                meter: id.to_string(),
                state: *state,
                neighbours: neighbours.len(),
            });
        }
        GraphView {
            members,
            is_sample: step > 1,
            nodes,
            edges,
        }
    })
}

/// The length of bins for a span, both in seconds.
fn bin_length(period: Period, span: u64) -> u64 {
    let period = u64::from(period.as_secs());
    BIN_LENGTHS
        .into_iter()
        .filter(|length| length.is_multiple_of(period))
        .find(|length| span / length <= BINS)
        // A period that divides a day always divides this one.
        .unwrap_or(86_400)
        .max(period)
}

/// The load curve of a net from one moment until another, which are moved to the bounds of bins.
///
/// # Errors
/// The database cannot be read.
pub(super) fn course(
    records: &Records,
    row: &NetRow,
    (from, until): (Timestamp, Timestamp),
) -> anyhow::Result<Course> {
    let period = row.policy.period;
    let seconds = bin_length(period, until.since(from).as_secs());
    let length_ms = seconds.saturating_mul(1000);
    let (first, end) = (
        from.as_millis() / length_ms,
        until.as_millis().div_ceil(length_ms),
    );
    let per_bin = seconds / u64::from(period.as_secs());
    let rounds = |bin: u64| bin.saturating_mul(per_bin);
    let born = records.first_round(row.net)?;
    let rows = records.bins(
        row.net,
        period,
        seconds,
        (Round(rounds(first)), Round(rounds(end))),
    )?;
    // Rounds from here on may still get a roster, or get none because the net was closed.
    let end_of_rounds = row.closed.unwrap_or_else(utc::now);
    let over = end_of_rounds.minus(Duration::from_millis(row.policy.window_ms.into()));
    let open = period.round_at(over);
    let mut bins = Vec::new();
    let born = born.unwrap_or(open);
    for bin in first..end {
        let found = rows.get(&bin).cloned().unwrap_or_default();
        let (from, to) = (rounds(bin).max(born.0), rounds(bin + 1).min(open.0));
        let due = to.saturating_sub(from);
        let seen = found.finals + found.pending + found.lost;
        if due == 0 && seen == 0 {
            continue;
        }
        bins.push(bin_view(
            row,
            (bin, seconds),
            &found,
            due.saturating_sub(seen),
        ));
    }
    Ok(Course {
        net: row.net.to_string(),
        channels: row.channels.clone(),
        from: utc::text(Timestamp(first.saturating_mul(length_ms))),
        until: utc::text(Timestamp(end.saturating_mul(length_ms))),
        bin_s: seconds,
        bins,
    })
}

fn bin_view(row: &NetRow, (bin, seconds): (u64, u64), found: &BinRow, missed: u64) -> BinView {
    let start = Timestamp(bin.saturating_mul(seconds).saturating_mul(1000));
    let covered = found.finals * u64::from(row.policy.period.as_secs());
    let watts = |energy: MilliwattHours| {
        let milliwatts = energy.0 as f64 * 3600.0 / covered as f64;
        milliwatts.round() / 1000.0
    };
    let sums: Vec<MilliwattHours> = found.energy.values().copied().collect();
    BinView {
        start: utc::text(start),
        end: utc::text(start.plus(Duration::from_secs(seconds))),
        finals: found.finals,
        pending: found.pending,
        lost: found.lost,
        without_roster: missed,
        power_w: by_channel(&row.channels, &sums, watts),
        energy_kwh: by_channel(&row.channels, &sums, kwh),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_whole_rounds_and_not_too_many() {
        let length = |period, span| bin_length(Period::from_secs(period).unwrap(), span);
        assert_eq!(length(900, 86_400), 900);
        assert_eq!(length(900, 7 * 86_400), 900);
        assert_eq!(length(900, 31 * 86_400), 3600);
        assert_eq!(length(2, 3600), 10);
        assert_eq!(length(2, 86_400), 120);
        assert_eq!(length(86_400, 86_400), 86_400);
        assert_eq!(length(43_200, 3600), 86_400);
        for period in (1..=86_400).filter_map(Period::from_secs) {
            for span in [3600, 86_400, 31 * 86_400] {
                let bin = bin_length(period, span);
                assert!(
                    bin.is_multiple_of(u64::from(period.as_secs())),
                    "{period:?}"
                );
                assert!(span / bin <= BINS);
            }
        }
    }
}
