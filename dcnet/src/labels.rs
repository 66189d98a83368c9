//! Every domain-separation label of the protocol, in one place. Hash and KDF
//! inputs are CBOR arrays that start with one of these.

/// External authenticated data of every COSE_Sign1 (RFC 9052, section 4.4).
pub const EXTERNAL_AAD: &[u8] = b"dcnet/1";

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)+) => {
        $($(#[$doc])* pub const $name: &str = $text;)+
        /// All labels; no two are equal.
        pub const ALL: &[&str] = &[$($text,)+];
    };
}

labels! {
    /// Hashed to the group for the second generator H.
    PEDERSEN_H = "dcnet/1 pedersen H";
    /// Blinding ρ of a reading.
    READING_BLINDING = "dcnet/1 reading blinding";
    /// Self-mask of a submission.
    SELF_MASK = "dcnet/1 self-mask";
    /// First key of a pair.
    PAIR_KEY = "dcnet/1 pair key";
    /// Confirmation tag of a handshake.
    CONFIRM = "dcnet/1 confirm";
    /// Next day's key of a pair.
    RATCHET = "dcnet/1 ratchet";
    /// Next day's blinding secret of a meter.
    BLINDING_RATCHET = "dcnet/1 blinding ratchet";
    /// Pads of submissions.
    PAD_SUBMISSION = "dcnet/1 pad submission";
    /// Pads of reveals.
    PAD_REVEAL = "dcnet/1 pad reveal";
    /// Commitment of a draw request.
    DRAW_COMMITMENT = "dcnet/1 draw commitment";
    /// Beacon of a draw.
    BEACON = "dcnet/1 beacon";
    /// Rank of a candidate in a draw.
    CANDIDATE = "dcnet/1 candidate";
}

#[cfg(test)]
mod tests {
    #[test]
    fn labels_are_distinct() {
        let set: std::collections::BTreeSet<_> = super::ALL.iter().collect();
        assert_eq!(set.len(), super::ALL.len());
    }
}
