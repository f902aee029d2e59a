"""Memory and start-up of an Engine, each measured in a fresh process (Linux).

    python benchmarks/memory.py BUNDLE PROMPTS

Peak memory is the largest proportional set size (PSS) over that of a process that has
imported the same packages and opened nothing. `private` is the part of it at the end
that no file backs: the rest is libraries' code and, in the memory profile, weights,
which the system may take back at any time. Opening lets go of code that only import and
opening used (`runtime/memory.py`), so `private` can be more than the peak over import.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

CHILD = """
import sys, threading, time
started = time.perf_counter()
from promptdial.runtime import Engine
imported = time.perf_counter() - started
import onnxruntime, tokenizers, numpy

def pss(kind="Pss:"):
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    return 0

base, private = pss(), pss("Pss_Anon:")
bundle, prompts, profile, count = sys.argv[1:5]
peak, done = base, False

def watch():
    global peak
    while not done:
        peak = max(peak, pss())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
started = time.perf_counter()
engine = Engine(bundle, prompts, profile=profile)
tasks = engine.tasks()[: int(count)]
kinds = {task: engine._prompts.source.get(task).meta.kind for task in tasks}
pair = {task: "a b" if kinds[task] == "pair" else None for task in tasks}
first = None
for task in tasks:
    engine.run(task, "wake me at seven in the morning please", pair[task])
    first = first or time.perf_counter() - started
for _ in range(20):
    for task in tasks:
        engine.run(task, "wake me at seven in the morning please", pair[task])
done = True
watcher.join()
print(__import__("json").dumps(dict(
    imported=imported, first=first, peak=peak - base,
    private=pss("Pss_Anon:") - private,
    prefixes=engine._prompts.cache.nbytes, cached=len(engine._prompts.cache))))
"""


def measure(bundle: Path, prompts: Path, profile: str, count: int) -> dict[str, float]:
    """Figures of one fresh process."""
    arguments = [str(bundle), str(prompts), profile, str(count)]
    run = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(run.stdout)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompts", type=Path)
    args = parser.parse_args()
    manifest = json.loads((args.bundle / "manifest.json").read_text("utf-8"))
    names = manifest["graphs"]["int8"]["files"]
    graph = sum(manifest["files"][name]["bytes"] for name in names)
    print(f"INT8 graph {graph / 1e6:.2f} MB")
    for profile, limit in (("latency", 2.5), ("battery", 2.5), ("memory", 1.5)):
        for count in (1, 12):
            runs = [
                measure(args.bundle, args.prompts, profile, count) for _ in range(3)
            ]
            found = sorted(runs, key=lambda item: item["peak"])[1]
            print(
                f"{profile:8} {count:2} tasks: peak {found['peak'] / 1e6:5.1f} MB = "
                f"{found['peak'] / graph:.2f} x graph (at most {limit}), private "
                f"{found['private'] / 1e6:5.1f} MB, prefixes and heads "
                f"{found['prefixes'] / 1e6:.2f} MB, import {found['imported']:.3f} s, "
                f"open to first answer {found['first']:.3f} s"
            )


if __name__ == "__main__":
    main()
