//! Whether a meter has a way to its net, and if it has none, why: it counts all the same.

use std::fmt;

use dcnet::identity::DeviceId;
use dcnet::time::Timestamp;
use dcnet::topic::NetId;
use link::LinkState;
use serde::{Deserialize, Serialize};

use crate::standing::HasLeft;

/// The way to the net at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The link to the broker, however it is.
    Link(LinkState),
    /// There is none.
    None(NoLink),
}

/// Why there is no link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLink {
    /// A certificate is not valid by a clock that nobody knows to be right.
    #[error(
        "no link before the clock is synchronised (look at `timedatectl` if that takes long): {0}"
    )]
    Clock(String),
    /// The enrolment is missing, damaged or expired.
    #[error(
        "no link, because the enrolment cannot be used: {0}. It is looked at again every minute, \
         and with `systemctl reload`"
    )]
    Enrolment(String),
    /// What is stored of the meter in its net.
    #[error("no link, because the state of this meter in its net cannot be used: {0}")]
    State(String),
    /// The meter has left, and wants none.
    #[error(transparent)]
    Left(#[from] HasLeft),
}

/// Who the meter is and for how long, as it was enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// Its id.
    pub meter: DeviceId,
    /// Its net.
    pub net: NetId,
    /// When the first of the certificates that its link needs ends.
    pub end: Timestamp,
}

impl Reach {
    /// Whether messages go both ways.
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Link(LinkState::Connected))
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(state) => state.fmt(f),
            Self::None(why) => why.fmt(f),
        }
    }
}

/// [`NoLink`] for the household and its programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoLinkView {
    /// What kind of reason it is.
    pub kind: NoLinkKind,
    /// In one line, with what to do.
    pub text: String,
}

/// The kinds of [`NoLink`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoLinkKind {
    /// [`NoLink::Clock`]
    Clock,
    /// [`NoLink::Enrolment`]
    Enrolment,
    /// [`NoLink::State`]
    State,
    /// [`NoLink::Left`]
    Left,
}

impl NoLinkKind {
    /// All of them, with their names in programs.
    pub const ALL: [(Self, &str); 4] = [
        (Self::Clock, "clock"),
        (Self::Enrolment, "enrolment"),
        (Self::State, "state"),
        (Self::Left, "left"),
    ];
}

impl NoLinkView {
    /// Of the way to the net, if there is none.
    pub fn of(reach: &Reach) -> Option<Self> {
        let Reach::None(why) = reach else {
            return None;
        };
        let kind = match why {
            NoLink::Clock(_) => NoLinkKind::Clock,
            NoLink::Enrolment(_) => NoLinkKind::Enrolment,
            NoLink::State(_) => NoLinkKind::State,
            NoLink::Left(_) => NoLinkKind::Left,
        };
        Some(Self {
            kind,
            text: why.to_string(),
        })
    }
}
