"""Debian's packages for what is built here: installed, or unpacked below the target directory."""

import os
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
WORK = TARGET / "debian-packages"
STARTED = time.monotonic()


class Failed(Exception):
    """A command did not do what it was to do."""


def run(*command, timeout=900, **options):
    """Runs a command; its output is shown only if it fails."""
    try:
        done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=timeout, text=True, **options)
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{' '.join(map(str, command))}: not done after {late.timeout:.0f} s") from None
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout


def step(text):
    print(f"-- {text} (after {time.monotonic() - STARTED:.0f} s)", flush=True)


def install(*packages):
    """Installs packages that are not installed yet."""
    missing = [name for name in packages if "install ok installed" not in subprocess.run(
        ["dpkg-query", "-W", "-f", "${Status}", name], capture_output=True, text=True).stdout]
    if missing:
        step(f"install {' '.join(missing)}")
        root = [] if os.geteuid() == 0 else ["sudo"]
        apt_get = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
        run(*apt_get, "update")
        run(*apt_get, "install", "-y", "--no-install-recommends", *missing)


def apt(*words):
    """apt with lists of its own, for packages of both architectures; nothing is installed."""
    (WORK / "lists/partial").mkdir(parents=True, exist_ok=True)
    options = [f"Dir::State::Lists={WORK}/lists", f"Dir::Cache={WORK}", "APT::Sandbox::User=root",
               "APT::Architectures::=amd64", "APT::Architectures::=arm64"]
    fresh = WORK / "updated"
    if words[0] != "update" and not (fresh.exists() and time.time() - fresh.stat().st_mtime < 86_400):
        apt("update")
        fresh.touch()
    command = ["apt-get" if words[0] in ("update", "download") else "apt-cache"]
    for option in options:
        command += ["-o", option]
    return run(*command, *words, cwd=WORK)


def unpack(name, packages):
    """Downloads packages and unpacks them below a directory of this name, once."""
    root = WORK / name
    done = root / ".unpacked"
    wanted = " ".join(packages)
    if done.exists() and done.read_text() == wanted:
        return root
    step(f"download {wanted}")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for old in WORK.glob("*.deb"):
        old.unlink()
    apt("download", *packages)
    for package in WORK.glob("*.deb"):
        run("dpkg-deb", "-x", package, root)
        package.unlink()
    done.write_text(wanted)
    return root


def newest(package, prefix):
    """The package with this prefix on which the candidate of another one depends."""
    for line in apt("show", "--no-all-versions", package).splitlines():
        if line.startswith("Depends:"):
            for word in line.removeprefix("Depends:").split(","):
                if word.strip().startswith(prefix):
                    return word.split()[0]
    raise Failed(f"{package} does not depend on {prefix}…")
