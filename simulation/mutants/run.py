#!/usr/bin/env python3
"""Takes each rule of a meter away in turn and reports which test notices first.

The workspace is copied below the target directory with all mutants of `catalogue.py` woven
into dcnet, and its tests are compiled once. Then they run once per mutant, which an
environment variable wakes up: first the behaviour tests, file by file, and only if none of
them notices, or with --all, the slower and the byte-level ones.

    run.py --check              only verify that the catalogue fits the source
    run.py --list               print the names
    run.py                      run all mutants
    run.py --only NAME [NAME …] run some
    run.py --resume             run those that have no result yet
    run.py --table              only print the table of the results so far

Results are appended to the file of --results, a JSON object per line, as they come; the
newest of a mutant counts. The Markdown table goes to standard output, progress to standard
error.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
import catalogue  # noqa: E402

WORKSPACE = pathlib.Path(__file__).resolve().parents[2]
SOURCE = WORKSPACE / "dcnet" / "src"
# A test file that takes longer hangs: the mutant is noticed.
TIME_LIMIT = 600

# What the table calls it, package, target, and which of its tests: those that simulate
# weeks come after the others.
BEHAVIOUR = [
    ("silence", "dcnet", "silence", ["--skip", "exclusions::"]),
    ("silence", "dcnet", "silence", ["exclusions::"]),
    ("membership", "dcnet", "membership", []),
    ("lies", "dcnet", "lies", []),
    ("restart", "dcnet", "restart", []),
]
DEEPER = [
    ("oracle", "simulation", "oracle", []),
    ("oracle, members", "simulation", "oracle_membership", []),
    ("properties", "dcnet", "properties", []),
    ("unit tests", "dcnet", "dcnet", []),
    ("vectors", "dcnet", "vectors", []),
]


def copy(root):
    """Brings the copy up to date. What is the same is left alone: cargo builds only what
    changed."""
    texts = {path: text.encode() for path, text in catalogue.weave(SOURCE).items()}
    for path in sorted(WORKSPACE.rglob("*")):
        parts = path.relative_to(WORKSPACE).parts
        if not path.is_file() or {".git", "target", "__pycache__"} & set(parts):
            continue
        content = texts.get(path) or path.read_bytes()
        copied = root.joinpath(*parts)
        copied.parent.mkdir(parents=True, exist_ok=True)
        if not copied.is_file() or copied.read_bytes() != content:
            copied.write_bytes(content)


def build(root, target):
    """Compiles the tests; returns the executables by package and target."""
    command = ["cargo", "test", "--offline", "--no-run", "--message-format=json-render-diagnostics",
               "-p", "dcnet", "-p", "simulation", "--lib"]
    for name in {target: None for _, _, target, _ in BEHAVIOUR + DEEPER if target != "dcnet"}:
        command += ["--test", name]
    environment = dict(os.environ, CARGO_TARGET_DIR=str(target))
    done = subprocess.run(command, cwd=root, env=environment, text=True, stdout=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit("the woven source does not compile")
    executables = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["profile"]["test"]:
            package = pathlib.Path(message["manifest_path"]).parent.name
            executables[package, message["target"]["name"]] = message["executable"]
    return executables


def run_tests(root, package, executable, selection, mutant, everything):
    """The tests that fail, or what else notices; only the first one unless `everything`."""
    environment = dict(os.environ, RUST_BACKTRACE="0", DCNET_MUTANT=mutant)
    process = subprocess.Popen([executable, *selection], cwd=root / package, env=environment,
                               text=True, errors="replace",
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    expired = threading.Event()
    watchdog = threading.Timer(TIME_LIMIT, lambda: (expired.set(), process.kill()))
    watchdog.start()
    failed = []
    for line in process.stdout:
        if found := re.match(r"test ([\w:]+)( - should panic)? \.\.\. FAILED", line):
            failed.append(found[1])
            if not everything:
                process.kill()
                break
    process.stdout.close()
    code = process.wait()
    watchdog.cancel()
    if expired.is_set() and not failed:
        return [f"no end within {TIME_LIMIT} s"]
    return failed or ([] if code == 0 else ["failed without naming a test"])


def run(root, executables, mutant, ignored, everything):
    """Who noticed: the failed tests by step; the first step comes first."""
    noticed = {}
    skip = [argument for test in ignored for argument in ("--skip", test)]
    for name, package, target, selection in BEHAVIOUR + DEEPER:
        executable = executables[package, target]
        failed = run_tests(root, package, executable, selection + skip, mutant, everything)
        if failed:
            noticed.setdefault(name, []).extend(failed)
            if not everything:
                break
    return noticed


def read_results(path):
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return {line["mutant"]: line["noticed"] for line in lines}


def shown(noticed):
    if noticed is None:
        return "not run"
    if not noticed:
        return "**nobody**"
    steps = []
    for step, tests in noticed.items():
        names = ", ".join(f"`{test}`" if re.fullmatch(r"[\w:]+", test) else test for test in tests[:1])
        steps.append(f"{step}: {names}" + (f" and {len(tests) - 1} more" if len(tests) > 1 else ""))
    return "; ".join(steps)


def table(results):
    print("| mutant | rule that is missing | who notices first |\n|---|---|---|")
    for mutant in catalogue.MUTANTS:
        print(f"| {mutant.name} | {mutant.rule} | {shown(results.get(mutant.name))} |")
    known = [results[mutant.name] for mutant in catalogue.MUTANTS if mutant.name in results]
    missing = len(catalogue.MUTANTS) - len(known)
    print(f"\n{sum(map(bool, known))} of {len(known)} mutants were noticed, {missing} not run.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="all tests, not only until one notices")
    parser.add_argument("--ignore", nargs="+", metavar="TEST", default=[],
                        help="tests that fail although all mutants are asleep, so they notice nothing")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests with all mutants asleep")
    parser.add_argument("--target", type=pathlib.Path, default=WORKSPACE / "target" / "mutants",
                        help="where the copy and what is built of it are kept")
    parser.add_argument("--results", type=pathlib.Path, help="default: mutants.jsonl in the target directory")
    arguments = parser.parse_args()

    if problems := catalogue.check(SOURCE):
        sys.exit("\n".join(problems))
    names = [mutant.name for mutant in catalogue.MUTANTS]
    target = arguments.target.resolve()
    path = arguments.results or target / "mutants.jsonl"
    results = read_results(path)
    if arguments.check:
        return print(f"{len(names)} mutants in {len(catalogue.SITES)} sites, every search text occurs once")
    if arguments.list:
        return print("\n".join(names))
    if arguments.table:
        return table(results)
    if unknown := set(arguments.only or []) - set(names):
        sys.exit(f"no such mutant: {', '.join(sorted(unknown))}")
    chosen = [name for name in arguments.only or names if not (arguments.resume and name in results)]

    root = target / "workspace"
    copy(root)
    executables = build(root, target)
    if not arguments.no_baseline and (broken := run(root, executables, "", arguments.ignore, True)):
        sys.exit(f"tests fail although all mutants are asleep: {shown(broken)}")
    for name in chosen:
        began = time.monotonic()
        results[name] = run(root, executables, name, arguments.ignore, arguments.all)
        seconds = round(time.monotonic() - began, 1)
        with path.open("a") as file:
            print(json.dumps({"mutant": name, "noticed": results[name], "seconds": seconds}), file=file)
        print(f"{name}: {shown(results[name])} ({seconds} s)", file=sys.stderr, flush=True)
    table(results)
    if survivors := [name for name in chosen if not results[name]]:
        sys.exit(f"not noticed: {', '.join(survivors)}")


if __name__ == "__main__":
    main()
