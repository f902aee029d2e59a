"""Fuzz target: text to a bundle's manifest, and what was taken can be written again.

python tests/fuzz/fuzz_manifest.py CORPUS -runs=N
"""

import json
import sys
from pathlib import Path
from random import Random

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["promptdial"]):
    from promptdial.runtime.manifest import ManifestInvalid, from_json, to_json

from fuzz.harness import check_message, run
from fuzz.seeds import manifests
from mutation import damaged_json, damaged_text


def one_input(data: bytes) -> bool:
    """Only ManifestInvalid may come out; opening a bundle maps it."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    try:
        manifest = from_json(text)
    except ManifestInvalid as error:
        check_message(error)
        return False
    if from_json(to_json(manifest)) != manifest:
        raise AssertionError("read, written and read again it is another manifest")
    return True


def damaged(data: bytes, random: Random) -> bytes:
    """A manifest with changed values, or with its text cut or doubled."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    text = json.dumps(damaged_json(value, random, 1 + random.randrange(3)))
    if random.randrange(5) == 0:
        text = damaged_text(text, random)
    return text.encode("utf-8", "surrogatepass")


if __name__ == "__main__":
    run(one_input, damaged, list(manifests().values()))
