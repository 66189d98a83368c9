//! The net whose membership changes: its log byte for byte, and after each entry who is
//! a member, who is a candidate, which edges live and whose key is in force.

use ciborium::Value as Cbor;
use dcnet::cbor;
use dcnet::frame::{self, Frame, Notification};
use dcnet::graph::MemberIndex;
use dcnet::identity::{Certificate, DeviceId, DeviceKey};
use dcnet::membership::{
    Applied, EntryError, EntryKind, Membership, NewNet, sign_exit, sign_registration,
};
use dcnet::revocation::{sign_revocation, verify_revocation};
use dcnet::roster::Roster;
use dcnet::topic::NetId;

use super::{Vector, World, member, new_net};

/// The second net after so many entries of its log.
pub(crate) fn log_of_changes(world: &World, entries: usize) -> Membership {
    let steps = Vector::file("membership").list("steps");
    let mut entries = steps.iter().take(entries).map(|s| s.get("entry").bytes());
    let genesis = entries.next().unwrap();
    let mut log = Membership::open(&genesis, &world.provider.1, &world.ca).unwrap();
    for entry in entries {
        log.append(&entry).unwrap();
    }
    log
}

fn numbers(vector: &Vector) -> Vec<MemberIndex> {
    vector.items().iter().map(Vector::index).collect()
}

fn lists(vector: &Vector) -> Vec<Vec<MemberIndex>> {
    vector.items().iter().map(numbers).collect()
}

fn party(world: &World, vector: &Vector) -> (DeviceKey, Certificate) {
    let key = DeviceKey::from_seed(&vector.get("seed").fixed());
    let at = world.vector.get("setup").time();
    let certificate = Certificate::verify(&vector.get("certificate").bytes(), &world.ca, at);
    (key, certificate.unwrap())
}

/// The parties of the second net.
struct Changes<'a> {
    world: &'a World,
    file: Vector,
    net: NetId,
    successor: (DeviceKey, Certificate),
    meters: Vec<(DeviceKey, Certificate)>,
}

impl<'a> Changes<'a> {
    fn new(world: &'a World) -> Self {
        let file = Vector::file("membership");
        Self {
            world,
            net: file.get("net").net(),
            successor: party(world, &file.get("successor")),
            meters: file
                .list("meters")
                .iter()
                .map(|m| party(world, m))
                .collect(),
            file,
        }
    }

    /// Who has a place.
    fn meter(&self, step: &Vector) -> &(DeviceKey, Certificate) {
        let place = &self.file.list("places")[member(step.get("place").index())];
        &self.meters[member(place.get("meter").index())]
    }

    /// The frame of a step, signed by this crate, and the body of its entry.
    fn body(&self, log: &Membership, step: &Vector, kind: EntryKind) -> Cbor {
        let at = step.get("at").time();
        let given = || step.get("frame").bytes();
        match kind {
            EntryKind::Join => {
                let (key, certificate) = self.meter(step);
                let signed = sign_registration(key, certificate, self.net, at);
                assert_eq!(signed, given());
                cbor::array([cbor::bytes(&signed)])
            }
            EntryKind::Invite => {
                let nonce = cbor::bytes(&step.get("provider_nonce").bytes());
                cbor::array([cbor::bytes(&given()), nonce])
            }
            EntryKind::Leave => {
                let place = log.member(step.get("place").index()).unwrap();
                let join = log.hash_at(place.joined).unwrap();
                let signed = sign_exit(&self.meter(step).0, self.net, &join, at);
                assert_eq!(signed, given());
                cbor::array([cbor::bytes(&signed)])
            }
            EntryKind::Revoke => {
                let (key, certificate) = &self.world.administrator;
                let device = self.meter(step).0.id();
                let signed = sign_revocation(key, device, at);
                assert_eq!(signed, given());
                assert_eq!(verify_revocation(&signed, certificate), Ok(device));
                cbor::array([cbor::bytes(certificate.der()), cbor::bytes(&signed)])
            }
            EntryKind::Lapsed => cbor::array([cbor::bytes(&step.get("join").bytes())]),
            EntryKind::ProviderKey => {
                let (key, certificate) = &self.successor;
                let body = log.succession(key, certificate, at);
                assert_eq!(body, cbor::array([cbor::bytes(&given())]));
                body
            }
            _ => cbor::array([cbor::bytes(&given())]),
        }
    }

    /// Everything that the vectors say about the log after a step.
    fn check(&self, log: &Membership, step: &Vector, what: &str) {
        let entry = log.head().index;
        assert_eq!(log.head().hash, step.get("hash").fixed(), "{what}");
        let members = numbers(&step.get("members"));
        let places: MemberIndex = step.get("places").index();
        assert_eq!(member(places), log.members().len(), "{what}");
        assert_eq!(log.places_at(entry), places, "{what}");
        assert_eq!(member(log.size()), members.len(), "{what}");
        assert_eq!(log.members_at(entry), log.size(), "{what}");
        let those = |is: &dyn Fn(MemberIndex) -> bool| -> Vec<MemberIndex> {
            (0..places).filter(|place| is(*place)).collect()
        };
        let of = |place| log.member(place).unwrap();
        assert_eq!(those(&|place| of(place).is_active()), members, "{what}");
        assert_eq!(
            those(&|place| of(place).is_lapsed()),
            numbers(&step.get("lapsed")),
            "{what}"
        );
        assert_eq!(
            those(&|place| log.open_invite(place).is_some()),
            numbers(&step.get("invited")),
            "{what}"
        );
        for place in &members {
            assert_eq!(log.active(&of(*place).id), Some(*place), "{what}");
        }
        let provider = DeviceId(step.get("provider").fixed());
        assert_eq!(log.provider().id(), provider, "{what}");
        assert_eq!(log.provider_key_at(entry).id(), provider, "{what}");

        let drawn: Vec<_> = (0..places)
            .map(|place| log.graph().drawn(place, entry))
            .collect();
        assert_eq!(drawn, lists(&step.get("drawn")), "{what}");
        let edges: Vec<Vec<MemberIndex>> = those(&|_| true)
            .into_iter()
            .flat_map(|a| (a + 1..places).map(move |b| (a, b)))
            .filter_map(|(a, b)| Some(vec![a, b, log.graph().origin(a, b)?.try_into().unwrap()]))
            .collect();
        let expected = lists(&step.get("edges"));
        assert_eq!(edges, expected, "{what}");
        for place in 0..places {
            let mut neighbours: Vec<MemberIndex> = expected
                .iter()
                .filter(|edge| edge[..2].contains(&place))
                .map(|edge| edge[0] + edge[1] - place)
                .collect();
            neighbours.sort_unstable();
            assert_eq!(log.graph().neighbours(place, entry), neighbours, "{what}");
        }
    }
}

fn kind(step: &Vector) -> EntryKind {
    match step.get("kind").number() {
        0 => EntryKind::Genesis,
        1 => EntryKind::Join,
        2 => EntryKind::Invite,
        3 => EntryKind::Draw,
        4 => EntryKind::Leave,
        5 => EntryKind::Revoke,
        6 => EntryKind::Lapsed,
        8 => EntryKind::ProviderKey,
        other => panic!("kind {other}"),
    }
}

/// The rules of the second net differ from the first one's in their degree only.
fn net_of_changes(world: &World, changes: &Changes<'_>) -> NewNet {
    let mut net = new_net(world);
    net.name = "membership".to_owned();
    net.salt = changes.file.get("salt").fixed();
    net.policy.degree = changes.file.list("policy")[4].index();
    net
}

#[test]
fn a_changing_membership_is_signed_and_read_byte_for_byte() {
    let world = World::new();
    let changes = Changes::new(&world);
    let steps = changes.file.list("steps");
    let (mut key, certificate) = (&world.provider.0, &world.provider.1);
    let genesis = net_of_changes(&world, &changes).sign(
        key,
        certificate,
        &world.ca,
        steps[0].get("at").time(),
    );
    assert_eq!(genesis, steps[0].get("entry").bytes());
    let mut log = Membership::open(&genesis, certificate, &world.ca).unwrap();
    assert_eq!(log.net(), changes.net);
    let mut kinds = std::collections::BTreeSet::new();
    for step in &steps[1..] {
        let what = step.get("what");
        let what = what.text();
        let kind = kind(step);
        kinds.insert(kind);
        let body = changes.body(&log, step, kind);
        let entry = log.sign_next(key, kind, body, step.get("at").time());
        assert_eq!(entry, step.get("entry").bytes(), "{what}");
        let applied = log.append(&entry).unwrap();
        let place = || step.get("place").index();
        let expected = match kind {
            EntryKind::Join => Applied::Joined(place()),
            EntryKind::Invite => Applied::Invited(place()),
            EntryKind::Draw => Applied::Drawn(place()),
            EntryKind::Leave => Applied::Left(place()),
            EntryKind::Revoke => Applied::Revoked(place()),
            EntryKind::Lapsed => Applied::Lapsed(place()),
            _ => Applied::ProviderChanged,
        };
        assert_eq!(applied, expected, "{what}");
        if kind == EntryKind::Draw {
            let newest = log.graph().newest(place(), u64::MAX).unwrap();
            let named = numbers(&step.get("named"));
            assert_eq!(newest.neighbours, named, "{what}");
            assert_eq!(newest.candidates, step.get("candidates").index(), "{what}");
        }
        if kind == EntryKind::ProviderKey {
            key = &changes.successor.0;
        }
        changes.check(&log, step, what);
        assert_eq!(log.append(&entry), Err(EntryError::Known));
    }
    assert_eq!(kinds.len(), 7, "all kinds but Genesis and Tariff");
}

#[test]
fn what_held_at_an_earlier_entry_can_still_be_asked() {
    let world = World::new();
    let changes = Changes::new(&world);
    let log = log_of_changes(&world, usize::MAX);
    for (entry, step) in (0..).zip(changes.file.list("steps")) {
        let what = step.get("what");
        let places = step.get("places").index();
        assert_eq!(log.places_at(entry), places, "{}", what.text());
        let members = numbers(&step.get("members"));
        let then = |place: &MemberIndex| log.member(*place).unwrap().is_active_at(entry);
        let active: Vec<MemberIndex> = (0..places).filter(then).collect();
        assert_eq!(active, members, "{}", what.text());
        assert_eq!(member(log.members_at(entry)), members.len());
        assert_eq!(log.hash_at(entry), Some(step.get("hash").fixed()));
        let key = log.provider_key_at(entry).id();
        assert_eq!(key, DeviceId(step.get("provider").fixed()));
        let drawn: Vec<_> = (0..places)
            .map(|place| log.graph().drawn(place, entry))
            .collect();
        assert_eq!(drawn, lists(&step.get("drawn")), "{}", what.text());
    }
    let places = changes.file.list("places");
    assert_eq!(places.len(), log.members().len());
    for (place, of) in places.iter().zip(log.members()) {
        assert_eq!(of.joined, place.get("joined").number());
        assert_eq!(of.ended, place.get("ended").0.as_u64());
        assert_eq!(of.registration, place.get("registration").fixed());
        assert!(log.knows_registration(&of.registration));
        let meter = &changes.meters[member(place.get("meter").index())];
        assert_eq!(of.id, meter.0.id());
    }
    let revoked: Vec<bool> = changes
        .meters
        .iter()
        .map(|(key, _)| log.is_revoked(&key.id()))
        .collect();
    let expected: Vec<bool> = (0..changes.meters.len()).map(|meter| meter == 8).collect();
    assert_eq!(revoked, expected);
}

#[test]
fn a_confirmed_exit_and_a_roster_of_the_new_key_are_read() {
    let world = World::new();
    let changes = Changes::new(&world);
    let log = log_of_changes(&world, usize::MAX);
    let case = changes.file.get("erased");
    let key = &changes.meters[member(case.get("by").index())].0;
    let data = cbor::array([cbor::bytes(&case.get("join").bytes())]);
    let at = case.get("at").time();
    let erased = frame::sign(key, changes.net, at, Notification::Erased, data);
    assert_eq!(erased, case.get("frame").bytes());
    assert!(Frame::verify(&erased, &key.public()).is_ok());
    let joined = log.index_of_entry(&case.get("join").fixed());
    assert_eq!(joined, Some(log.member(2).unwrap().joined));

    let case = changes.file.get("roster");
    let bytes = case.get("frame").bytes();
    let roster = Roster::verify(&bytes, &log).unwrap();
    let included: Vec<MemberIndex> = roster.members().collect();
    assert_eq!(included, numbers(&case.get("included")));
    let again = roster.sign(&changes.successor.0, &log, case.get("at").time());
    assert_eq!(again, bytes);
}
