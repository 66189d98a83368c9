//! The committed vectors of `vectors/`, made by an independent implementation in
//! Python, against this crate: what it derives, what it signs byte for byte, and
//! what it refuses and why.

mod membership;
mod provider;
mod refused;

use dcnet::aggregate::{Aggregate, Disruption, Sum};
use dcnet::bitmap::Bitmap;
use dcnet::cbor;
use dcnet::checkpoint::Checkpoint;
use dcnet::commitment::{Commitment, commit, generator_h};
use dcnet::frame::{self, Frame, Notification};
use dcnet::graph::{MemberIndex, beacon, draw_commitment, draw_neighbours};
use dcnet::handshake::{Ephemeral, Pair};
use dcnet::identity::{CaCertificate, Certificate, DeviceId, DeviceKey};
use dcnet::membership::{
    Applied, EntryKind, Membership, NewNet, Policy, sign_registration, verify_registration,
};
use dcnet::opening::{Opening, PadSum};
use dcnet::pad::PairKey;
use dcnet::reading::{BlindingSecret, Boundary, Reading};
use dcnet::reveal::Reveal;
use dcnet::revocation::RevocationList;
use dcnet::roster::{HalfOpen, Roster};
use dcnet::secret::Secret;
use dcnet::superposition::{Share, Submission, self_mask, short};
use dcnet::time::{Day, Period, Round, Timestamp};
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use serde_json::Value;

/// A file of vectors, or a part of one.
#[derive(Clone)]
struct Vector(Value);

impl Vector {
    fn file(name: &str) -> Self {
        let path = format!("{}/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
        Self(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
    }

    fn get(&self, key: &str) -> Self {
        Self(
            self.0
                .get(key)
                .unwrap_or_else(|| panic!("no `{key}` in {}", self.0))
                .clone(),
        )
    }

    fn list(&self, key: &str) -> Vec<Self> {
        self.get(key).items()
    }

    fn items(&self) -> Vec<Self> {
        self.0
            .as_array()
            .unwrap()
            .iter()
            .cloned()
            .map(Self)
            .collect()
    }

    fn number(&self) -> u64 {
        self.0.as_u64().unwrap()
    }

    fn index(&self) -> MemberIndex {
        self.number().try_into().unwrap()
    }

    fn text(&self) -> &str {
        self.0.as_str().unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        hex::decode(self.text()).unwrap()
    }

    fn fixed<const N: usize>(&self) -> [u8; N] {
        self.bytes().try_into().unwrap()
    }

    fn secret(&self) -> Secret {
        Secret::new(&mut self.fixed())
    }

    fn opening(&self) -> Opening {
        Opening::from_bytes(&self.fixed()).unwrap()
    }

    fn round(&self) -> Round {
        Round(self.number())
    }

    fn channel(&self) -> u16 {
        self.number().try_into().unwrap()
    }

    fn day(&self) -> Day {
        Day(self.number().try_into().unwrap())
    }

    fn net(&self) -> NetId {
        NetId(self.fixed())
    }

    fn time(&self) -> Timestamp {
        Timestamp(self.number())
    }
}

/// The net of the vectors: who is in it and its log.
struct World {
    vector: Vector,
    net: NetId,
    ca: CaCertificate,
    provider: (DeviceKey, Certificate),
    administrator: (DeviceKey, Certificate),
    meters: Vec<(DeviceKey, Certificate)>,
    log: Vec<Vec<u8>>,
}

impl World {
    fn new() -> Self {
        let vector = Vector::file("frames");
        let ca = CaCertificate::from_der(&vector.get("ca").bytes()).unwrap();
        let setup = vector.get("setup").time();
        let party = |party: Vector| {
            let key = DeviceKey::from_seed(&party.get("seed").fixed());
            assert_eq!(key.public().to_bytes(), party.get("public").fixed());
            assert_eq!(key.id().0, party.get("id").fixed());
            let der = party.get("certificate").bytes();
            let certificate = Certificate::verify(&der, &ca, setup).unwrap();
            assert_eq!(certificate.id(), key.id());
            (key, certificate)
        };
        Self {
            net: vector.get("net").net(),
            provider: party(vector.get("provider")),
            administrator: party(vector.get("administrator")),
            meters: vector.list("meters").into_iter().map(party).collect(),
            log: vector.list("log").iter().map(Vector::bytes).collect(),
            ca,
            vector,
        }
    }

    /// The log after its first `entries` entries.
    fn membership(&self, entries: usize) -> Membership {
        let mut log = Membership::open(&self.log[0], &self.provider.1, &self.ca).unwrap();
        for entry in &self.log[1..entries] {
            log.append(entry).unwrap();
        }
        log
    }

    fn whole(&self) -> Membership {
        self.membership(self.log.len())
    }

    fn key(&self, member: usize) -> &DeviceKey {
        &self.meters[member].0
    }

    fn id(&self, member: usize) -> DeviceId {
        self.key(member).id()
    }
}

fn member(index: MemberIndex) -> usize {
    index.try_into().unwrap()
}

#[test]
fn commitments() {
    let file = Vector::file("openings");
    assert_eq!(
        generator_h().compress().to_bytes(),
        file.get("generator_h").fixed()
    );
    for case in file.list("commitments") {
        let opening = case.get("opening").opening();
        assert_eq!(opening.to_bytes().to_vec(), case.get("opening").bytes());
        assert_eq!(commit(&opening).to_bytes(), case.get("commitment").fixed());
        assert!(Commitment::from_bytes(&case.get("commitment").fixed()).is_ok());
    }
    for case in file.list("not_reduced") {
        assert!(
            Opening::from_bytes(&case.fixed()).is_err(),
            "{}",
            case.text()
        );
    }
    for case in file.list("no_points") {
        assert!(
            Commitment::from_bytes(&case.fixed()).is_err(),
            "{}",
            case.text()
        );
    }
    for case in file.list("integers") {
        assert_eq!(
            case.get("opening").opening().integer(),
            case.get("integer").0.as_u64()
        );
    }
}

/// The opening of a reading of `m` on one channel, by way of the register.
fn reading(
    case: &Vector,
    secret: &BlindingSecret,
    round: Round,
    channel: usize,
    m: u64,
) -> Opening {
    let period = Period::from_secs(60).unwrap();
    let boundary = |at, m| {
        let mut channels = vec![MilliwattHours(7); channel + 1];
        channels[channel] = MilliwattHours(m);
        Boundary { at, channels }
    };
    let (start, end) = (
        boundary(round.start(period), 11),
        boundary(round.end(period), 11 + m),
    );
    let reading = Reading::between(&start, &end, period).unwrap();
    reading.openings(secret, case.get("net").net())[channel]
}

#[test]
fn reading_blindings_and_self_masks() {
    let file = Vector::file("openings");
    for case in file.list("readings") {
        let secret = BlindingSecret::new(case.get("first_day").day(), case.get("secret").secret());
        let secret = secret.on(case.get("day").day()).unwrap();
        let (round, channel) = (
            case.get("round").round(),
            case.get("channel").channel().into(),
        );
        let opening = reading(&case, &secret, round, channel, case.get("mwh").number());
        assert_eq!(opening.to_bytes().to_vec(), case.get("opening").bytes());
    }
    for case in file.list("self_masks") {
        let mask = self_mask(
            &case.get("secret").secret(),
            &case.get("random").fixed(),
            case.get("net").net(),
            case.get("round").round(),
            case.get("channel").channel(),
        );
        assert_eq!(mask.to_bytes().to_vec(), case.get("mask").bytes());
    }
}

#[test]
fn ratchets_and_pads() {
    let file = Vector::file("keys");
    for case in file.list("ratchets") {
        let (first, days) = (case.get("first").secret(), case.get("days").number());
        let (from, to) = (Day(7), Day(7 + u32::try_from(days).unwrap()));
        let pair = PairKey::new(from, first.clone()).on(to).unwrap();
        assert!(
            pair.secret().equals(&case.get("pair").bytes()),
            "{days} days"
        );
        let blinding = BlindingSecret::new(from, first).on(to).unwrap();
        assert!(
            blinding.secret().equals(&case.get("blinding").bytes()),
            "{days} days"
        );
    }
    for case in file.list("pads") {
        let key = PairKey::new(Day(0), case.get("key").secret());
        let keys = key.pad_keys(case.get("net").net());
        let (round, channel) = (case.get("round").round(), case.get("channel").channel());
        let pads = [
            ("submission", keys.submission(round, channel)),
            (
                "reveal",
                keys.reveal(&case.get("roster").fixed(), round, channel),
            ),
        ];
        for (stage, pad) in pads {
            assert_eq!(
                pad.bytes().to_vec(),
                case.get(&format!("{stage}_pad")).bytes()
            );
            let opening = case.get(&format!("{stage}_opening")).opening();
            let sum = |add| {
                let mut sum = PadSum::new();
                sum.include(pad.bytes(), add);
                sum.finish()
            };
            assert!(sum(true) == opening && sum(false) == -opening);
        }
    }
}

fn pair(world: &World, case: &Vector) -> Pair {
    let end = |name| world.id(member(case.get(name).index()));
    let origin = case.get("origin").fixed();
    Pair {
        net: world.net,
        lower: end("lower"),
        higher: end("higher"),
        origin,
    }
}

/// The pair key of a handshake of the vectors, made by both ends.
fn handshake(world: &World, case: &Vector) -> PairKey {
    let setup = world.vector.get("setup").time();
    let pair = pair(world, case);
    assert!(pair.lower < pair.higher);
    let key = |name| world.key(member(case.get(name).index()));
    let (lower, higher) = (key("lower"), key("higher"));
    let ephemeral = |end| Ephemeral::new(case.get(&format!("{end}_secret")).secret());
    let (x, y) = (ephemeral("lower"), ephemeral("higher"));
    assert_eq!(x.public(), case.get("lower_public").fixed());
    assert_eq!(y.public(), case.get("higher_public").fixed());

    let first_day = case.get("first_day").day();
    let offer = pair.sign_offer(lower, &x, first_day, setup);
    assert_eq!(offer, case.get("offer").bytes());
    let offer = pair
        .read_offer(Frame::verify(&offer, &lower.public()).unwrap())
        .unwrap();
    let answer = pair.sign_answer(higher, &y, &offer, setup);
    assert_eq!(answer, case.get("answer").bytes());
    let answer = Frame::verify(&answer, &higher.public()).unwrap();
    let answer = pair.read_answer(answer, &offer.digest).unwrap();
    assert_eq!((offer.first_day, answer.first_day), (first_day, first_day));

    let derive = |own: &Ephemeral, peer| {
        Pair::derive(own, peer, &offer.digest, &answer.digest, first_day).unwrap()
    };
    let made = derive(&x, &answer.public);
    assert!(
        made.secret()
            .equals(derive(&y, &offer.public).secret().expose())
    );
    assert!(made.secret().equals(&case.get("key").bytes()));
    for (end, device) in [("lower", lower), ("higher", higher)] {
        let tag = Pair::tag(&made, device.id(), &offer.digest, &answer.digest);
        assert!(tag.equals(&case.get(&format!("{end}_tag")).bytes()));
        let confirm = pair.sign_confirm(device, &tag, setup);
        assert_eq!(confirm, case.get(&format!("{end}_confirm")).bytes());
        let confirm = Frame::verify(&confirm, &device.public()).unwrap();
        assert!(
            pair.read_confirm(confirm, device.id())
                .unwrap()
                .equals(tag.expose())
        );
    }
    made
}

#[test]
fn handshakes() {
    let (world, file) = (World::new(), Vector::file("keys"));
    let log = world.whole();
    for case in file.list("pairs") {
        handshake(&world, &case);
        let origin = log
            .graph()
            .origin(case.get("lower").index(), case.get("higher").index());
        assert_eq!(
            log.hash_at(origin.unwrap()),
            Some(case.get("origin").fixed())
        );
    }
    for point in file.list("all_zero") {
        let own = Ephemeral::new(Secret::new(&mut [9; 32]));
        let derived = Pair::derive(&own, &point.fixed(), &[1; 32], &[2; 32], Day(0));
        assert!(derived.is_none(), "{}", point.text());
    }
}

#[test]
fn draws() {
    let file = Vector::file("draws");
    let (net, meter) = (file.get("net").net(), DeviceId(file.get("meter").fixed()));
    let nonce = file.get("nonce").fixed();
    assert_eq!(
        draw_commitment(net, meter, &nonce),
        file.get("commitment").fixed()
    );
    let beacon = beacon(net, &file.get("invite").fixed(), meter, &nonce);
    assert_eq!(beacon, file.get("beacon").fixed());
    let candidates = file.list("candidates");
    let candidates = || {
        (0..)
            .zip(&candidates)
            .map(|(i, id)| (i, DeviceId(id.fixed())))
    };
    let drawn = file.get("drawn");
    for (degree, expected) in drawn.0.as_object().unwrap() {
        let expected: Vec<u32> = Vector(expected.clone())
            .items()
            .iter()
            .map(Vector::index)
            .collect();
        let degree = degree.parse().unwrap();
        assert_eq!(
            draw_neighbours(&beacon, candidates(), degree),
            expected,
            "degree {degree}"
        );
    }
}

/// What is in the vectors for a new net.
fn new_net(world: &World) -> NewNet {
    let rules: Vec<u32> = world
        .vector
        .list("policy")
        .iter()
        .map(Vector::index)
        .collect();
    let [period, window_ms, minimum_group, minimum_neighbours, degree] = rules[..] else {
        panic!()
    };
    let period = Period::from_secs(period).unwrap();
    NewNet {
        name: "vectors".to_owned(),
        policy: Policy {
            period,
            window_ms,
            minimum_group,
            minimum_neighbours,
            degree,
        },
        channels: world
            .vector
            .list("channels")
            .iter()
            .map(|name| name.text().to_owned())
            .collect(),
        salt: world.vector.get("salt").fixed(),
    }
}

#[test]
fn the_log_is_signed_byte_for_byte() {
    let world = World::new();
    let setup = world.vector.get("setup").time();
    let (key, certificate) = &world.provider;
    let genesis = new_net(&world).sign(key, certificate, &world.ca, setup);
    assert_eq!(genesis, world.log[0]);
    let mut log = Membership::open(&genesis, certificate, &world.ca).unwrap();
    assert_eq!(log.net(), world.net);
    assert_eq!(log.genesis().policy, new_net(&world).policy);

    let mut next = |kind, body| {
        let entry = log.sign_next(key, kind, body, setup);
        let index = usize::try_from(log.head().index).unwrap() + 1;
        assert_eq!(entry, world.log[index], "entry {index}");
        log.append(&entry).unwrap()
    };
    for (i, registration) in (0..).zip(world.vector.list("registrations")) {
        let (meter, certificate) = &world.meters[member(i)];
        let signed = sign_registration(meter, certificate, world.net, setup);
        assert_eq!(signed, registration.bytes());
        let verified = verify_registration(&signed, world.net, &world.ca, setup).unwrap();
        assert_eq!(verified.id(), meter.id());
        let body = cbor::array([cbor::bytes(&signed)]);
        assert_eq!(next(EntryKind::Join, body), Applied::Joined(i));
    }
    let draws = Vector::file("draws").list("log");
    for (i, draw) in (0..).zip(&draws) {
        let item = |key| cbor::bytes(&draw.get(key).bytes());
        let body = cbor::array([item("request"), item("provider_nonce")]);
        assert_eq!(next(EntryKind::Invite, body), Applied::Invited(i));
        assert_eq!(
            next(EntryKind::Draw, cbor::array([item("open")])),
            Applied::Drawn(i)
        );
    }
    assert_eq!(
        usize::try_from(log.head().index).unwrap() + 1,
        world.log.len()
    );
    for (i, draw) in (0..).zip(&draws) {
        let drawn: Vec<MemberIndex> = draw.list("drawn").iter().map(Vector::index).collect();
        let newest = log.graph().newest(i, u64::MAX).unwrap();
        assert_eq!(newest.neighbours, drawn);
        assert_eq!(newest.entry, draw.get("entry").number());
        let neighbours = world.vector.list("neighbours")[member(i)].items();
        let neighbours: Vec<MemberIndex> = neighbours.iter().map(Vector::index).collect();
        assert_eq!(log.graph().neighbours(i, u64::MAX), neighbours);
    }
}

#[test]
fn small_frames_are_signed_byte_for_byte() {
    let world = World::new();
    for case in world.vector.list("simple") {
        let notification = match case.get("notification").number() {
            2 => Notification::Entered,
            6 => Notification::DrawRequest,
            7 => Notification::Open,
            11 => Notification::LogRequest,
            12 => Notification::RosterRequest,
            other => panic!("notification {other}"),
        };
        let data = cbor::decode(&case.get("data").bytes()).unwrap();
        let signed = frame::sign(
            world.key(0),
            world.net,
            case.get("at").time(),
            notification,
            data,
        );
        assert_eq!(
            signed,
            case.get("frame").bytes(),
            "{}",
            case.get("name").text()
        );
        let header = *Frame::verify(&signed, &world.key(0).public())
            .unwrap()
            .header();
        assert_eq!(header.notification, notification);
        assert_eq!((header.net, header.client), (world.net, world.id(0)));
    }
}

#[test]
fn checkpoints_and_revocation_lists_are_signed_byte_for_byte() {
    let world = World::new();
    let (key, certificate) = &world.administrator;
    let start = world.vector.get("start").time();
    let case = world.vector.get("checkpoint");
    let checkpoint = Checkpoint {
        net: world.net,
        index: case.get("index").number(),
        head: case.get("head").fixed(),
        members: case.get("members").index(),
    };
    let bytes = case.get("frame").bytes();
    assert_eq!(checkpoint.sign(key, start), bytes);
    assert_eq!(Checkpoint::verify(&bytes, certificate), Ok(checkpoint));
    assert_eq!(
        world.whole().hash_at(checkpoint.index),
        Some(checkpoint.head)
    );

    let case = world.vector.get("revocations");
    let ids = case
        .list("revoked")
        .iter()
        .map(|id| DeviceId(id.fixed()))
        .collect();
    let list = RevocationList::new(case.get("number").number(), ids);
    let bytes = case.get("frame").bytes();
    assert_eq!(list.sign(key, start), bytes);
    assert_eq!(RevocationList::verify(&bytes, certificate), Ok(list));
}

/// Pad keys of a meter's edges on the day of the round: (peer, adds, keys).
fn edges(
    world: &World,
    round: &Vector,
    own: MemberIndex,
) -> Vec<(MemberIndex, bool, dcnet::pad::PadKeys)> {
    let mut edges = Vec::new();
    for case in Vector::file("keys").list("pairs") {
        let (lower, higher) = (case.get("lower").index(), case.get("higher").index());
        if own != lower && own != higher {
            continue;
        }
        let peer = if own == lower { higher } else { lower };
        let key = handshake(world, &case).on(round.get("day").day()).unwrap();
        edges.push((peer, own == lower, key.pad_keys(world.net)));
    }
    edges
}

fn the_roster(world: &World, case: &Vector) -> Roster {
    Roster::verify(
        &case.get("roster").bytes(),
        &world.membership(world.log.len()),
    )
    .unwrap()
}

#[test]
fn submissions_and_reveals_are_derived_and_signed_byte_for_byte() {
    let (world, case) = (World::new(), Vector::file("round"));
    let (log, round) = (world.whole(), case.get("round").round());
    let roster = the_roster(&world, &case);
    assert_eq!(roster.hash, case.get("roster_hash").fixed());
    for meter in case.list("meters") {
        let own = meter.get("member").index();
        let edges = edges(&world, &case, own);
        let used: Vec<MemberIndex> = meter.list("used").iter().map(Vector::index).collect();
        let secret = BlindingSecret::new(
            Day(case.get("day").day().0 - 1),
            meter.get("blinding_secret").secret(),
        );
        let secret = secret.on(case.get("day").day()).unwrap();
        let mut shares = Vec::new();
        let mut reveals = Vec::new();
        for (channel, share) in (0u16..).zip(meter.list("shares")) {
            let mut at = Vector(serde_json::json!({ "net": hex::encode(world.net.0) }));
            let opening = reading(
                &at,
                &secret,
                round,
                channel.into(),
                share.get("energy").number(),
            );
            at = share.clone();
            assert!(opening == at.get("reading").opening());
            let random = share.get("random").fixed();
            let mask = meter.get("mask_secret").secret();
            let mask = self_mask(&mask, &random, world.net, round, channel);
            assert!(mask == share.get("mask").opening());
            let (mut submitted, mut revealed) = (PadSum::new(), PadSum::new());
            for (peer, adds, keys) in edges.iter().filter(|(peer, ..)| used.contains(peer)) {
                let pad = keys.submission(round, channel);
                submitted.include(pad.bytes(), *adds);
                let claim = HalfOpen {
                    user: own,
                    non_user: *peer,
                };
                if roster.includes(*peer) && !roster.half_open.contains(&claim) {
                    let pad = keys.reveal(&roster.hash, round, channel);
                    revealed.include(pad.bytes(), *adds);
                } else {
                    revealed.include(pad.bytes(), *adds);
                }
            }
            shares.push(Share {
                superposition: opening + submitted.finish() + mask,
                commitment: commit(&opening),
            });
            reveals.push(mask + revealed.finish());
        }
        let neighbours = log.graph().neighbours(own, u64::MAX);
        let mut bitmap = Bitmap::empty(neighbours.len());
        for (place, _) in neighbours
            .iter()
            .enumerate()
            .filter(|(_, peer)| used.contains(peer))
        {
            bitmap.set(place);
        }
        let submission = Submission {
            sender: world.id(member(own)),
            round,
            log_head: log.head().hash,
            minimum_group: meter.get("minimum_group").index(),
            minimum_neighbours: meter.get("minimum_neighbours").index(),
            edges: bitmap.as_bytes().to_vec(),
            shares,
            digest: [0; 32],
        };
        let key = world.key(member(own));
        let bytes = submission.sign(key, world.net, meter.get("submission_at").time());
        assert_eq!(
            bytes,
            meter.get("submission").bytes(),
            "submission of member {own}"
        );
        let frame = Frame::verify(&bytes, &key.public()).unwrap();
        assert_eq!(roster.digest_of(own), Some(short(&frame.digest())));
        let read = Submission::read(frame, world.net, 2).unwrap();
        assert_eq!(
            Submission {
                digest: [0; 32],
                ..read
            },
            submission
        );

        let reveal = Reveal {
            sender: key.id(),
            round,
            roster: roster.hash,
            openings: reveals,
        };
        let bytes = reveal.sign(key, world.net, meter.get("reveal_at").time());
        assert_eq!(bytes, meter.get("reveal").bytes(), "reveal of member {own}");
        let frame = Frame::verify(&bytes, &key.public()).unwrap();
        assert_eq!(Reveal::read(frame, world.net, 2), Ok(reveal));
    }
}

#[test]
fn the_sums_open_the_commitments_and_nothing_else_does() {
    let (world, case) = (World::new(), Vector::file("round"));
    let bytes = case.get("aggregate").bytes();
    let aggregate = Aggregate::verify(&bytes, world.net, &world.provider.0.public()).unwrap();
    assert_eq!(aggregate.included, 5);
    assert_eq!(aggregate.members, 6);
    for (channel, sum) in case.list("sums").iter().enumerate() {
        let opening = sum.get("opening").opening();
        let commitments = Commitment::from_bytes(&sum.get("commitments").fixed()).unwrap();
        let verified = Sum::verify(&opening, commitments, channel).unwrap();
        assert_eq!(verified.energy.0, sum.get("mwh").number());
        assert_eq!(verified, aggregate.sums[channel]);
        let one = Opening::from_bytes(&{
            let mut bytes = [0; 64];
            bytes[0] = 1;
            bytes
        });
        let off = Sum::verify(&(opening + one.unwrap()), commitments, channel);
        assert_eq!(off, Err(Disruption::Commitment(channel)));
        let negative = Sum::verify(&-opening, commitments, channel);
        assert_eq!(negative, Err(Disruption::Value(channel)));
    }
    let again = aggregate.sign(
        &world.provider.0,
        world.net,
        case.get("aggregate_at").time(),
    );
    assert_eq!(again, bytes);
}
