"""What both rigs share: Debian packages, a small Linux in a virtual machine, the table.

The machine's clock counts instructions (`-icount sleep=off`): time stands still for the guest while
the host does something else, and idle time costs nothing. So widths of pulses are exact however
busy the host is, and a rig fails for the agent's reasons only.
"""

import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "packaging"))
from debian import STARTED, TARGET, Failed, run, step

WORK = TARGET / "rigs"
GUEST = Path(__file__).resolve().parent / "guest"


# The guest.

def libraries(programs, directories):
    """The shared libraries that programs need, with what those need."""
    found, todo = {}, list(programs)
    while todo:
        for line in run("readelf", "-dl", todo.pop()).splitlines():
            if "(NEEDED)" in line or "program interpreter" in line:
                name = Path(line.split("[")[1].strip("] ").split()[-1]).name
                if name not in found:
                    paths = [path / name for path in directories if (path / name).exists()]
                    if not paths:
                        raise Failed(f"{name} is in none of {directories}")
                    found[name] = paths[0]
                    todo.append(paths[0])
    return found


def initramfs(name, busybox, programs, directories, linux, release, modules, extra):
    """Makes the guest's file system; returns the path of the archive."""
    root = WORK / f"{name}-root"
    shutil.rmtree(root, ignore_errors=True)
    for directory in ("bin", "lib", "lib64", "rig", "sbin", "etc"):
        (root / directory).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for program in programs:
        run("cp", program, root / "bin")
    for path in libraries(programs, directories).values():
        shutil.copy(path, root / "lib")
        if path.name == "ld-linux-x86-64.so.2":
            shutil.copy(path, root / "lib64")
    shutil.copy(GUEST / "init", root / "init")
    (root / "init").chmod(0o755)
    shutil.copy(GUEST / "lib.sh", root / "rig/lib.sh")
    shutil.copy(GUEST / f"{name}.sh", root / "rig/rig.sh")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    for path in extra:
        shutil.copy(path, root / "rig")
    if not (linux / f"lib/modules/{release}/modules.dep").exists():
        run("depmod", "-b", linux, release)
    for module in modules:
        listed = run("modprobe", "-d", linux, "-S", release, "--show-depends", module)
        for line in listed.splitlines():
            if line.startswith("insmod "):
                source = Path(line.split()[1])
                target = root / source.relative_to(linux)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    for table in ("modules.order", "modules.builtin"):
        shutil.copy(linux / f"lib/modules/{release}" / table, root / f"lib/modules/{release}")
    run("depmod", "-b", root, release)
    archive = WORK / f"{name}.cpio"
    run("sh", "-c", f"cd '{root}' && find . | cpio --quiet -o -H newc >'{archive}'")
    return archive


def state_disk(name, gateway_admin):
    """An ext4 image that holds the enrolment of a meter in a net that has no other members."""
    files = WORK / f"{name}-files"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    ca, provider = files / "ca", files / "provider"
    run(gateway_admin, "init", "--dir", ca)
    run(gateway_admin, "enrol-provider", "--dir", ca, "--bundle", provider)
    run(gateway_admin, "enrol-meter", "--dir", ca, "--bundle", files / "data/meter", "--net", "5" * 32,
        "--provider", provider / "certificate.pem", "--log-index", "0", "--log-head", "0" * 64,
        "--members", "0")
    image = WORK / f"{name}.ext4"
    image.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", "ext4", "-d", files / "data", image, "32M")
    return image


# What boots sooner: no self-tests, no countermeasures.
KERNEL = "quiet loglevel=4 panic=-1 nokaslr mitigations=off cryptomgr.notests"


class Machine:
    """A running virtual machine, and the console on which it tells what happens."""

    def __init__(self, command, timeout):
        control = WORK / f"qmp.{os.getpid()}"
        control.unlink(missing_ok=True)
        self.deadline = time.monotonic() + timeout
        self.timeout = timeout
        self.tail = []
        self.process = subprocess.Popen(
            [*map(str, command), "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio",
             "-qmp", f"unix:{control},server=on,wait=off"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.control = control
        self.qmp = None

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.decode(errors="replace").rstrip())
        self.lines.put(None)

    def told(self):
        """What the guest tells, line by line, until it is off or the time is up."""
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, self.deadline - time.monotonic()))
            except queue.Empty:
                raise Failed(self.describe(f"not done after {self.timeout} s")) from None
            if line is None:
                raise Failed(self.describe("off before it was done"))
            self.tail = [*self.tail[-40:], line]
            if line.startswith("@failed"):
                raise Failed(self.describe(line))
            if os.environ.get("RIG_CONSOLE"):
                print(f"{time.monotonic() - STARTED:6.1f} |", line, flush=True)
            if line.startswith("@"):
                yield line[1:].split()

    def describe(self, problem):
        return f"the virtual machine: {problem}; the end of its console:\n  " + "\n  ".join(self.tail)

    def press_power_button(self):
        """Returns when the pulse has begun."""
        if self.qmp is None:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(30)
            connection.connect(str(self.control))
            self.qmp = connection.makefile("rw")
            self._qmp("qmp_capabilities", "return")
        self._qmp("system_powerdown", "POWERDOWN")
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def _qmp(self, command, until):
        self.qmp.write(json.dumps({"execute": command}) + "\n")
        self.qmp.flush()
        for line in self.qmp:
            message = json.loads(line)
            if "error" in message:
                raise Failed(f"qemu: {message}")
            if until in message or message.get("event") == until:
                return
        raise Failed(self.describe("qemu's control socket was closed"))

    def cut(self):
        """Takes the power away."""
        self.process.kill()
        self.process.wait()
        self.control.unlink(missing_ok=True)


# The scenarios.

def total(pulses):
    return sum(int(number) for number in pulses.split("+"))


class Table:
    """What was sent and what was counted."""

    def __init__(self):
        self.rows, self.checks, self.good = [], [], True

    def result(self, name, sent, counted, glitches, rejected, least=None, most=None):
        try:
            lost = total(sent) - total(counted)
            right = sent == counted if least is None else int(least) <= total(counted) <= int(most)
            right = right and glitches == rejected
        except ValueError:
            lost, right = "?", False
        allowed = "" if least is None else f"  ({least} to {most} saved)"
        self.good &= right
        self.rows.append((name.replace("_", " "), sent, counted, str(lost), glitches, rejected,
                          ("ok" if right else "WRONG") + allowed))

    def check(self, name, verdict, *detail):
        self.good &= verdict == "ok"
        self.checks.append(f"{name.replace('_', ' ')}: {verdict}: {' '.join(detail)}")

    def show(self):
        heading = ("scenario", "sent", "counted", "lost", "glitches", "rejected", "")
        rows = [heading, *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1])]
            print("  ".join(cells), " " + row[-1])
        for line in self.checks:
            print(line)


def play(command, disk, timeout, cut_at):
    """Boots twice, the second time after a power cut, and returns the exit code of the rig."""
    table = Table()
    sent = saved = "0"
    for phase in (1, 2):
        step(f"boot {phase} of 2")
        arguments = f"rig.phase={phase} rig.sent={sent} rig.saved={saved}"
        machine = Machine(command(arguments, disk), timeout)
        try:
            for word, *rest in machine.told():
                if word == "result":
                    table.result(*rest)
                elif word == "check":
                    table.check(*rest)
                elif word == "pulse":
                    machine.press_power_button()
                elif word == "sent":
                    sent, saved = rest
                    if int(sent) >= cut_at:
                        break
                elif word == "end":
                    break
        finally:
            machine.cut()
            if sys.exc_info()[0]:
                table.show()
    step("done")
    table.show()
    return 0 if table.good and len(table.rows) > 2 else 1


def main(rig):
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        sys.exit(rig())
    except Failed as failure:
        sys.exit(f"rig: {failure}")
