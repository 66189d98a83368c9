//! A recorded run, and how its frames are changed and signed again.

use std::time::Duration;

use ciborium::Value;
use dcnet::cbor;
use dcnet::frame::{self, Frame, Notification, Unverified};
use dcnet::identity::{CaCertificate, Certificate, DeviceId, DeviceKey, Role};
use dcnet::membership::{EntryKind, Membership, sign_registration};
use dcnet::meter::{MeterCommand, MeterConfig};
use dcnet::output::{Input, Message};
use dcnet::provider::{ProviderCommand, ProviderConfig, SavedNet};
use dcnet::revocation::{RevocationList, sign_revocation};
use dcnet::time::{Now, Timestamp};
use dcnet::topic::{NetId, Topic};

use crate::network::{Faults, Network, Saved};
use crate::world::{START, World, policy};

pub(super) const MINUTE: u64 = 60_000;

/// What the recorded run follows from.
const SEED: u64 = 1;

/// The meter that is fuzzed.
pub(super) const VICTIM: usize = 0;

/// The bytes of an input, read from the front; zeros once they are used up.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl Bytes<'_> {
    pub(super) fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        let number = usize::from(self.byte()) | usize::from(self.byte()) << 8;
        number % bound.max(1)
    }

    pub(super) fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    pub(super) fn take(&mut self, count: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    pub(super) fn pick<'b, T>(&mut self, items: &'b [T]) -> Option<&'b T> {
        items.get(self.below(items.len()))
    }
}

/// Where in a recorded run a state was saved.
#[derive(Clone, Copy, Default)]
pub(super) struct Middle {
    /// Frames published before.
    pub(super) frames: usize,
    /// Milliseconds since the start.
    pub(super) at: u64,
}

/// A recorded run: keys, frames, and durable states to start from.
pub(super) struct Scene {
    pub(super) net: NetId,
    pub(super) ca: CaCertificate,
    pub(super) provider: ProviderConfig,
    pub(super) meters: Vec<MeterConfig>,
    pub(super) administrator: (DeviceKey, Certificate),
    pub(super) successor: (DeviceKey, Certificate),
    /// An enrolled meter that is no member.
    pub(super) stranger: (DeviceKey, Certificate),
    /// What was published, in order.
    pub(super) frames: Vec<(Topic, Vec<u8>)>,
    /// When each of them was, in milliseconds since the start.
    pub(super) times: Vec<u64>,
    /// Frames that stand inside others or come in files.
    pub(super) others: Vec<Vec<u8>>,
    pub(super) log: Vec<Vec<u8>>,
    /// The log after each of its entries.
    pub(super) memberships: Vec<Membership>,
    /// Hashes and ids that mean something in this net.
    pub(super) words: Vec<Vec<u8>>,
    /// The provider at the end of a round, before its first submission came.
    pub(super) saved_net: (Middle, SavedNet),
    /// The victim in that round, with a submission whose roster has not come.
    pub(super) saved: (Middle, Saved),
}

impl Middle {
    fn of(network: &Network) -> Self {
        Self {
            frames: network.published.len(),
            at: network.now,
        }
    }
}

impl Scene {
    /// A net of six meters in its fourth minute, with a submission of the victim whose
    /// roster has not come; and what happened there afterwards.
    pub(super) fn record() -> Self {
        let world = World::new(6, policy(4), &["import"]);
        let administrator = world.authority.issue(Role::Administrator, None);
        let successor = world.authority.issue(Role::Provider, None);
        let stranger = world.authority.issue(Role::Meter, Some(world.net));
        let mut network = Network::new(world, Faults::default(), SEED);
        network.keep_published = true;
        // What was said when everybody started was not kept: it is said again.
        for meter in 0..network.meters.len() {
            network.set_online(meter, false);
            network.set_online(meter, true);
        }
        let mut times = vec![0; network.published.len()];
        run(&mut network, &mut times, 3 * MINUTE - 1);
        let saved_net = (Middle::of(&network), network.saved_net.clone());
        run(&mut network, &mut times, 3 * MINUTE + 1);
        while !network.submitted(VICTIM, network.last_round()) {
            let soon = network.now + 1;
            run(&mut network, &mut times, soon);
        }
        let saved = (Middle::of(&network), network.saved[VICTIM].clone());
        run(&mut network, &mut times, 6 * MINUTE);
        network.input_meter(5, Input::Command(MeterCommand::Leave));
        let revocation = sign_revocation(&administrator.0, network.meters[4].id(), START);
        let list = RevocationList::new(1, vec![network.meters[3].id()]);
        network.input_provider(Input::Command(ProviderCommand::Revoked {
            list: list.clone(),
            administrator: administrator.1.clone(),
            revocations: vec![revocation.clone()],
        }));
        run(&mut network, &mut times, 8 * MINUTE);
        let world = &network.world;
        let mut frames: Vec<(Topic, Vec<u8>)> = Vec::new();
        for (_, Message { topic, payload, .. }) in &network.published {
            frames.push((*topic, payload.clone()));
        }
        let handover = network
            .provider
            .membership()
            .succession(&successor.0, &successor.1, START);
        let handover = network.provider.membership().sign_next(
            &world.provider.key,
            EntryKind::ProviderKey,
            handover,
            START,
        );
        let mut scene = Self {
            words: Vec::new(),
            memberships: memberships(world, &network.saved_net.entries),
            net: world.net,
            ca: world.authority.ca.clone(),
            provider: world.provider.clone(),
            meters: world.meters.clone(),
            others: vec![
                world.meters[0].checkpoint.sign(&administrator.0, START),
                list.sign(&administrator.0, START),
                revocation,
                handover,
            ],
            administrator,
            successor,
            stranger,
            frames,
            times,
            log: network.saved_net.entries.clone(),
            saved,
            saved_net,
        };
        scene.words = scene.words();
        scene
    }

    /// The seeds with which the recorded provider and victim drew their randomness.
    pub(super) fn seeds(&self) -> ([u8; 32], [u8; 32]) {
        let mut provider = [0; 32];
        provider[..8].copy_from_slice(&SEED.to_le_bytes());
        let mut victim = provider;
        victim[31] = 1;
        (provider, victim)
    }

    pub(super) fn keys(&self) -> Vec<&DeviceKey> {
        let mut keys = vec![
            &self.provider.key,
            &self.administrator.0,
            &self.successor.0,
            &self.stranger.0,
        ];
        keys.extend(self.meters.iter().map(|meter| &meter.key));
        keys
    }

    pub(super) fn key_of(&self, id: DeviceId) -> Option<&DeviceKey> {
        self.keys().into_iter().find(|key| key.id() == id)
    }

    fn words(&self) -> Vec<Vec<u8>> {
        let mut words: Vec<Vec<u8>> = self.keys().iter().map(|key| key.id().0.to_vec()).collect();
        words.push(self.net.0.to_vec());
        let frames = self.frames.iter().map(|(_, frame)| frame);
        words.extend(
            frames
                .chain(&self.log)
                .filter_map(|frame| Some(self.verified(frame)?.digest().to_vec())),
        );
        words
    }

    pub(super) fn verified(&self, frame: &[u8]) -> Option<Frame> {
        let frame = Unverified::parse(frame).ok()?;
        let key = self.key_of(frame.claimed().client)?;
        frame.verify(&key.public()).ok()
    }

    /// A frame of the run: one that was published, or one that stands inside another.
    pub(super) fn frame(&self, bytes: &mut Bytes<'_>) -> Vec<u8> {
        let place = bytes.below(self.frames.len() + self.others.len());
        let published = self.frames.get(place).map(|(_, frame)| frame);
        let other = || &self.others[place - self.frames.len()];
        published.unwrap_or_else(other).clone()
    }
}

/// The log after each of its entries.
fn memberships(world: &World, entries: &[Vec<u8>]) -> Vec<Membership> {
    let (provider, ca) = (&world.provider.certificate, &world.authority.ca);
    let mut log = Membership::open(&entries[0], provider, ca).expect("the recorded Genesis");
    let mut all = vec![log.clone()];
    for entry in &entries[1..] {
        log.append(entry).expect("a recorded entry");
        all.push(log.clone());
    }
    all
}

/// Runs on and notes when each message was published.
fn run(network: &mut Network, times: &mut Vec<u64>, end: u64) {
    while network.now < end {
        network.run_until(network.now + 1);
        times.resize(network.published.len(), network.now);
    }
}

/// The bytes of the payload inside a frame.
pub(super) fn payload(frame: &[u8]) -> Option<&[u8]> {
    let rest = frame.get(7..)?;
    let (length, head) = match *rest {
        [short @ 0x40..=0x57, ..] => (usize::from(short & 0x1f), 1),
        [0x58, length, ..] => (usize::from(length), 2),
        [0x59, high, low, ..] => (usize::from(u16::from_be_bytes([high, low])), 3),
        _ => return None,
    };
    rest.get(head..head + length)
}

/// Changes a frame as the input says and signs it again.
pub(super) struct Changer<'a> {
    pub(super) scene: &'a Scene,
}

impl Changer<'_> {
    pub(super) fn frame(&self, frame: &[u8], bytes: &mut Bytes<'_>, depth: u8) -> Vec<u8> {
        let orders = bytes.byte();
        if orders == 0 {
            return frame.to_vec();
        }
        if orders == 1 {
            return flipped(frame, bytes);
        }
        let Some(claimed) = Unverified::parse(frame).ok().map(|f| *f.claimed()) else {
            return flipped(frame, bytes);
        };
        let Some(mut item) = payload(frame).and_then(|payload| cbor::decode(payload).ok()) else {
            return frame.to_vec();
        };
        let Some(mut data) = item.as_array_mut().and_then(Vec::pop) else {
            return frame.to_vec();
        };
        for _ in 0..=orders % 3 {
            self.item(&mut data, bytes, depth);
        }
        let keys = self.scene.keys();
        let key = match orders & 0x30 {
            0x30 => bytes.pick(&keys).copied(),
            _ => self.scene.key_of(claimed.client),
        };
        let Some(key) = key else {
            return frame.to_vec();
        };
        let net = if orders & 0xc0 == 0xc0 {
            NetId([bytes.byte(); 16])
        } else {
            claimed.net
        };
        let at = Timestamp(claimed.timestamp.0.wrapping_add(u64::from(orders >> 7)));
        frame::sign(key, net, at, claimed.notification, data)
    }
}

pub(super) fn flipped(frame: &[u8], bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let place = bytes.below(frame.len());
    if let Some(byte) = frame.get_mut(place) {
        *byte ^= bytes.byte();
    }
    frame.truncate(frame.len().saturating_sub(usize::from(bytes.byte() / 200)));
    frame
}

impl Changer<'_> {
    /// Changes one item somewhere inside.
    pub(super) fn item(&self, item: &mut Value, bytes: &mut Bytes<'_>, depth: u8) {
        if let Value::Array(items) = item {
            return match bytes.byte() % 8 {
                0 => items.truncate(bytes.below(items.len() + 1)),
                1 => {
                    if let Some(copy) = bytes.pick(items).cloned() {
                        items.insert(bytes.below(items.len()), copy);
                    }
                }
                2 if !items.is_empty() => {
                    let (a, b) = (bytes.below(items.len()), bytes.below(items.len()));
                    items.swap(a, b);
                }
                _ => {
                    let place = bytes.below(items.len());
                    if let Some(inner) = items.get_mut(place) {
                        self.item(inner, bytes, depth);
                    }
                }
            };
        }
        if let Value::Bytes(inner) = item
            && depth < 3
            && Unverified::parse(inner).is_ok()
        {
            *inner = self.frame(inner, bytes, depth + 1);
            return;
        }
        match (bytes.byte() % 8, &mut *item) {
            (0, _) => *item = Value::Null,
            (1, _) => *item = cbor::uint(bytes.number()),
            (2, _) => *item = cbor::bytes(&bytes.take(40)),
            (3, _) => {
                if let Some(word) = bytes.pick(&self.scene.words) {
                    *item = cbor::bytes(word);
                }
            }
            (_, Value::Bytes(inner)) => {
                let place = bytes.below(inner.len());
                if let Some(byte) = inner.get_mut(place) {
                    *byte ^= 1 << (bytes.byte() % 8);
                }
            }
            (_, Value::Integer(number)) => {
                let number = u64::try_from(*number).unwrap_or_default();
                let by = u64::from(bytes.byte());
                *item = cbor::uint(number.wrapping_add(by).wrapping_sub(128));
            }
            _ => *item = cbor::text("x"),
        }
    }
}

/// Both clocks of a fuzzed machine.
pub(super) struct Clock {
    pub(super) monotonic: u64,
    pub(super) utc: u64,
    pub(super) synchronised: bool,
}

impl Clock {
    pub(super) fn new(at: u64) -> Self {
        Self {
            monotonic: at,
            utc: START.as_millis() + at,
            synchronised: true,
        }
    }

    pub(super) fn now(&self) -> Now {
        Now {
            monotonic: Duration::from_millis(self.monotonic),
            utc: Timestamp(self.utc),
            synchronised: self.synchronised,
        }
    }

    /// Goes on to a time of the recorded run, if that is still to come.
    pub(super) fn reach(&mut self, at: u64) {
        let ahead = (START.as_millis() + at).saturating_sub(self.utc);
        self.utc += ahead;
        self.monotonic += ahead;
    }

    pub(super) fn step(&mut self, bytes: &mut Bytes<'_>) {
        let steps = [1, 500, 5000, 20_000, MINUTE, 60 * MINUTE, 24 * 60 * MINUTE];
        let orders = bytes.byte();
        let by = steps[usize::from(orders & 7) % steps.len()];
        self.monotonic += by;
        self.utc += by;
        match orders >> 4 {
            12 => self.utc += u64::from(bytes.byte()) * 10_000,
            13 => self.utc -= u64::from(bytes.byte()) * 10_000,
            14 => self.synchronised = false,
            15 => self.synchronised = true,
            _ => {}
        }
    }
}

/// A body that the log may take next.
pub(super) fn next_body(
    scene: &Scene,
    log: &Membership,
    bytes: &mut Bytes<'_>,
) -> Option<(EntryKind, Value)> {
    let meters: Vec<(&DeviceKey, &Certificate)> = scene
        .meters
        .iter()
        .map(|meter| (&meter.key, &meter.certificate))
        .chain([(&scene.stranger.0, &scene.stranger.1)])
        .collect();
    let (key, certificate) = *bytes.pick(&meters)?;
    let at = Timestamp(START.as_millis() + u64::from(bytes.byte()));
    let join = || {
        let place = log.member(log.index_of(&key.id())?)?;
        log.hash_at(place.joined)
    };
    let sign =
        |notification, data| frame::sign(key, scene.net, at, notification, cbor::array([data]));
    let one = |frame: Vec<u8>| cbor::array([cbor::bytes(&frame)]);
    Some(match bytes.byte() % 8 {
        0 => (
            EntryKind::Join,
            one(sign_registration(key, certificate, scene.net, at)),
        ),
        1 | 2 => (
            EntryKind::Leave,
            one(sign(Notification::Exit, cbor::bytes(&join()?))),
        ),
        3 => {
            let (administrator, certificate) = &scene.administrator;
            let revocation = cbor::bytes(&sign_revocation(administrator, key.id(), at));
            let body = cbor::array([cbor::bytes(certificate.der()), revocation]);
            (EntryKind::Revoke, body)
        }
        4 => (EntryKind::Lapsed, cbor::array([cbor::bytes(&join()?)])),
        5 => {
            let (key, certificate) = &scene.successor;
            (EntryKind::ProviderKey, log.succession(key, certificate, at))
        }
        // A draw whose nonce is known here: one byte, for the Invite and then the Draw.
        step => {
            let nonce = [bytes.byte() % 4; 32];
            let commitment = dcnet::graph::draw_commitment(scene.net, key.id(), &nonce);
            let open = log
                .index_of(&key.id())
                .and_then(|place| log.open_invite(place));
            match (step, open) {
                (7, Some(invite)) => {
                    let data = [cbor::bytes(&invite.hash), cbor::bytes(&nonce)];
                    let open = Notification::Open;
                    let open = frame::sign(key, scene.net, at, open, cbor::array(data));
                    (EntryKind::Draw, one(open))
                }
                _ => {
                    let request = sign(Notification::DrawRequest, cbor::bytes(&commitment));
                    let body = cbor::array([cbor::bytes(&request), cbor::bytes(&[7; 32])]);
                    (EntryKind::Invite, body)
                }
            }
        }
    })
}
