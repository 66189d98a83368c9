//! What a meter persists, as key-value records, and how it starts again from them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ciborium::Value;

use super::draws::OpenDraw;
use super::edges::{Edge, EdgeKey, Stage};
use super::exit::Exit;
use super::rounds::{OwnRound, RoundStage, SeenRoster};
use super::{DeviceSecrets, Meter, Purpose, Stopped};
use crate::alarm::Alarm;
use crate::bitmap::Bitmap;
use crate::cbor::{self, Fields};
use crate::frame::{FrameError, MAX_FRAME};
use crate::handshake::{Ephemeral, Pair};
use crate::identity::DeviceId;
use crate::membership::{EntryError, MAX_CHANNELS, MAX_ENTRY, MAX_MEMBERS};
use crate::opening::Opening;
use crate::output::{Message, Record, Store};
use crate::pad::{PairKey, RosterHash};
use crate::reading::BlindingSecret;
use crate::revocation::RevocationList;
use crate::secret::Secret;
use crate::time::{Day, Now, Round, Timestamp};
use crate::topic::{NetId, Topic, Up};

pub(super) const STOPPED: &[u8] = b"stopped";
pub(super) const CLOCK_JUMP: &[u8] = b"clock-jump";
pub(super) const EXIT: &[u8] = b"exit";
pub(super) const KEYLESS: &[u8] = b"keyless";
pub(super) const REGISTRATION: &[u8] = b"registration";
pub(super) const DEVICE: &[u8] = b"device";
pub(super) const DRAW: &[u8] = b"draw";
pub(super) const DRAW_TIMES: &[u8] = b"draw-times";
pub(super) const LAST_ROSTER: &[u8] = b"last-roster";
pub(super) const EXCLUSIONS: &[u8] = b"exclusions";
pub(super) const LATE_REVEALS: &[u8] = b"late-reveals";
pub(super) const REVOKED: &[u8] = b"revoked";
pub(super) const SUBMITTED_UNTIL: &[u8] = b"submitted-until";

const LOG: &str = "log/";
const EDGE: &str = "edge/";
const ROUND: &str = "round/";
const SEEN: &str = "seen/";

/// Why a meter does not start on what it saved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// The enrolment does not fit together.
    #[error("key, certificate and checkpoint are not of one meter in one net")]
    Certificate,
    /// A record cannot be read.
    #[error("the saved record `{key}` cannot be read: {error}")]
    Record {
        /// Its key.
        key: String,
        /// Why.
        error: FrameError,
    },
    /// The saved log does not verify.
    #[error("the saved membership log does not verify: {0}")]
    Log(#[from] EntryError),
}

pub(super) fn log_key(index: u64) -> Vec<u8> {
    format!("{LOG}{index:016x}").into_bytes()
}

pub(super) fn edge_key(key: &EdgeKey) -> Vec<u8> {
    format!("{EDGE}{}/{:016x}", key.peer, key.origin).into_bytes()
}

pub(super) fn round_key(round: Round) -> Vec<u8> {
    format!("{ROUND}{:016x}", round.0).into_bytes()
}

pub(super) fn seen_key(round: Round) -> Vec<u8> {
    format!("{SEEN}{:016x}", round.0).into_bytes()
}

pub(super) fn roster_bytes(round: Round, hash: &RosterHash) -> Vec<u8> {
    cbor::encode(&cbor::array([cbor::uint(round.0), cbor::bytes(hash)]))
}

pub(super) fn seen_bytes(included: &Bitmap, hash: &RosterHash) -> Vec<u8> {
    let trimmed = included.trimmed();
    let length = u64::try_from(trimmed.length()).unwrap_or(0);
    cbor::encode(&cbor::array([
        cbor::uint(length),
        cbor::bytes(trimmed.as_bytes()),
        cbor::bytes(hash),
    ]))
}

pub(super) fn times_bytes(times: &[Timestamp]) -> Vec<u8> {
    cbor::encode(&cbor::array(
        times.iter().map(|at| cbor::uint(at.as_millis())),
    ))
}

pub(super) fn keyless_bytes(keyless: Duration) -> Vec<u8> {
    cbor::encode(&cbor::array([cbor::uint(keyless.as_secs())]))
}

fn read_keyless(value: &[u8]) -> Result<Duration, FrameError> {
    let mut fields = Fields::of(cbor::decode(value)?, "keyless")?;
    let seconds = fields.uint("seconds", u64::MAX)?;
    fields.end()?;
    Ok(Duration::from_secs(seconds))
}

fn read_times(value: &[u8]) -> Result<Vec<Timestamp>, FrameError> {
    let mut list = Fields::of(cbor::array([cbor::decode(value)?]), "times")?;
    let mut times = Vec::new();
    for item in list.array("times", usize::MAX)? {
        let at = Fields::of(cbor::array([item]), "time")?.uint("at", u64::MAX)?;
        times.push(Timestamp(at));
    }
    Ok(times)
}

fn secret(secret: &Secret) -> Value {
    cbor::bytes(secret.expose())
}

fn read_secret(fields: &mut Fields) -> Result<Secret, FrameError> {
    let mut bytes = fields.fixed("secret")?;
    Ok(Secret::new(&mut bytes))
}

impl DeviceSecrets {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let blinding = &self.blinding;
        cbor::encode(&cbor::array([
            secret(&self.mask),
            cbor::uint(blinding.day().0),
            secret(blinding.secret()),
        ]))
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(cbor::decode(bytes)?, "device")?;
        let mask = read_secret(&mut fields)?;
        let day = Day(fields.u32("day")?);
        let blinding = BlindingSecret::new(day, read_secret(&mut fields)?);
        fields.end()?;
        Ok(Self { mask, blinding })
    }
}

impl OpenDraw {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        cbor::encode(&cbor::array([
            secret(&self.nonce),
            cbor::bytes(&self.request),
            cbor::uint(self.since.as_millis()),
        ]))
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(cbor::decode(bytes)?, "draw")?;
        let nonce = read_secret(&mut fields)?;
        let request = fields.bytes("request", MAX_ENTRY)?;
        let since = Timestamp(fields.uint("since", u64::MAX)?);
        fields.end()?;
        Ok(Self {
            nonce,
            request,
            since,
            overdue: false,
        })
    }
}

impl Exit {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        cbor::encode(&cbor::array([
            cbor::bytes(&self.frame),
            cbor::bytes(&self.join),
            cbor::uint(u8::from(self.again)),
            cbor::array(self.left.map(|at| cbor::uint(at.as_millis()))),
            cbor::uint(self.neighbours),
            cbor::array(self.awaited.iter().map(|id| cbor::bytes(&id.0))),
            cbor::uint(u8::from(self.done)),
        ]))
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(cbor::decode(bytes)?, "exit")?;
        let frame = fields.bytes("frame", MAX_ENTRY)?;
        let join = fields.fixed("join")?;
        let again = fields.uint("again", 1)? == 1;
        let mut left = None;
        for item in fields.array("left", 1)? {
            let mut item = Fields::of(cbor::array([item]), "left")?;
            left = Some(Timestamp(item.uint("left", u64::MAX)?));
        }
        let neighbours = fields.u32("neighbours")?;
        let mut awaited = BTreeSet::new();
        for item in fields.array("awaited", MAX_MEMBERS)? {
            let mut item = Fields::of(cbor::array([item]), "awaited")?;
            awaited.insert(DeviceId(item.fixed("awaited")?));
        }
        let done = fields.uint("done", 1)? == 1;
        fields.end()?;
        Ok(Self {
            frame,
            join,
            again,
            left,
            neighbours,
            awaited,
            done,
        })
    }
}

impl Edge {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let pair = &self.pair;
        let key = |key: &PairKey| [cbor::uint(key.day().0), secret(key.secret())];
        let (number, stage): (u8, Vec<Value>) = match &self.stage {
            Stage::Offered {
                ephemeral,
                first_day,
                offer,
            } => (
                0,
                vec![
                    cbor::uint(first_day.0),
                    secret(ephemeral.secret()),
                    cbor::bytes(offer),
                ],
            ),
            Stage::Answered {
                key: pair_key,
                offer,
                answer,
                offered,
            } => {
                let offered = cbor::uint(offered.as_millis());
                let rest = [cbor::bytes(offer), cbor::bytes(answer), offered];
                (1, key(pair_key).into_iter().chain(rest).collect())
            }
            Stage::Confirming {
                key: pair_key,
                offer,
                answer,
                confirm,
            } => {
                let rest = [
                    cbor::bytes(offer),
                    cbor::bytes(answer),
                    cbor::bytes(confirm),
                ];
                (2, key(pair_key).into_iter().chain(rest).collect())
            }
            Stage::Established {
                key: pair_key,
                offer,
                confirm,
                answer,
            } => {
                let rest = [
                    cbor::bytes(offer),
                    cbor::bytes(confirm),
                    cbor::bytes(answer),
                ];
                (3, key(pair_key).into_iter().chain(rest).collect())
            }
        };
        cbor::encode(&cbor::array([
            cbor::bytes(&pair.lower.0),
            cbor::bytes(&pair.higher.0),
            cbor::bytes(&pair.origin),
            cbor::uint(number),
            cbor::array(stage),
        ]))
    }

    fn from_bytes(net: NetId, bytes: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(cbor::decode(bytes)?, "edge")?;
        let pair = Pair {
            net,
            lower: DeviceId(fields.fixed("lower")?),
            higher: DeviceId(fields.fixed("higher")?),
            origin: fields.fixed("origin")?,
        };
        let number = fields.uint("stage", 3)?;
        let mut stage = Fields::of(fields.item("stage")?, "stage")?;
        fields.end()?;
        let day = Day(stage.u32("day")?);
        let kept = read_secret(&mut stage)?;
        let key = PairKey::new(day, kept.clone());
        let read = match number {
            0 => Stage::Offered {
                ephemeral: Ephemeral::new(kept),
                first_day: day,
                offer: stage.bytes("offer", MAX_ENTRY)?,
            },
            1 => Stage::Answered {
                key,
                offer: stage.fixed("offer")?,
                answer: stage.bytes("answer", MAX_ENTRY)?,
                // Not in every store.
                offered: Timestamp(stage.uint("offered", u64::MAX).unwrap_or_default()),
            },
            2 => Stage::Confirming {
                key,
                offer: stage.fixed("offer")?,
                answer: stage.fixed("answer")?,
                confirm: stage.bytes("confirm", MAX_ENTRY)?,
            },
            _ => Stage::Established {
                key,
                offer: stage.fixed("offer")?,
                confirm: stage.bytes("confirm", MAX_ENTRY)?,
                // Not in every store.
                answer: stage.bytes("answer", MAX_ENTRY).unwrap_or_default(),
            },
        };
        stage.end()?;
        Ok(Self::saved(pair, read))
    }
}

/// Bytes of a used edge: index, peer, origin.
const EDGE_BYTES: usize = 4 + 16 + 8;

impl OwnRound {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut used = Vec::with_capacity(self.used.len().saturating_mul(EDGE_BYTES));
        for (index, key) in &self.used {
            used.extend_from_slice(&index.to_be_bytes());
            used.extend_from_slice(&key.peer.0);
            used.extend_from_slice(&key.origin.to_be_bytes());
        }
        let (number, stage): (u8, Vec<Value>) = match &self.stage {
            RoundStage::Submitted {
                frame,
                masks,
                timely,
            } => {
                let masks = masks.iter().map(|mask| cbor::bytes(&mask.to_bytes()));
                let timely = cbor::uint(u8::from(*timely));
                (0, vec![cbor::bytes(frame), cbor::array(masks), timely])
            }
            RoundStage::Revealed { roster, frame } => {
                (1, vec![cbor::bytes(roster), cbor::bytes(frame)])
            }
            RoundStage::Refused => (2, vec![]),
        };
        cbor::encode(&cbor::array([
            cbor::uint(self.head_index),
            cbor::array(self.drawn.iter().map(|index| cbor::uint(*index))),
            cbor::bytes(&used),
            cbor::uint(self.required),
            cbor::uint(self.minimum_group),
            cbor::bytes(&self.digest),
            cbor::uint(number),
            cbor::array(stage),
        ]))
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::of(cbor::decode(bytes)?, "round")?;
        let head_index = fields.uint("head", u64::MAX)?;
        let mut drawn = Vec::new();
        for item in fields.array("drawn", MAX_MEMBERS)? {
            drawn.push(Fields::of(cbor::array([item]), "drawn")?.u32("drawn")?);
        }
        let mut used = Vec::new();
        let bytes = fields.bytes("used", MAX_MEMBERS.saturating_mul(EDGE_BYTES))?;
        let (edges, rest) = bytes.as_chunks::<EDGE_BYTES>();
        if !rest.is_empty() {
            return Err(FrameError::Bound("used"));
        }
        for edge in edges {
            let mut edge = edge.iter().copied();
            let index = u32::from_be_bytes(std::array::from_fn(|_| edge.next().unwrap_or(0)));
            let peer = DeviceId(std::array::from_fn(|_| edge.next().unwrap_or(0)));
            let origin = u64::from_be_bytes(std::array::from_fn(|_| edge.next().unwrap_or(0)));
            used.push((index, EdgeKey { peer, origin }));
        }
        let required = fields.u32("required")?;
        let minimum_group = fields.u32("minimum group")?;
        let digest = fields.fixed("digest")?;
        let number = fields.uint("stage", 2)?;
        let mut stage = Fields::of(fields.item("stage")?, "stage")?;
        fields.end()?;
        let read = match number {
            0 => {
                let frame = stage.bytes("frame", MAX_FRAME)?;
                let mut masks = Vec::new();
                for item in stage.array("masks", MAX_CHANNELS)? {
                    let mut mask = Fields::of(cbor::array([item]), "mask")?;
                    masks.push(Opening::from_bytes(&mask.fixed("mask")?)?);
                }
                RoundStage::Submitted {
                    frame,
                    masks,
                    timely: stage.uint("timely", 1)? == 1,
                }
            }
            1 => RoundStage::Revealed {
                roster: stage.fixed("roster")?,
                frame: stage.bytes("frame", MAX_FRAME)?,
            },
            _ => RoundStage::Refused,
        };
        stage.end()?;
        Ok(Self {
            head_index,
            drawn,
            used,
            required,
            minimum_group,
            digest,
            stage: read,
        })
    }
}

fn number(hex: &str) -> Result<u64, FrameError> {
    u64::from_str_radix(hex, 16).map_err(|_| FrameError::Field("key"))
}

impl Meter {
    /// Reads what was saved. Records are sorted first: the log comes before what
    /// refers to it.
    pub(super) fn restore(&mut self, saved: Vec<Record>) -> Result<(), SavedError> {
        let mut net = BTreeMap::new();
        for record in saved {
            let Some(value) = record.value else { continue };
            let key = String::from_utf8_lossy(&record.key).into_owned();
            match record.store {
                Store::Register if record.key == SUBMITTED_UNTIL => {
                    let bytes = value.try_into().map_err(|_| SavedError::Record {
                        key,
                        error: FrameError::Bound("submitted until"),
                    })?;
                    self.submitted_until = Timestamp(u64::from_be_bytes(bytes));
                }
                Store::Register => {}
                Store::Net => {
                    net.insert(key, value);
                }
            }
        }
        for (_, entry) in net.iter().filter(|(key, _)| key.starts_with(LOG)) {
            self.apply_entry(entry)?;
        }
        for (key, value) in &net {
            if !key.starts_with(LOG) {
                let read = self.restore_record(key, value);
                read.map_err(|error| SavedError::Record {
                    key: key.clone(),
                    error,
                })?;
            }
        }
        self.find_edges_in_graph();
        self.check_checkpoint();
        if let Some(membership) = &self.membership {
            self.clock.set_period(membership.genesis().policy.period);
        }
        Ok(())
    }

    fn restore_record(&mut self, key: &str, value: &[u8]) -> Result<(), FrameError> {
        if key.as_bytes() == STOPPED {
            self.stopped = Some(Stopped::Earlier);
        } else if key.as_bytes() == CLOCK_JUMP {
            self.clock.require_confirmation();
        } else if key.as_bytes() == REGISTRATION {
            self.registered = Some(crate::frame::digest_of(value)?);
            self.registration = Some(value.to_vec());
        } else if key.as_bytes() == EXIT {
            self.exit = Some(Exit::from_bytes(value)?);
        } else if key.as_bytes() == KEYLESS {
            self.keyless = read_keyless(value)?;
        } else if key.as_bytes() == DEVICE {
            self.device = Some(DeviceSecrets::from_bytes(value)?);
        } else if key.as_bytes() == DRAW {
            self.draw = Some(OpenDraw::from_bytes(value)?);
        } else if key.as_bytes() == REVOKED {
            self.config.revoked = Some(RevocationList::from_bytes(value)?);
        } else if key.as_bytes() == LAST_ROSTER {
            let mut fields = Fields::of(cbor::decode(value)?, "roster")?;
            let round = Round(fields.uint("round", u64::MAX)?);
            self.last_roster = Some((round, fields.fixed("hash")?));
        } else if key.as_bytes() == EXCLUSIONS {
            self.exclusions = read_times(value)?;
        } else if key.as_bytes() == LATE_REVEALS {
            self.late_reveals = read_times(value)?;
        } else if key.as_bytes() == DRAW_TIMES {
            self.draw_times = read_times(value)?;
        } else if let Some(rest) = key.strip_prefix(EDGE) {
            let (_, origin) = rest.split_once('/').ok_or(FrameError::Field("key"))?;
            let edge = Edge::from_bytes(self.net, value)?;
            let peer = if edge.pair.lower == self.id {
                edge.pair.higher
            } else {
                edge.pair.lower
            };
            self.edges.insert(
                EdgeKey {
                    peer,
                    origin: number(origin)?,
                },
                edge,
            );
        } else if let Some(round) = key.strip_prefix(ROUND) {
            self.rounds
                .insert(Round(number(round)?), OwnRound::from_bytes(value)?);
        } else if let Some(round) = key.strip_prefix(SEEN) {
            let mut fields = Fields::of(cbor::decode(value)?, "seen")?;
            let bound = u64::try_from(MAX_MEMBERS).unwrap_or(0);
            let length = usize::try_from(fields.uint("length", bound)?).unwrap_or(0);
            let included = Bitmap::from_bytes(fields.bytes("seen", MAX_MEMBERS)?, length, "seen")?;
            self.seen.push_back(SeenRoster {
                round: Round(number(round)?),
                included,
                hash: fields.fixed("hash")?,
            });
            fields.end()?;
        } else {
            return Err(FrameError::Field("key"));
        }
        Ok(())
    }

    /// Takes up everything that was under way, to be published at the next connection.
    pub(super) fn resume(&mut self, now: Now) {
        if self.stopped.is_some() {
            return;
        }
        // Who died right after it stored the Revoke has not followed it yet.
        if self
            .membership
            .as_ref()
            .is_some_and(|m| m.is_revoked(&self.id))
        {
            return self.stop(Alarm::Revoked);
        }
        self.register(now);
        self.resume_exit(now);
        self.drop_finished_draw();
        if let Some(draw) = &self.draw {
            let payload = draw.request.clone();
            self.repeat_later(Purpose::Draw, self.up(Up::Draw), payload, now);
            self.on_invite(now);
        }
        let pending: Vec<(EdgeKey, Vec<u8>)> = self
            .edges
            .iter()
            .filter(|_| !self.has_left())
            .filter_map(|(key, edge)| match &edge.stage {
                Stage::Offered { offer, .. } => Some((*key, offer.clone())),
                Stage::Answered { answer, .. } => Some((*key, answer.clone())),
                Stage::Confirming { confirm, .. } => Some((*key, confirm.clone())),
                _ => None,
            })
            .collect();
        for (key, payload) in pending {
            self.repeat_later(Purpose::Edge(key), self.up_pair(key.peer), payload, now);
        }
        self.sync_edges(now);
        let outstanding: Vec<(Purpose, Up, Vec<u8>)> = self
            .rounds
            .iter()
            .filter_map(|(round, own)| match &own.stage {
                RoundStage::Submitted { frame, .. } => {
                    Some((Purpose::Submission(*round), Up::Submission, frame.clone()))
                }
                RoundStage::Revealed { frame, .. } => {
                    Some((Purpose::Reveal(*round), Up::Reveal, frame.clone()))
                }
                RoundStage::Refused => None,
            })
            .collect();
        for (purpose, kind, payload) in outstanding {
            self.repeat_later(purpose, self.up(kind), payload, now);
        }
    }

    fn repeat_later(&mut self, purpose: Purpose, topic: Topic, payload: Vec<u8>, now: Now) {
        let message = Message {
            topic,
            payload,
            retain: false,
        };
        self.repeats
            .start(purpose, message, now.monotonic, self.pace());
    }
}
