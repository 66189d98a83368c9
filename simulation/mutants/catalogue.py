"""The mutants: each takes one rule of a meter away.

All of them are woven into one copy of dcnet's source, where they sleep until the
environment names one: the copy is compiled once for all mutants. A site is a text that
occurs exactly once in its file, and what stands there instead; `ON(name)` in it becomes the
question whether that mutant is awake. With none awake a site does what the text did.
"""

import re
from typing import NamedTuple

APPEND, AGGREGATE, CHECKS = "membership/append.rs", "aggregate.rs", "meter/checks.rs"
DRAWS, EDGES, ENTRY = "meter/draws.rs", "meter/edges.rs", "membership/entry.rs"
EXCLUSIONS = "meter/exclusions.rs"
EXIT, GRAPH, LOG = "meter/exit.rs", "graph.rs", "meter/log.rs"
MEMBERSHIP, METER = "membership.rs", "meter.rs"
PAD, READING = "pad.rs", "reading.rs"
REVOCATION, ROSTER, ROUNDS = "revocation.rs", "roster.rs", "meter/rounds.rs"
SUPERPOSITION = "superposition.rs"

RULES = {}  # name: rule, in the order of the table
SITES = []  # (file, search, replacement)


class Mutant(NamedTuple):
    name: str
    rule: str


def rule(name, text):
    RULES[name] = text


def site(file, search, replacement):
    SITES.append((file, search, replacement))


def one(name, text, file, search, replacement):
    """A mutant with one site; ON in the replacement means this mutant."""
    rule(name, text)
    site(file, search, re.sub(r"\bON\b(?!\()", f"ON({name})", replacement))


def guard(name, text, file, condition):
    """A condition that refuses never holds."""
    one(name, text, file, f"if {condition} {{", f"if !ON && ({condition}) {{")


def statement(name, text, file, code):
    """A statement is left out."""
    one(name, text, file, code, f"if !ON {{ {code} }}")


# Before a submission.
guard("clock-unsynchronised", "submission: clock synchronised", CHECKS, "!now.synchronised")
guard("clock-unconfirmed", "submission: a jump ahead needs confirmation", CHECKS, "self.unconfirmed")
guard("clock-jump", "submission: a jump ahead is noticed", CHECKS, "ahead > tolerance")
guard("clock-in-step", "submission: UTC in step with the monotonic clock", CHECKS,
      "difference.saturating_mul(50) > monotonic")
statement("clock-not-asked", "submission: clock checked at all", ROUNDS, "self.clock.check(now)?;")
guard("register-once", "submission: interval after the submitted end", CHECKS, "start < submitted_until")
one("register-not-stored", "submission: submitted end stored", ROUNDS,
    "Some(until),", "Some(until).filter(|_| !ON),")
one("yearly-draw", "draw: again after a year", DRAWS,
    ".is_some_and(|at| at.plus(YEAR) <= now.utc)", ".is_some_and(|at| !ON && at.plus(YEAR) <= now.utc)")
one("draw-open", "submission: newest draw complete", ROUNDS,
    ".filter(|_| self.draw.is_none())", ".filter(|_| ON || self.draw.is_none())")
guard("draw-candidates", "submission: draw had minimum-group candidates", ROUNDS,
      "newest.candidates < self.minimum_group()")
rule("submission-live", "submission: L drawn edges have a key")
rule("submission-usable", "submission: L drawn edges have a key of the day")
rule("submission-edges", "submission: L drawn edges, at the boundary and at the submission")
rule("l-established", "L: d counts drawn, not established edges")
rule("lapse-lowers-d", "L: a lapse leaves d as it was")
site(ROUNDS, "if live < usize::try_from(self.required(drawn)).unwrap_or(usize::MAX) {",
     "let drawn = if ON(l-established) { live.min(drawn) } else { drawn };"
     "let refuses = !ON(submission-live) && !ON(submission-edges) && !ON(lapse-lowers-d);"
     "if refuses && live < usize::try_from(self.required(drawn)).unwrap_or(usize::MAX) {")
site(ROUNDS, "let required = self.required(drawn.len());",
     "let counted = |i: &&MemberIndex| !ON(lapse-lowers-d)"
     " || !membership.member(**i).is_some_and(crate::membership::Member::is_lapsed);"
     "let required = self.required(drawn.iter().filter(counted).count());")
site(ROUNDS, "if usable < usize::try_from(required).unwrap_or(usize::MAX) {",
     "let required = if ON(l-established) { self.required(usable) } else { required };"
     "let refuses = !ON(submission-usable) && !ON(submission-edges);"
     "if refuses && usable < usize::try_from(required).unwrap_or(usize::MAX) {")
one("exit-keeps-d", "L: an exit takes the neighbour out of d", GRAPH,
    "!self.is_ended(**peer, at)", "ON || !self.is_ended(**peer, at)")
rule("checkpoint", "submission: log contains the checkpoint")
rule("pinned-provider", "submission: log signed by the provider it was enrolled with")
site(ROUNDS, "if !self.checkpoint_seen || !membership.has_pinned_provider() {",
     "if (!ON(checkpoint) && !self.checkpoint_seen)"
     " || (!ON(pinned-provider) && !membership.has_pinned_provider()) {")
statement("stopped", "submission: a stopped meter is silent", ROUNDS, "return Err(Silence::Stopped);")
guard("leaving-submits", "submission: a leaving meter is silent", ROUNDS, "self.is_leaving()")
guard("window-over", "submission: within the window", ROUNDS,
      "now.utc >= round.end(policy.period).plus(window)")
one("revoked-neighbour", "submission: no pad with a neighbour on the revocation list", EDGES,
    "established && !is_revoked(revoked, &key.peer)", "established && (ON || !is_revoked(revoked, &key.peer))")

# L.
rule("l-share", "L: 0.6·d")
rule("l-policy", "L: policy")
rule("l-own-floor", "L: own floor")
rule("l-hard-floor", "L: three at least")
site(CHECKS, "own_floor.max(HARD_FLOOR).max(policy).max(share)",
     "let share = if ON(l-share) { 0 } else { share };"
     "let policy = if ON(l-policy) { 0 } else { policy };"
     "let own_floor = if ON(l-own-floor) { 0 } else { own_floor };"
     "let hard = if ON(l-hard-floor) { 0 } else { HARD_FLOOR };"
     "own_floor.max(hard).max(policy).max(share)")

# Before a reveal.
guard("reveal-closed", "reveal: round not closed", ROUNDS,
      "now.utc >= roster.round.end(period).plus(CLOSED_AFTER)")
one("closed-not-forgotten", "reveal: closed rounds forgotten", ROUNDS,
    "|round| now.utc >= round.end(period).plus(CLOSED_AFTER)",
    "|round| !ON && now.utc >= round.end(period).plus(CLOSED_AFTER)")
one("closed-repeated", "reveal: closed rounds forgotten before anything is repeated", METER,
    "self.close_rounds(now);\n        self.close_windows(now);",
    "if !ON { self.close_rounds(now); }\n        self.close_windows(now);")
one("early-roster", "reveal: round has ended", ROUNDS,
    "roster.round.end(period) > now.utc.plus(CLOCK_SLACK)",
    "!ON && roster.round.end(period) > now.utc.plus(CLOCK_SLACK)")
guard("head-descends", "reveal: head descends from the submission's", ROUNDS,
      "roster.head_index < own_round.head_index")
guard("own-digest", "reveal: own digest on the roster", ROUNDS,
      "roster.digest_of(own) != Some(own_round.digest)")
statement("claims", "reveal: half-open claims compared", ROUNDS, "used.claims_hold(roster)?;")
one("claims-user", "reveal: claims that it used an edge", CHECKS,
    "self.used(claim.non_user)", "ON || self.used(claim.non_user)")
one("claims-non-user", "reveal: claims that it did not use an edge", CHECKS,
    "!self.used(claim.user)", "ON || !self.used(claim.user)")
guard("minimum-group", "reveal: included at least minimum group", ROUNDS, "included < own_round.minimum_group")
guard("departed-on-roster", "reveal: departed members are on no roster", ROSTER,
      "!included.iter().all(is_member)")
guard("presence", "reveal: 80 % of the lately seen", CHECKS,
      "included.saturating_mul(100) < lately.saturating_mul(u64::from(percent))")
one("second-roster-told", "always: a second roster of a round that is over is an alarm", ROUNDS,
    ".or(seen.map(|seen| seen.hash))", ".or(seen.map(|seen| seen.hash).filter(|_| !ON))")
one("presence-departed", "reveal: departed members are not missed", CHECKS,
    "!left(*member)", "ON || !left(*member)")
guard("full-edges", "reveal: full drawn edges at least L", CHECKS,
      "full < usize::try_from(required).unwrap_or(usize::MAX)")
one("full-incoming", "reveal: only own drawn edges count", ROUNDS,
    "&own_round.drawn, own_round.required",
    "if ON { &peers } else { &own_round.drawn }, own_round.required")
rule("full-unused", "reveal: full means used")
rule("full-absent", "reveal: full means included")
rule("full-half-open", "reveal: full means not half-open")
site(CHECKS, "self.used(peer) && is_full_if_used(roster, self.own, peer)",
     "(ON(full-unused) || self.used(peer)) && (ON(full-absent) || roster.includes(peer))"
     " && (ON(full-half-open) || !roster.states_half_open(self.own, peer))")

# One roster.
rule("answer-not-stored", "reveal: accepted roster on disk first")
rule("two-rosters", "reveal: no other roster accepted")
site(ROUNDS, "self.store_stage(round, stage);",
     "if !ON(answer-not-stored) && !ON(two-rosters) { self.store_stage(round, stage); }")
site(ROUNDS, "if roster.round <= round {", "if roster.round < round || !ON(two-rosters) && roster.round == round {")
statement("refused-not-stored", "reveal: refused for good", ROUNDS,
          "self.store_stage(round, RoundStage::Refused);")
rule("chain-skipped", "reveal: chain of rosters not skipped")
site(ROUNDS, "if roster.previous != Some(hash) {",
     "if !ON(chain-skipped) && !ON(two-rosters) && roster.previous != Some(hash) {")
one("chain-begins-anew-early", "reveal: chain begins anew only after a closed round", ROUNDS,
    "is_closed && self.rounds", "(ON || is_closed) && self.rounds")
one("chain-hides-rounds", "reveal: chain begins anew only where no submission waits", ROUNDS,
    "self.rounds.range(..roster.round).next().is_none()",
    "(ON || self.rounds.range(..roster.round).next().is_none())")

# Always.
guard("exclusions", "always: exclusions counted", ROUNDS, "timely")
statement("exclusions-when-back", "always: also of submissions that waited for the connection", METER,
          "self.count_as_timely(now);")
one("wait-excluded", "always: what keeps a meter out for its own late reveals is no exclusion", ROUNDS,
    "timely && !self.made_others_wait(roster)", "timely && (ON || !self.made_others_wait(roster))")
one("owes-reveal", "always: to be left out while it owes a reveal is no exclusion", EXCLUSIONS,
    "matches!(own.stage, RoundStage::Refused)", "!ON && matches!(own.stage, RoundStage::Refused)")
one("wait-never-ends", "always: late reveals excuse a limited wait", EXCLUSIONS,
    "next.is_some_and(|next| roster.round < next)", "(ON || next.is_some_and(|next| roster.round < next))")

# What is said.
rule("mask-not-revealed", "reveal contains the self-mask")
rule("no-self-masks", "superposition and reveal contain the self-mask")
site(ROUNDS, ".map(|(mask, sum)| *mask + sum.finish())",
     ".map(|(mask, sum)| if ON(mask-not-revealed) || ON(no-self-masks)"
     " { sum.finish() } else { *mask + sum.finish() })")
site(ROUNDS, "opening + sum.finish() + mask",
     "if ON(no-self-masks) { opening + sum.finish() } else { opening + sum.finish() + mask }")
rule("reveal-with-submission-pads", "reveal pads differ from submission pads")
rule("reveal-pads-for-gaps", "reveal repeats the submission's pad where the edge is not full")
site(ROUNDS, "let full = checks::is_full_if_used(roster, own, *index);",
     "let full = !ON(reveal-with-submission-pads)"
     " && (ON(reveal-pads-for-gaps) || checks::is_full_if_used(roster, own, *index));")
one("unbound-reveal-pads", "reveal pads keyed by the roster", PAD,
    "let (halves, _) = roster.as_chunks::<16>();",
    "let roster = if ON { &[0; 32] } else { roster }; let (halves, _) = roster.as_chunks::<16>();")
one("blinding-without-reading", "ρ depends on m", READING, "cbor::uint(m),", "cbor::uint(if ON { 0 } else { m }),")
one("blinding-without-channel", "ρ depends on the channel", READING,
    "cbor::uint(channel),", "cbor::uint(if ON { 0 } else { channel }),")
one("self-mask-without-channel", "self-mask depends on the channel", SUPERPOSITION,
    "cbor::uint(channel),", "cbor::uint(if ON { 0 } else { channel }),")

# Exits.
one("exit-of-another", "log: only a member itself leaves", APPEND,
    ".filter(|member| *member == sender)", ".filter(|member| ON || *member == sender)")
one("exit-replayed", "log: an exit ends the membership that it names", APPEND,
    "let member = self.member_joined_by(&join);",
    "let member = if ON { Some(sender) } else { self.member_joined_by(&join) };")
one("key-used-elsewhere", "exit: a foreign exit with its own key stops it", EXIT,
    "self.stop(Alarm::KeyUsedElsewhere);", "if !ON { self.stop(Alarm::KeyUsedElsewhere); }")
one("state-lost", "exit: a meter without its state leaves", EXIT,
    "self.connected_since.is_none() || whole", "self.connected_since.is_none() || whole || ON")
one("erased-while-kept", "exit: Erased said once the key is erased", EXIT, "if !kept {", "if ON || !kept {")
one("erased-of-a-member", "exit: Erased said of ended memberships only", EXIT,
    ".find_map(|member| member.ended)", ".find_map(|member| member.ended.or_else(|| ON.then_some(0)))")
one("erased-taken-for-another", "exit: a confirmation names the membership that ended", EXIT,
    "filter(|exit| exit.join == join)", "filter(|exit| ON || exit.join == join)")
guard("exit-to-join-anew", "exit: the owner's wish turns joining anew into an exit", EXIT,
      "std::mem::take(&mut exit.again)")
one("exit-undated", "exit: its time is taken from a right clock", EXIT,
    "if right { now.utc } else { UNDATED }", "if ON || right { now.utc } else { UNDATED }")
guard("exit-in-the-future", "exit: a time in the future is no time", EXIT, "right && left > now.utc")
one("exit-not-followed", "exit: followed after a restart that came between", EXIT,
    "self.exit.as_ref().filter(|exit| exit.left.is_none())?;",
    "self.exit.as_ref().filter(|exit| !ON && exit.left.is_none())?;")
statement("exit-repeats", "exit: nothing but rounds goes on after it", EXIT,
          """self.repeats
            .retain(|purpose| matches!(purpose, Purpose::Submission(_) | Purpose::Reveal(_)));""")
one("exit-keeps-state", "exit: the rest of the net's state erased", EXIT,
    "for key in seen.chain(gone.map(<[u8]>::to_vec)) {",
    "for key in seen.chain(gone.map(<[u8]>::to_vec)).filter(|_| !ON) {")
one("exit-forgets-rounds", "exit: keys kept until no round waits for them", EXIT,
    "!self.rounds.is_empty() || ", "!ON && !self.rounds.is_empty() || ")
one("exit-keeps-keys", "exit: own keys erased", EXIT,
    "self.forget_edge(key);", "if !ON { self.forget_edge(key); }")
one("former-key-kept", "exit: key with a departed neighbour erased", LOG,
    "self.sync_edges(now);", "if !ON { self.sync_edges(now); }")
rule("former-key-too-early", "exit: key kept while a round submitted with it is under way")
rule("former-key-any-round", "exit: rounds submitted without the key do not keep it")
site(EDGES, "dead.partition(|key| used.contains(key))",
     "dead.partition(|key| !ON(former-key-too-early)"
     " && (used.contains(key) || ON(former-key-any-round) && !self.rounds.is_empty()))")
one("answered-key-too-early", "exit: also after the reveal or a refusal, until the round is final or closed",
    ROUNDS, "own_round.drawn = Vec::new();",
    "own_round.drawn = Vec::new(); if ON { own_round.used = Vec::new(); }")
one("former-key-never", "exit: key erased when the last round that keeps it ends", ROUNDS,
    "if self.edges_dead {", "if !ON && self.edges_dead {")

# Keys that are lost.
one("keys-missing", "exit: a meter that lacks keys for a day joins anew", EXIT,
    "(live < required && required <= usable)", "(!ON && live < required && required <= usable)")
one("keys-missing-at-once", "exit: it waits for a day, connected, before that", EXIT,
    "self.keyless < KEYLESS ||", "!ON && self.keyless < KEYLESS ||")
statement("keys-missing-stored", "exit: a restart costs no more than an hour of that day", EXIT,
          "self.persist(Store::Net, saved::KEYLESS.to_vec(), value);")
one("keys-missing-clock", "exit: nor does a clock that is not right end it", EXIT,
    "Some(_) if self.clock.check(now).is_err() => return,",
    "Some(_) if self.clock.check(now).is_err() => {"
    " if ON { self.set_keyless(Duration::ZERO); } return; }")
one("keys-missing-draws", "exit: it does so only while it may draw", EXIT,
    "|| !self.has_draws_left(now)", "|| !ON && !self.has_draws_left(now)")
one("key-replaced", "handshake: a key in use is not replaced", EDGES,
    "Some(Stage::Established { .. }) => {\n",
    "Some(Stage::Established { .. }) if !ON => {\n")
one("second-offer-told", "handshake: another offer for a key in use is an alarm", EDGES,
    "return Err(HandshakeFault::Alarm(key, SECOND_OFFER));",
    "if !ON { return Err(HandshakeFault::Alarm(key, SECOND_OFFER)); }"
    " return Err(Refusal::Rule(SECOND_OFFER).into());")
one("handshake-told-again", "handshake: a fault of a neighbour is told once", EDGES,
    "if self.handshakes_told.insert((key, reason)) {", "if self.handshakes_told.insert((key, reason)) || ON {")
one("older-offer", "handshake: an offer older than the one that is answered changes nothing", EDGES,
    "if at < *offered => {", "if !ON && at < *offered => {")
guard("age-ignored", "exit: secrets of more than 400 days ago are replaced", EDGES,
      "blinding.is_some_and(|day| is_outdated(day, oldest))")
one("old-keys-kept", "pair keys of more than 400 days ago are erased", EDGES,
    "edges.filter(|(_, edge)| edge.is_outdated(oldest))",
    "edges.filter(|(_, edge)| !ON && edge.is_outdated(oldest))")

# Joins and revocations.
guard("registration-twice", "log: a registration is used once", APPEND,
      "self.registrations_used.contains(&registration)")
guard("member-twice", "log: a member joins once", APPEND, "self.active(&id).is_some()")
guard("revoked-joins", "log: a revoked meter joins no more", APPEND, "self.revoked.contains(&id)")
one("revocation-by-anyone", "log: only the administrator revokes", REVOCATION,
    "\n    if administrator.role() != Role::Administrator {",
    "\n    if !ON && administrator.role() != Role::Administrator {")
one("revoked-goes-on", "log: a revoked meter stops", LOG,
    "=> self.stop(Alarm::Revoked),", "=> if !ON { self.stop(Alarm::Revoked) },")

# Lapses.
one("lapse-fifth", "log: no more than a fifth lapse", APPEND,
    "if u64::from(lapsed).saturating_mul(5)", "if !ON && u64::from(lapsed).saturating_mul(5)")
one("lapse-twice", "log: a member lapses once", APPEND,
    "!member.is_lapsed()", "ON || !member.is_lapsed()")
one("lapse-unending", "log: its own draw ends a lapse", APPEND,
    "self.end_lapse(member, index);\n        Ok(Applied::Drawn(member))",
    "if !ON { self.end_lapse(member, index); }\n        Ok(Applied::Drawn(member))")
rule("lapsed-drawn", "draw: lapsed members are no candidates")
rule("departed-drawn", "draw: departed members are no candidates")
site(MEMBERSHIP, "self.is_active_at(index) && !lapsed",
     "(self.is_active_at(index) || ON(departed-drawn) && self.joined <= index)"
     " && (ON(lapsed-drawn) || !lapsed)")
one("false-lapse", "log: a false lapse is an alarm", LOG,
    "meter.filter(|_| took_part)", "meter.filter(|_| took_part && !ON)")
guard("false-lapse-clock", "log: a false lapse is told by a right clock only", LOG, "self.clock.check(now).is_err()")

# What the provider signed.
guard("bad-entry-told", "log: an entry that breaks a rule is an alarm", LOG,
      "self.membership.is_some() && error.accuses_provider()")
one("forgery-told", "log: a forged frame inside an entry is an alarm", ENTRY,
    "Self::Frame(_) | Self::Identity(_) => Self::Body", "Self::Frame(_) | Self::Identity(_) if !ON => Self::Body")
one("floor-of-neighbours", "always: the net draws as many neighbours as the own floor", LOG,
    "floors.minimum_neighbours,", "if ON { 0 } else { floors.minimum_neighbours },")

# What is kept and what is erased.
one("list-not-stored", "a revocation list is stored before it is used", LOG,
    "self.persist(Store::Net, saved::REVOKED.to_vec(), Some(value));",
    "if !ON { self.persist(Store::Net, saved::REVOKED.to_vec(), Some(value)); } else { drop(value); }")
one("older-list", "an older revocation list does not come into force", LOG,
    "if list.replaces(self.config.revoked.as_ref()) {",
    "if ON || list.replaces(self.config.revoked.as_ref()) {")
one("pair-keys-stay", "pair keys of days whose rounds are closed are erased", EDGES,
    "if edge.erase_before(oldest) {", "if !ON && edge.erase_before(oldest) {")
one("blinding-stays", "blinding secrets of days whose rounds are closed are erased", EDGES,
    "&& device.blinding.day() < oldest", "&& !ON && device.blinding.day() < oldest")

# The provider's key.
one("handover-without-consent", "log: the new provider key consents", ENTRY,
    "frame.verify(certificate.key())?.open(net, notification)?;",
    "if !ON || role != Role::Provider { frame.verify(certificate.key())?.open(net, notification)?; }")
one("handover-to-anyone", "log: the new key has a provider's certificate", ENTRY,
    "if certificate.role() != role {", "if (!ON || role == Role::Meter) && certificate.role() != role {")
one("old-key-signs-entries", "log: an entry is signed by the key in force", APPEND,
    "*self.provider_key_at(before) == key", "ON || *self.provider_key_at(before) == key")
guard("provider-key-twice", "log: a provider key is used once", APPEND,
      "self.providers.iter().any(used)")
guard("old-key-signs-rosters", "reveal: roster signed by the key in force", ROSTER,
      "*membership.provider_key_at(head_index) != key")
guard("old-key-signs-aggregates", "aggregate signed by a key in force since its head", AGGREGATE,
      "!membership.is_provider_key_since(&key, head)")

MUTANTS = [Mutant(name, text) for name, text in RULES.items()]
ON = re.compile(r"\bON\(([a-z0-9-]+)\)")


def check(source):
    """What does not fit: search texts that do not occur exactly once in the source, and
    mutants without a site."""
    problems = []
    for file, search, _ in SITES:
        found = (source / file).read_text().count(search)
        if found != 1:
            problems.append(f"{found} times in {source / file}: {search}")
    sited = {name for _, _, replacement in SITES for name in ON.findall(replacement)}
    problems += [f"{name}: no site" for name in RULES if name not in sited]
    problems += [f"{name}: no rule" for name in sorted(sited - set(RULES))]
    return problems


AWAKE = '''

/// Whether the environment names this mutant.
pub(crate) fn mutant(name: &str) -> bool {
    static AWAKE: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let awake = AWAKE.get_or_init(|| std::env::var("DCNET_MUTANT").ok());
    awake.as_deref() == Some(name)
}
'''


def weave(source):
    """The source with all mutants in it: text by path."""
    texts = {}
    for file, search, replacement in SITES:
        path = source / file
        text = texts.get(path) or path.read_text()
        if text.count(search) != 1:
            raise ValueError(f"two sites overlap in {path}: {search}")
        woken = ON.sub(r'crate::mutant("\1")', replacement)
        texts[path] = text.replace(search, woken)
    lib = source / "lib.rs"
    texts[lib] = lib.read_text() + AWAKE
    return texts
