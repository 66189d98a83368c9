//! A run of a simulated net, recorded: which secrets every meter stored, and which rosters
//! it was shown. From that each superposition and reveal on the wire is taken apart by
//! numbers, and only what fits to the last bit becomes an equation.

use std::collections::{BTreeMap, BTreeSet};

use dcnet::commitment::commit;
use dcnet::frame::Frame;
use dcnet::graph::MemberIndex;
use dcnet::identity::DeviceId;
use dcnet::membership::Membership;
use dcnet::opening::{Opening, PadSum};
use dcnet::pad::{Pad, PadKeys, RosterHash};
use dcnet::provider::Published;
use dcnet::reading::{Boundary, Reading};
use dcnet::reveal::Reveal;
use dcnet::roster::Roster;
use dcnet::superposition::{Submission, short};
use dcnet::time::Round;
use dcnet::topic::{All, Inbox, Topic, Up};
use dcnet::units::MilliwattHours;

use super::account::{Account, Answer, Kind, ReadingOf, Unknown};
use super::elimination::Form;
use super::field::Element;
use super::saved::{self, Secrets};
use crate::network::{Network, Saved};

/// After the end of a round rosters may come at any moment, so records are looked at in
/// every millisecond of this long.
const FINE_MS: u64 = 30_000;

/// Otherwise so often.
const COARSE_MS: u64 = 500;

/// A network whose secrets are recorded.
pub struct Trace {
    /// The network. Time passes by [`Self::run_until`], rosters are shown by
    /// [`Self::show_roster`]: else something goes unseen, and the oracle says so.
    pub network: Network,
    secrets: BTreeMap<(usize, Round), Vec<Secrets>>,
    looked_at: BTreeMap<(usize, Round), Vec<u8>>,
    unreadable: BTreeSet<(usize, Round)>,
    rosters: Vec<Vec<u8>>,
    rolled_back: BTreeSet<usize>,
    recorded: usize,
}

/// The pads of a used edge in a round, taken from its key.
struct PadsOf<'a> {
    index: MemberIndex,
    peer: &'a DeviceId,
    adds: bool,
    keys: PadKeys,
}

impl Trace {
    /// Records from the start on.
    pub fn new(mut network: Network) -> Self {
        network.keep_published = true;
        Self {
            network,
            secrets: BTreeMap::new(),
            looked_at: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            rosters: Vec::new(),
            rolled_back: BTreeSet::new(),
            recorded: 0,
        }
    }

    /// Runs until `end` milliseconds after the start.
    pub fn run_until(&mut self, end: u64) {
        let period = u64::from(self.network.world.policy.period.as_secs()) * 1000;
        while self.network.now < end {
            let into = self.network.now % period;
            let step = if into < FINE_MS { 1 } else { COARSE_MS };
            let next = (self.network.now + step).min(end);
            self.network.run_until(next);
            // A meter stores before it speaks; while nobody speaks, nothing is erased.
            if self.network.published.len() != self.recorded {
                self.record();
            }
        }
    }

    /// Shows a roster to one meter, whoever issued it.
    pub fn show_roster(&mut self, meter: usize, frame: &[u8]) {
        self.record();
        self.rosters.push(frame.to_vec());
        self.network.show_roster(meter, frame.to_vec());
        self.record();
    }

    /// Takes a meter's durable state back to an earlier one and starts it again.
    pub fn roll_back(&mut self, meter: usize, saved: Saved) {
        self.record();
        self.rolled_back.insert(meter);
        self.network.saved[meter] = saved;
        self.network.restart_meter(meter);
        self.record();
    }

    /// Looks at the records of every meter.
    pub fn record(&mut self) {
        self.recorded = self.network.published.len();
        for (meter, saved) in self.network.saved.iter().enumerate() {
            for (round, record) in saved::rounds(saved) {
                let looked_at = self.looked_at.entry((meter, round)).or_default();
                if looked_at == record {
                    continue;
                }
                *looked_at = record.to_vec();
                match saved::secrets(saved, record) {
                    Ok(Some(secrets)) => {
                        self.secrets
                            .entry((meter, round))
                            .or_default()
                            .push(secrets);
                    }
                    Ok(None) => {}
                    Err(_) => drop(self.unreadable.insert((meter, round))),
                }
            }
        }
    }

    fn meter_of(&self, id: &DeviceId) -> Option<usize> {
        self.network
            .meters
            .iter()
            .position(|meter| meter.id() == *id)
    }

    /// The true energy per channel.
    fn energy(&self, meter: usize, round: Round) -> Vec<MilliwattHours> {
        self.network.true_sums(&Published {
            round,
            members: 1,
            included: vec![self.network.meters[meter].id()],
            sums: Vec::new(),
            roster: [0; 32],
            log_head: [0; 32],
            frame: Vec::new(),
        })
    }

    /// The openings of a meter's reading, by the stated derivation from its secret.
    fn openings(&self, meter: usize, round: Round, secrets: &Secrets) -> Option<Vec<Opening>> {
        let period = self.network.world.policy.period;
        let energy = self.energy(meter, round);
        let start = Boundary {
            at: round.start(period),
            channels: vec![MilliwattHours(0); energy.len()],
        };
        let end = Boundary {
            at: round.end(period),
            channels: energy,
        };
        let reading = Reading::between(&start, &end, period).ok()?;
        let blinding = secrets.blinding.on(round.day(period))?;
        Some(reading.openings(&blinding, self.network.world.net))
    }

    /// Everything that was said, as equations. The logarithm that an unbounded adversary
    /// knows follows from `seed`.
    pub fn account(&self, seed: u64) -> Account {
        let mut account = Account::new(seed);
        account.rolled_back.clone_from(&self.rolled_back);
        for (meter, round) in &self.unreadable {
            account.unexplained(*meter, *round, "a record of the round cannot be read");
        }
        for meter in 0..self.network.meters.len() {
            for frame in distinct(self.network.sent(meter, Up::Submission)) {
                self.submission(&mut account, meter, &frame);
            }
            let rosters = self.rosters_seen(meter);
            for frame in distinct(self.network.sent(meter, Up::Reveal)) {
                self.reveal(&mut account, meter, &frame, &rosters);
            }
        }
        account
    }

    fn channels(&self) -> usize {
        self.network.provider.membership().genesis().channels.len()
    }

    /// The log as a meter knows it.
    fn log(&self, meter: usize) -> &Membership {
        let own = self.network.meters[meter].membership();
        own.unwrap_or(self.network.provider.membership())
    }

    /// Every roster that left the provider or was shown, as far as it verifies.
    fn rosters_seen(&self, meter: usize) -> BTreeMap<RosterHash, Roster> {
        let sent = self.network.published.iter().filter(|(_, message)| {
            let topic = &message.topic;
            let all = matches!(
                topic,
                Topic::All {
                    kind: All::Roster,
                    ..
                }
            );
            all || matches!(
                topic,
                Topic::Inbox {
                    kind: Inbox::Roster,
                    ..
                }
            )
        });
        let frames = sent
            .map(|(_, message)| &message.payload)
            .chain(&self.rosters);
        let frames: BTreeSet<&Vec<u8>> = frames.collect();
        let rosters = frames.into_iter().filter_map(|frame| {
            let own = Roster::verify(frame, self.log(meter));
            own.or_else(|_| Roster::verify(frame, self.network.provider.membership()))
                .ok()
        });
        rosters.map(|roster| (roster.hash, roster)).collect()
    }

    fn pads<'a>(
        &self,
        meter: usize,
        round: Round,
        secrets: &'a Secrets,
    ) -> Option<Vec<PadsOf<'a>>> {
        let (id, net) = (self.network.meters[meter].id(), self.network.world.net);
        let day = round.day(self.network.world.policy.period);
        let edges = secrets.used.iter().map(|edge| {
            Some(PadsOf {
                index: edge.index,
                peer: &edge.peer,
                adds: id < edge.peer,
                keys: edge.key.on(day)?.pad_keys(net),
            })
        });
        edges.collect()
    }

    fn submission(&self, account: &mut Account, meter: usize, frame: &[u8]) {
        let key = self.network.world.meters[meter].key.public();
        let read = Frame::verify(frame, &key)
            .and_then(|frame| Submission::read(frame, self.network.world.net, self.channels()));
        let Ok(submission) = read else {
            return account.unexplained(meter, Round(0), "a submission cannot be read");
        };
        let round = submission.round;
        let stored = self.secrets.get(&(meter, round)).into_iter().flatten();
        let Some(secrets) = stored
            .into_iter()
            .find(|secrets| secrets.digest == short(&submission.digest))
        else {
            return account.unexplained(
                meter,
                round,
                "a submission was published that was not stored",
            );
        };
        let (Some(openings), Some(pads)) = (
            self.openings(meter, round, secrets),
            self.pads(meter, round, secrets),
        ) else {
            return account.unexplained(meter, round, "keys of the round's day are missing");
        };
        for (channel, share) in submission.shares.iter().enumerate() {
            let (Some(opening), Some(mask)) = (openings.get(channel), secrets.masks.get(channel))
            else {
                return account.unexplained(meter, round, "a channel has no self-mask");
            };
            let used = pads
                .iter()
                .map(|edge| (edge, edge.keys.submission(round, wide(channel))));
            let (sum, mut forms) = self.padded(account, meter, mask, used);
            if *opening + sum != share.superposition {
                let what = "the superposition is not reading + pads + self-mask";
                return account.unexplained(meter, round, what);
            }
            if commit(opening) != share.commitment {
                return account.unexplained(meter, round, "the commitment is not the reading's");
            }
            let reading = reading_forms(account, meter, round, channel, opening);
            for (form, part) in forms.iter_mut().zip(&reading) {
                form.combine(part, Element::ONE);
            }
            for form in forms {
                account.observe(meter, round, Kind::Superposition, form);
            }
            let commitment = account.commitment(&reading);
            account.observe(meter, round, Kind::Commitment, commitment);
        }
    }

    /// The sum of pads and a self-mask, in numbers and as forms of both components.
    fn padded<'a>(
        &self,
        account: &mut Account,
        meter: usize,
        mask: &Opening,
        pads: impl Iterator<Item = (&'a PadsOf<'a>, Pad)>,
    ) -> (Opening, [Form<Unknown>; 2]) {
        let mut sum = PadSum::new();
        let mut forms = [Form::default(), Form::default()];
        for (edge, pad) in pads {
            sum.include(pad.bytes(), edge.adds);
            let (value, blinding) = pad.bytes().split_at(64);
            let factor = if edge.adds {
                Element::ONE
            } else {
                -Element::ONE
            };
            for (form, bytes) in forms.iter_mut().zip([value, blinding]) {
                let unknown = Unknown::Pad(account.name(bytes));
                account.known(unknown, self.meter_of(edge.peer).into_iter().chain([meter]));
                form.add(unknown, factor);
            }
        }
        let bytes = mask.to_bytes();
        let (value, blinding) = bytes.split_at(32);
        for (form, bytes) in forms.iter_mut().zip([value, blinding]) {
            let unknown = Unknown::SelfMask(account.name(bytes));
            form.add(account.known(unknown, [meter]), Element::ONE);
        }
        (*mask + sum.finish(), forms)
    }

    fn reveal(
        &self,
        account: &mut Account,
        meter: usize,
        frame: &[u8],
        rosters: &BTreeMap<RosterHash, Roster>,
    ) {
        let key = self.network.world.meters[meter].key.public();
        let read = Frame::verify(frame, &key)
            .and_then(|frame| Reveal::read(frame, self.network.world.net, self.channels()));
        let Ok(reveal) = read else {
            return account.unexplained(meter, Round(0), "a reveal cannot be read");
        };
        let round = reveal.round;
        let Some(roster) = rosters.get(&reveal.roster) else {
            return account.unexplained(
                meter,
                round,
                "a reveal answers a roster that nobody showed",
            );
        };
        let stored = self.secrets.get(&(meter, round)).into_iter().flatten();
        let explained = stored
            .into_iter()
            .any(|secrets| self.explain_reveal(account, meter, &reveal, roster, secrets));
        if !explained {
            let what = "the reveal is not self-mask + submission pads + reveal pads of its roster";
            account.unexplained(meter, round, what);
        }
    }

    /// Adds a reveal's equations if these secrets give its numbers.
    fn explain_reveal(
        &self,
        account: &mut Account,
        meter: usize,
        reveal: &Reveal,
        roster: &Roster,
        secrets: &Secrets,
    ) -> bool {
        let round = reveal.round;
        let log = self.log(meter);
        let (Some(pads), Some(openings), Some(own)) = (
            self.pads(meter, round, secrets),
            self.openings(meter, round, secrets),
            place_at(
                log,
                &self.network.meters[meter].id(),
                self.head_of(meter, secrets),
            ),
        ) else {
            return false;
        };
        let is_full = |index: MemberIndex| {
            let claimed =
                |claim: &dcnet::roster::HalfOpen| claim.user == own && claim.non_user == index;
            roster.includes(index) && !roster.half_open.iter().any(claimed)
        };
        let mut seen = Vec::new();
        for (channel, opening) in reveal.openings.iter().enumerate() {
            let Some(mask) = secrets.masks.get(channel) else {
                return false;
            };
            let channel = wide(channel);
            let used = pads.iter().map(|edge| {
                let pad = if is_full(edge.index) {
                    edge.keys.reveal(&roster.hash, round, channel)
                } else {
                    edge.keys.submission(round, channel)
                };
                (edge, pad)
            });
            let (sum, forms) = self.padded(account, meter, mask, used);
            if sum != *opening {
                return false;
            }
            seen.extend(forms);
        }
        for form in seen {
            account.observe(meter, round, Kind::Reveal, form);
        }
        let readings = openings.iter().enumerate();
        let readings = readings
            .map(|(channel, opening)| reading_forms(account, meter, round, channel, opening));
        let readings = readings.collect();
        let full = pads.iter().filter(|edge| is_full(edge.index));
        let full: BTreeSet<usize> = full.filter_map(|edge| self.meter_of(edge.peer)).collect();
        let (drawn, departed, required) = self.drawn(meter, own, secrets);
        let answer = Answer {
            meter,
            round,
            roster: account.name(&roster.hash),
            drawn_full: full.intersection(&drawn).copied().collect(),
            full,
            departed,
            required,
            readings,
        };
        account.answers.push(answer);
        true
    }

    /// Whom the meter's newest draw named at the log head of its submission and who was still
    /// a member there, how many were not, and L.
    fn drawn(
        &self,
        meter: usize,
        own: MemberIndex,
        secrets: &Secrets,
    ) -> (BTreeSet<usize>, usize, usize) {
        let log = self.log(meter);
        let head = self.head_of(meter, secrets);
        let newest = log.graph().newest(own, head);
        let all = newest.map_or(0, |draw| draw.neighbours.len());
        let named = log.graph().drawn(own, head);
        let drawn = named
            .iter()
            .filter_map(|index| self.meter_of(&log.member(*index)?.id));
        let policy = log.genesis().policy.minimum_neighbours;
        let floor = self.network.world.meters[meter].floors.minimum_neighbours;
        let floor = usize::try_from(policy.max(floor))
            .unwrap_or(usize::MAX)
            .max(3);
        let required = floor.max((named.len() * 3).div_ceil(5));
        (drawn.collect(), all - named.len(), required)
    }

    /// The log entry that the submission behind these secrets names.
    fn head_of(&self, meter: usize, secrets: &Secrets) -> u64 {
        let key = self.network.world.meters[meter].key.public();
        let head = self
            .network
            .sent(meter, Up::Submission)
            .iter()
            .find_map(|frame| {
                let frame = Frame::verify(frame, &key).ok()?;
                let submission =
                    Submission::read(frame, self.network.world.net, self.channels()).ok()?;
                (short(&submission.digest) == secrets.digest).then_some(submission.log_head)
            });
        head.and_then(|head| self.log(meter).index_of_entry(&head))
            .unwrap_or(u64::MAX)
    }
}

/// The place that a meter had in the log at an entry: one that left and joined anew has
/// several, and speaks for that of its submission.
pub(super) fn place_at(log: &Membership, id: &DeviceId, head: u64) -> Option<MemberIndex> {
    let mut places = (0..).zip(log.members());
    let here = places.find(|(_, place)| place.id == *id && place.is_active_at(head));
    here.map_or_else(|| log.index_of(id), |(place, _)| Some(place))
}

fn distinct(frames: Vec<Vec<u8>>) -> BTreeSet<Vec<u8>> {
    frames.into_iter().collect()
}

fn wide(channel: usize) -> u16 {
    u16::try_from(channel).unwrap_or(u16::MAX)
}

/// Value and blinding of a reading.
fn reading_forms(
    account: &mut Account,
    meter: usize,
    round: Round,
    channel: usize,
    opening: &Opening,
) -> [Form<Unknown>; 2] {
    let reading = Unknown::Reading(ReadingOf {
        interval: round.0,
        channel,
        meter,
    });
    let blinding = Unknown::Blinding(account.name(opening.blinding.as_bytes()));
    [reading, blinding].map(|unknown| Form::of(account.known(unknown, [meter])))
}
