"""A net of six meters with its log and handshakes, and one round in which five are
included, one is absent, and one edge is half-open. Everything follows from fixed seeds."""

from protocol import *

START = 1_767_225_600_000  # 2026-01-01T00:00:00Z
DAY = START // DAY_MS
PERIOD = 60
WINDOW = 20_000
DEGREE = 5
CHANNELS = ["import", "export"]
ROUND = START // (PERIOD * 1000)
SETUP = START - 3_600_000  # an hour earlier, and so on the day before
METERS = 6
ABSENT = 5


class World:
    def __init__(self):
        self.authority = Device("authority")
        self.ca = ca_certificate(self.authority)
        self.administrator, self.provider = Device("administrator"), Device("provider")
        for device, role in ((self.administrator, "administrator"), (self.provider, "provider")):
            device.certificate = certificate(self.authority, device, role)
        self.policy = [PERIOD, WINDOW, 4, 3, DEGREE]
        self.salt = seed("salt")[:16]
        self.log = [self.entry(GENESIS, self.genesis_body(), 0, None, ZERO_NET)]
        self.net = digest(self.log[0])[:16]
        self.meters = [Device(f"meter {i}") for i in range(METERS)]
        self.registrations = []
        for meter in self.meters:
            meter.certificate = certificate(self.authority, meter, "meter", self.net)
            register = frame(meter, self.net, SETUP, REGISTER, [meter.certificate])
            self.registrations.append(register)
            self.append(JOIN, [register])
        self.draws = [self.draw(i) for i in range(METERS)]
        self.pairs = self.handshakes()
        self.run_round()

    # The log

    def genesis_body(self, **other):
        fields = {
            "name": "vectors", "salt": self.salt, "policy": self.policy, "channels": CHANNELS,
            "provider": self.provider.certificate, "ca": sha256(self.ca),
        }
        fields.update(other)
        return list(fields.values())

    def entry(self, kind, body, index, previous, net, signer=None):
        data = [index, previous, kind, body]
        return frame(signer or self.provider, net, SETUP, ENTRY, data)

    def next_entry(self, kind, body):
        return self.entry(kind, body, len(self.log), self.head(), self.net)

    def append(self, kind, body):
        self.log.append(self.next_entry(kind, body))

    def head(self):
        return digest(self.log[-1])

    def draw(self, i):
        meter = self.meters[i]
        nonce, nonce_p = seed(f"draw nonce {i}"), seed(f"provider nonce {i}")
        commitment = draw_commitment(self.net, meter.id, nonce)
        request = frame(meter, self.net, SETUP, DRAW_REQUEST, [commitment])
        self.append(INVITE, [request, nonce_p])
        invite = self.head()
        opened = frame(meter, self.net, SETUP, OPEN, [invite, nonce])
        self.append(DRAW, [opened])
        beacon_ = beacon(self.net, invite, meter.id, nonce)
        candidates = [(j, other.id) for j, other in enumerate(self.meters) if j != i]
        return {
            "nonce": nonce, "provider_nonce": nonce_p, "commitment": commitment, "request": request,
            "invite": invite,
            "open": opened, "beacon": beacon_, "entry": len(self.log) - 1, "origin": self.head(),
            "ranks": {j: rank(beacon_, id_) for j, id_ in candidates},
            "drawn": drawn(beacon_, candidates, DEGREE),
        }

    def neighbours(self, i):
        """Drawn by it or by them, at the end of the log."""
        named = {j for j in range(METERS) if i in self.draws[j]["drawn"]}
        return sorted(named | set(self.draws[i]["drawn"]))

    # Handshakes

    def handshakes(self):
        pairs = {}
        for i in range(METERS):
            for j in self.neighbours(i):
                if i < j:
                    pairs[i, j] = self.handshake(i, j)
        return pairs

    def handshake(self, i, j):
        first = min((d for a, d in ((i, self.draws[i]), (j, self.draws[j]))
                     if {i, j} - {a} <= set(d["drawn"])), key=lambda d: d["entry"])
        lower, higher = sorted((self.meters[i], self.meters[j]), key=lambda m: m.id)
        low_secret, high_secret = seed(f"ephemeral lower {i} {j}"), seed(f"ephemeral higher {i} {j}")
        low_public, high_public = x25519_public(low_secret), x25519_public(high_secret)
        about = [lower.id, higher.id, first["origin"]]
        sign = lambda device, kind, data: frame(device, self.net, SETUP, kind, about + data)
        offer = sign(lower, OFFER, [DAY - 1, low_public])
        answer = sign(higher, ANSWER, [DAY - 1, high_public, digest(offer)])
        key = pair_key(low_secret, high_public, digest(offer), digest(answer))
        assert key == pair_key(high_secret, low_public, digest(offer), digest(answer))
        tags = [confirm_tag(key, end.id, digest(offer), digest(answer)) for end in (lower, higher)]
        return {
            "lower": self.meters.index(lower), "higher": self.meters.index(higher),
            "origin": first["origin"], "first_day": DAY - 1,
            "lower_secret": low_secret, "higher_secret": high_secret,
            "lower_public": low_public, "higher_public": high_public,
            "offer": offer, "answer": answer, "key": key,
            "lower_tag": tags[0], "higher_tag": tags[1],
            "lower_confirm": sign(lower, CONFIRM, [tags[0]]),
            "higher_confirm": sign(higher, CONFIRM, [tags[1]]),
        }

    def pads(self, i, j):
        """Pad keys of the round's day, and whether meter i adds."""
        pair = self.pairs[min(i, j), max(i, j)]
        k_d = ratchet(pair["key"], "ratchet", DAY - pair["first_day"])
        return pad_keys(k_d, self.net), pair["lower"] == i

    # The round

    def run_round(self):
        present = [i for i in range(METERS) if i != ABSENT]
        # The one half-open edge: the user is the first meter, the other end left it out.
        user = present[0]
        non_user = next(j for j in self.neighbours(user) if j != ABSENT)
        self.half_open = [(user, non_user)]
        used = {i: [j for j in self.neighbours(i) if (j, i) not in self.half_open] for i in present}
        self.used, self.present = used, present
        self.shares, self.submissions = {}, {}
        for i in present:
            meter = self.meters[i]
            b = ratchet(seed(f"blinding secret {i}"), "blinding ratchet", 1)
            shares = []
            for c in range(len(CHANNELS)):
                m = (123_456 * (i + 1) + 7 * i) if c == 0 else 40 * i
                opening = reading(b, self.net, ROUND, c, m)
                random = seed(f"mask random {i} {c}")
                mask = self_mask(seed(f"mask secret {i}"), random, self.net, ROUND, c)
                total = opening + mask
                for j in used[i]:
                    (submission, _), adds = self.pads(i, j)
                    p = pad_opening(pad(submission, ROUND, c))
                    total = total + p if adds else total - p
                shares.append({"energy": m, "reading": opening, "random": random, "mask": mask,
                               "superposition": total, "commitment": opening.commit()})
            self.shares[i] = shares
            self.submissions[i] = self.submission(i)
        self.roster = self.sign_roster()
        self.roster_hash = digest(self.roster)
        self.reveals = {i: self.reveal(i) for i in present}
        self.sums = []
        for c in range(len(CHANNELS)):
            total, commitments = ZERO, ristretto.Edwards(0, 1)
            for i in present:
                total = total + self.shares[i][c]["superposition"] - self.reveals[i][1][c]
                commitments = commitments + self.shares[i][c]["commitment"]
            assert total.value == sum(self.shares[i][c]["energy"] for i in present)
            assert total.commit().encode() == commitments.encode()
            self.sums.append((total, commitments))
        self.aggregate = frame(self.provider, self.net, START + 85_000, AGGREGATE, self.aggregate_data())

    def submission_data(self, i):
        neighbours = self.neighbours(i)
        edges = bitmap([neighbours.index(j) for j in self.used[i]], len(neighbours))
        shares = [[s["superposition"].bytes(), s["commitment"].encode()] for s in self.shares[i]]
        d = len(self.draws[i]["drawn"])
        minimum = max(3, self.policy[3], -(-6 * d // 10))
        return [ROUND, self.head(), self.policy[2], minimum, edges, shares]

    def submission(self, i):
        at = START + PERIOD * 1000 + 1000 + i
        return frame(self.meters[i], self.net, at, SUBMISSION, self.submission_data(i))

    def roster_data(self):
        digests = b"".join(digest(self.submissions[i])[:8] for i in self.present)
        half_open = [list(edge) for edge in sorted(self.half_open)]
        return [ROUND, self.head(), bitmap(self.present, METERS), digests, half_open, None]

    def sign_roster(self):
        at = START + PERIOD * 1000 + WINDOW
        return frame(self.provider, self.net, at, ROSTER, self.roster_data())

    def reveal(self, i):
        openings = []
        for c, share in enumerate(self.shares[i]):
            total = share["mask"]
            for j in self.used[i]:
                (submission, reveal), adds = self.pads(i, j)
                if j in self.present and (i, j) not in self.half_open:
                    p = pad_opening(reveal_pad(reveal, self.roster_hash, ROUND, c))
                else:
                    p = pad_opening(pad(submission, ROUND, c))
                total = total + p if adds else total - p
            openings.append(total)
        data = [ROUND, self.roster_hash, [opening.bytes() for opening in openings]]
        return frame(self.meters[i], self.net, START + 82_000 + i, REVEAL, data), openings

    def aggregate_data(self):
        sums = [[total.value, total.blinding.to_bytes(32, "little")] for total, _ in self.sums]
        return [ROUND, self.roster_hash, self.head(), METERS, len(self.present), sums]
