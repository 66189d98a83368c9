//! Meters that are played with symbols only. Each rule of the protocol can be taken from
//! them, so that the oracle has something to find.

use std::collections::{BTreeMap, BTreeSet};

use dcnet::time::Round;
use simulation::oracle::account::{Account, Answer, Kind, ReadingOf, Unknown};
use simulation::oracle::elimination::Form;
use simulation::oracle::field::Element;
use simulation::oracle::verdict::Verdict;

pub type Meters = BTreeSet<usize>;

/// What a played meter obeys; [`RIGHT`] is the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Superposition and reveal contain a self-mask.
    pub self_masks: bool,
    /// A reveal, not the thesis's second superposition without the absent meters' pads.
    pub reveals: bool,
    /// Reveal pads are keyed by the roster.
    pub bound_pads: bool,
    /// One roster per round.
    pub one_roster: bool,
    /// A roster that was refused is refused for good.
    pub refuses_for_good: bool,
    /// L is a share of d, not just three.
    pub share_of_drawn: bool,
    /// d is what the draw named, not what has a key.
    pub counts_drawn: bool,
    /// Only edges of its own draw count, not those of others' draws.
    pub counts_own_only: bool,
    /// A lapsed member still counts in d.
    pub lapse_keeps_d: bool,
    /// d is taken at the head of the submission, not of the roster.
    pub d_of_submission: bool,
    /// Only an exit that the leaving meter signed, or a revocation, takes a member out of d.
    pub signed_exits: bool,
    /// Who has left is on no edge of a new submission, so that edge cannot be full.
    pub drops_departed: bool,
    /// Only edges of the newest draw count, not those of an earlier one.
    pub newest_draw: bool,
    /// An interval of the register is submitted once, in whatever net.
    pub one_register: bool,
    /// ρ depends on the channel.
    pub blinding_by_channel: bool,
    /// ρ depends on m.
    pub blinding_by_reading: bool,
    /// Every submission has a fresh self-mask.
    pub fresh_masks: bool,
    /// Half-open claims about own edges are compared with what it used.
    pub checks_claims: bool,
    /// Its own digest must be on the roster.
    pub checks_digest: bool,
}

pub const RIGHT: Rules = Rules {
    self_masks: true,
    reveals: true,
    bound_pads: true,
    one_roster: true,
    refuses_for_good: true,
    share_of_drawn: true,
    counts_drawn: true,
    counts_own_only: true,
    lapse_keeps_d: true,
    d_of_submission: true,
    signed_exits: true,
    drops_departed: true,
    newest_draw: true,
    one_register: true,
    blinding_by_channel: true,
    blinding_by_reading: true,
    fresh_masks: true,
    checks_claims: true,
    checks_digest: true,
};

#[derive(Clone, Debug)]
struct Submitted {
    number: usize,
    used: Meters,
    masks: Vec<[Unknown; 2]>,
    readings: Vec<[Form<Unknown>; 2]>,
}

/// A roster of a played provider.
#[derive(Clone, Debug)]
pub struct Roster {
    pub name: &'static str,
    pub net: u64,
    pub round: u64,
    pub included: Meters,
    /// (user, non-user).
    pub half_open: BTreeSet<(usize, usize)>,
    /// The number of the submission that it states for everybody, if not the newest.
    pub submission: Option<usize>,
    /// Its log head is from before the newest draws.
    pub old_head: bool,
}

impl Roster {
    pub fn over(name: &'static str, included: impl IntoIterator<Item = usize>) -> Self {
        Self {
            name,
            net: 0,
            round: 0,
            included: included.into_iter().collect(),
            half_open: BTreeSet::new(),
            submission: None,
            old_head: false,
        }
    }
}

/// A played net.
pub struct Played {
    pub account: Account,
    pub rules: Rules,
    pub channels: usize,
    /// Whom the newest draw of each meter names.
    pub drawn: Vec<Meters>,
    /// Whom an earlier draw named.
    pub drawn_before: Vec<Meters>,
    /// Pairs, lower first, whose handshake never succeeded.
    pub blocked: BTreeSet<(usize, usize)>,
    pub lapsed: Meters,
    /// Who has left by a signed exit.
    pub left: Meters,
    /// Who has left according to the provider alone.
    pub said_to_have_left: Meters,
    /// Who has left after the submissions.
    pub left_since: Meters,
    submitted: BTreeMap<(usize, u64, u64), Submitted>,
    register: BTreeSet<(usize, u64)>,
    judged: BTreeMap<(usize, u64, u64), bool>,
    numbers: usize,
}

impl Played {
    /// Everybody drew everybody.
    pub fn complete(meters: usize, rules: Rules) -> Self {
        let all: Meters = (0..meters).collect();
        let others = |meter: usize| all.iter().copied().filter(move |other| *other != meter);
        Self::drawn(
            (0..meters).map(|meter| others(meter).collect()).collect(),
            rules,
        )
    }

    pub fn drawn(drawn: Vec<Meters>, rules: Rules) -> Self {
        Self {
            account: Account::new(7),
            rules,
            channels: 1,
            drawn_before: drawn.clone(),
            drawn,
            blocked: BTreeSet::new(),
            lapsed: Meters::new(),
            left: Meters::new(),
            said_to_have_left: Meters::new(),
            left_since: Meters::new(),
            submitted: BTreeMap::new(),
            register: BTreeSet::new(),
            judged: BTreeMap::new(),
            numbers: 0,
        }
    }

    pub fn meters(&self) -> Meters {
        (0..self.drawn.len()).collect()
    }

    fn neighbours(&self, meter: usize) -> Meters {
        let named = |other: &usize| {
            let before =
                |a: &usize, b: &usize| !self.rules.newest_draw && self.drawn_before[*a].contains(b);
            let named = |a: &usize, b: &usize| self.drawn[*a].contains(b) || before(a, b);
            let drawn = named(&meter, other) || named(other, &meter);
            let gone = self.rules.drops_departed && self.left.contains(other);
            let pair = (meter.min(*other), meter.max(*other));
            *other != meter && drawn && !gone && !self.blocked.contains(&pair)
        };
        self.meters().into_iter().filter(named).collect()
    }

    /// L by the protocol.
    fn protocol_required(&self, meter: usize) -> usize {
        share(self.drawn[meter].difference(&self.left).count())
    }

    /// The edges that this meter takes for its own draw's.
    fn counted(&self, meter: usize) -> Meters {
        let before = &self.drawn_before[meter];
        let old = before.iter().filter(|_| !self.rules.newest_draw);
        self.drawn[meter].iter().chain(old).copied().collect()
    }

    /// L as this meter takes it.
    fn required(&self, meter: usize, old_head: bool) -> usize {
        let rules = self.rules;
        let draw = match old_head && !rules.d_of_submission {
            true => &self.drawn_before[meter],
            false => &self.drawn[meter],
        };
        let lapsed = |peer: &&usize| rules.lapse_keeps_d || !self.lapsed.contains(peer);
        let neighbours = self.neighbours(meter);
        let keyed = |peer: &&usize| rules.counts_drawn || neighbours.contains(peer);
        let gone = |peer: &usize| {
            self.left.contains(peer)
                || !rules.signed_exits && self.said_to_have_left.contains(peer)
                || !rules.d_of_submission && self.left_since.contains(peer)
        };
        let here = draw.iter().filter(|peer| !gone(peer));
        let d = here.filter(lapsed).filter(keyed).count();
        if rules.share_of_drawn { share(d) } else { 3 }
    }

    fn unknown(
        &mut self,
        meter: usize,
        name: &str,
        kind: impl Fn(simulation::oracle::account::Name) -> Unknown,
    ) -> Unknown {
        let name = self.account.name(name.as_bytes());
        self.account.known(kind(name), [meter])
    }

    fn pads(&mut self, meter: usize, peer: usize, what: &str, channel: usize) -> [Unknown; 2] {
        let (low, high) = (meter.min(peer), meter.max(peer));
        ["p", "p'"].map(|part| {
            let name = format!("{part} {low}-{high} {what} {channel}");
            let name = self.account.name(name.as_bytes());
            self.account.known(Unknown::Pad(name), [low, high])
        })
    }

    pub fn submit_all(&mut self) {
        for meter in self.meters() {
            self.submit(meter, 0, 0, 0);
        }
    }

    /// Submits an interval in a net. Another `version` is another reading of the interval,
    /// as a register that was restored gives it. False if the meter stays silent.
    pub fn submit(&mut self, meter: usize, net: u64, round: u64, version: u64) -> bool {
        let used = self.neighbours(meter);
        let own = used.intersection(&self.counted(meter)).count();
        let twice = !self.register.insert((meter, round));
        if own < self.required(meter, false) || twice && self.rules.one_register {
            return false;
        }
        self.numbers += 1;
        let number = self.numbers;
        let (mut masks, mut readings) = (Vec::new(), Vec::new());
        for channel in 0..self.channels {
            let reading = Unknown::Reading(ReadingOf {
                interval: round + 1000 * version,
                channel,
                meter,
            });
            let m = if self.rules.blinding_by_reading {
                version
            } else {
                0
            };
            let of_channel = if self.rules.blinding_by_channel {
                channel
            } else {
                0
            };
            let blinding = format!("rho {meter} {net} {round} {of_channel} {m}");
            let blinding = self.unknown(meter, &blinding, Unknown::Blinding);
            self.account.known(reading, [meter]);
            let reading = [reading, blinding].map(Form::of);
            let fresh = if self.rules.fresh_masks { number } else { 0 };
            let mask = ["b", "b'"].map(|part| {
                let name = format!("{part} {meter} {net} {round} {channel} {fresh}");
                self.unknown(meter, &name, Unknown::SelfMask)
            });
            let mut forms = reading.clone();
            for peer in &used {
                let pads = self.pads(meter, *peer, &format!("submission {net} {round}"), channel);
                add(&mut forms, pads, meter < *peer);
            }
            if self.rules.self_masks {
                add(&mut forms, mask, true);
            }
            for form in forms {
                self.account
                    .observe(meter, Round(round), Kind::Superposition, form);
            }
            let commitment = self.account.commitment(&reading);
            self.account
                .observe(meter, Round(round), Kind::Commitment, commitment);
            masks.push(mask);
            readings.push(reading);
        }
        let submitted = Submitted {
            number,
            used,
            masks,
            readings,
        };
        self.submitted.insert((meter, net, round), submitted);
        true
    }

    pub fn show_all(&mut self, roster: &Roster) -> usize {
        let meters = self.meters();
        meters
            .into_iter()
            .filter(|meter| self.show(*meter, roster))
            .count()
    }

    /// Shows a roster to a meter; true if it answers.
    pub fn show(&mut self, meter: usize, roster: &Roster) -> bool {
        let key = (meter, roster.net, roster.round);
        let Some(submitted) = self.submitted.get(&key).cloned() else {
            return false;
        };
        match self.judged.get(&key) {
            Some(true) if self.rules.one_roster => return false,
            Some(false) if self.rules.refuses_for_good => return false,
            _ => {}
        }
        let claims = |user: usize, non_user: usize| roster.half_open.contains(&(user, non_user));
        let is_full = |peer: &&usize| roster.included.contains(peer) && !claims(meter, **peer);
        let full: Meters = submitted.used.iter().filter(is_full).copied().collect();
        let counted = full
            .iter()
            .filter(|peer| !self.rules.counts_own_only || self.counted(meter).contains(peer));
        let contradicted = roster.half_open.iter().any(|(user, non_user)| {
            *user == meter && !submitted.used.contains(non_user)
                || *non_user == meter && submitted.used.contains(user)
        });
        let other = roster
            .submission
            .is_some_and(|number| number != submitted.number);
        let accepts = roster.included.contains(&meter)
            && counted.count() >= self.required(meter, roster.old_head)
            && !(contradicted && self.rules.checks_claims)
            && !(other && self.rules.checks_digest);
        self.judged.insert(key, accepts);
        if accepts {
            self.answer(meter, roster, &submitted, full);
        }
        accepts
    }

    fn answer(&mut self, meter: usize, roster: &Roster, submitted: &Submitted, full: Meters) {
        let (net, round) = (roster.net, roster.round);
        for channel in 0..self.channels {
            let mut forms = [Form::default(), Form::default()];
            if self.rules.reveals {
                if self.rules.self_masks {
                    add(&mut forms, submitted.masks[channel], true);
                }
                for peer in &submitted.used {
                    let bound = if self.rules.bound_pads {
                        roster.name
                    } else {
                        ""
                    };
                    let what = match full.contains(peer) {
                        true => format!("reveal {net} {round} {bound}"),
                        false => format!("submission {net} {round}"),
                    };
                    let pads = self.pads(meter, *peer, &what, channel);
                    add(&mut forms, pads, meter < *peer);
                }
            } else {
                // The superposition again, without the pads of absent meters.
                forms.clone_from(&submitted.readings[channel]);
                for peer in &full {
                    let pads =
                        self.pads(meter, *peer, &format!("submission {net} {round}"), channel);
                    add(&mut forms, pads, meter < *peer);
                }
            }
            for form in forms {
                self.account
                    .observe(meter, Round(round), Kind::Reveal, form);
            }
        }
        let name = format!("roster {} {net} {round}", roster.name);
        let answer = Answer {
            meter,
            round: Round(round),
            roster: self.account.name(name.as_bytes()),
            drawn_full: full.intersection(&self.drawn[meter]).copied().collect(),
            full,
            departed: 0,
            required: self.protocol_required(meter),
            readings: submitted.readings.clone(),
        };
        self.account.answers.push(answer);
    }

    /// The meter's disk and register are as before its submission of the round.
    pub fn roll_back_before_submission(&mut self, meter: usize, round: u64) {
        self.roll_back(meter, round);
        self.register.remove(&(meter, round));
    }

    /// The meter's disk is as after its submission of the round.
    pub fn roll_back(&mut self, meter: usize, round: u64) {
        self.judged
            .retain(|key, _| (key.0, key.2) != (meter, round));
        self.account.rolled_back.insert(meter);
    }

    pub fn judge(&self, corrupted: impl IntoIterator<Item = usize>) -> Verdict {
        self.account.judge(&corrupted.into_iter().collect())
    }
}

/// `max(3, ⌈0.6·d⌉)`.
fn share(d: usize) -> usize {
    (d * 3).div_ceil(5).max(3)
}

fn add(forms: &mut [Form<Unknown>; 2], unknowns: [Unknown; 2], plus: bool) {
    let factor = if plus { Element::ONE } else { -Element::ONE };
    for (form, unknown) in forms.iter_mut().zip(unknowns) {
        form.add(unknown, factor);
    }
}
