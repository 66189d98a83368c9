#!/usr/bin/env python3
"""Checks docs/asyncapi.yaml against AsyncAPI's own schema, of the npm package @asyncapi/specs."""

import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import jsonschema
import yaml

SPECS = "@asyncapi/specs@6.11.1"

document = yaml.safe_load(pathlib.Path("docs/asyncapi.yaml").read_text())
member = f"package/schemas/{document['asyncapi']}.json"
with tempfile.TemporaryDirectory() as place:
    subprocess.run(["npm", "pack", "--silent", SPECS], cwd=place, check=True, stdout=subprocess.DEVNULL)
    [archive] = pathlib.Path(place).glob("*.tgz")
    with tarfile.open(archive) as specs:
        schema = json.load(specs.extractfile(member))
faults = [f"{'/'.join(map(str, fault.absolute_path))}: {fault.message[:300]}"
          for fault in jsonschema.Draft7Validator(schema).iter_errors(document)]
sys.exit("\n".join(faults) if faults else 0)
