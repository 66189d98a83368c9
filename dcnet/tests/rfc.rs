//! Published vectors against the crates that this one computes with and, where they
//! are public, against its own wrappers: a changed dependency must not change a byte.

use chacha20::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use chacha20::{ChaCha20, R20, hchacha};
use coset::{
    CborSerializable, CoseSign1, CoseSign1Builder, HeaderBuilder, TaggedCborSerializable, iana,
};
use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use dcnet::cbor;
use dcnet::commitment::{Commitment, commit};
use dcnet::frame::{self, Frame, FrameError, Notification};
use dcnet::handshake::Ephemeral;
use dcnet::identity::{DeviceKey, PublicKey};
use dcnet::labels::EXTERNAL_AAD;
use dcnet::opening::Opening;
use dcnet::secret::Secret;
use dcnet::time::Timestamp;
use dcnet::topic::NetId;
use ed25519_dalek::{Signer, SigningKey};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};
use x25519_dalek::x25519;

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

fn fixed<const N: usize>(text: &str) -> [u8; N] {
    bytes(text).try_into().unwrap()
}

#[test]
fn rfc_7748_x25519() {
    // Section 5.2.
    for (scalar, point, output) in [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ] {
        assert_eq!(x25519(fixed(scalar), fixed(point)), fixed(output));
    }
    // Section 6.1: Bob's key, his public half and the secret he shares with Alice.
    let bob = fixed("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
    let alice = fixed("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    let shared = fixed("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    assert_eq!(x25519(bob, alice), shared);
    let public = fixed("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
    assert_eq!(
        Ephemeral::new(Secret::new(&mut bob.clone())).public(),
        public
    );
}

#[test]
fn rfc_8032_ed25519() {
    // Section 7.1, tests 1 to 3.
    for (secret, public, message, signature) in [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155\
             5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
             18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ] {
        let (message, signature) = (bytes(message), fixed(signature));
        let key = SigningKey::from_bytes(&fixed(secret));
        assert_eq!(key.sign(&message).to_bytes(), signature);
        let public = PublicKey::from_bytes(&fixed(public)).unwrap();
        assert_eq!(DeviceKey::from_seed(&fixed(secret)).public(), public);
        assert!(public.verify(&message, &signature));
        assert!(!public.verify(b"another message", &signature));
    }
}

#[test]
fn rfc_8439_chacha20() {
    // Appendix A.1, tests 1 and 2: two blocks of key stream, as a pad has.
    let mut stream = [0; 128];
    ChaCha20::new(&[0; 32].into(), &[0; 12].into()).apply_keystream(&mut stream);
    let expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7\
                    da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586\
                    9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed\
                    29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f";
    assert_eq!(stream, fixed(expected));
    // Section 2.4.2.
    let mut text = *b"Ladies and Gentlemen of the class of '99: If I could offer you \
                      only one tip for the future, sunscreen would be it.";
    let key: [u8; 32] = std::array::from_fn(|i| i.try_into().unwrap());
    let nonce: [u8; 12] = fixed("000000000000004a00000000");
    let mut cipher = ChaCha20::new(&key.into(), &nonce.into());
    cipher.seek(64u64);
    cipher.apply_keystream(&mut text);
    let expected = "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b\
                    f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8\
                    07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736\
                    5af90bbf74a35be6b40b8eedf2785e42874d";
    assert_eq!(text.to_vec(), bytes(expected));
}

#[test]
fn xchacha_draft_hchacha20() {
    // draft-irtf-cfrg-xchacha-03, section 2.2.1.
    let key: [u8; 32] = std::array::from_fn(|i| i.try_into().unwrap());
    let input: [u8; 16] = fixed("000000090000004a0000000031415927");
    let output: [u8; 32] = hchacha::<R20>(&key.into(), &input.into()).into();
    let expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc";
    assert_eq!(output, fixed(expected));
}

#[test]
fn rfc_5869_hkdf() {
    // Appendix A, cases 1 and 3.
    let secret = [0x0b; 22];
    let (salt, info) = (
        bytes("000102030405060708090a0b0c"),
        bytes("f0f1f2f3f4f5f6f7f8f9"),
    );
    for (salt, info, key, output) in [
        (
            Some(&salt[..]),
            &info[..],
            "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            None,
            &[][..],
            "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ] {
        let (extracted, expand) = Hkdf::<Sha256>::extract(salt, &secret);
        assert_eq!(extracted.to_vec(), bytes(key));
        let mut out = [0; 42];
        expand.expand(info, &mut out).unwrap();
        assert_eq!(out, fixed(output));
        let from_key = Hkdf::<Sha256>::from_prk(&bytes(key)).unwrap();
        from_key.expand(info, &mut out).unwrap();
        assert_eq!(out, fixed(output));
    }
}

#[test]
fn rfc_4231_hmac_sha_512() {
    // Sections 4.2 and 4.3.
    for (key, message, output) in [
        (
            &[0x0b; 20][..],
            "Hi There",
            "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde\
             daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854",
        ),
        (
            b"Jefe",
            "what do ya want for nothing?",
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554\
             9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
        ),
    ] {
        let mut mac = Hmac::<Sha512>::new_from_slice(key).unwrap();
        mac.update(message.as_bytes());
        assert_eq!(mac.finalize().into_bytes().to_vec(), bytes(output));
    }
}

#[test]
fn rfc_9496_ristretto255() {
    // Appendix A.1: multiples 0 to 3 of the generator.
    let multiples = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76",
        "6a493210f7499cd17fecb510ae0cea23a110e8d5b901f8acadd3095c73a3b919",
        "94741f5d5d52755ece4f23f044ee27d5d1ea1e2bd196b462166b16152a9d0259",
    ];
    for (multiple, encoding) in (0u8..).zip(multiples) {
        let opening = Opening {
            value: Scalar::from(multiple),
            blinding: Scalar::ZERO,
        };
        assert_eq!(commit(&opening).to_bytes(), fixed(encoding));
        assert_eq!(
            Commitment::from_bytes(&fixed(encoding)),
            Ok(commit(&opening))
        );
    }
    // Appendix A.2: encodings that are not canonical, negative, or of no square.
    for encoding in [
        "00ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "f3ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "01ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ] {
        assert!(
            CompressedRistretto(fixed(encoding)).decompress().is_none(),
            "{encoding}"
        );
        assert!(
            Commitment::from_bytes(&fixed(encoding)).is_err(),
            "{encoding}"
        );
    }
    // Appendix A.3: hashing to the group, the way H is made.
    let text = "Ristretto is traditionally a short shot of espresso coffee";
    let hash: [u8; 64] = Sha512::digest(text).into();
    let point = RistrettoPoint::from_uniform_bytes(&hash);
    let encoding = "3066f82a1a747d45120d1740f14358531a8f04bbffe6a819f86dfe50f44a0a46";
    assert_eq!(point.compress().to_bytes(), fixed(encoding));
}

const AT: Timestamp = Timestamp(1_767_225_600_000);
const NET: NetId = NetId([9; 16]);

fn device() -> DeviceKey {
    DeviceKey::from_seed(&[1; 32])
}

fn our_frame() -> Vec<u8> {
    frame::sign(
        &device(),
        NET,
        AT,
        Notification::Entered,
        cbor::array([cbor::uint(5u32)]),
    )
}

#[test]
fn rfc_9052_cose_sign1() {
    // cose-wg/Examples, eddsa-examples/eddsa-sig-02: the same headers but for a key id, and
    // what is signed. (Its key is an Ed448 one.)
    let example = bytes(
        "d28443a10127a10445336434343854546869732069732074686520636f6e74656e742e5872\
         988240a3a2f189bd486de14aa77f54686c576a09f2e7ed9bae910df9139c2ac3be7c27b7\
         e10a20fa17c9d57d3510a2cf1f634bc0345ab9be00849842171d1e9e98b2674c0e38bfcf\
         6c557a1692b01b71015a47ac9f7748840cad1da80cbb5b349309febb912672b377c8b207\
         2af1598b3700",
    );
    let to_be_signed =
        bytes("846a5369676e61747572653143a101274054546869732069732074686520636f6e74656e742e");
    let parsed = CoseSign1::from_tagged_slice(&example).unwrap();
    assert_eq!(parsed.tbs_data(b""), to_be_signed);
    // It has a key id in the unprotected header, so it is no frame.
    assert_eq!(
        Frame::verify(&example, &device().public()).err(),
        Some(FrameError::Form)
    );

    // Ours differ from it in the external data and the payload only.
    let ours = CoseSign1::from_tagged_slice(&our_frame()).unwrap();
    let (head, tail) = to_be_signed.split_at(16);
    assert_eq!(
        tail.first(),
        Some(&0x40),
        "the example has no external data"
    );
    let payload = ours.payload.clone().unwrap();
    let length = u8::try_from(payload.len()).unwrap();
    let expected = [head, &[0x47], EXTERNAL_AAD, &[0x58, length], &payload].concat();
    assert_eq!(ours.tbs_data(EXTERNAL_AAD), expected);
    let signature = ours.signature.try_into().unwrap();
    assert!(device().public().verify(&expected, &signature));
}

#[test]
fn coset_reads_and_verifies_our_frames() {
    let sign1 = CoseSign1::from_tagged_slice(&our_frame()).unwrap();
    let algorithm = coset::RegisteredLabelWithPrivate::Assigned(iana::Algorithm::EdDSA);
    assert_eq!(sign1.protected.header.alg, Some(algorithm));
    assert!(sign1.unprotected.is_empty());
    let verify = |signature: &[u8], message: &[u8]| {
        device()
            .public()
            .verify(message, signature.try_into().unwrap())
    };
    let verdict = |aad: &[u8]| {
        sign1.verify_signature(aad, |signature, message| {
            if verify(signature, message) {
                Ok(())
            } else {
                Err(())
            }
        })
    };
    assert_eq!(verdict(EXTERNAL_AAD), Ok(()));
    assert_eq!(verdict(b""), Err(()));
    let digest: [u8; 32] = Sha256::digest(sign1.payload.as_ref().unwrap()).into();
    let frame = Frame::verify(&our_frame(), &device().public()).unwrap();
    assert_eq!(frame.digest(), digest);
}

#[test]
fn we_verify_frames_that_coset_builds() {
    let payload = CoseSign1::from_tagged_slice(&our_frame())
        .unwrap()
        .payload
        .unwrap();
    let key = SigningKey::from_bytes(&[1; 32]);
    let build = |aad: &[u8], algorithm| {
        CoseSign1Builder::new()
            .protected(HeaderBuilder::new().algorithm(algorithm).build())
            .payload(payload.clone())
            .create_signature(aad, |message| key.sign(message).to_bytes().to_vec())
            .build()
    };
    let built = build(EXTERNAL_AAD, iana::Algorithm::EdDSA)
        .to_tagged_vec()
        .unwrap();
    assert_eq!(built, our_frame(), "there is one way to write a frame");
    let verdict = |frame: &[u8]| Frame::verify(frame, &device().public()).err();
    assert_eq!(verdict(&built), None);
    let other_aad = build(b"", iana::Algorithm::EdDSA).to_tagged_vec().unwrap();
    assert_eq!(verdict(&other_aad), Some(FrameError::Signature));
    let es256 = build(EXTERNAL_AAD, iana::Algorithm::ES256)
        .to_tagged_vec()
        .unwrap();
    assert_eq!(verdict(&es256), Some(FrameError::Form));
    let untagged = build(EXTERNAL_AAD, iana::Algorithm::EdDSA)
        .to_vec()
        .unwrap();
    assert_eq!(verdict(&untagged), Some(FrameError::Form));
}
