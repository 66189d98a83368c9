"""Writes the test vectors of dcnet, or checks that the committed ones are what it writes.

    python3 generate.py            write *.json next to this file
    python3 generate.py --check    exit code 1 if a file differs
"""

import json
import pathlib
import sys

sys.dont_write_bytecode = True

import ristretto
from changes import Changes
from protocol import *
from refused import Refused
from world import CHANNELS, DAY, DEGREE, METERS, PERIOD, ROUND, SETUP, START, WINDOW, World

HERE = pathlib.Path(__file__).parent


def openings(world):
    net = world.net
    commitments = []
    for value, blinding in ((0, 0), (1, 0), (0, 1), (5, 7), (L - 1, 1), (2**40 - 1, L - 1),
                            (wide(seed("value") * 2), wide(seed("blinding") * 2))):
        o = Opening(value, blinding)
        commitments.append({"opening": o.bytes(), "commitment": o.commit().encode()})
    readings, secret = [], seed("blinding secret")
    for round_, channel, m in ((ROUND, 0, 0), (ROUND, 0, 1), (ROUND, 1, 1), (ROUND + 1, 0, 2**40 - 1),
                               (0, 15, 23), (ROUND + 1440, 3, 65_536)):
        day = round_ * PERIOD * 1000 // DAY_MS
        first = max(0, day - 2)
        b_d = ratchet(secret, "blinding ratchet", day - first)
        readings.append({
            "secret": secret, "first_day": first, "day": day, "net": net, "round": round_,
            "channel": channel, "mwh": m, "opening": reading(b_d, net, round_, channel, m).bytes(),
        })
    masks = []
    for i, (round_, channel) in enumerate(((ROUND, 0), (ROUND, 1), (0, 15), (2**64 - 1, 300))):
        random = seed(f"random {i}")
        mask = self_mask(seed("mask secret"), random, net, round_, channel)
        masks.append({"secret": seed("mask secret"), "random": random, "net": net, "round": round_,
                      "channel": channel, "mask": mask.bytes()})
    not_reduced = [L.to_bytes(32, "little") + bytes(32), bytes(32) + L.to_bytes(32, "little"),
                   (2**255 - 1).to_bytes(32, "little") + bytes(32), b"\xff" * 64]
    no_points = [b"\xff" * 32, b"\x01" + bytes(31), (ristretto.P).to_bytes(32, "little"),
                 (ristretto.P + 2).to_bytes(32, "little"), (2**255 - 1).to_bytes(32, "little"),
                 (ristretto.P - 1).to_bytes(32, "little"), b"\x00" * 31 + b"\x80"]
    assert all(ristretto.decode(point) is None for point in no_points)
    integers = [{"opening": Opening(v, 9).bytes(), "integer": v if 0 <= v < 2**63 else None}
                for v in (0, 1, 2**63 - 1, 2**63, 2**64, L - 1)]
    return {
        "generator_h": H.encode(), "commitments": commitments, "readings": readings,
        "self_masks": masks, "not_reduced": not_reduced, "no_points": no_points,
        "integers": integers,
    }


def keys(world):
    key, net = seed("pair key"), world.net
    ratchets = [{"first": key, "days": days, "pair": ratchet(key, "ratchet", days),
                 "blinding": ratchet(key, "blinding ratchet", days)} for days in (0, 1, 2, 30, 400)]
    pads = []
    for net_, round_, channel, roster in (
        (net, ROUND, 0, seed("roster")), (net, ROUND, 1, seed("roster")), (net, ROUND + 1, 0, seed("roster")),
        (net, ROUND, 0, seed("another roster")), (seed("net")[:16], ROUND, 0, seed("roster")),
        (net, 2**64 - 1, 65_535, bytes(32)),
        (net, ROUND, 0, seed("roster")[:16] + bytes(16)), (net, ROUND, 0, bytes(16) + seed("roster")[16:]),
    ):
        submission, reveal = pad_keys(key, net_)
        one, two = pad(submission, round_, channel), reveal_pad(reveal, roster, round_, channel)
        pads.append({
            "key": key, "net": net_, "round": round_, "channel": channel, "roster": roster,
            "submission_key": submission, "reveal_key": reveal,
            "submission_pad": one, "submission_opening": pad_opening(one).bytes(),
            "reveal_pad": two, "reveal_opening": pad_opening(two).bytes(),
        })
    return {"ratchets": ratchets, "pads": pads, "pairs": list(world.pairs.values()),
            "all_zero": [bytes(32), b"\x01" + bytes(31), (ristretto.P - 1).to_bytes(32, "little"),
                         bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")]}


def draws(world):
    net, meter, nonce = world.net, seed("drawer")[:16], seed("nonce")
    invite = seed("invite")
    beacon_ = beacon(net, invite, meter, nonce)
    candidates = [(i, seed(f"candidate {i}")[:16]) for i in range(60)]
    return {
        "net": net, "meter": meter, "nonce": nonce, "invite": invite,
        "commitment": draw_commitment(net, meter, nonce), "beacon": beacon_,
        "candidates": [id_ for _, id_ in candidates],
        "ranks": [rank(beacon_, id_) for _, id_ in candidates],
        "drawn": {str(degree): drawn(beacon_, candidates, degree) for degree in (0, 1, 3, 48, 60, 100)},
        "log": world.draws,
    }


def frames(world):
    meter, net = world.meters[0], world.net
    ids = sorted(m.id for m in world.meters[:3])
    head = len(world.log) - 1
    simple = [
        ("entered", ENTERED, [5]),
        ("draw request", DRAW_REQUEST, [world.draws[0]["commitment"]]),
        ("open", OPEN, [world.draws[0]["invite"], world.draws[0]["nonce"]]),
        ("log request", LOG_REQUEST, [7]),
        ("roster request", ROSTER_REQUEST, [seed("roster")]),
        ("first roster request", ROSTER_REQUEST, [None]),
    ]
    return {
        "ca": world.ca, "start": START, "period": PERIOD, "window": WINDOW, "degree": DEGREE,
        "policy": world.policy, "channels": CHANNELS, "salt": world.salt, "setup": SETUP, "net": net,
        "provider": party(world.provider), "administrator": party(world.administrator),
        "meters": [party(m) for m in world.meters],
        "registrations": world.registrations, "log": world.log,
        "neighbours": [world.neighbours(i) for i in range(METERS)],
        "simple": [{"name": name, "notification": notification, "at": START + notification,
                    "frame": frame(meter, net, START + notification, notification, data),
                    "data": cbor(data)} for name, notification, data in simple],
        "checkpoint": {"index": head, "head": world.head(), "members": METERS,
                       "frame": frame(world.administrator, net, START, CHECKPOINT, [head, world.head(), METERS])},
        "revocations": {"number": 3, "revoked": ids,
                        "frame": frame(world.administrator, ZERO_NET, START, REVOCATIONS, [3, ids])},
    }


def party(device):
    return {"seed": device.seed, "public": device.public, "id": device.id, "certificate": device.certificate}


def the_round(world):
    meters = []
    for i in world.present:
        data = world.submission_data(i)
        shares = [{**s, "reading": s["reading"].bytes(), "mask": s["mask"].bytes(),
                   "superposition": s["superposition"].bytes(), "commitment": s["commitment"].encode()}
                  for s in world.shares[i]]
        frame_, reveal = world.reveals[i]
        meters.append({
            "member": i, "used": world.used[i], "minimum_group": data[2], "minimum_neighbours": data[3],
            "edges": data[4], "blinding_secret": seed(f"blinding secret {i}"),
            "mask_secret": seed(f"mask secret {i}"), "shares": shares,
            "submission_at": START + PERIOD * 1000 + 1000 + i, "submission": world.submissions[i],
            "reveal_at": START + 82_000 + i, "reveal": frame_,
            "reveal_openings": [o.bytes() for o in reveal],
        })
    return {
        "round": ROUND, "day": DAY, "members": METERS, "included": world.present,
        "half_open": world.half_open, "meters": meters,
        "roster_at": START + PERIOD * 1000 + WINDOW, "roster": world.roster, "roster_hash": world.roster_hash,
        "sums": [{"opening": total.bytes(), "commitments": points.encode(), "mwh": total.value}
                 for total, points in world.sums],
        "aggregate_at": START + 85_000, "aggregate": world.aggregate,
    }


def membership(changes):
    roster, included = changes.roster()
    places = [{"meter": place["meter"], "joined": place["joined"], "ended": place["ended"],
               "registration": digest(place["registration"])} for place in changes.places]
    left = changes.places[2]
    join = digest(changes.log[left["joined"]])
    erased_at = changes.at()
    return {
        "net": changes.net, "policy": changes.policy, "channels": CHANNELS, "salt": changes.salt,
        "successor": party(changes.successor), "meters": [party(meter) for meter in changes.meters],
        "steps": changes.steps, "places": places,
        "erased": {"by": 0, "join": join, "at": erased_at,
                   "frame": frame(changes.meters[0], changes.net, erased_at, ERASED, [join])},
        "roster": {"included": included, "at": changes.at(), "frame": roster},
    }


def written(item):
    """JSON of a file: byte strings in hexadecimal."""
    text = json.dumps(item, indent=1, default=lambda data: bytes(data).hex())
    return text + "\n"


def main():
    ristretto.self_check()
    world = World()
    changes = Changes(world)
    files = {
        "openings.json": openings(world), "keys.json": keys(world), "draws.json": draws(world),
        "frames.json": frames(world), "round.json": the_round(world),
        "membership.json": membership(changes), "refused.json": Refused(world, changes).cases,
    }
    differing = []
    for name, item in files.items():
        path, text = HERE / name, written(item)
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            differing.append(name)
    if differing:
        sys.exit("not what generate.py writes: " + ", ".join(differing))


if __name__ == "__main__":
    main()
