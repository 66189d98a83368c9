"""Ristretto255 (RFC 9496), the Ed25519 curve below it, and HChaCha20, in plain Python.

Slow and not in constant time: for test vectors only. `self_check` compares each
function with a published vector.
"""

import hashlib
import struct

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)


def is_negative(x):
    return x % P & 1


def absolute(x):
    x %= P
    return P - x if x & 1 else x


def sqrt_ratio_m1(u, v):
    """RFC 9496, section 4.2: (whether u/v is a square, its root or that of i·u/v)."""
    u, v = u % P, v % P
    r = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    check = v * r * r % P
    correct = check == u
    flipped = check == -u % P
    flipped_i = check == -u * SQRT_M1 % P
    if flipped or flipped_i:
        r = r * SQRT_M1 % P
    return correct or flipped, absolute(r)


# RFC 9496, section 4.1; the signs of the roots matter, so they stand here and are checked below.
SQRT_AD_MINUS_ONE = 25063068953384623474111414158702152701244531502492656460079210482610430750235
INVSQRT_A_MINUS_D = 54469307008909316920995813868745141605393597292927456921205312896311721017578
ONE_MINUS_D_SQ = (1 - D * D) % P
D_MINUS_ONE_SQ = (D - 1) ** 2 % P


class Edwards:
    """A point of edwards25519 in extended coordinates (RFC 8032, section 5.1.4)."""

    def __init__(self, x, y, z=1, t=None):
        self.x, self.y, self.z = x % P, y % P, z % P
        self.t = x * y % P if t is None else t % P

    def __add__(self, other):
        a = (self.y - self.x) * (other.y - other.x)
        b = (self.y + self.x) * (other.y + other.x)
        c = 2 * self.t * other.t * D
        d = 2 * self.z * other.z
        e, f, g, h = b - a, d - c, d + c, b + a
        return Edwards(e * f, g * h, f * g, e * h)

    def __neg__(self):
        return Edwards(-self.x, self.y, self.z, -self.t)

    def __rmul__(self, scalar):
        result, addend = Edwards(0, 1), self
        while scalar:
            if scalar & 1:
                result = result + addend
            addend = addend + addend
            scalar >>= 1
        return result

    def ed25519_bytes(self):
        inverse = pow(self.z, -1, P)
        x, y = self.x * inverse % P, self.y * inverse % P
        return (y | (x & 1) << 255).to_bytes(32, "little")

    def encode(self):
        """RFC 9496, section 4.3.2."""
        u1 = (self.z + self.y) * (self.z - self.y)
        u2 = self.x * self.y
        _, invsqrt = sqrt_ratio_m1(1, u1 * u2 * u2)
        den1, den2 = invsqrt * u1, invsqrt * u2
        z_inv = den1 * den2 * self.t
        x, y, den_inv = self.x, self.y, den2
        if is_negative(self.t * z_inv):
            x, y = self.y * SQRT_M1, self.x * SQRT_M1
            den_inv = den1 * INVSQRT_A_MINUS_D
        if is_negative(x * z_inv):
            y = -y
        return absolute(den_inv * (self.z - y)).to_bytes(32, "little")


BASE = Edwards(
    15112221349535400772501151409588531511454012693041857206046113283949847762202,
    4 * pow(5, -1, P),
)


def decode(data):
    """RFC 9496, section 4.3.1; None if the bytes encode no element."""
    s = int.from_bytes(data, "little")
    if s >= P or is_negative(s):
        return None
    u1, u2 = 1 - s * s, 1 + s * s
    v = -(D * u1 * u1) - u2 * u2
    square, invsqrt = sqrt_ratio_m1(1, v * u2 * u2)
    den_x = invsqrt * u2
    den_y = invsqrt * den_x * v
    x, y = absolute(2 * s * den_x), u1 * den_y % P
    if not square or is_negative(x * y) or y == 0:
        return None
    return Edwards(x, y)


def map_to_element(data):
    """RFC 9496, section 4.3.4, the map applied to one half."""
    t = int.from_bytes(data, "little") % 2**255 % P
    r = SQRT_M1 * t * t
    u, v = (r + 1) * ONE_MINUS_D_SQ, (-1 - r * D) * (r + D)
    square, s = sqrt_ratio_m1(u, v)
    c = -1
    if not square:
        s, c = -absolute(s * t), r
    n = c * (r - 1) * D_MINUS_ONE_SQ - v
    w0, w1, w2, w3 = 2 * s * v, n * SQRT_AD_MINUS_ONE, 1 - s * s, 1 + s * s
    return Edwards(w0 * w3, w2 * w1, w1 * w3, w0 * w2)


def from_uniform(data):
    """RFC 9496, section 4.3.4."""
    assert len(data) == 64
    return map_to_element(data[:32]) + map_to_element(data[32:])


def hchacha20(key, nonce):
    """draft-irtf-cfrg-xchacha-03, section 2.2."""
    state = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce))

    def quarter(a, b, c, d):
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) % 2**32
            word = state[z] ^ state[x]
            state[z] = (word << turn | word >> 32 - turn) % 2**32

    for _ in range(10):
        for i in range(4):
            quarter(i, i + 4, i + 8, i + 12)
        for i in range(4):
            quarter(i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12)
    return struct.pack("<8I", *state[:4], *state[12:])


def self_check():
    assert SQRT_AD_MINUS_ONE**2 % P == (-D - 1) % P
    assert INVSQRT_A_MINUS_D**2 * (-1 - D) % P == 1
    # RFC 9496, appendix A.1 (generator and its double) and A.3 (first).
    assert BASE.encode().hex() == "e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76"
    assert (2 * BASE).encode().hex() == "6a493210f7499cd17fecb510ae0cea23a110e8d5b901f8acadd3095c73a3b919"
    assert decode(BASE.encode()).encode() == BASE.encode()
    assert decode(b"\x01" + bytes(31)) is None
    text = b"Ristretto is traditionally a short shot of espresso coffee"
    element = from_uniform(hashlib.sha512(text).digest())
    assert element.encode().hex() == "3066f82a1a747d45120d1740f14358531a8f04bbffe6a819f86dfe50f44a0a46"
    # draft-irtf-cfrg-xchacha-03, section 2.2.1.
    derived = hchacha20(bytes(range(32)), bytes.fromhex("000000090000004a0000000031415927"))
    assert derived.hex() == "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"


if __name__ == "__main__":
    self_check()
    print("ristretto.py agrees with the published vectors")
