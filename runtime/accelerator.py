"""Sessions on accelerators: plug-in providers, and where the nodes of a graph went.

A provider that is not there is never replaced by another one in silence: without it
there is no session, unless the caller lists the CPU behind it.
"""

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.errors import MissingExtra
from promptdial.runtime.contexts import LOGGER, Contexts
from promptdial.runtime.errors import BundleInvalid, SessionFailed, WrongOnDevice
from promptdial.runtime.profiles import Profile
from promptdial.runtime.session import first_line, opened, run_named, session_options

CPU = "CPUExecutionProvider"
QNN = "QNNExecutionProvider"
QNN_MODULE = "onnxruntime_qnn"
LEAST_COSINE = 0.95
"""Rounding leaves 0.99 and more; an error of the compiler was seen to leave 0.7."""

_TINY = 1e-30

EXTRAS = {QNN: "npu-qnn"}
"""The extra that brings a provider."""

PROVIDERS_OF_TARGET = {"qnn": (QNN,)}
"""What a variant's graphs run on where the caller names nothing."""


@dataclass(frozen=True)
class Placed:
    """An open graph.

    Attributes:
        session: onnxruntime's.
        nodes: Number of the graph's nodes by the provider that runs them.
    """

    session: Any
    nodes: dict[str, int]


def open_placed(
    path: Path,
    profile: Profile,
    threads: int | None,
    providers: Sequence[str],
    contexts: Contexts | None = None,
    probe: Callable[[Any], Mapping[str, NDArray[Any]]] | None = None,
) -> Placed:
    """Open a graph of fixed sizes.

    Args:
        path: The .onnx file.
        profile: How to run what runs on the CPU.
        threads: Threads of one request there; None for the profile's.
        providers: QNN alone: every node runs there, or there is no session. CPU
            behind it: what QNN does not take, or all where it is not installed, runs
            there. CPU alone: the same numbers on the CPU.
        contexts: Where QNN's compiled graphs are kept; None to compile each time, as
            it always is where the CPU stands behind.
        probe: Makes inputs for a session, on which a graph that QNN has just compiled
            must agree with the CPU; None for no such check.

    Raises:
        MissingExtra: The provider is not installed.
        SessionFailed: It cannot be loaded, refuses a node or computes wrongly; or it
            is none of these.
        BundleInvalid: The graph is broken.
        UsageError: `threads` is out of range.
    """
    unknown = [name for name in providers if name not in (QNN, CPU)]
    if unknown or not providers:
        raise SessionFailed(
            f"providers {list(providers)}, graphs of fixed sizes run on {QNN}, {CPU}",
            "choose one of them",
        )

    def options() -> Any:
        """Fresh ones for each session."""
        found = session_options(profile, threads, exact=False)
        found.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return found

    def checked(chosen: Any) -> Placed:
        """Compiled by QNN, and found to be right."""
        session = opened(path, chosen, None)
        if probe is not None:
            feed = probe(session)
            _require_right(path.name, session, opened(path, options(), [CPU]), feed)
        return Placed(session, _nodes(session))

    if CPU not in providers:
        return _open_whole(path, options, checked, contexts)
    if QNN in providers and is_installed():
        return checked(_with_qnn(options()))
    session = opened(path, options(), [CPU])
    return Placed(session, _nodes(session))


def _open_whole(
    path: Path,
    options: Callable[[], Any],
    checked: Callable[[Any], Placed],
    contexts: Contexts | None,
) -> Placed:
    """Open a graph that runs on QNN alone, compiled before where that was kept."""

    def whole() -> Any:
        found = _with_qnn(options())
        found.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return found

    if contexts is None:
        return checked(whole())
    context = contexts.of(path, f"{QNN}-{qnn_version()}")
    nodes = context.nodes()
    if nodes is not None:
        try:
            return Placed(opened(context.path, whole(), None), nodes)
        except (SessionFailed, BundleInvalid) as error:
            LOGGER.warning("%s is compiled again: %s", context.path, error)
    with context.room() as room:
        if room is not None:
            chosen = whole()
            chosen.add_session_config_entry("ep.context_enable", "1")
            chosen.add_session_config_entry("ep.context_embed_mode", "1")
            chosen.add_session_config_entry("ep.context_file_path", str(room))
            try:
                placed = checked(chosen)
            except WrongOnDevice:
                raise
            except SessionFailed as error:
                # A full disk is no reason not to run; other reasons come again.
                LOGGER.info("no compiled graph is kept: %s", error)
            else:
                context.keep(room, placed.nodes)
                return placed
    return checked(whole())


def _require_right(
    name: str, ours: Any, theirs: Any, feed: Mapping[str, NDArray[Any]]
) -> None:
    """Compare a compiled graph with the CPU, output by output.

    Raises:
        WrongOnDevice: They are too far apart: a compiler's error, which it did not see.
    """
    used = {item.name: feed[item.name] for item in theirs.get_inputs()}
    outputs = [item.name for item in theirs.get_outputs()]
    found, wanted = (run_named(session, outputs, used) for session in (ours, theirs))
    for output, one, other in zip(outputs, found, wanted, strict=True):
        size = float(np.linalg.norm(one) * np.linalg.norm(other))
        cosine = float((one * other).sum()) / max(size, _TINY)
        if not cosine >= LEAST_COSINE:
            raise WrongOnDevice(
                f"{name}: {QNN} {qnn_version()} computes {output} wrongly, cosine "
                f"{cosine:.3f} to the CPU, at least {LEAST_COSINE}",
                "export it with another --seq-len, or run it on the CPU",
            )


def is_installed() -> bool:
    """Whether the package of QNN's provider is there."""
    return importlib.util.find_spec(QNN_MODULE) is not None


def qnn_version() -> str:
    """Version of the provider's package.

    Raises:
        MissingExtra: It is not installed.
    """
    return str(_package().__version__)


def _with_qnn(options: Any) -> Any:
    package = _package()
    devices = _devices(package)
    settings = {
        "backend_path": package.get_qnn_htp_path(),
        # Else the cuts of inputs and outputs into levels would be left to the CPU.
        "offload_graph_io_quantization": "0",
    }
    options.add_provider_for_devices(devices, settings)
    return options


def _package() -> Any:
    if not is_installed():
        raise MissingExtra(f"provider {QNN}", EXTRAS[QNN])
    import onnxruntime_qnn

    return onnxruntime_qnn


def _devices(package: Any) -> list[Any]:
    """The provider's devices; its library is registered once in a process.

    Raises:
        SessionFailed: The library cannot be loaded, or sees no device.
    """
    import onnxruntime as ort

    problem = "it sees no device"
    for _ in range(2):
        found = [item for item in ort.get_ep_devices() if item.ep_name == QNN]
        if found:
            return found
        try:
            ort.register_execution_provider_library(QNN, package.get_library_path())
        except Exception as error:  # onnxruntime raises bare classes of its own
            # Another thread may have done it in between: look once more.
            problem = first_line(error)
    raise SessionFailed(
        f"provider {QNN}: {problem}", "check that onnxruntime-qnn fits onnxruntime"
    )


def _nodes(session: Any) -> dict[str, int]:
    found: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        found[str(part.ep_name)] += len(part.get_nodes())
    return dict(found)
