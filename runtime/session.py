"""One graph in onnxruntime: the only file that imports it.

It is imported when a session is opened, not before: in a process that forks after the
import, onnxruntime 1.32 hangs when the child exits. A server that loads its code,
forks, and opens an Engine in each child is well this way.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.errors import UsageError
from promptdial.runtime.errors import (
    BundleInvalid,
    BundleTooNew,
    SessionFailed,
)
from promptdial.runtime.manifest import Dims
from promptdial.runtime.processor import lacks_all
from promptdial.runtime.profiles import Profile

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
PromptState = tuple[Floats, ...]
"""A prompt ready to run, P in dimension -2. Where the graph takes a prefix: keys and
values in its order, key 0, value 0, key 1, ..., each [1 or B, K, P, D]. Elsewhere: the
prompt's rows alone, [1 or B, P, H], which go in front of the text's; or nothing."""

DEFAULT_PROVIDERS = ("CPUExecutionProvider",)
MAX_THREADS = 1024
_HIDDEN = "last_hidden_state"
_REQUIRED = ("inputs_embeds", "attention_mask", "position_ids")
_TYPES = "token_type_ids"
_BROKEN_FILE = ("Load model from", "External data", "Deserialize tensor")
"""What onnxruntime says where the file is to blame, not the machine."""


class EncoderSession:
    """An encoder graph with prefix inputs. Safe to share among threads."""

    def __init__(
        self,
        path: Path,
        dims: Dims,
        profile: Profile,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        cpu_features: Sequence[str] = (),
    ) -> None:
        """Load the graph.

        Args:
            path: The .onnx file.
            dims: Sizes it must have.
            profile: How to run.
            threads: Threads of one request; None for the profile's.
            providers: onnxruntime's execution providers; None for the CPU's.
            cpu_features: Those the graph is meant for, as its manifest says.

        Raises:
            SessionFailed: onnxruntime refuses, or lacks a provider.
            BundleInvalid: The graph is broken, or not the contract's.
            UsageError: `threads` is out of range.
        """
        options = _options(profile, threads, exact=lacks_all(cpu_features))
        self._session = _open(path, options, providers)
        pairs = [(i, kind) for i in range(dims.layers) for kind in ("key", "value")]
        self._past_names = [f"past_key_values.{i}.{kind}" for i, kind in pairs]
        self._present_names = [f"present.{i}.{kind}" for i, kind in pairs]
        shapes = {item.name: item.shape for item in self._session.get_inputs()}
        self._takes_types = _TYPES in shapes
        self.takes_prefix = bool(set(self._past_names) & set(shapes))
        if not self.takes_prefix:
            self._past_names = []
        _check_inputs(path.name, shapes, dims, self._past_names)
        empty = np.zeros((1, dims.kv_heads, 0, dims.head_dim), np.float32)
        past = (empty,) * (2 * dims.layers)
        self.no_prompt: PromptState = past if self.takes_prefix else ()
        self._first_position = dims.position_offset

    def hidden(
        self,
        embeds: Floats,
        mask: Ints,
        positions: Ints,
        types: Ints,
        state: PromptState,
    ) -> Floats:
        """Hidden states [B, T, H].

        Args:
            embeds: [B, T, H].
            mask: [B, P+T], 0 where a key must not be seen.
            positions: [B, T].
            types: [B, T] segments.
            state: The prompt.

        Raises:
            SessionFailed: onnxruntime fails.
        """
        length = embeds.shape[1]
        if state and not self.takes_prefix:
            embeds, positions, types = self._in_front(
                state[0], embeds, positions, types
            )
        feed = self._feed(embeds, mask, positions, types, state)
        # Naming the one output keeps the presents from being copied out.
        return self._run([_HIDDEN], feed)[0][:, -length:]

    def state_of(self, rows: Floats) -> PromptState:
        """Prompt rows [P, H] ready to run: at most one forward pass of P rows.

        Raises:
            SessionFailed: onnxruntime fails.
        """
        if not self.takes_prefix:
            return (rows[None],)
        length = len(rows)
        feed = self._feed(
            rows[None],
            np.ones((1, length), np.int64),
            self._positions(length),
            np.zeros((1, length), np.int64),
            self.no_prompt,
        )
        return tuple(self._run(self._present_names, feed))

    def _positions(self, length: int) -> Ints:
        """Positions [1, T] of a text, and just so of a prompt."""
        first = self._first_position
        return np.arange(first, first + length, dtype=np.int64)[None]

    def _in_front(
        self, rows: Floats, embeds: Floats, positions: Ints, types: Ints
    ) -> tuple[Floats, Ints, Ints]:
        """Embeddings, positions and segments of prompt rows and text, [B, P+T, ...]."""
        batch, prompt = len(embeds), rows.shape[1]
        front = np.broadcast_to(rows, (batch, *rows.shape[1:]))
        before = np.repeat(self._positions(prompt), batch, 0)
        return (
            np.concatenate([front, embeds], axis=1),
            np.concatenate([before, positions], axis=1),
            np.concatenate([np.zeros_like(before), types], axis=1),
        )

    def _feed(
        self,
        embeds: Floats,
        mask: Ints,
        positions: Ints,
        types: Ints,
        state: PromptState,
    ) -> dict[str, NDArray[Any]]:
        feed: dict[str, NDArray[Any]] = {
            "inputs_embeds": embeds,
            "attention_mask": mask,
            "position_ids": positions,
        }
        if self._takes_types:
            feed[_TYPES] = types
        if self.takes_prefix:
            feed.update(zip(self._past_names, state, strict=True))
        return feed

    def _run(self, names: list[str], feed: dict[str, NDArray[Any]]) -> list[Floats]:
        try:
            found: list[Floats] = self._session.run(names, feed)
        except Exception as error:  # onnxruntime raises bare classes of its own
            raise SessionFailed(
                _first_line(error), "report this with the input"
            ) from None
        return found


def runtime_version() -> str:
    """Version of onnxruntime."""
    import onnxruntime as ort

    return str(ort.__version__)


def require_version(wanted: str) -> None:
    """Check that onnxruntime is not older than a graph asks for, such as `1.24`.

    Raises:
        BundleTooNew: It is.
    """
    found = runtime_version()
    if _numbers(found) < _numbers(wanted):
        raise BundleTooNew(
            f"the graph needs onnxruntime {wanted}, {found} is installed",
            f"run: pip install 'onnxruntime>={wanted}'",
        )


def available_providers() -> list[str]:
    """Execution providers of the installed onnxruntime."""
    import onnxruntime as ort

    return list(ort.get_available_providers())


def _open(
    path: Path,
    options: Any,
    providers: Sequence[str] | None,
) -> Any:
    import onnxruntime as ort

    wanted = list(providers or DEFAULT_PROVIDERS)
    # onnxruntime itself would warn, print to stdout and take the CPU instead.
    there = available_providers()
    for name in wanted:
        if name not in there:
            raise SessionFailed(
                f"no execution provider {name!r}; there is {', '.join(there)}",
                "choose one, or install the onnxruntime that brings it",
            )
    try:
        return ort.InferenceSession(
            str(path), options, providers=wanted, enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises bare classes of its own
        line = _first_line(error)
        if any(words in line for words in _BROKEN_FILE):
            raise BundleInvalid(
                f"{path.name}: {line}", "export it again, or upgrade onnxruntime"
            ) from None
        raise SessionFailed(
            f"{path.name}: {line}", "check onnxruntime's version"
        ) from None


def _check_inputs(
    name: str, shapes: Mapping[str, Sequence[object]], dims: Dims, past: Sequence[str]
) -> None:
    """Check names and fixed sizes of the inputs; free sizes are no numbers."""
    wanted: dict[str, tuple[int | None, ...]] = dict.fromkeys(
        past, (None, dims.kv_heads, None, dims.head_dim)
    )
    wanted.update(dict.fromkeys(_REQUIRED, ()))
    wanted["inputs_embeds"] = (None, None, dims.embedding)
    for key in sorted(set(wanted) ^ (set(shapes) - {_TYPES})):
        what = "lacks" if key in wanted else "has the unknown"
        raise BundleInvalid(f"{name} {what} input {key}", "export the bundle again")
    for key, sizes in wanted.items():
        for found, size in zip(shapes[key], sizes, strict=False):
            if isinstance(found, int) and size is not None and found != size:
                raise BundleInvalid(
                    f"{name}: input {key} has a size of {found}, the manifest {size}",
                    "export the bundle again",
                )


def _options(profile: Profile, threads: int | None, *, exact: bool) -> Any:
    import onnxruntime as ort

    if threads is not None and not 0 <= threads <= MAX_THREADS:
        raise UsageError(
            f"threads {threads}, 0 to {MAX_THREADS}", "give 0 for every core"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = profile.threads if threads is None else threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = profile.arena
    # A pattern saves some 3 % of a request, and stays in memory, some 10 KB for each
    # combination of batch, text and prompt length ever seen: a leak in a server.
    options.enable_mem_pattern = False
    if exact:
        # Costs a copy of the weights, so only where answers would be wrong without.
        options.add_session_config_entry("session.x64quantprecision", "1")
    spin = "1" if profile.spinning else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spin)
    if not profile.prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
