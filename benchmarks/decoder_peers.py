"""One decoder, four runtimes, side by side: first token cold and warm, later tokens.

    python benchmarks/decoder_peers.py WORK [--rounds N] [--with NAME ...]
        [--python NAME=PYTHON ...]

The shapes are those of SmolLM2-135M with random weights (made in WORK, 1.1 GB in all);
20 virtual tokens, 32 text tokens, two threads. Each peer runs in a process of its own
(benchmarks/peers/), which waits while the others run; they take turns in every round.
`peft` and `promptdial` want this project's environment, `llama_cpp` llama-cpp-python
and gguf, `genai` onnxruntime-genai, torch and transformers: --python names an
environment that has them. A peer whose process cannot start is left out and named.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

PEERS = Path(__file__).parent / "peers"
NAMES = ("promptdial", "peft", "peft_bf16", "llama_cpp", "genai")
SCRIPTS = {"peft_bf16": "peft"}
ROUNDS = 30
PAUSE_S = 0.3
"""Between two peers: idle threads of the last one may still spin."""


class Peer:
    """A runtime in its own process."""

    def __init__(self, name: str, python: str, work: Path) -> None:
        script = PEERS / f"run_{SCRIPTS.get(name, name)}.py"
        self.name = name
        self._process = subprocess.Popen(
            [python, str(script), str(work), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> dict[str, Any] | None:
        """The next line that it prints; None when it has ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        return None

    def round(self) -> dict[str, float]:
        """Milliseconds of one round, by what was timed.

        Raises:
            SystemExit: The process has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        found = self.answer()
        if found is None:
            raise SystemExit(f"{self.name} has ended")
        return found

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(peers: Iterable[Peer], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by peer and by what was timed; the first round is left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 1):
        for peer in peers:
            for what, value in peer.round().items():
                if number:
                    found.setdefault(peer.name, {}).setdefault(what, []).append(value)
            time.sleep(PAUSE_S)
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median and the quarters around it."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    low, high = ordered[quarter], ordered[-1 - quarter]
    return {"median": median(ordered), "q1": low, "q3": high}


def main() -> None:
    """Make the model, start the peers, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--with", nargs="*", dest="names", choices=NAMES, default=NAMES)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, PEERS / "make_model.py", args.work], check=True)
    pythons = dict(item.split("=", 1) for item in args.python)
    peers = []
    for name in args.names:
        peer = Peer(name, pythons.get(name, sys.executable), args.work)
        ready = peer.answer()
        if ready is None:
            print(f"{name}: left out, its process did not start", file=sys.stderr)
            continue
        print(f"{name}: {ready}", file=sys.stderr)
        peers.append(peer)
    found = measure(peers, args.rounds)
    for peer in peers:
        peer.close()
    rows = {
        name: {what: spread(values) for what, values in items.items()}
        for name, items in found.items()
    }
    if args.json:
        print(json.dumps(rows))
        return
    for name, items in rows.items():
        for what, row in items.items():
            print(
                f"{name:10} {what:14} {row['median']:8.2f} ms "
                f"({row['q1']:.2f} to {row['q3']:.2f})"
            )


if __name__ == "__main__":
    main()
