"""A second net, whose membership changes: meters leave, join again, lapse and are revoked,
and the provider hands its log over to another key. The expectations follow from the text of
docs/protocol.md alone: who is a member, who is a candidate, and which edges live."""

from protocol import *
from world import CHANNELS, PERIOD, SETUP, WINDOW

METERS = 12
DEGREE = 4


class Changes:
    def __init__(self, world):
        self.authority, self.ca = world.authority, world.ca
        self.administrator, self.provider = world.administrator, world.provider
        self.successor = Device("successor")
        self.successor.certificate = certificate(self.authority, self.successor, "provider")
        self.signer = self.provider
        self.policy = [PERIOD, WINDOW, 4, 3, DEGREE]
        self.salt = seed("salt of the second net")[:16]
        # Places in the order of the Joins: the meter, its Join, and when it ended.
        self.places, self.lapsed, self.newest, self.origins = [], set(), {}, {}
        self.invites = {}
        self.log, self.steps = [], []
        self.net = ZERO_NET
        body = ["membership", self.salt, self.policy, CHANNELS, self.provider.certificate, sha256(self.ca)]
        self.append("open", GENESIS, body)
        self.net = digest(self.log[0])[:16]
        self.meters = [Device(f"member {i}") for i in range(METERS)]
        for meter in self.meters:
            meter.certificate = certificate(self.authority, meter, "meter", self.net)
        self.run()

    def run(self):
        for meter in range(11):
            self.join(meter)
        for place in (0, 1, 2, 5):
            self.draw(place)
        self.leave(2)
        self.leave(3)
        self.join(2)
        self.lapse(4)
        self.lapse(5)
        # Neither the lapsed nor the departed are drawn.
        self.draw(0)
        # Candidates are those as of the Invite, whatever comes before the Draw.
        self.invite(6)
        self.leave(9)
        self.open(6)
        # The lapse ends with the Draw, not with the Invite.
        self.invite(4)
        self.invite(8)
        self.open(4)
        self.open(8)
        self.draw(7)
        # An invite ends with the membership; the same meter begins anew in another place.
        self.invite(11)
        self.leave(11)
        self.join(2)
        self.draw(12)
        self.revoke(8)
        self.join(11)
        self.draw(1)
        self.handover()
        self.draw(10)
        self.draw(5)
        self.lapse(6)
        self.leave(7)
        self.draw(0)

    # One step each

    def at(self):
        return SETUP + 1000 * len(self.log)

    def entry(self, kind, body, **other):
        fields = {"index": len(self.log), "previous": self.head(), "net": self.net, "signer": self.signer}
        fields.update(other)
        data = [fields["index"], fields["previous"], kind, body]
        return frame(fields["signer"], fields["net"], SETUP + 1000 * fields["index"], ENTRY, data)

    def head(self):
        return digest(self.log[-1]) if self.log else None

    def append(self, what, kind, body, **details):
        self.log.append(self.entry(kind, body))
        self.steps.append({"what": what, "kind": kind, "at": self.at() - 1000, **details})
        if kind == PROVIDER_KEY:
            self.signer = self.successor
        self.follow()

    def join(self, i):
        meter = self.meters[i]
        register = frame(meter, self.net, self.at(), REGISTER, [meter.certificate])
        self.places.append({"meter": i, "joined": len(self.log), "ended": None, "registration": register})
        self.append(f"meter {i} joins", JOIN, [register], place=len(self.places) - 1, meter=i, frame=register)

    def device(self, place):
        return self.meters[self.places[place]["meter"]]

    def joined_by(self, place):
        return digest(self.log[self.places[place]["joined"]])

    def is_member(self, place):
        return self.places[place]["ended"] is None

    def active(self):
        return [place for place in range(len(self.places)) if self.is_member(place)]

    def exit(self, place, signer=None, **other):
        return frame(signer or self.device(place), self.net, self.at(), EXIT, [self.joined_by(place)], **other)

    def end(self, place):
        self.places[place]["ended"] = len(self.log)
        self.lapsed.discard(place)
        self.invites.pop(place, None)

    def leave(self, place):
        exit_ = self.exit(place)
        self.end(place)
        self.append(f"place {place} leaves", LEAVE, [exit_], place=place, frame=exit_)

    def revocation(self, device, signer=None, net=ZERO_NET):
        return frame(signer or self.administrator, net, self.at(), REVOCATION, [device.id])

    def revoke(self, place):
        revocation = self.revocation(self.device(place))
        self.end(place)
        self.append(f"place {place} is revoked", REVOKE, [self.administrator.certificate, revocation],
                    place=place, frame=revocation)

    def lapse(self, place):
        join = self.joined_by(place)
        self.lapsed.add(place)
        assert len(self.lapsed) * 5 <= len(self.active())
        self.append(f"place {place} lapses", LAPSED, [join], place=place, join=join)

    def nonce(self):
        return seed(f"nonce of entry {len(self.log)}")

    def request(self, place, nonce):
        meter = self.device(place)
        commitment = draw_commitment(self.net, meter.id, nonce)
        return frame(meter, self.net, self.at(), DRAW_REQUEST, [commitment])

    def invite(self, place):
        nonce, nonce_p = self.nonce(), seed(f"provider nonce of entry {len(self.log)}")
        candidates = [other for other in self.active() if other != place and other not in self.lapsed]
        request = self.request(place, nonce)
        self.invites[place] = {"nonce": nonce, "candidates": candidates, "entry": len(self.log)}
        self.append(f"place {place} is invited", INVITE, [request, nonce_p], place=place, frame=request,
                    provider_nonce=nonce_p)

    def open(self, place):
        invite = self.invites.pop(place)
        meter, hash_ = self.device(place), digest(self.log[invite["entry"]])
        opened = frame(meter, self.net, self.at(), OPEN, [hash_, invite["nonce"]])
        beacon_ = beacon(self.net, hash_, meter.id, invite["nonce"])
        candidates = [(other, self.device(other).id) for other in invite["candidates"]]
        self.newest[place] = drawn(beacon_, candidates, DEGREE)
        self.lapsed.discard(place)
        self.append(f"place {place} draws", DRAW, [opened], place=place, frame=opened,
                    candidates=len(candidates), named=self.newest[place])

    def draw(self, place):
        self.invite(place)
        self.open(place)

    def consent(self, device, signer=None, **other):
        net = other.pop("net", self.net)
        return frame(signer or device, net, self.at(), PROVIDER_KEY_FRAME, [device.certificate], **other)

    def handover(self):
        consent = self.consent(self.successor)
        self.append("the provider hands over", PROVIDER_KEY, [consent], frame=consent)

    # What holds after a step

    def drawn(self, place):
        return [peer for peer in self.newest.get(place, []) if self.is_member(peer)]

    def neighbours(self, place):
        if not self.is_member(place):
            return []
        naming = {other for other, named in self.newest.items() if place in named and self.is_member(other)}
        return sorted(naming | set(self.drawn(place)))

    def follow(self):
        """Notes who is a member, who neighbours whom, and which edges began or ended."""
        places = range(len(self.places))
        edges = {(a, b) for a in places for b in self.neighbours(a) if a < b}
        self.origins = {edge: origin for edge, origin in self.origins.items() if edge in edges}
        for edge in edges:
            self.origins.setdefault(edge, len(self.log) - 1)
        self.steps[-1].update({
            "entry": self.log[-1], "hash": self.head(), "places": len(self.places),
            "members": self.active(), "lapsed": sorted(self.lapsed), "invited": sorted(self.invites),
            "provider": self.signer.id,
            "drawn": [self.drawn(place) for place in places],
            "edges": [[*edge, origin] for edge, origin in sorted(self.origins.items())],
        })

    def roster(self, signer=None, head=None):
        """Places as of a log entry, however many of them are members: all of the odd ones that are."""
        head = len(self.log) - 1 if head is None else head
        places = self.steps[head]["places"]
        included = [place for place in self.steps[head]["members"] if place % 2]
        digests = b"".join(seed(f"submission of place {place}")[:8] for place in included)
        data = [7, digest(self.log[head]), bitmap(included, places), digests, [], None]
        return frame(signer or self.signer, self.net, self.at(), ROSTER, data), included
