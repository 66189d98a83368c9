#!/usr/bin/env python3
"""Takes each rule of a meter away in turn and reports which test or oracle notices.

For every mutant the workspace is copied, one place of dcnet's source is changed, and the
behaviour tests of dcnet and the oracle's tests run. The result is a Markdown table on
standard output; progress goes to standard error.

    run.py --check              only verify that every search text occurs exactly once
    run.py                      run all mutants
    run.py --only NAME [NAME …] run some
    run.py --list               print the names

CARGO_TARGET_DIR is used if it is set, so that dependencies need not be built again.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

WORKSPACE = pathlib.Path(__file__).resolve().parents[2]
SOURCE = pathlib.Path("dcnet/src")
TIME_LIMIT = 900

SUITES = [
    ("behaviour tests", ["-p", "dcnet", "--test", "silence", "--test", "lies", "--test", "restart"]),
    ("simulation and oracle", ["-p", "simulation"]),
]


class Mutant(NamedTuple):
    name: str
    rule: str
    edits: list  # (file, search, replacement)


CHECKS, ROUNDS, PAD = "meter/checks.rs", "meter/rounds.rs", "pad.rs"


def one(name, rule, file, search, replacement):
    return Mutant(name, rule, [(file, search, replacement)])


MUTANTS = [
    # Before a submission.
    one("clock-unsynchronised", "submission: clock synchronised", CHECKS, "if !now.synchronised {", "if false {"),
    one("clock-unconfirmed", "submission: a jump ahead needs confirmation", CHECKS,
        "} else if self.unconfirmed {", "} else if false {"),
    one("clock-jump", "submission: a jump ahead is noticed", CHECKS,
        "if was_synchronised && ahead > tolerance {", "if false {"),
    one("clock-in-step", "submission: UTC in step with the monotonic clock", CHECKS,
        "if difference.saturating_mul(50) > monotonic {", "if false {"),
    one("clock-not-asked", "submission: clock checked at all", ROUNDS, "self.clock.check(now)?;", ""),
    one("register-once", "submission: interval after the submitted end", CHECKS,
        "if start < submitted_until {", "if false {"),
    one("register-not-stored", "submission: submitted end stored", ROUNDS, "Some(until),", "None,"),
    one("draw-open", "submission: newest draw complete", ROUNDS,
        ".filter(|_| self.draw.is_none())", ".filter(|_| true)"),
    one("draw-candidates", "submission: draw had minimum-group candidates", ROUNDS,
        "if newest.candidates < self.minimum_group() {", "if false {"),
    one("submission-live", "submission: L drawn edges have a key", ROUNDS,
        "if live < usize::try_from(self.required(drawn)).unwrap_or(usize::MAX) {", "if false {"),
    one("submission-usable", "submission: L drawn edges have a key of the day", ROUNDS,
        "if usable.count() < usize::try_from(required).unwrap_or(usize::MAX) {", "if false {"),
    one("checkpoint", "log contains the checkpoint", ROUNDS, "if !self.checkpoint_seen {", "if false {"),
    one("stopped", "a stopped meter is silent", ROUNDS, "return Err(Silence::Stopped);", ""),
    one("window-over", "submission: within the window", ROUNDS,
        "if now.utc >= round.end(policy.period).plus(window) {", "if false {"),
    # L.
    one("l-share", "L: 0.6·d", CHECKS, ".max(policy).max(share)", ".max(policy).max(share.min(0))"),
    one("l-policy", "L: policy", CHECKS, ".max(policy).max(share)", ".max(policy.min(0)).max(share)"),
    one("l-own-floor", "L: own floor", CHECKS, "own_floor.max(HARD_FLOOR)", "own_floor.min(0).max(HARD_FLOOR)"),
    one("l-hard-floor", "L: three at least", CHECKS, "own_floor.max(HARD_FLOOR)", "own_floor.max(HARD_FLOOR.min(0))"),
    Mutant("l-established", "L: d counts drawn, not established edges", [
        (ROUNDS, "let required = self.required(drawn.len());",
         "let required = self.required(usable.clone().count());"),
        (ROUNDS, "if live < usize::try_from(self.required(drawn)).unwrap_or(usize::MAX) {",
         "if live < usize::try_from(self.required(live.min(drawn))).unwrap_or(usize::MAX) {"),
    ]),
    # Before a reveal.
    one("reveal-closed", "reveal: round not closed", ROUNDS,
        "if now.utc >= roster.round.end(period).plus(CLOSED_AFTER) {", "if false {"),
    one("closed-not-forgotten", "reveal: closed rounds forgotten", ROUNDS,
        ".take_while(|round| now.utc >= round.end(period).plus(CLOSED_AFTER))", ".take_while(|_| false)"),
    one("early-roster", "reveal: round has ended", ROUNDS,
        "roster.round.end(period) > now.utc.plus(CLOCK_SLACK)",
        "roster.round.end(period) > now.utc.plus(CLOCK_SLACK) && false"),
    one("head-descends", "reveal: head descends from the submission's", ROUNDS,
        "if roster.head_index < own_round.head_index {", "if false {"),
    one("own-digest", "reveal: own digest on the roster", ROUNDS,
        "if roster.digest_of(own) != Some(own_round.digest) {", "if false {"),
    one("claims", "reveal: half-open claims compared", ROUNDS,
        "used.claims_hold(roster)?;", "let _ = used.claims_hold(roster);"),
    one("claims-user", "reveal: claims that it used an edge", CHECKS, "self.used(claim.non_user)", "true"),
    one("claims-non-user", "reveal: claims that it did not use an edge", CHECKS, "!self.used(claim.user)", "true"),
    one("minimum-group", "reveal: included at least minimum group", ROUNDS,
        "if included < own_round.minimum_group {", "if false {"),
    one("presence", "reveal: 80 % of the lately seen", CHECKS,
        "if included.saturating_mul(100) < lately.saturating_mul(u64::from(percent)) {", "if false {"),
    one("full-edges", "reveal: full drawn edges at least L", CHECKS,
        "if full < usize::try_from(required).unwrap_or(usize::MAX) {", "if false {"),
    one("full-incoming", "reveal: only own drawn edges count", ROUNDS,
        "used.enough_full(roster, &own_round.drawn, own_round.required)",
        "used.enough_full(roster, &peers, own_round.required)"),
    one("full-unused", "reveal: full means used", CHECKS,
        "self.used(peer) && roster.includes(peer) && !claimed", "roster.includes(peer) && !claimed"),
    one("full-absent", "reveal: full means included", CHECKS,
        "self.used(peer) && roster.includes(peer) && !claimed", "self.used(peer) && !claimed"),
    one("full-half-open", "reveal: full means not half-open", CHECKS,
        "self.used(peer) && roster.includes(peer) && !claimed", "self.used(peer) && roster.includes(peer)"),
    # One roster.
    one("answer-not-stored", "reveal: accepted roster on disk first", ROUNDS,
        "self.store_stage(round, stage);", "let _ = stage;"),
    one("refused-not-stored", "reveal: refused for good", ROUNDS,
        "self.store_stage(round, RoundStage::Refused);", ""),
    one("chain-skipped", "reveal: chain of rosters not skipped", ROUNDS,
        "if roster.previous != Some(hash) {", "if false {"),
    Mutant("two-rosters", "reveal: no other roster accepted", [
        (ROUNDS, "self.store_stage(round, stage);", "let _ = stage;"),
        (ROUNDS, "if roster.round <= round {", "if roster.round < round {"),
        (ROUNDS, "if roster.previous != Some(hash) {", "if false {"),
    ]),
    # Always.
    one("exclusions", "always: exclusions counted", ROUNDS, "if timely {", "if false {"),
    # What is said.
    one("mask-not-revealed", "reveal contains the self-mask", ROUNDS,
        ".map(|(mask, sum)| *mask + sum.finish())", ".map(|(_, sum)| sum.finish())"),
    Mutant("no-self-masks", "superposition and reveal contain the self-mask", [
        (ROUNDS, "*opening + sum.finish() + mask", "*opening + sum.finish()"),
        (ROUNDS, ".map(|(mask, sum)| *mask + sum.finish())", ".map(|(_, sum)| sum.finish())"),
    ]),
    one("unbound-reveal-pads", "reveal pads keyed by the roster", PAD,
        "let (first, second) = roster.split_at(16);",
        "let roster = &[roster.len() as u8; 32]; let (first, second) = roster.split_at(16);"),
    one("blinding-without-reading", "ρ depends on m", "reading.rs", "cbor::uint(m.0),", "cbor::uint(0u64),"),
    one("blinding-without-channel", "ρ depends on the channel", "reading.rs",
        "cbor::uint(channel),", "cbor::uint(channel.min(0)),"),
    one("self-mask-without-channel", "self-mask depends on the channel", "superposition.rs",
        "cbor::uint(channel),", "cbor::uint(channel.min(0)),"),
]


def check(root):
    """Every search text must occur exactly once; returns what does not."""
    problems = []
    for mutant in MUTANTS:
        for file, search, _ in mutant.edits:
            found = (root / SOURCE / file).read_text().count(search)
            if found != 1:
                problems.append(f"{mutant.name}: {found} times in {SOURCE / file}: {search}")
    return problems


def failures(output):
    """Names of failed tests, as libtest lists them at its end."""
    names, listing = [], False
    for line in output.splitlines():
        if line == "failures:":
            listing = True
        elif listing and re.fullmatch(r"    [\w:]+", line):
            names.append(line.strip())
        elif line and not line.startswith("    "):
            listing = False
    return sorted(set(names))


def run_suite(root, target, arguments):
    command = ["cargo", "test", "--offline", "-q", "--no-fail-fast", *arguments]
    environment = dict(os.environ, CARGO_TARGET_DIR=str(target), RUST_BACKTRACE="0")
    try:
        done = subprocess.run(command, cwd=root, env=environment, text=True, timeout=TIME_LIMIT,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired:
        return ["no end within the time limit"]
    if done.returncode == 0:
        return []
    if "could not compile" in done.stdout:
        sys.exit(f"does not compile:\n{done.stdout}")
    return failures(done.stdout) or ["failed without naming a test"]


def shown(names):
    if not names:
        return "–"
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(f"`{name}`" for name in names[:2]) + more


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the unchanged source first")
    arguments = parser.parse_args()

    if arguments.list:
        print("\n".join(mutant.name for mutant in MUTANTS))
        return
    if problems := check(WORKSPACE):
        sys.exit("\n".join(problems))
    if arguments.check:
        print(f"{len(MUTANTS)} mutants, every search text occurs once")
        return
    known = {mutant.name for mutant in MUTANTS}
    if unknown := set(arguments.only or []) - known:
        sys.exit(f"no such mutant: {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not arguments.only or mutant.name in arguments.only]

    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        root = pathlib.Path(directory) / "workspace"
        shutil.copytree(WORKSPACE, root, ignore=shutil.ignore_patterns("target", ".git"))
        target = os.environ.get("CARGO_TARGET_DIR") or pathlib.Path(directory) / "target"
        if not arguments.no_baseline:
            for name, suite in SUITES:
                if broken := run_suite(root, target, suite):
                    sys.exit(f"{name} of the unchanged source fail: {', '.join(broken)}")
        print("| mutant | rule |", " | ".join(name for name, _ in SUITES), "|")
        print("|---" * (2 + len(SUITES)) + "|", flush=True)
        survivors = []
        for mutant in chosen:
            began = time.monotonic()
            originals = {}
            for file, search, replacement in mutant.edits:
                path = root / SOURCE / file
                text = path.read_text()
                originals.setdefault(path, text)
                path.write_text(text.replace(search, replacement))
            noticed = [run_suite(root, target, suite) for _, suite in SUITES]
            for path, text in originals.items():
                path.write_text(text)
            print(f"| {mutant.name} | {mutant.rule} |", " | ".join(map(shown, noticed)), "|", flush=True)
            if not any(noticed):
                survivors.append(mutant.name)
            print(f"{mutant.name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        print(f"\n{len(chosen) - len(survivors)} of {len(chosen)} mutants were noticed.")
        if survivors:
            sys.exit(f"not noticed: {', '.join(survivors)}")


if __name__ == "__main__":
    main()
