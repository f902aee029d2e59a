"""A process that installs and activates is killed, again and again, at random moments.

As a script: `kill_rounds.py FOLDER ROUNDS SEED` prints one JSON object.
"""

import json
import os
import signal
import sys
import time
from itertools import count
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))

from crash_scenario import held
from stores import end_trial, small_blob

from promptdial.prompts.store import PromptStore, make_store

LONGEST_SECONDS = 0.1


def work(folder: Path, first: int, said: int) -> None:
    """Version after version, each step said once it is done; never returns."""
    store = PromptStore(folder)
    for version in count(first):
        store.install(small_blob("a", version))
        os.write(said, f"installed {version}\n".encode())
        store.activate("a", version)
        os.write(said, f"activated {version}\n".encode())
        end_trial(store, "a")
        os.write(said, f"good {version}\n".encode())
        if version % 3 == 0:
            store.gc(keep=2)


def newest(folder: Path) -> int:
    with PromptStore(folder) as store:
        return max((item.version for item in store.versions()), default=0)


def one_round(folder: Path, random: Random) -> list[str]:
    """Start, kill, look; what was said and is true."""
    first = newest(folder) + 1
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(folder, first, writing)
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(random.uniform(0.0, LONGEST_SECONDS))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    with os.fdopen(reading) as file:
        said = file.read().splitlines()
    held(folder)  # opens, and every blob that is named is whole
    with PromptStore(folder) as store:
        states = {item.version: item.state for item in store.versions()}
        active = {item.task: item.active for item in store.tasks()}.get("a") or 0
        for line in said[-3:]:
            what, number = line.split()
            version = int(number)
            assert version in states or what != "installed", (line, states)
            if what == "activated":
                assert active >= version, (line, active)
            if what == "good":
                assert states[version] == "good", (line, states)
                assert store.get("a").meta.version >= version
    return said


def main(folder: Path, rounds: int, seed: int) -> None:
    make_store(folder)
    random = Random(seed)
    said = [one_round(folder, random) for _ in range(rounds)]
    silent = sum(not lines for lines in said)
    print(json.dumps({"rounds": rounds, "steps": sum(map(len, said)), "none": silent}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
