"""A Debian root directory booted by systemd-nspawn without a network, what systemd in it says,
and assertions with deadlines."""

import contextlib
import pathlib
import re
import subprocess
import time

started = time.monotonic()
asserted = 0


def log(text):
    print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)


def check(what, *detail):
    """Asserts something and counts it."""
    global asserted
    asserted += 1
    if not what:
        raise AssertionError(" ".join(map(str, detail)))


def equal(found, expected, what):
    check(found == expected, f"{what}: {found!r} instead of {expected!r}")


def until(seconds, what, condition):
    """Waits for a condition to give something true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.1)
    check(found)
    return found


def clean_root(root, *options):
    """Makes a minimal Debian with systemd, of this machine's release, from its own apt sources."""
    sources = "".join(path.read_text() + "\n" for path in
                      sorted(pathlib.Path("/etc/apt").glob("sources.list.d/debian.sources"))
                      or [pathlib.Path("/etc/apt/sources.list")])
    release = pathlib.Path("/etc/os-release").read_text()
    suite = re.search(r"^VERSION_CODENAME=(\w+)", release, re.MULTILINE)[1]
    subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "--include=systemd-sysv,dbus",
                    *options, suite, root, "-"], input=sources, text=True, check=True)


class Machine:
    """A booted container."""

    def __init__(self, root, console):
        self.console = open(console, "w")
        self.nspawn = subprocess.Popen(
            ["systemd-nspawn", "--boot", "--directory", root, "--register=no", "--keep-unit",
             "--console=pipe", "--private-network", "--machine=dcnet-packaging-test"],
            stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console)
        try:
            self.leader = until(60, "the container boots", self.find_leader)
            until(120, "systemd has started", self.is_up)
        except AssertionError:
            self.stop()
            raise

    def find_leader(self):
        check(self.nspawn.poll() is None, "systemd-nspawn ended; see", self.console.name)
        children = pathlib.Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children")
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if pathlib.Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return child

    def is_up(self):
        state = self.run("systemctl", "is-system-running", may_fail=True).strip()
        return state in ("running", "degraded")

    def run(self, *command, may_fail=False):
        done = subprocess.run(["nsenter", "--target", self.leader, "--all", *map(str, command)],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8",
                                   "DEBIAN_FRONTEND": "noninteractive"})
        if done.returncode and not may_fail:
            raise AssertionError(f"{command} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def stop(self):
        self.nspawn.terminate()  # Asks the container's systemd to power off.
        try:
            self.nspawn.wait(60)
        except subprocess.TimeoutExpired:
            self.nspawn.kill()
            self.nspawn.wait()

    # What systemd says.

    def show(self, unit, *names):
        text = self.run("systemctl", "show", *[f"--property={name}" for name in names], unit)
        found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        return [found.get(name, "") for name in names]

    def is_active(self, unit):
        return self.show(unit, "ActiveState", "SubState") == ["active", "running"]

    def pid(self, unit):
        return int(self.show(unit, "MainPID")[0])

    def status(self, unit):
        return self.show(unit, "StatusText")[0]

    def journal(self, unit):
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")
