"""Another process that has a store open and does what a test says.

As a script: reads lines of JSON, `[helper, ...arguments]` with a helper of stores.py or
`close`; answers each with a line, `done` or the error.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).parent))

import stores

from promptdial.prompts.errors import PromptdialError
from promptdial.prompts.store import PromptStore


class StoreProcess:
    """The other process; use it in a `with` block."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, *words: str | float) -> str:
        """One call; `done` or its error."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(words), file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    store = PromptStore(sys.argv[1])
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            if hasattr(stores, name):
                getattr(stores, name)(store, *arguments)
            else:
                getattr(store, name)(*arguments)
        except PromptdialError as error:
            print(error, flush=True)
        else:
            print("done", flush=True)


if __name__ == "__main__":
    main()
