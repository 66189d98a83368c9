//! The privacy oracle: the argument of `docs/protocol.md`, "A round", made executable. It takes
//! a simulated run, writes down what a provider and corrupted meters saw as linear equations,
//! eliminates what they do not know, and compares what is left with what may be left.
//!
//! # The claim
//!
//! Whatever a provider says, the functions of honest meters' readings that it and the corrupted
//! meters can compute are exactly the linear combinations of sums over *honest components of
//! accepted rosters*: honest meters that are connected by full edges of one roster and have all
//! answered it. No reading is in two such sums, and each is over at least `L − C + 1` meters,
//! where a meter needs L full drawn edges and C of these lead to corrupted meters.
//!
//! # Why it holds
//!
//! A self-mask occurs in one superposition and one reveal, so only their difference is free of
//! it: the reading, plus for every full edge the submission pad minus the reveal pad of that
//! roster. A pad occurs at the two ends of its edge only. A combination in which no unknown is
//! left therefore has, with a meter, every honest meter at the other end of its full edges, all
//! with the same coefficient and the same roster: it is made of whole components. A meter in
//! one has at least `L − C` honest neighbours there. The blindings form the same sums, and a
//! commitment adds one equation with a blinding of its own.
//!
//! # What is an unknown
//!
//! - each component of a self-mask, of a pad of an edge (one for the submission and one per
//!   roster for the reveal, per round and channel), and each blinding ρ, **named by its bytes**:
//!   values that are equal are one unknown, so any reuse shows, whatever caused it;
//! - the reading m of a meter, interval and channel.
//!
//! What a corrupted meter knows is no unknown: its readings, blindings and self-masks, and the
//! pads of all its edges. Provider and corrupted meters have no other secrets.
//!
//! # What is an equation
//!
//! Every submission and reveal that a meter ever published, delivered or not, of rounds that
//! were finished, abandoned or repeated: two equations per channel, one for each component. And
//! every commitment, as seen by someone who knows `h = log_G H`: the value of `m + h·ρ`.
//!
//! No equation is taken on trust. [`trace::Trace`] keeps the secrets that meters stored (the
//! self-masks before they are erased, the pair keys, the device's blinding secret) and the true
//! energies, and computes every superposition, commitment and reveal again, with the pads and
//! signs that the equation names. Only what agrees bit for bit becomes an equation;
//! anything else is reported as [`verdict::Finding::Unexplained`]. L is computed again from
//! the log too, from the draw as of the submission's head.
//!
//! # What is checked
//!
//! [`account::Account::judge`] eliminates over the field of 2⁶¹ − 1 elements and asserts
//! - that the space of functions of readings is spanned by the sums of accepted rosters, in
//!   both directions: nothing more follows, and every such sum does follow;
//! - that the space with blindings is spanned by the sums of both components and the
//!   commitments;
//! - that no reading is in two sums, so that a combination of sums is never over fewer meters
//!   than the smallest of them, and that none is smaller than `L − C + 1`, or than two;
//! - that no reading or function of one meter's readings is in the space.
//!
//! [`scenario`] makes runs from seeds: a correct provider over a bad network, and a hostile one
//! ([`hostile`], [`moves`]) that makes every roster itself. [`membership`] plays both while
//! meters leave, are revoked, lapse, lose their state, join and draw again ([`changes`]),
//! and while the provider's key changes. Corruption is knowledge, not behaviour, so one
//! run is judged for several sets of corrupted meters; the provider's choices aim at one of
//! them. The tests play weaker protocols with symbols only, which the oracle must find fault
//! with; `mutants/run.py` takes the rules from the real meter one by one.
//!
//! # What is assumed
//!
//! - Of the drawn full edges of an honest meter that answers, fewer than L lead to corrupted
//!   meters; L is at least 60 % of those it drew. Sets of corrupted meters are cut down until
//!   this holds. That a draw is fair is not the oracle's business.
//! - Pads, self-masks and blindings are uniform and independent unless equal: ChaCha20, HKDF
//!   and HMAC are pseudo-random, X25519 is hard, and one source of a self-mask's randomness is
//!   good. Signatures are not forged.
//! - Frames other than submissions and reveals do not depend on readings. Nothing but these
//!   gets a reading in dcnet, by the types.
//!
//! # What it cannot see
//!
//! - It is about linear functions. Masks are uniform in the whole group, so without them
//!   nothing else follows either; but that a reading is small is not used, nor what somebody
//!   knows of a household beforehand, nor what sums of consecutive rounds say together.
//! - Elimination is over a smaller field than that of the protocol. Rows of ±1 with two
//!   entries per pad have the same rank in every field; with h, chosen once per run, an
//!   accident has a probability of about 2⁻⁶⁰ per minor.
//! - Corrupted meters follow the protocol on the wire. What they send tells nothing that they
//!   do not know; what lies of theirs could make others do, the provider's rosters do as well.
//! - Bills and audits do not exist yet; their openings would be equations and allowed
//!   functions of their own.
//! - A meter whose disk was restored may answer twice. That is harmless for fewer than
//!   `L − C + 1` meters, and judged like everything else.
//! - It proves runs. That all runs behave so is the argument above.

pub mod account;
pub mod changes;
pub mod elimination;
pub mod field;
pub mod hostile;
pub mod membership;
pub mod moves;
pub mod saved;
pub mod scenario;
pub mod trace;
pub mod verdict;
