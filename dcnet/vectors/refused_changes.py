"""Entries of the second net's log that must be refused, and frames that its keys sign."""

from protocol import *
from world import SETUP


def changed(frame_):
    """The frame with another bit in its payload, under the old signature."""
    item = cbor2.loads(frame_).value
    payload_ = bytearray(item[2])
    payload_[-1] ^= 1
    return envelope(bytes(payload_), item[3])


class RefusedChanges:
    def __init__(self, refused):
        self.refused, self.changes = refused, refused.changes
        self.net, self.log = self.changes.net, self.changes.log
        self.stranger = Device("another authority")

    def all(self):
        self.leaves()
        self.joins_and_draws()
        self.revokes()
        self.lapses()
        self.handovers()
        self.signatures()

    def case(self, name, error, after, kind, body, **other):
        """An entry after the first `after` entries."""
        signer = self.changes.provider if after <= self.when("the provider hands over") else self.changes.successor
        fields = {"index": after, "previous": digest(self.log[after - 1]), "signer": signer, **other}
        entry = self.changes.entry(kind, body, **fields)
        self.refused.add("entry", name, entry, error, log="membership", after=after)

    def when(self, what):
        """How many entries there are before this one."""
        return next(i for i, step in enumerate(self.changes.steps) if step["what"] == what)

    def body(self, what):
        return cbor2.loads(payload(self.log[self.when(what)]))[7][3]

    def frame(self, device, notification, data, net=None, **other):
        at = SETUP + 1000 * len(self.log)
        return frame(device, self.net if net is None else net, at, notification, data, **other)

    def leaves(self):
        changes, meters = self.changes, self.changes.meters
        after, nobody = 20, 'Rule("the exit names no membership of its sender")'
        join = lambda place: changes.joined_by(place)

        def case(name, error, exit_, after=after):
            self.case(name, error, after, LEAVE, [exit_])

        exit_ = lambda device, data, **other: self.frame(device, EXIT, data, **other)
        good = exit_(meters[4], [join(4)])
        case("an exit by another member", nobody, exit_(meters[1], [join(4)]))
        case("an exit by another member in its name", "Frame(Signature)", exit_(meters[1], [join(4)], client=meters[4].id))
        case("an exit by the provider", "Frame(Sender)", exit_(changes.provider, [join(4)]))
        case("an exit by nobody", "Frame(Sender)", exit_(meters[11], [join(4)]))
        case("an exit that names another Join", nobody, exit_(meters[4], [join(1)]))
        case("an exit that names an entry that is no Join", nobody, exit_(meters[4], [digest(self.log[12])]))
        case("an exit that names no entry", nobody, exit_(meters[4], [seed("other")]))
        case("an exit from another net", "Frame(Net)", exit_(meters[4], [join(4)], net=ZERO_NET))
        case("another frame where an exit belongs", "Frame(Kind)", self.frame(meters[4], ERASED, [join(4)]))
        case("an exit without a Join", 'Frame(Field("join"))', exit_(meters[4], []))
        case("an exit that names a Join of 31 bytes", 'Frame(Bound("join"))', exit_(meters[4], [join(4)[:31]]))
        case("an exit that names a Join as text", 'Frame(Field("join"))', exit_(meters[4], [join(4).hex()]))
        case("an exit with an extra field", "Frame(UnknownField)", exit_(meters[4], [join(4), 0]))
        case("an exit with a trailing byte", "Frame(Form)", good + b"\x00")
        case("a changed exit", "Frame(Signature)", changed(good))
        case("an exit as text", 'Frame(Field("exit"))', good.hex())
        self.case("a Leave with an extra field", "Frame(UnknownField)", after, LEAVE, [good, 0])
        self.case("a Leave without an exit", 'Frame(Field("exit"))', after, LEAVE, [])
        self.case("a Leave whose body is no array", 'Frame(Field("leave"))', after, LEAVE, good)
        left = self.when("place 2 leaves") + 1
        old = changes.steps[left - 1]["frame"]
        case("an exit that is used twice", nobody, old, left)
        case("another exit of a membership that has ended", nobody, exit_(meters[2], [join(2)]), left)
        again = changes.places[11]["joined"] + 1
        case("an exit of an earlier membership of a meter that joined again", nobody, old, again)
        revoked = self.when("place 8 is revoked") + 1
        case("an exit of a revoked meter", nobody, exit_(meters[8], [join(8)]), revoked)

    def joins_and_draws(self):
        changes, meters = self.changes, self.changes.meters
        fresh = lambda i: self.frame(meters[i], REGISTER, [meters[i].certificate])
        self.case("a member that joins anew", 'Rule("a member joins twice")', 20, JOIN, [fresh(4)])
        left = self.when("place 2 leaves") + 1
        twice = 'Rule("a registration is used twice")'
        self.case("a registration that is used twice", twice, left, JOIN, [changes.places[2]["registration"]])
        again = self.when("place 11 leaves") + 1
        for place, which in ((2, "first"), (11, "second")):
            registration = changes.places[place]["registration"]
            self.case(f"the {which} registration after the second membership", twice, again, JOIN, [registration])
        revoked = self.when("place 8 is revoked") + 1
        self.case("a revoked meter that joins", 'Rule("a revoked meter joins")', revoked, JOIN, [fresh(8)])

        request = lambda device: self.frame(device, DRAW_REQUEST, [seed("commitment")])
        nonce = seed("provider nonce")
        self.case("a draw request of a meter that left", "Frame(Sender)", left, INVITE, [request(meters[2]), nonce])
        self.case("a draw request of a revoked meter", "Frame(Sender)", revoked, INVITE, [request(meters[8]), nonce])
        invited = self.when("place 11 is invited")
        open_ = self.frame(meters[2], OPEN, [digest(self.log[invited]), seed(f"nonce of entry {invited}")])
        closed = 'Rule("no such invite is open")'
        self.case("a draw of a meter that left since its invite", closed, invited + 2, DRAW, [open_])
        self.case("a draw of an earlier membership", closed, invited + 3, DRAW, [open_])

    def revokes(self):
        changes, meters = self.changes, self.changes.meters
        after, der = 20, changes.administrator.certificate

        def case(name, error, revocation, certificate_=der, after=after):
            self.case(name, error, after, REVOKE, [certificate_, revocation])

        sign = lambda signer, data, net=ZERO_NET, **other: self.frame(signer, REVOCATION, data, net, **other)
        good = sign(changes.administrator, [meters[4].id])
        by_provider = sign(changes.provider, [meters[4].id])
        case("a revocation by the provider", "Frame(Sender)", by_provider)
        case("a revocation by the provider, with its certificate", "Frame(Sender)", by_provider, changes.provider.certificate)
        case("a revocation by a meter, with its certificate", "Frame(Sender)", sign(meters[1], [meters[4].id]), meters[1].certificate)
        case("a revocation by the provider in the administrator's name", "Frame(Signature)",
             sign(changes.provider, [meters[4].id], client=changes.administrator.id))
        other = certificate(self.stranger, changes.administrator, "administrator")
        case("an administrator of another CA", "Identity(Issuer)", good, other)
        expired = certificate(changes.authority, changes.administrator, "administrator", until=2025)
        case("an administrator whose certificate has expired", "Identity(Expired)", good, expired)
        case("an administrator's certificate with a trailing byte", "Identity(Form)", good, der + b"\x00")
        case("no administrator's certificate", "Identity(Form)", good, b"")
        case("an administrator's certificate of 2049 bytes", 'Frame(Bound("administrator certificate"))', good, bytes(2049))
        case("a revocation for one net", "Frame(Net)", sign(changes.administrator, [meters[4].id], self.net))
        case("a revocation list where a revocation belongs", "Frame(Kind)",
             self.frame(changes.administrator, REVOCATIONS, [1, [meters[4].id]], ZERO_NET))
        case("a revocation of an id of 15 bytes", 'Frame(Bound("device"))', sign(changes.administrator, [meters[4].id[:15]]))
        case("a revocation of two", "Frame(UnknownField)", sign(changes.administrator, [meters[4].id, meters[1].id]))
        case("a changed revocation", "Frame(Signature)", changed(good))
        case("a revocation with a trailing byte", "Frame(Form)", good + b"\x00")
        nobody = 'Rule("who is revoked is no member")'
        case("a revocation of who never joined", nobody, sign(changes.administrator, [meters[11].id]))
        left = self.when("place 2 leaves") + 1
        case("a revocation of who has left", nobody, sign(changes.administrator, [meters[2].id]), after=left)
        revoked = self.when("place 8 is revoked") + 1
        case("a revocation that is used twice", nobody, changes.steps[revoked - 1]["frame"], after=revoked)
        self.case("a Revoke with an extra field", "Frame(UnknownField)", after, REVOKE, [der, good, 0])
        self.case("a Revoke without a certificate", 'Frame(Field("revocation"))', after, REVOKE, [good])

    def lapses(self):
        changes = self.changes
        join = changes.joined_by
        second = self.when("place 5 lapses")

        def case(name, error, after, *body):
            self.case(name, error, after, LAPSED, list(body))

        fifth = 'Rule("more than a fifth of the members lapse")'
        case("a third lapse of ten members", fifth, second + 1, join(6))
        case("a lapse of one of four members", fifth, 5, join(1))
        last = self.when("place 6 lapses") + 1
        case("a second lapse of nine members", fifth, last, join(0))
        case("a member that lapses twice", 'Rule("a member lapses twice")', second, join(4))
        nobody = 'Rule("who lapses is no member")'
        case("a lapse of who has left", nobody, 22, join(2))
        case("a lapse of an earlier membership", nobody, second, join(2))
        case("a lapse of who was revoked", nobody, self.when("place 8 is revoked") + 1, join(8))
        case("a lapse that names no Join", nobody, second, digest(self.log[12]))
        case("a lapse that names no entry", nobody, second, seed("other"))
        case("a lapse that names 31 bytes", 'Frame(Bound("join"))', second, join(6)[:31])
        case("a Lapsed with an extra field", "Frame(UnknownField)", second, join(6), 0)
        case("a Lapsed without a Join", 'Frame(Field("join"))', second)

    def handovers(self):
        changes = self.changes
        after, successor, meter = 20, changes.successor, changes.meters[4]

        def case(name, error, consent, after=after):
            self.case(name, error, after, PROVIDER_KEY, [consent])

        def consent(signer, der, net=None, **other):
            return self.frame(signer, PROVIDER_KEY_FRAME, [der], net, **other)

        good = consent(successor, successor.certificate)
        case("a handover with the consent of the old key", "Frame(Sender)", consent(changes.provider, successor.certificate))
        case("a handover with the consent of another key", "Frame(Sender)", consent(self.stranger, successor.certificate))
        case("a handover with a forged consent", "Frame(Signature)",
             consent(changes.provider, successor.certificate, client=successor.id))
        case("a handover to a meter", "Identity(Role)", consent(meter, meter.certificate))
        administrator = changes.administrator
        case("a handover to the administrator", "Identity(Role)", consent(administrator, administrator.certificate))
        case("a handover to a provider of another CA", "Identity(Issuer)",
             consent(successor, certificate(self.stranger, successor, "provider")))
        case("a handover to an expired certificate", "Identity(Expired)",
             consent(successor, certificate(changes.authority, successor, "provider", until=2025)))
        case("a handover of another net", "Frame(Net)", consent(successor, successor.certificate, ZERO_NET))
        case("a registration where a consent belongs", "Frame(Kind)",
             self.frame(successor, REGISTER, [successor.certificate]))
        case("a consent with an extra field", "Frame(UnknownField)",
             self.frame(successor, PROVIDER_KEY_FRAME, [successor.certificate, 0]))
        case("a consent without a certificate", 'Frame(Field("certificate"))', self.frame(successor, PROVIDER_KEY_FRAME, []))
        case("a consent with a trailing byte", "Frame(Form)", good + b"\x00")
        twice = 'Rule("a provider key is used twice")'
        own = changes.provider
        case("a handover to the key in force", twice, consent(own, own.certificate))
        handed_over = self.when("the provider hands over") + 1
        case("a handover back to the first key", twice, consent(own, own.certificate), handed_over)
        case("a handover that is used twice", twice, changes.steps[handed_over - 1]["frame"], handed_over)
        # Another certificate makes no other key.
        renewed = certificate(changes.authority, own, "provider", until=2036)
        case("a handover to a used key under a new certificate", twice, consent(own, renewed))
        self.case("a ProviderKey with an extra field", "Frame(UnknownField)", after, PROVIDER_KEY, [good, 0])
        self.case("a ProviderKey without a consent", 'Frame(Field("consent"))', after, PROVIDER_KEY, [])

    def signatures(self):
        """Which key signs what, before and after the handover."""
        changes = self.changes
        old, new = changes.provider, changes.successor
        handed_over = self.when("the provider hands over") + 1
        lapsed = [changes.joined_by(4)]
        self.case("an entry by the old key after the handover", "Frame(Signature)", handed_over, LAPSED, lapsed, signer=old)
        self.case("an entry by the new key before the handover", "Frame(Sender)", handed_over - 1, LAPSED, lapsed, signer=new)
        self.case("the handover signed by the new key", "Frame(Sender)", handed_over - 1, PROVIDER_KEY,
                  self.body("the provider hands over"), signer=new)
        self.case("a second entry by the new key in an old place", "Frame(Signature)", handed_over, LAPSED, lapsed,
                  index=20, previous=digest(self.log[19]), signer=new)
        # A fork is proven by the key that was in force in that place.
        self.case("a second entry by the old key in an old place", "Fork { index: 20 }", handed_over, LAPSED, lapsed,
                  index=20, previous=digest(self.log[19]), signer=old)

        def roster(name, error, signer, head):
            input_, _ = changes.roster(signer, head)
            self.refused.add("roster", name, input_, error, log="membership")

        last = len(self.log) - 1
        roster("a roster by the old key with an entry after the handover", "Frame(Signature)", old, last)
        roster("a roster by the old key with the handover", "Frame(Signature)", old, handed_over - 1)
        roster("a roster by the new key with an entry before the handover", "Frame(Signature)", new, handed_over - 2)
        roster("a roster by a meter", "Frame(Sender)", changes.meters[1], last)

        def revocation(name, error, input_):
            self.refused.add("revocation", name, input_, error)

        sign = lambda data, signer=changes.administrator, net=ZERO_NET: self.frame(signer, REVOCATION, data, net)
        id_ = changes.meters[4].id
        revocation("a revocation by a provider", "Sender", sign([id_], old))
        revocation("a revocation for a net", "Net", sign([id_], net=self.net))
        revocation("a revocation with an extra field", "UnknownField", sign([id_, 0]))
        revocation("a revocation of an id of 17 bytes", 'Bound("device")', sign([id_ + b"\x00"]))
