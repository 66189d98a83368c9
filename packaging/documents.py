"""The commands of the handbooks, run in the container as they are written there."""

import pathlib
import re
import shlex

from container import check, log

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
# What CONFIG stands for, by document.
CONFIG = {
    "install-pi.md": "--config /etc/dcnet/meter/meter-agent.toml",
    "operating.md": "--config /etc/dcnet/meter/meter-agent.toml",
    "wiring.md": "--config /etc/dcnet/meter/meter-agent.toml",
    "home-assistant.md": "--config /etc/dcnet/meter/meter-agent.toml",
    "operating-provider.md": "--config /etc/dcnet/provider/provider-agent.toml",
}

# What no container of a test can do, and who looks at it instead.
ELSEWHERE = {
    "sudo apt-get update && sudo apt-get full-upgrade --yes": "there is no network",
    "timedatectl": "the container's clock is the host's",
    "sudo nano /etc/dcnet/meter/meter-agent.toml": "an editor; enrol() writes what is in the file",
    "sudo apt-get install ./dcnet-meter-agent_0.1.0-1_arm64.deb": "install()",
    "sudo apt-get install ./dcnet-meter-agent_0.1.1-1_arm64.deb": "upgrade()",
    "sudo apt-get purge --yes dcnet-meter-agent": "remove()",
    "mosquitto_sub … -t dcnet/1/NET/public/aggregate/cbor -C 1 -N > newest.cbor":
        "another program; lab/tests/demonstration.rs subscribes with it",
    "sudo provider-agent net compare --config /etc/dcnet/provider/provider-agent.toml NET newest.cbor":
        "provider-agent/tests/restored.rs",
}


def commands(document):
    """The commands of a document by the heading above them, without comments."""
    heading, fenced, found = "", None, {}
    for line in (DOCS / document).read_text().splitlines():
        if line.startswith("```"):
            # With a language it is a file, and no commands.
            fenced = line.removeprefix("```") == "" if fenced is None else None
        elif fenced is None and line.startswith("## "):
            heading = line.removeprefix("## ")
        elif fenced and (command := re.sub(r"\s+#.*", "", line).strip()):
            found.setdefault(heading, []).append(command.replace(" CONFIG", f" {CONFIG[document]}"))
    return found


def file_of(document):
    """The first part of a configuration that a document shows."""
    return re.search(r"^```toml\n(.*?)^```", (DOCS / document).read_text(), re.M | re.S)[1]


def follow(machine, document, headings, placeholders=(), standard_input=""):
    """Runs what stands below some headings of a document, in its order."""
    below = commands(document)
    for heading in headings:
        check(heading in below, f"{document} has no commands below {heading!r}")
        for command in below[heading]:
            if command in ELSEWHERE:
                continue
            for name, value in placeholders:
                command = re.sub(rf"\b{name}\b", str(value), command, count=1)
            # There is no sudo in a minimal Debian.
            command = re.sub(r"^sudo -u (\S+) ", r"runuser -u \1 -- ", command)
            command = command.removeprefix("sudo ")
            log(f"{document}, {heading}: {command}")
            machine.run("bash", "-c", f"cd /root && {command} <<< {shlex.quote(standard_input)}")


def check_all_are_followed(followed):
    """No heading with a command that can be run was left out; `followed` by document."""
    for document, headings in followed.items():
        for heading, below in commands(document).items():
            left = [command for command in below if command not in ELSEWHERE]
            check(heading in headings or not left, f"{document}, {heading}: nobody runs", left)
