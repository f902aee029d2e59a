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
    NoPrefix,
    SessionFailed,
)
from promptdial.runtime.manifest import Dims
from promptdial.runtime.processor import sums_saturate
from promptdial.runtime.profiles import Profile

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
KeyValues = tuple[Floats, ...]
"""Keys and values in the graph's order: key 0, value 0, key 1, ... [B, K, P, D]."""

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
    ) -> None:
        """Load the graph.

        Args:
            path: The .onnx file.
            dims: Sizes it must have.
            profile: How to run.
            threads: Threads of one request; None for the profile's.
            providers: onnxruntime's execution providers; None for the CPU's.

        Raises:
            SessionFailed: onnxruntime refuses, or lacks a provider.
            BundleInvalid: The graph is broken, or not the contract's.
            UsageError: `threads` is out of range.
        """
        self._session = _open(path, profile, threads, providers)
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
        self.no_prefix: KeyValues = (empty,) * (2 * dims.layers)

    def hidden(
        self,
        embeds: Floats,
        mask: Ints,
        positions: Ints,
        types: Ints,
        past: KeyValues,
    ) -> Floats:
        """Hidden states [B, T, H].

        Args:
            embeds: [B, T, H].
            mask: [B, P+T], 0 where a key must not be seen.
            positions: [B, T].
            types: [B, T] segments.
            past: Keys and values, each [1 or B, K, P, D].

        Raises:
            SessionFailed: onnxruntime fails.
        """
        feed = self._feed(embeds, mask, positions, types, past)
        # Naming the one output keeps the presents from being copied out.
        return self._run([_HIDDEN], feed)[0]

    def prefix(self, rows: Floats, first_position: int) -> KeyValues:
        """Keys and values of prompt rows [P, H] that see each other only.

        Raises:
            NoPrefix: The graph takes no prefix.
            SessionFailed: onnxruntime fails.
        """
        if not self.takes_prefix:
            raise NoPrefix("the graph has no past_key_values", "use another base")
        length = len(rows)
        feed = self._feed(
            rows[None],
            np.ones((1, length), np.int64),
            np.arange(first_position, first_position + length)[None],
            np.zeros((1, length), np.int64),
            self.no_prefix,
        )
        return tuple(self._run(self._present_names, feed))

    def _feed(
        self, embeds: Floats, mask: Ints, positions: Ints, types: Ints, past: KeyValues
    ) -> dict[str, NDArray[Any]]:
        feed: dict[str, NDArray[Any]] = {
            "inputs_embeds": embeds,
            "attention_mask": mask,
            "position_ids": positions,
        }
        if self._takes_types:
            feed[_TYPES] = types
        if self.takes_prefix:
            feed.update(zip(self._past_names, past, strict=True))
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
    profile: Profile,
    threads: int | None,
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
    options = _options(profile, threads)
    try:
        return ort.InferenceSession(
            str(path), options, providers=wanted, enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises bare classes of its own
        line = _first_line(error)
        if any(part in line for part in _BROKEN_FILE):
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
    wanted["inputs_embeds"] = (None, None, dims.hidden)
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


def _options(profile: Profile, threads: int | None) -> Any:
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
    options.enable_mem_pattern = profile.arena
    if sums_saturate():
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
