"""Frames that must be refused, each with the reason by its name in dcnet."""

import ristretto
from protocol import *
from refused_changes import RefusedChanges
from world import CHANNELS, DAY, METERS, PERIOD, ROUND, SETUP, START, WINDOW


def replaced(items, place, value):
    items = list(items)
    items[place] = value
    return items


def without(items, place):
    return [item for i, item in enumerate(items) if i != place]


class Refused:
    def __init__(self, world, changes):
        self.world, self.changes, self.cases = world, changes, []
        self.meter, self.net = world.meters[0], world.net
        self.form()
        self.payload()
        self.signature()
        self.submission()
        self.reveal()
        self.roster()
        self.aggregate()
        self.handshake()
        self.administration()
        self.registration()
        self.log()
        self.genesis()
        RefusedChanges(self).all()

    def add(self, reader, name, input_, error, **other):
        self.cases.append({"name": name, "reader": reader, "input": input_, "error": error, **other})

    # Any frame of the first meter

    def form(self):
        good = frame(self.meter, self.net, START, ENTERED, [5])
        body = cbor(payload_of(self.meter, self.net, START, ENTERED, [5]))
        signature = self.meter.sign(to_be_signed(body))
        assert good == envelope(body, signature) and len(body) < 256

        def form(name, input_, error="Form", **other):
            self.add("frame", name, input_, error, **other)

        form("empty", b"")
        form("a trailing byte", good + b"\x00")
        form("truncated", good[:-1])
        form("two frames", good + good)
        form("no tag", good[1:])
        form("tag 17 instead of 18", b"\xd1" + good[1:])
        form("tag 18 in two bytes", b"\xd8\x12" + good[1:])
        form("tag 98, COSE_Sign", envelope(body, signature, tag=98))
        es256 = cbor({1: -7})
        form("another algorithm in the protected header", envelope(body, self.meter.sign(
            to_be_signed(body, protected=es256)), es256))
        kid = cbor({1: -8, 4: b"x"})
        form("a key id in the protected header", envelope(body, self.meter.sign(
            to_be_signed(body, protected=kid)), kid))
        form("a protected header of no bytes", envelope(body, signature, b""))
        form("an unprotected header", envelope(body, signature, unprotected={4: b"x"}))
        form("the algorithm in the unprotected header too", envelope(body, signature, unprotected={1: -8}))
        form("an array of five", good[:1] + b"\x85" + good[2:] + b"\x00")
        form("an array of indefinite length", good[:1] + b"\x9f" + good[2:] + b"\xff")
        form("a detached payload", cbor(cbor2.CBORTag(18, [PROTECTED, {}, None, signature])))
        form("a payload length with a leading zero", good[:7] + b"\x59\x00" + good[8:])
        form("a payload in chunks", good[:7] + b"\x5f" + good[7:9] + body + b"\xff" + good[9 + len(body):])
        form("a signature of 63 bytes", envelope(body, signature[:63]))
        form("a signature of 65 bytes", envelope(body, signature + b"\x00"))
        form("longer than 64 KiB", b"\x00", "TooLong", repeat=65_537)
        for name, data in (("ends early", body[:-1]), ("has a trailing byte", body + b"\x00"),
                           ("is empty", b""), ("nests a hundred deep", b"\x81" * 100 + b"\x00"),
                           ("claims 2^60 items", b"\x9b\x10" + bytes(7)),
                           ("is text that is not UTF-8", b"\x61\xff")):
            form(f"a signed payload that {name}", seal(self.meter, data))

    def payload(self):
        def other(name, error, notification=ENTERED, data=(5,), **fields):
            frame_ = frame(self.meter, self.net, START, notification, list(data), **fields)
            self.add("frame", name, frame_, error)

        good = payload_of(self.meter, self.net, START, ENTERED, [5])
        plain = cbor(good)
        deterministic = "NotDeterministic"
        for name, data in (
            ("a map", cbor({0: good})),
            ("the version in two bytes", plain.replace(b"\x65dcnet\x01", b"\x65dcnet\x18\x01")),
            ("an array of indefinite length", b"\x9f" + plain[1:] + b"\xff"),
            ("a text in chunks", plain.replace(b"\x65dcnet", b"\x7f\x65dcnet\xff")),
            ("a tagged item", cbor(replaced(good, 5, cbor2.CBORTag(1, START)))),
            ("a floating-point timestamp", cbor(replaced(good, 5, 1.5))),
            ("true as transmission bit", cbor(replaced(good, 4, True))),
            ("undefined data", cbor(replaced(good, 7, cbor2.undefined))),
            ("a map in the data", cbor(replaced(good, 7, [{}]))),
        ):
            self.add("frame", "a payload with " + name, seal(self.meter, data), deterministic)
        self.add("frame", "a payload that is no array", seal(self.meter, cbor(b"x")), 'Field("payload")')
        self.add("frame", "an empty payload array", seal(self.meter, cbor([])), 'Field("protocol")')
        self.add("frame", "no data", seal(self.meter, cbor(good[:-1])), 'Field("data")')
        self.add("frame", "a ninth field", seal(self.meter, cbor(good + [0])), "UnknownField")
        other("another protocol", "Version", protocol="dcnex")
        other("protocol as bytes", 'Field("protocol")', protocol=b"dcnet")
        other("version 0", "Version", version=0)
        other("version 2", "Version", version=2)
        other("a net of 15 bytes", 'Bound("net")', net=self.net[:15])
        other("a net as text", 'Field("net")', net=self.net.hex())
        other("a client id of 17 bytes", 'Bound("client")', client=self.meter.id + b"\x00")
        other("a transmission bit of 2", 'Bound("transmission bit")', bit=2)
        other("the transmission bit on another notification", 'Field("transmission bit")', bit=1)
        other("no transmission bit on a submission", 'Field("transmission bit")', SUBMISSION, bit=0)
        other("a negative timestamp", 'Field("timestamp")', timestamp=-1)
        other("notification 0", "Kind", 0)
        other("notification 21", "Kind", 21)
        other("a notification of 2^64 - 1", "Kind", 2**64 - 1)

    def signature(self):
        body = cbor(payload_of(self.meter, self.net, START, ENTERED, [5]))
        other = self.world.meters[1]

        def signed(name, signature, error="Signature"):
            self.add("frame", name, envelope(body, signature), error)

        right = self.meter.sign(to_be_signed(body))
        signed("a flipped bit in R", bytes([right[0] ^ 1]) + right[1:])
        signed("a flipped bit in s", right[:32] + bytes([right[32] ^ 1]) + right[33:])
        signed("signed by another key", other.sign(to_be_signed(body)))
        signed("signed without external data", self.meter.sign(to_be_signed(body, aad=b"")))
        signed("signed with other external data", self.meter.sign(to_be_signed(body, aad=b"dcnet/2")))
        signed("signed without Sig_structure", self.meter.sign(body))
        signed("all zeros", bytes(64))
        s = int.from_bytes(right[32:], "little") + L
        signed("s that is not reduced", right[:32] + s.to_bytes(32, "little"))
        signed("R with a part of order two", self.torsion(to_be_signed(body)))
        self.add("frame", "the id of another sender", frame(
            self.meter, self.net, START, ENTERED, [5], client=other.id), "Sender")
        self.add("frame", "a frame of another sender", frame(
            other, self.net, START, ENTERED, [5]), "Sender")

    def torsion(self, message):
        """A signature that the signer made so that R is off by the point of order two:
        RFC 8032's check without cofactor fails, the one with cofactor would not."""
        expanded = hashlib.sha512(self.meter.seed).digest()
        a = int.from_bytes(expanded[:32], "little") & (2**254 - 8) | 2**254
        r = int.from_bytes(seed("torsion"), "little") % L
        point = r * ristretto.BASE + ristretto.Edwards(0, -1)
        data = point.ed25519_bytes()
        h = int.from_bytes(hashlib.sha512(data + self.meter.public + message).digest(), "little")
        return data + ((r + h * a) % L).to_bytes(32, "little")

    # Frames of a round

    def submission(self):
        data = self.world.submission_data(0)
        share = data[5][0]

        def case(name, error, data, notification=SUBMISSION, net=None, **fields):
            frame_ = frame(self.meter, net or self.net, START, notification, data, **fields)
            self.add("submission", name, frame_, error)

        def shares(*items):
            return replaced(data, 5, list(items) + data[5][len(items):])

        order = L.to_bytes(32, "little")
        case("a submission of another net", "Net", data, net=ZERO_NET)
        case("a reveal where a submission belongs", "Kind", data, REVEAL)
        case("no array as data", 'Field("data")', 7)
        case("a value of l", 'Bound("scalar")', shares([order + share[0][32:], share[1]]))
        case("a blinding of 2^256 - 1", 'Bound("scalar")', shares([share[0][:32] + b"\xff" * 32, share[1]]))
        case("a superposition of 63 bytes", 'Bound("superposition")', shares([share[0][:63], share[1]]))
        case("a commitment that is no point", 'Bound("commitment")', shares([share[0], b"\xff" * 32]))
        case("a commitment with a negative encoding", 'Bound("commitment")', shares([share[0], b"\x01" + bytes(31)]))
        s = int.from_bytes(share[1], "little")
        case("the other sign of a commitment", 'Bound("commitment")', shares([share[0], (ristretto.P - s).to_bytes(32, "little")]))
        case("a commitment of 31 bytes", 'Bound("commitment")', shares([share[0], share[1][:31]]))
        case("a share of three", "UnknownField", shares(share + [0]))
        case("a share of one", 'Field("commitment")', shares(share[:1]))
        case("one channel too few", 'Bound("shares")', replaced(data, 5, data[5][:1]))
        case("one channel too many", 'Bound("shares")', replaced(data, 5, data[5] + [share]))
        case("more channels than any net has", 'Bound("shares")', replaced(data, 5, [share] * 17))
        case("an extra field", "UnknownField", data + [0])
        case("a missing field", 'Field("shares")', data[:5])
        case("a round as bytes", 'Field("round")', replaced(data, 0, b"\x01"))
        case("a log head of 31 bytes", 'Bound("log head")', replaced(data, 1, data[1][:31]))
        case("a minimum group of 2^32", 'Bound("minimum group")', replaced(data, 2, 2**32))
        case("edges of more than 8192 bytes", 'Bound("edges")', replaced(data, 4, bytes(8193)))

    def reveal(self):
        data = cbor2.loads(payload(self.world.reveals[0][0]))[7]
        opening = data[2][0]

        def case(name, error, data, notification=REVEAL, net=None):
            self.add("reveal", name, frame(self.meter, net or self.net, START, notification, data), error)

        case("a reveal of another net", "Net", data, net=ZERO_NET)
        case("another kind of frame", "Kind", data, ENTERED)
        case("an opening that is not reduced", 'Bound("scalar")', replaced(data, 2, [b"\xff" * 64, opening]))
        case("an opening of 65 bytes", 'Bound("opening")', replaced(data, 2, [opening + b"\x00", opening]))
        case("an opening as an array", 'Field("opening")', replaced(data, 2, [[opening], opening]))
        case("one opening too few", 'Bound("openings")', replaced(data, 2, [opening]))
        case("a roster hash of 31 bytes", 'Bound("roster")', replaced(data, 1, data[1][:31]))
        case("an extra field", "UnknownField", data + [None])

    def roster(self):
        data = self.world.roster_data()
        digests, half = data[3], data[4][0]

        def case(name, error, data, signer=None, net=None, notification=ROSTER):
            signer = signer or self.world.provider
            self.add("roster", name, frame(signer, net or self.net, START, notification, data), error)

        def edges(*items):
            return replaced(data, 4, [list(item) for item in items])

        case("a roster signed by a meter", "Frame(Sender)", data, signer=self.meter)
        case("a roster of another net", "Frame(Net)", data, net=ZERO_NET)
        case("an aggregate where a roster belongs", "Frame(Kind)", data, notification=AGGREGATE)
        case("a log head that is not in the log", "UnknownHead", replaced(data, 1, seed("nothing")))
        # As of its last Join the log has all members; as of the first it has one.
        case("more members than at its log head", 'Frame(Bound("included"))', replaced(data, 1, digest(self.world.log[1])) [:2] + [b"\x02"] + data[3:])
        case("a bit past the last member", 'Frame(Bound("included"))', replaced(data, 2, b"\x5f"))
        case("a byte too many members", 'Frame(Bound("included"))', replaced(data, 2, data[2] + b"\x00"))
        case("no members", 'Frame(Bound("included"))', replaced(data, 2, b""))
        case("a digest too few", 'Frame(Bound("digests"))', replaced(data, 3, digests[:-8]))
        case("a digest too many", 'Frame(Bound("digests"))', replaced(data, 3, digests + bytes(8)))
        case("half a digest", 'Frame(Bound("digests"))', replaced(data, 3, digests[:-4]))
        bound = 'Frame(Bound("half-open edges"))'
        case("a half-open edge twice", bound, edges(half, half))
        case("half-open edges that descend", bound, edges((3, 4), (2, 3)))
        case("a half-open edge to itself", bound, edges((2, 2)))
        case("a half-open edge with an absent member", bound, edges((0, 5)))
        case("a half-open edge with nobody", bound, edges((0, 4_000_000_000)))
        case("a half-open edge of three", "Frame(UnknownField)", edges((0, 1, 2)))
        case("more than 4096 half-open edges", bound, edges(*[(0, 1)] * 4097))
        case("a previous hash of 31 bytes", 'Frame(Bound("previous"))', replaced(data, 5, bytes(31)))
        case("an extra field", "Frame(UnknownField)", data + [0])
        flipped = bytearray(self.world.roster)
        flipped[-1] ^= 1
        self.add("roster", "a flipped bit in the signature", bytes(flipped), "Frame(Signature)")

    def aggregate(self):
        data = self.world.aggregate_data()
        energy, blinding = data[5][0]

        def case(name, error, data, signer=None, net=None):
            signer = signer or self.world.provider
            self.add("aggregate", name, frame(signer, net or self.net, START, AGGREGATE, data), error)

        case("an aggregate signed by a meter", "Sender", data, signer=self.meter)
        case("an aggregate of another net", "Net", data, net=ZERO_NET)
        case("a sum of 2^63", 'Bound("energy")', replaced(data, 5, [[2**63, blinding]]))
        case("a negative sum", 'Field("energy")', replaced(data, 5, [[-1, blinding]]))
        case("a blinding of l", 'Bound("blinding")', replaced(data, 5, [[energy, L.to_bytes(32, "little")]]))
        case("seventeen sums", 'Bound("sums")', replaced(data, 5, [[energy, blinding]] * 17))
        case("an extra field", "UnknownField", data + [0])

    # Frames before a round

    def handshake(self):
        pair = self.world.pairs[0, 1]
        lower, higher = (self.world.meters[pair[end]] for end in ("lower", "higher"))
        about = [lower.id, higher.id, pair["origin"]]
        offer = about + [pair["first_day"], pair["lower_public"]]
        answer = about + [pair["first_day"], pair["higher_public"], digest(pair["offer"])]

        def case(reader, name, error, data, signer, notification, net=None):
            frame_ = frame(signer, net or self.net, SETUP, notification, data)
            self.add(reader, name, frame_, error, key=signer.public)

        case("offer", "an offer of the higher end", "Sender", offer, higher, OFFER)
        case("offer", "an offer about another pair", 'Bound("pair")', replaced(offer, 1, self.world.meters[2].id), lower, OFFER)
        case("offer", "an offer with the ends exchanged", 'Bound("pair")', [offer[1], offer[0]] + offer[2:], lower, OFFER)
        case("offer", "an offer for another life of the edge", 'Bound("pair")', replaced(offer, 2, seed("other")), lower, OFFER)
        case("offer", "an offer of another net", "Net", offer, lower, OFFER, ZERO_NET)
        case("offer", "a first day of 2^32", 'Bound("first day")', replaced(offer, 3, 2**32), lower, OFFER)
        case("offer", "a public key of 31 bytes", 'Bound("public key")', replaced(offer, 4, bytes(31)), lower, OFFER)
        case("offer", "an answer where an offer belongs", "Kind", answer, lower, ANSWER)
        case("offer", "an offer with an extra field", "UnknownField", offer + [0], lower, OFFER)
        case("answer", "an answer of the lower end", "Sender", answer, lower, ANSWER)
        case("answer", "an answer to another offer", 'Bound("offer")', replaced(answer, 5, seed("other")), higher, ANSWER)
        case("answer", "an answer without the offer's digest", 'Field("offer")', answer[:5], higher, ANSWER)
        case("confirm", "a confirmation of the other end", "Sender", about + [pair["higher_tag"]], higher, CONFIRM)
        case("confirm", "a tag of 31 bytes", 'Bound("tag")', about + [bytes(31)], lower, CONFIRM)

    def administration(self):
        administrator, provider = self.world.administrator, self.world.provider
        data = [0, digest(self.world.log[0]), 0]

        def case(reader, name, error, frame_):
            self.add(reader, name, frame_, error)

        sign = lambda data, signer=administrator: frame(signer, self.net, START, CHECKPOINT, data)
        case("checkpoint", "a checkpoint signed by the provider", "Sender", sign(data, provider))
        case("checkpoint", "a checkpoint with an extra field", "UnknownField", sign(data + [0]))
        case("checkpoint", "2^32 members", 'Bound("members")', sign(replaced(data, 2, 2**32)))
        ids = sorted(meter.id for meter in self.world.meters)
        sign = lambda ids, net=ZERO_NET, signer=administrator: frame(signer, net, START, REVOCATIONS, [1, ids])
        case("revocations", "a list signed by the provider", "Sender", sign(ids, signer=provider))
        case("revocations", "a list of one net", "Net", sign(ids, self.net))
        case("revocations", "ids that descend", 'Bound("revoked")', sign(ids[::-1]))
        case("revocations", "an id twice", 'Bound("revoked")', sign([ids[0], ids[0]]))
        case("revocations", "an id of 15 bytes", 'Bound("revoked")', sign([ids[0][:15]]))
        case("revocations", "an id as text", 'Field("revoked")', sign([ids[0].hex()]))

    def registration(self):
        world, meter = self.world, self.meter
        stranger = Device("another authority")

        def case(name, error, der, signer=meter, **other):
            net = other.pop("net", self.net)
            self.add("registration", name, frame(signer, net, SETUP, REGISTER, [der], **other), error)

        case("a certificate of another CA", "Identity(Issuer)", certificate(stranger, meter, "meter", self.net))
        case("a certificate of another issuer", "Identity(Issuer)", certificate(world.authority, meter, "meter", self.net, issuer="someone"))
        case("a provider's certificate", "Identity(Role)", certificate(world.authority, meter, "provider"))
        case("a certificate for another net", "Identity(Net)", certificate(world.authority, meter, "meter", seed("net")[:16]))
        case("a meter's certificate without a net", "Identity(Net)", certificate(world.authority, meter, "meter"))
        case("an expired certificate", "Identity(Expired)", certificate(world.authority, meter, "meter", self.net, until=2025))
        case("a flipped bit in the certificate's signature", "Identity(Issuer)", meter.certificate[:-1] + bytes([meter.certificate[-1] ^ 1]))
        case("no certificate", "Identity(Form)", b"")
        case("a certificate with a trailing byte", "Identity(Form)", meter.certificate + b"\x00")
        case("someone else's certificate", "Frame(Sender)", world.meters[1].certificate)
        case("someone else's certificate and id", "Frame(Signature)", world.meters[1].certificate, client=world.meters[1].id)
        case("a registration for another net", "Frame(Net)", meter.certificate, net=ZERO_NET)

    # Entries, after the first `after` entries of the log

    def log(self):
        world, log = self.world, self.world.log

        def case(name, error, after, kind, body, **other):
            fields = {"index": after, "previous": digest(log[after - 1]), "net": self.net}
            fields.update(other)
            self.add("entry", name, world.entry(kind, body, **fields), error, after=after)

        body = lambda index: cbor2.loads(payload(log[index]))[7][3]
        joined = body(1)
        case("an entry signed by a meter", "Frame(Sender)", 1, JOIN, joined, signer=self.meter)
        case("an entry of another net", "Frame(Net)", 1, JOIN, joined, net=ZERO_NET)
        case("another predecessor", "Fork { index: 1 }", 1, JOIN, joined, previous=seed("other"))
        case("no predecessor", "Fork { index: 1 }", 1, JOIN, joined, previous=None)
        case("a second entry in one place", "Fork { index: 1 }", 3, JOIN, body(2), index=1, previous=digest(log[0]))
        case("an entry too far ahead", "Gap { expected: 1, index: 2 }", 1, JOIN, joined, index=2)
        self.add("entry", "an entry that is known", log[1], "Known", after=3)
        case("a second Genesis", 'Rule("a second Genesis")', 1, GENESIS, world.genesis_body())
        case("a Tariff", "Unsupported(Tariff)", 2, TARIFF, [b""])
        case("a kind without a meaning", 'Frame(Bound("kind"))', 1, 9, [])
        case("a member that joins twice", 'Rule("a member joins twice")', 2, JOIN, joined)
        case("a Join with an extra field", "Frame(UnknownField)", 1, JOIN, joined + [0])
        case("an entry of more than 4096 bytes", "Frame(TooLong)", 1, JOIN, [bytes(4096)])
        first = next(i for i in range(len(log)) if cbor2.loads(payload(log[i]))[7][2] == INVITE)
        request, nonce_p = body(first)
        outsider = frame(Device("outsider"), self.net, SETUP, DRAW_REQUEST, [bytes(32)])
        case("a draw request of nobody", "Frame(Sender)", first, INVITE, [outsider, nonce_p])
        again = frame(self.meter, self.net, SETUP, DRAW_REQUEST, [bytes(32)])
        case("an invite while one is open", 'Rule("a draw of this member is still open")', first + 1, INVITE, [again, nonce_p])
        case("a draw request used twice", 'Rule("a draw request is used twice")', first + 2, INVITE, [request, nonce_p])
        case("a provider's nonce of 31 bytes", 'Frame(Bound("nonce"))', first, INVITE, [request, nonce_p[:31]])
        opened = lambda invite, nonce: [frame(self.meter, self.net, SETUP, OPEN, [invite, nonce])]
        draw = world.draws[0]
        case("a draw without an invite", 'Rule("no such invite is open")', first, DRAW, opened(draw["invite"], draw["nonce"]))
        case("a draw for another invite", 'Rule("no such invite is open")', first + 1, DRAW, opened(seed("other"), draw["nonce"]))
        case("another nonce than the one committed to", 'Rule("the nonce is not the one committed to")', first + 1, DRAW, opened(draw["invite"], seed("other")))

    def genesis(self):
        world = self.world

        def case(what, error, signer=None, index=0, previous=None, kind=GENESIS, net=ZERO_NET, **fields):
            body = world.genesis_body(**fields)
            self.add("genesis", what, world.entry(kind, body, index, previous, net, signer), error)

        policy = world.policy
        case("a Genesis that names another CA", 'Trust("CA")', ca=seed("other"))
        # Whoever it names must have signed it; that it is the provider that a meter pins is checked later.
        other = certificate(world.authority, self.meter, "provider")
        case("a Genesis that names another provider than signed it", "Frame(Sender)", provider=other)
        case("a Genesis that names a meter", 'Trust("provider")', signer=self.meter, provider=self.meter.certificate)
        case("a Genesis signed by a meter", "Frame(Sender)", signer=self.meter)
        case("a Genesis of another net", "Frame(Net)", net=self.net)
        rule = 'Rule("the first entry is no Genesis")'
        case("a first entry that is no Genesis", rule, kind=JOIN)
        case("a Genesis in another place", rule, index=1)
        case("a Genesis with a predecessor", rule, previous=bytes(32))
        case("a period that does not divide a day", 'Frame(Bound("period"))', policy=replaced(policy, 0, 7))
        case("a window longer than the period", 'Frame(Bound("window"))', policy=replaced(policy, 1, 60_001))
        case("a minimum group of two", 'Frame(Bound("minimum group"))', policy=replaced(policy, 2, 2))
        case("two minimum neighbours", 'Frame(Bound("minimum neighbours"))', policy=replaced(policy, 3, 2))
        case("a degree of 1025", 'Frame(Bound("degree"))', policy=replaced(policy, 4, 1025))
        case("a sixth rule", "Frame(UnknownField)", policy=policy + [0])
        case("no channel", 'Frame(Bound("channels"))', channels=[])
        case("seventeen channels", 'Frame(Bound("channels"))', channels=[str(i) for i in range(17)])
        case("two channels of one name", 'Frame(Bound("channel"))', channels=["import", "import"])
        case("a channel without a name", 'Frame(Bound("channel"))', channels=[""])
        case("a name of 65 bytes", 'Frame(Bound("name"))', name="x" * 65)
        case("a salt of 15 bytes", 'Frame(Bound("salt"))', salt=bytes(15))
