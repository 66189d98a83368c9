"""The derivations and frames of docs/protocol.md, written from that text."""

import datetime
import hashlib
import hmac

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from cryptography.x509.oid import NameOID, ObjectIdentifier

import ristretto
from ristretto import L

ZERO_NET = bytes(16)
DAY_MS = 86_400_000

(REGISTER, ENTERED, EXIT, REVEAL, SUBMISSION, DRAW_REQUEST, OPEN, OFFER, ANSWER, CONFIRM,
 LOG_REQUEST, ROSTER_REQUEST, ENTRY, ROSTER, AGGREGATE, CHECKPOINT, REVOCATIONS, REVOCATION,
 PROVIDER_KEY_FRAME, ERASED) = range(1, 21)
GENESIS, JOIN, INVITE, DRAW, LEAVE, REVOKE, LAPSED, TARIFF, PROVIDER_KEY = range(9)
ROLES = {"meter": 1, "provider": 2, "broker": 3, "administrator": 4, "third party": 5}
ROLE_ARC = "2.25.5871302984617304991"


def cbor(item):
    return cbor2.dumps(item, canonical=True)


def labelled(label, *items):
    return cbor(["dcnet/1 " + label, *items])


def sha256(data):
    return hashlib.sha256(data).digest()


def seed(name):
    """The fixed secret or random bytes that a vector names."""
    return sha256(b"dcnet vectors " + name.encode())


# --- Openings -----------------------------------------------------------------

H = ristretto.from_uniform(hashlib.sha512(b"dcnet/1 pedersen H").digest())


class Opening:
    def __init__(self, value, blinding):
        self.value, self.blinding = value % L, blinding % L

    def __add__(self, other):
        return Opening(self.value + other.value, self.blinding + other.blinding)

    def __neg__(self):
        return Opening(-self.value, -self.blinding)

    def __sub__(self, other):
        return self + -other

    def bytes(self):
        return self.value.to_bytes(32, "little") + self.blinding.to_bytes(32, "little")

    def commit(self):
        return self.value * ristretto.BASE + self.blinding * H


ZERO = Opening(0, 0)


def wide(data):
    assert len(data) == 64
    return int.from_bytes(data, "little") % L


def wide_hmac(key, data):
    return wide(hmac.new(key, data, hashlib.sha512).digest())


def reading(b_d, net, round_, channel, m):
    return Opening(m, wide_hmac(b_d, labelled("reading blinding", net, round_, channel, m)))


def self_mask(secret, random, net, round_, channel):
    part = [
        wide_hmac(secret, labelled("self-mask", random, net, round_, channel, part))
        for part in (0, 1)
    ]
    return Opening(*part)


# --- Pair keys and pads -------------------------------------------------------


def expand(key, info):
    return HKDFExpand(hashes.SHA256(), 32, info).derive(key)


def ratchet(key, label, days):
    for _ in range(days):
        key = expand(key, labelled(label))
    return key


def x25519_public(secret):
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def pair_key(secret, peer, offer, answer):
    shared = X25519PrivateKey.from_private_bytes(secret).exchange(
        X25519PublicKey.from_public_bytes(peer)
    )
    return HKDF(hashes.SHA256(), 32, None, labelled("pair key", offer, answer)).derive(shared)


def confirm_tag(key, sender, offer, answer):
    return expand(key, labelled("confirm", sender, offer, answer))


def pad_keys(k_d, net):
    return expand(k_d, labelled("pad submission", net)), expand(k_d, labelled("pad reveal", net))


def pad(key, round_, channel):
    nonce = channel.to_bytes(2, "little") + bytes(2) + round_.to_bytes(8, "little")
    counter = bytes(4)
    return Cipher(algorithms.ChaCha20(key, counter + nonce), None).encryptor().update(bytes(128))


def reveal_pad(key, roster, round_, channel):
    middle = ristretto.hchacha20(key, roster[:16])
    return pad(ristretto.hchacha20(middle, roster[16:]), round_, channel)


def pad_opening(data):
    return Opening(wide(data[:64]), wide(data[64:]))


# --- Draws --------------------------------------------------------------------


def draw_commitment(net, meter, nonce):
    return sha256(labelled("draw commitment", net, meter, nonce))


def beacon(net, invite, meter, nonce):
    return sha256(labelled("beacon", net, invite, meter, nonce))


def rank(beacon_, candidate):
    return sha256(labelled("candidate", beacon_, candidate))


def drawn(beacon_, candidates, degree):
    """`candidates` are pairs (member index, id)."""
    order = sorted(candidates, key=lambda candidate: rank(beacon_, candidate[1]))
    return sorted(index for index, _ in order[:degree])


# --- Devices, certificates and frames -----------------------------------------


class Device:
    def __init__(self, name):
        self.seed = seed("device " + name)
        self.private = Ed25519PrivateKey.from_private_bytes(self.seed)
        self.public = self.private.public_key().public_bytes_raw()
        self.id = sha256(self.public)[:16]
        self.certificate = None

    def sign(self, message):
        return self.private.sign(message)


def when(year):
    return datetime.datetime(year, 1, 1, tzinfo=datetime.timezone.utc)


def name_of(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def ca_certificate(device, text="gateway administrator"):
    builder = (
        x509.CertificateBuilder().subject_name(name_of(text)).issuer_name(name_of(text))
        .public_key(device.private.public_key()).serial_number(1)
        .not_valid_before(when(2025)).not_valid_after(when(2055))
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(
            x509.KeyUsage(False, False, False, False, False, True, False, False, False), True
        )
    )
    return builder.sign(device.private, None).public_bytes(serialization.Encoding.DER)


def certificate(ca, device, role, net=None, until=2035, issuer="gateway administrator"):
    usages = [ObjectIdentifier(f"{ROLE_ARC}.{ROLES[role]}")]
    builder = (
        x509.CertificateBuilder().subject_name(name_of(role)).issuer_name(name_of(issuer))
        .public_key(device.private.public_key())
        .serial_number(int.from_bytes(device.id, "big") >> 1)
        .not_valid_before(when(2025)).not_valid_after(when(until))
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )
    if net is not None:
        names = [x509.UniformResourceIdentifier("urn:dcnet:net:" + net.hex())]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(ca.private, None).public_bytes(serialization.Encoding.DER)


PROTECTED = bytes.fromhex("a10127")


def to_be_signed(payload, aad=b"dcnet/1", protected=PROTECTED):
    return cbor(["Signature1", protected, aad, payload])


def envelope(payload, signature, protected=PROTECTED, unprotected=None, tag=18):
    return cbor(cbor2.CBORTag(tag, [protected, unprotected or {}, payload, signature]))


def payload_of(device, net_, at, notification_, data_, **other):
    """`other` replaces fields by name."""
    fields = {
        "protocol": "dcnet", "version": 1, "net": net_, "client": device.id,
        "bit": int(notification_ == SUBMISSION), "timestamp": at, "notification": notification_,
        "data": data_,
    }
    fields.update(other)
    return list(fields.values())


def seal(device, payload):
    """A frame around payload bytes, whatever they are."""
    return envelope(payload, device.sign(to_be_signed(payload)))


def frame(device, net_, at, notification_, data_, **other):
    return seal(device, cbor(payload_of(device, net_, at, notification_, data_, **other)))


def payload(frame_):
    return cbor2.loads(frame_).value[2]


def digest(frame_):
    return sha256(payload(frame_))


def bitmap(positions, length):
    out = bytearray((length + 7) // 8)
    for position in positions:
        out[position // 8] |= 1 << position % 8
    return bytes(out)
