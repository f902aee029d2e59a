"""Sessions on accelerators: plug-in providers, and where the nodes of a graph went.

A provider that is not there is never replaced by another one in silence: without it
there is no session, unless the caller lists the CPU behind it.
"""

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptdial.prompts.errors import MissingExtra
from promptdial.runtime.errors import SessionFailed
from promptdial.runtime.profiles import Profile
from promptdial.runtime.session import first_line, opened, session_options

CPU = "CPUExecutionProvider"
QNN = "QNNExecutionProvider"
QNN_MODULE = "onnxruntime_qnn"
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
    path: Path, profile: Profile, threads: int | None, providers: Sequence[str]
) -> Placed:
    """Open a graph of fixed sizes.

    Args:
        path: The .onnx file.
        profile: How to run what runs on the CPU.
        threads: Threads of one request there; None for the profile's.
        providers: QNN alone: every node runs there, or there is no session. CPU
            behind it: what QNN does not take, or all where it is not installed, runs
            there. CPU alone: the same numbers on the CPU.

    Raises:
        MissingExtra: The provider is not installed.
        SessionFailed: It cannot be loaded, or refuses a node; or it is none of these.
        BundleInvalid: The graph is broken.
        UsageError: `threads` is out of range.
    """
    unknown = [name for name in providers if name not in (QNN, CPU)]
    if unknown or not providers:
        raise SessionFailed(
            f"providers {list(providers)}, graphs of fixed sizes run on {QNN}, {CPU}",
            "choose one of them",
        )
    options = session_options(profile, threads, exact=False)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    with_cpu = CPU in providers
    if QNN in providers and (is_installed() or not with_cpu):
        if not with_cpu:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        _add_qnn(options)
        session = opened(path, options, None)
    else:
        session = opened(path, options, [CPU])
    return Placed(session, _nodes(session))


def is_installed() -> bool:
    """Whether the package of QNN's provider is there."""
    return importlib.util.find_spec(QNN_MODULE) is not None


def qnn_version() -> str:
    """Version of the provider's package.

    Raises:
        MissingExtra: It is not installed.
    """
    return str(_package().__version__)


def _add_qnn(options: Any) -> None:
    package = _package()
    devices = _devices(package)
    settings = {
        "backend_path": package.get_qnn_htp_path(),
        # Else the cuts of inputs and outputs into levels would be left to the CPU.
        "offload_graph_io_quantization": "0",
    }
    options.add_provider_for_devices(devices, settings)


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
