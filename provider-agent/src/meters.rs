//! The meters of a net as its operator looks at them.

use dcnet::graph::MemberIndex;
use dcnet::identity::DeviceId;
use dcnet::membership::{Member, Membership};
use dcnet::time::Round;
use dcnet::topic::NetId;
use serde::Serialize;

use crate::net::LogDates;
use crate::store::Store;
use crate::utc;

/// Where a meter stands in a net.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MeterState {
    /// It is a member.
    Active,
    /// It is a member, and was away for so long that no draw names it until it draws itself.
    Lapsed,
    /// It left by its own exit.
    Left,
    /// The gateway administrator revoked it.
    Revoked,
}

impl MeterState {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Lapsed => "lapsed",
            Self::Left => "left",
            Self::Revoked => "revoked",
        }
    }
}

/// A meter's newest membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MeterView {
    /// Its id, 32 hexadecimal digits.
    pub meter: String,
    /// Its place in the log, from 0; another one after it joined anew.
    pub place: MemberIndex,
    /// Where it stands.
    pub state: MeterState,
    /// The log entry since which it stands there.
    pub since_entry: u64,
    /// When the provider signed that entry, RFC 3339 in UTC.
    pub since: Option<String>,
    /// The log entry with which it joined.
    pub joined_entry: u64,
    /// When the provider signed that entry.
    pub joined: Option<String>,
    /// The newest round with it on the roster.
    pub last_round: Option<u64>,
    /// When that round ended.
    pub last_round_end: Option<String>,
    /// Edges to other members, drawn by it or by them.
    pub edges: usize,
    /// Members that its own newest draw named: d.
    pub drawn: usize,
}

impl MeterView {
    /// The newest memberships of all meters, in the order of their places; `progress` is told
    /// how many are done, and of how many.
    ///
    /// # Errors
    /// Input/output errors.
    pub fn all(
        store: &Store,
        log: &Membership,
        dates: &LogDates,
        progress: &mut dyn FnMut(u64, u64),
    ) -> anyhow::Result<Vec<Self>> {
        let places = (0..).zip(log.members());
        let newest: Vec<(MemberIndex, &Member)> = places
            .filter(|(place, member)| log.index_of(&member.id) == Some(*place))
            .collect();
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let mut meters = Vec::with_capacity(newest.len());
        for (done, (place, member)) in newest.iter().enumerate() {
            progress(count(done), count(newest.len()));
            meters.push(Self::read(store, log, dates, *place, member)?);
        }
        Ok(meters)
    }

    /// One meter.
    ///
    /// # Errors
    /// It never was a member; input/output errors.
    pub fn one(
        store: &Store,
        log: &Membership,
        dates: &LogDates,
        meter: DeviceId,
    ) -> anyhow::Result<Self> {
        let net = log.net();
        let found = log
            .index_of(&meter)
            .and_then(|place| Some((place, log.member(place)?)));
        let Some((place, member)) = found else {
            anyhow::bail!(
                "{meter} never was a member of net {net}; `provider-agent meter list {net}` shows \
                 who is"
            );
        };
        Self::read(store, log, dates, place, member)
    }

    fn read(
        store: &Store,
        log: &Membership,
        dates: &LogDates,
        place: MemberIndex,
        member: &Member,
    ) -> anyhow::Result<Self> {
        let (state, since) = match (member.ended, member.lapses().last()) {
            (Some(ended), _) if log.is_revoked(&member.id) => (MeterState::Revoked, ended),
            (Some(ended), _) => (MeterState::Left, ended),
            (None, Some((lapsed, None))) => (MeterState::Lapsed, *lapsed),
            (None, Some((_, Some(drawn)))) => (MeterState::Active, *drawn),
            (None, None) => (MeterState::Active, member.joined),
        };
        let last = store.last_round_of(log.net(), member.id)?;
        let period = log.genesis().policy.period;
        let here = member.is_active();
        let graph = log.graph();
        let edges = |members: Vec<MemberIndex>| if here { members.len() } else { 0 };
        Ok(Self {
            meter: member.id.to_string(),
            place,
            state,
            since_entry: since,
            since: dates.text(since),
            joined_entry: member.joined,
            joined: dates.text(member.joined),
            last_round: last.map(|round| round.0),
            last_round_end: last.map(|round: Round| utc::text(round.end(period))),
            edges: edges(graph.neighbours(place, u64::MAX)),
            drawn: edges(graph.drawn(place, u64::MAX)),
        })
    }

    /// Whether it is a member.
    pub fn is_member(&self) -> bool {
        matches!(self.state, MeterState::Active | MeterState::Lapsed)
    }
}

/// What can be done about members that are away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Absent {
    /// The net.
    pub net: String,
    /// Members that are marked as lapsed: no draw names them.
    pub lapsed: Vec<MeterView>,
    /// Members that were away for as long as the configuration says, and are not marked: the
    /// running agent does that by itself, counted from its own start, for at most a fifth of
    /// all members.
    pub to_be_marked: Vec<MeterView>,
    /// The command by which the gateway administrator ends the lapsed memberships; `None` if
    /// there are none.
    pub revoke: Option<String>,
}

impl Absent {
    /// Sorts out who of `meters` is away. `after` is how long one is away before it is marked;
    /// nobody is if `None`.
    pub fn new(
        net: NetId,
        meters: Vec<MeterView>,
        is_overdue: impl Fn(&MeterView) -> bool,
    ) -> Self {
        let (lapsed, others): (Vec<_>, Vec<_>) = meters
            .into_iter()
            .filter(MeterView::is_member)
            .partition(|meter| meter.state == MeterState::Lapsed);
        let ids: Vec<&str> = lapsed.iter().map(|meter| meter.meter.as_str()).collect();
        let revoke = (!ids.is_empty()).then(|| format!("gateway-admin revoke {}", ids.join(" ")));
        Self {
            net: net.to_string(),
            to_be_marked: others.into_iter().filter(is_overdue).collect(),
            revoke,
            lapsed,
        }
    }
}
