"""One graph in onnxruntime: the only file that imports it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from promptdial.runtime.errors import BundleInvalid, NoPrefix, SessionFailed
from promptdial.runtime.manifest import Dims
from promptdial.runtime.processor import sums_saturate
from promptdial.runtime.profiles import Profile

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
KeyValues = tuple[Floats, ...]
"""Keys and values in the graph's order: key 0, value 0, key 1, ... [B, K, P, D]."""

DEFAULT_PROVIDERS = ("CPUExecutionProvider",)
_HIDDEN = "last_hidden_state"


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
            SessionFailed: onnxruntime refuses.
            BundleInvalid: Inputs or outputs are not the contract's.
        """
        try:
            self._session = ort.InferenceSession(
                str(path),
                _options(profile, threads),
                providers=list(providers or DEFAULT_PROVIDERS),
            )
        except Exception as error:  # onnxruntime raises bare classes of its own
            raise SessionFailed(
                f"{path.name}: {_first_line(error)}", "check onnxruntime's version"
            ) from None
        names = {item.name for item in self._session.get_inputs()}
        pairs = [(i, kind) for i in range(dims.layers) for kind in ("key", "value")]
        self._past_names = [f"past_key_values.{i}.{kind}" for i, kind in pairs]
        self._present_names = [f"present.{i}.{kind}" for i, kind in pairs]
        self._takes_types = "token_type_ids" in names
        missing = {"inputs_embeds", "attention_mask", "position_ids"} - names
        if missing:
            raise BundleInvalid(f"{path.name} lacks input {sorted(missing)[0]}")
        self.takes_prefix = set(self._past_names) <= names
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
            feed["token_type_ids"] = types
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
    return str(ort.__version__)


def available_providers() -> list[str]:
    """Execution providers of the installed onnxruntime."""
    return list(ort.get_available_providers())


def _options(profile: Profile, threads: int | None) -> ort.SessionOptions:
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


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
