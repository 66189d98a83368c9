//! What may go wrong in a run. A new kind is a variant here with its generator in
//! `Fault::draw`, and its executor in the module `inject`.

use std::fmt;

use crate::network::Faults;
use crate::plan::{Cast, Choice, Clock};

/// A fault and its time in milliseconds since the net began.
#[derive(Clone, Debug, PartialEq)]
pub struct Injection {
    /// When.
    pub at: u64,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", Clock(self.at), self.fault)
    }
}

/// What a hostile provider keeps from a meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// Log entries.
    Log,
    /// Rosters.
    Rosters,
    /// Aggregates.
    Aggregates,
    /// Handshakes.
    Handshakes,
    /// What the meter submits: the provider acts as if it had not come.
    Submissions,
    /// What the meter reveals.
    Reveals,
}

/// What is false in a roster that the provider signs beside the true one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Another meter is missing.
    Omission,
    /// Every second of the others is missing.
    SmallGroup,
    /// The meter that sees it is said not to have used an edge that it used.
    HalfOpen,
    /// The meter that sees it is said to have submitted something else.
    Digest,
    /// Two meters' places in the chain of rosters are skipped.
    Chain,
}

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    missing_docs,
    reason = "fields of one meaning throughout: `meter` or `meters` whom it hits \
    (`None` the provider), `lasts` and `back` in milliseconds, `after` what still works before"
)]
pub enum Fault {
    /// The network loses, duplicates and delays (so reorders) from now on.
    Weather(Faults),
    /// Meters are cut off; they notice (and connect again later), or everything to and from
    /// them gets lost silently.
    Partition {
        meters: Vec<usize>,
        noticed: bool,
        lasts: u64,
    },
    /// Everybody is disconnected, and everything under way is lost.
    BrokerRestart { lasts: u64 },
    /// A process dies between two outputs and starts again.
    Crash {
        process: Option<usize>,
        after: usize,
    },
    /// A disk that lied: the last step's records are lost although its messages went out.
    LostCommit { meter: usize, after: usize },
    /// A meter's disk is an image from earlier.
    OldDisk { meter: usize, back: u64 },
    /// A meter's disk is a new one: its state is lost.
    NewDisk { meter: usize },
    /// A household leaves the net.
    Leave { meter: usize },
    /// The gateway administrator revokes a meter.
    Revocation { meter: usize },
    /// The provider hands over to another key.
    KeyChange,
    /// A clock that is wrong for a while, then set right and confirmed.
    ClockStep {
        meter: usize,
        ahead: i64,
        lasts: u64,
    },
    /// A clock that runs too fast or too slow, in millionths.
    ClockDrift {
        meter: usize,
        drift: i64,
        lasts: u64,
    },
    /// A clock that has lost its reference.
    Unsynchronised { meter: usize, lasts: u64 },
    /// More than a day passes. All are quiet most of the time, one meter is away for all of
    /// it: the provider marks it as lapsed.
    Absence { meter: usize },
    /// The provider's clock is wrong for a while. It does not ask whether its clock is
    /// synchronised.
    ProviderClockStep { ahead: i64, lasts: u64 },
    /// The provider's clock runs too fast or too slow, in millionths.
    ProviderClockDrift { drift: i64, lasts: u64 },
    /// The provider keeps something from meters.
    Withhold {
        meters: Vec<usize>,
        what: Withheld,
        lasts: u64,
    },
    /// Frames from before are delivered again, to a meter or to the provider.
    Replay { to: Option<usize>, frames: usize },
    /// Frames from before are delivered with wrong bits, cut off or on a wrong topic.
    Garbage { to: Option<usize>, frames: usize },
    /// Meters see a false roster before the true one of the next round.
    FalseRoster { meters: Vec<usize>, lie: Lie },
    /// Meters see a second roster of a round after they answered the true one.
    SecondRoster { meters: Vec<usize>, lie: Lie },
    /// A meter sees a second log entry in one place.
    ForkedLog { meter: usize },
    /// The provider marks a meter as lapsed that is here.
    FalseLapse { meter: usize },
}

impl Fault {
    /// Names of the kinds that happen without anybody's ill will.
    pub const HONEST: &[&str] = &[
        "bad network",
        "partition, noticed",
        "partition, silent",
        "broker restart",
        "meter crash",
        "provider crash",
        "lost last commit",
        "old disk image",
        "new disk",
        "exit",
        "revocation",
        "provider key change",
        "clock step",
        "clock drift",
        "clock unsynchronised",
        "day of absence",
        "provider clock step",
        "provider clock drift",
    ];

    /// Names of the kinds that only a provider or a network that lies makes happen.
    pub const LIES: &[&str] = &[
        "withheld messages",
        "replayed frames",
        "garbage",
        "false roster",
        "second roster",
        "forked log",
        "false lapse",
    ];

    /// Names of all kinds.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        Self::HONEST.iter().chain(Self::LIES).copied()
    }

    /// The name of its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Weather(_) => "bad network",
            Self::Partition { noticed: true, .. } => "partition, noticed",
            Self::Partition { noticed: false, .. } => "partition, silent",
            Self::BrokerRestart { .. } => "broker restart",
            Self::Crash {
                process: Some(_), ..
            } => "meter crash",
            Self::Crash { process: None, .. } => "provider crash",
            Self::LostCommit { .. } => "lost last commit",
            Self::OldDisk { .. } => "old disk image",
            Self::NewDisk { .. } => "new disk",
            Self::Leave { .. } => "exit",
            Self::Revocation { .. } => "revocation",
            Self::KeyChange => "provider key change",
            Self::ClockStep { .. } => "clock step",
            Self::ClockDrift { .. } => "clock drift",
            Self::Unsynchronised { .. } => "clock unsynchronised",
            Self::Absence { .. } => "day of absence",
            Self::ProviderClockStep { .. } => "provider clock step",
            Self::ProviderClockDrift { .. } => "provider clock drift",
            Self::Withhold { .. } => "withheld messages",
            Self::Replay { .. } => "replayed frames",
            Self::Garbage { .. } => "garbage",
            Self::FalseRoster { .. } => "false roster",
            Self::SecondRoster { .. } => "second roster",
            Self::ForkedLog { .. } => "forked log",
            Self::FalseLapse { .. } => "false lapse",
        }
    }

    /// A random fault.
    pub(crate) fn draw(cast: &Cast, hostile: bool, choice: &mut Choice) -> Self {
        if hostile && choice.percent(50) {
            return Self::draw_lie(cast, choice);
        }
        let lasts = choice.within(500, 150_000);
        match choice.within(0, 18) {
            0 | 1 => Self::Weather(Faults {
                loss: u32::try_from(choice.within(0, 30)).unwrap(),
                duplicates: u32::try_from(choice.within(0, 50)).unwrap(),
                delay: choice.within(0, 20_000) / choice.within(1, 40),
            }),
            2 => Self::Partition {
                meters: cast.some(choice),
                noticed: choice.percent(50),
                lasts,
            },
            3 => Self::BrokerRestart {
                lasts: choice.within(100, 60_000),
            },
            4 | 5 => Self::Crash {
                process: Some(cast.anybody(choice)),
                after: choice.index(40),
            },
            6 => Self::Crash {
                process: None,
                after: choice.index(80),
            },
            7 => Self::LostCommit {
                meter: cast.frail(choice),
                after: choice.index(6),
            },
            8 => Self::OldDisk {
                meter: cast.frail(choice),
                back: choice.within(10, 5 * 60_000),
            },
            11 => Self::NewDisk {
                meter: cast.frail(choice),
            },
            12 => Self::Leave {
                meter: cast.anybody(choice),
            },
            13 if choice.percent(50) => Self::Revocation {
                meter: cast.anybody(choice),
            },
            13 | 14 => Self::KeyChange,
            9 => Self::ClockStep {
                meter: cast.anybody(choice),
                ahead: draw_step(choice),
                lasts,
            },
            10 => Self::ClockDrift {
                meter: cast.anybody(choice),
                drift: choice.signed(1, 40_000),
                lasts,
            },
            // A day takes as long as all the rest of a run, and longer if a lie makes meters
            // ask for what they never get.
            15 if choice.percent(if hostile { 5 } else { 10 }) => Self::Absence {
                meter: cast.anybody(choice),
            },
            16 => Self::ProviderClockStep {
                ahead: draw_step(choice),
                lasts,
            },
            17 => Self::ProviderClockDrift {
                drift: choice.signed(1, 40_000),
                lasts,
            },
            _ => Self::Unsynchronised {
                meter: cast.anybody(choice),
                lasts,
            },
        }
    }

    fn draw_lie(cast: &Cast, choice: &mut Choice) -> Self {
        let to = (!choice.percent(30)).then(|| cast.anybody(choice));
        let frames = 1 + choice.index(30);
        let victims = if choice.percent(80) {
            vec![cast.frail(choice)]
        } else {
            cast.some(choice)
        };
        let lie = [
            Lie::Omission,
            Lie::SmallGroup,
            Lie::HalfOpen,
            Lie::Digest,
            Lie::Chain,
        ][choice.index(5)];
        match choice.within(0, 10) {
            0..=2 => Self::Withhold {
                meters: victims,
                what: [
                    Withheld::Log,
                    Withheld::Rosters,
                    Withheld::Aggregates,
                    Withheld::Handshakes,
                    Withheld::Submissions,
                    Withheld::Reveals,
                ][choice.index(6)],
                lasts: choice.within(1000, 150_000),
            },
            3 | 4 => Self::Replay { to, frames },
            5 | 6 => Self::Garbage { to, frames },
            7 => Self::FalseRoster {
                meters: victims,
                lie,
            },
            8 => Self::SecondRoster {
                meters: victims,
                lie,
            },
            9 => Self::FalseLapse {
                meter: cast.anybody(choice),
            },
            _ => Self::ForkedLog {
                meter: cast.frail(choice),
            },
        }
    }

    /// The meters that it names.
    pub fn meters(&self) -> Vec<usize> {
        match self {
            Self::Weather(_)
            | Self::BrokerRestart { .. }
            | Self::KeyChange
            | Self::ProviderClockStep { .. }
            | Self::ProviderClockDrift { .. } => Vec::new(),
            Self::Partition { meters, .. }
            | Self::Withhold { meters, .. }
            | Self::FalseRoster { meters, .. }
            | Self::SecondRoster { meters, .. } => meters.clone(),
            Self::Crash { process, .. } => process.iter().copied().collect(),
            Self::Replay { to, .. } | Self::Garbage { to, .. } => to.iter().copied().collect(),
            Self::LostCommit { meter, .. }
            | Self::OldDisk { meter, .. }
            | Self::NewDisk { meter }
            | Self::Leave { meter }
            | Self::Revocation { meter }
            | Self::ClockStep { meter, .. }
            | Self::ClockDrift { meter, .. }
            | Self::Unsynchronised { meter, .. }
            | Self::Absence { meter }
            | Self::FalseLapse { meter }
            | Self::ForkedLog { meter } => vec![*meter],
        }
    }

    /// The fault among fewer meters; `None` if it concerns none of them.
    pub(crate) fn among(&self, count: usize) -> Option<Self> {
        let mut fault = self.clone();
        if let Self::Partition { meters, .. }
        | Self::Withhold { meters, .. }
        | Self::FalseRoster { meters, .. }
        | Self::SecondRoster { meters, .. } = &mut fault
        {
            meters.retain(|meter| *meter < count);
            return (!meters.is_empty()).then_some(fault);
        }
        let stays = fault.meters().iter().all(|meter| *meter < count);
        stays.then_some(fault)
    }
}

/// How far a clock is set ahead, or back.
fn draw_step(choice: &mut Choice) -> i64 {
    if choice.percent(60) {
        choice.signed(100, 100_000)
    } else {
        choice.signed(60_000, 30 * 3_600_000)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.kind())?;
        match self {
            Self::Weather(faults) => write!(
                f,
                "{} % lost, {} % twice, up to {} ms late",
                faults.loss, faults.duplicates, faults.delay
            ),
            Self::Partition { meters, lasts, .. } => {
                write!(f, "meters {meters:?} for {lasts} ms")
            }
            Self::BrokerRestart { lasts } => write!(f, "down for {lasts} ms"),
            Self::Crash {
                process: Some(meter),
                after,
            } => write!(f, "meter {meter} after {after} outputs"),
            Self::Crash { after, .. } => write!(f, "after {after} outputs"),
            Self::LostCommit { meter, after } => {
                write!(f, "meter {meter}, in storing step {after}")
            }
            Self::NewDisk { meter }
            | Self::Leave { meter }
            | Self::Revocation { meter }
            | Self::Absence { meter }
            | Self::FalseLapse { meter } => write!(f, "meter {meter}"),
            Self::ProviderClockStep { ahead, lasts } => {
                write!(f, "{ahead} ms ahead for {lasts} ms")
            }
            Self::ProviderClockDrift { drift, lasts } => {
                write!(f, "by {drift} ppm for {lasts} ms")
            }
            Self::KeyChange => write!(f, "to a successor"),
            Self::OldDisk { meter, back } => write!(f, "meter {meter}, from {back} ms before"),
            Self::ClockStep {
                meter,
                ahead,
                lasts,
            } => write!(f, "meter {meter} is {ahead} ms ahead for {lasts} ms"),
            Self::ClockDrift {
                meter,
                drift,
                lasts,
            } => write!(f, "meter {meter} by {drift} ppm for {lasts} ms"),
            Self::Unsynchronised { meter, lasts } => write!(f, "meter {meter} for {lasts} ms"),
            Self::Withhold {
                meters,
                what,
                lasts,
            } => write!(f, "{what:?} of meters {meters:?} for {lasts} ms"),
            Self::Replay { to, frames } | Self::Garbage { to, frames } => match to {
                Some(meter) => write!(f, "{frames} to meter {meter}"),
                None => write!(f, "{frames} to the provider"),
            },
            Self::FalseRoster { meters, lie } | Self::SecondRoster { meters, lie } => {
                write!(f, "{lie:?} shown to meters {meters:?}")
            }
            Self::ForkedLog { meter } => write!(f, "shown to meter {meter}"),
        }
    }
}
