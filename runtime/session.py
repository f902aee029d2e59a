"""Sessions in onnxruntime, of any graph. Only accelerator.py imports it as well.

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
from promptdial.runtime.errors import BundleInvalid, BundleTooNew, SessionFailed
from promptdial.runtime.manifest import Dims
from promptdial.runtime.processor import lacks_all
from promptdial.runtime.profiles import Profile

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
PromptState = tuple[Floats, ...]
"""A prompt ready to run. Where the graph takes a prefix: the state of its layers in
their order, of attention a key and a value, each [1 or B, K, P, D], of a convolution
its rows, [1 or B, H, conv_kernel]. Elsewhere: the prompt's rows alone, [1 or B, P, H],
which go in front of the text's; or nothing."""

DEFAULT_PROVIDERS = ("CPUExecutionProvider",)
MAX_THREADS = 1024
EXACT_SINCE = "1.30"
_REQUIRED = ("inputs_embeds", "attention_mask", "position_ids")
_BROKEN_FILE = ("Load model from", "External data", "Deserialize tensor")
"""What onnxruntime says where the file is to blame, not the machine."""


def ort_value(array: NDArray[Any]) -> Any:
    """An array as onnxruntime's own value, over the same memory."""
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(array)


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


def wants_exact(cpu_features: Sequence[str]) -> bool:
    """Whether a graph meant for some processor features needs exact products here.

    Before EXACT_SINCE, onnxruntime cannot be asked for them: it reads inputs of
    MatMulIntegerToFloat that a graph may leave out, beyond the end of their list. The
    process aborts, or answers are wrong. Sums in 16 bits stay then, and cost nearness:
    MiniLM's mean cosine to PyTorch is 0.9946 there.
    """
    if not lacks_all(cpu_features):
        return False
    return _numbers(runtime_version()) >= _numbers(EXACT_SINCE)


def available_providers() -> list[str]:
    """Execution providers of the installed onnxruntime."""
    import onnxruntime as ort

    return list(ort.get_available_providers())


def open_session(
    path: Path,
    profile: Profile,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    cpu_features: Sequence[str] = (),
) -> Any:
    """Open a graph.

    Args:
        path: The .onnx file.
        profile: How to run.
        threads: Threads of one request; None for the profile's.
        providers: onnxruntime's execution providers; None for the CPU's.
        cpu_features: Those the graph is meant for, as its manifest says.

    Raises:
        SessionFailed: onnxruntime refuses, or lacks a provider.
        BundleInvalid: The graph is broken.
        UsageError: `threads` is out of range.
    """
    options = session_options(profile, threads, exact=wants_exact(cpu_features))
    wanted = list(providers or DEFAULT_PROVIDERS)
    # onnxruntime itself would warn, print to stdout and take the CPU instead.
    there = available_providers()
    for name in wanted:
        if name not in there:
            raise SessionFailed(
                f"no execution provider {name!r}; there is {', '.join(there)}",
                "choose one, or install the onnxruntime that brings it",
            )
    return opened(path, options, wanted)


def opened(path: Path, options: Any, providers: Sequence[str] | None) -> Any:
    """Open a graph with options of onnxruntime's.

    Args:
        path: The .onnx file.
        options: As `session_options` makes them.
        providers: Execution providers; None for those that the options name.

    Raises:
        SessionFailed: onnxruntime refuses.
        BundleInvalid: The graph is broken.
    """
    import onnxruntime as ort

    try:
        return ort.InferenceSession(
            str(path), options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises bare classes of its own
        line = first_line(error)
        if any(words in line for words in _BROKEN_FILE):
            raise BundleInvalid(
                f"{path.name}: {line}", "export it again, or upgrade onnxruntime"
            ) from None
        raise SessionFailed(
            f"{path.name}: {line}", "check onnxruntime's version"
        ) from None


def check_inputs(
    name: str,
    shapes: Mapping[str, Sequence[object]],
    dims: Dims,
    past: Mapping[str, tuple[int | None, ...]],
) -> None:
    """Check names and fixed sizes of a graph's inputs; free sizes are no numbers.

    Args:
        name: The file's, for messages.
        shapes: Of the inputs, without those that a graph may lack.
        dims: What the manifest says.
        past: Shapes of the inputs for state, by name.

    Raises:
        BundleInvalid: One is missing, unknown, or of another size.
    """
    wanted: dict[str, tuple[int | None, ...]] = dict(past)
    wanted.update(dict.fromkeys(_REQUIRED, ()))
    wanted["inputs_embeds"] = (None, None, dims.embedding)
    for key in sorted(set(wanted) ^ set(shapes)):
        what = "lacks" if key in wanted else "has the unknown"
        raise BundleInvalid(f"{name} {what} input {key}", "export the bundle again")
    _check_sizes(f"{name}: input", shapes, wanted)


def check_outputs(
    name: str,
    shapes: Mapping[str, Sequence[object]],
    wanted: Mapping[str, tuple[int | None, ...]],
) -> None:
    """Check that a graph has some outputs, and their fixed sizes.

    Args:
        name: The file's, for messages.
        shapes: Of all outputs.
        wanted: Shapes by name; None for a free size.

    Raises:
        BundleInvalid: One is missing, or of another size.
    """
    for key in sorted(set(wanted) - set(shapes)):
        raise BundleInvalid(f"{name} lacks output {key}", "export the bundle again")
    _check_sizes(f"{name}: output", shapes, wanted)


def _check_sizes(
    what: str,
    shapes: Mapping[str, Sequence[object]],
    wanted: Mapping[str, tuple[int | None, ...]],
) -> None:
    for key, sizes in wanted.items():
        for found, size in zip(shapes[key], sizes, strict=False):
            if isinstance(found, int) and size is not None and found != size:
                raise BundleInvalid(
                    f"{what} {key} has a size of {found}, the manifest {size}",
                    "export the bundle again",
                )


def session_options(profile: Profile, threads: int | None, *, exact: bool) -> Any:
    """Onnxruntime's options for a profile.

    Args:
        profile: How to run.
        threads: Threads of one request; None for the profile's.
        exact: Whether products of u8 and s8 must not be summed in 16 bits.

    Raises:
        UsageError: `threads` is out of range.
    """
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


def run_named(
    session: Any, names: Sequence[str], feed: Mapping[str, NDArray[Any]]
) -> list[Floats]:
    """The outputs of some names.

    Raises:
        SessionFailed: onnxruntime fails.
    """
    try:
        found: list[Floats] = session.run(names, feed)
    except Exception as error:  # onnxruntime raises bare classes of its own
        raise SessionFailed(first_line(error), "report this with the input") from None
    return found


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def first_line(error: Exception) -> str:
    """What onnxruntime says, without the lines of its C++."""
    return str(error).strip().split("\n")[0][:300]
