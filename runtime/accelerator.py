"""Sessions on accelerators, and where the nodes of a graph went.

A provider that is not there is never replaced by another one in silence: without it
there is no session, unless the caller lists the CPU behind it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime import openvino, qnn
from promptdial.runtime.contexts import LOGGER, Contexts
from promptdial.runtime.errors import BundleInvalid, SessionFailed, WrongOnDevice
from promptdial.runtime.openvino import OPENVINO
from promptdial.runtime.profiles import Profile
from promptdial.runtime.providers import Accelerator
from promptdial.runtime.qnn import QNN
from promptdial.runtime.session import opened, run_named, session_options

CPU = "CPUExecutionProvider"
LEAST_COSINE = 0.95
"""Rounding leaves 0.99 and more; an error of the compiler was seen to leave 0.7."""

_TINY = 1e-30
_DEVICE_SIGN = ":"

ACCELERATORS = {QNN: qnn.ACCELERATOR, OPENVINO: openvino.ACCELERATOR}
"""Those that run graphs of fixed sizes, by onnxruntime's name."""

PROVIDERS_OF_TARGET = {"qnn": (QNN,), "openvino": (OPENVINO,)}
"""What a variant's graphs run on where the caller names nothing. An Engine that chooses
the variant itself tries them in this order."""


@dataclass(frozen=True)
class Place:
    """A provider, and the device that it is asked to use.

    Attributes:
        name: onnxruntime's.
        device: One of its own; "" for the usual.
        accelerator: How to use it.
    """

    name: str
    device: str
    accelerator: Accelerator

    @property
    def identity(self) -> str:
        """Provider, version and device: what was compiled for one fits no other.

        Raises:
            MissingExtra: It is not installed.
        """
        parts = [self.name, self.accelerator.version(), self.device]
        return "-".join(part for part in parts if part)


def is_for(name: str, target: str) -> bool:
    """Whether a provider, with a device or without, is that of a target."""
    return name.partition(_DEVICE_SIGN)[0] in PROVIDERS_OF_TARGET.get(target, ())


def place_of(name: str) -> Place:
    """What a provider's name asks for: `NAME`, or `NAME:DEVICE`.

    Raises:
        SessionFailed: There is no such provider for graphs of fixed sizes, or device.
    """
    base, sign, device = name.partition(_DEVICE_SIGN)
    if base not in ACCELERATORS:
        raise SessionFailed(
            f"provider {base!r}, graphs of fixed sizes run on one of "
            f"{', '.join(ACCELERATORS)}, and {CPU}",
            "choose of these",
        )
    accelerator = ACCELERATORS[base]
    if sign and device not in accelerator.devices:
        allowed = ", ".join(accelerator.devices) or "none, it chooses itself"
        raise SessionFailed(
            f"device {device!r} of {base}, allowed: {allowed}", "choose of these"
        )
    return Place(base, device, accelerator)


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
        providers: An accelerator alone: every node runs there, or there is no session.
            CPU behind it: what it does not take, or all where it is not installed, runs
            there. CPU alone: the same numbers on the CPU. An accelerator's name may
            end with a device (`OpenVINOExecutionProvider:NPU`).
        contexts: Where compiled graphs are kept; None to compile each time, as it
            always is where the CPU stands behind.
        probe: Makes inputs for a session, on which a graph that was just compiled must
            agree with the CPU; None for no such check.

    Raises:
        MissingExtra: The provider is not installed.
        SessionFailed: It cannot be loaded, refuses a node or computes wrongly; or it
            is none of these.
        BundleInvalid: The graph is broken.
        UsageError: `threads` is out of range.
    """
    wanted = [place_of(name) for name in providers if name != CPU]
    if len(wanted) > 1 or not providers:
        raise SessionFailed(
            f"providers {list(providers)}, allowed: one accelerator and {CPU}",
            "choose of these",
        )

    def options() -> Any:
        """Fresh ones for each session."""
        found = session_options(profile, threads, exact=False)
        found.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # Left alone, the CPU rounds what 8-bit weights read to 8 bits, block by block,
        # which is in no graph of fixed sizes: it would stand for another machine.
        found.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        return found

    def on_cpu() -> Any:
        return opened(path, options(), [CPU])

    if not wanted or (CPU in providers and not wanted[0].accelerator.is_installed()):
        session = on_cpu()
        return Placed(session, _nodes(session))
    place = wanted[0]

    def with_place() -> Any:
        found = options()
        place.accelerator.add(found, place.device)
        return found

    def checked(chosen: Any) -> Placed:
        """Compiled there, and found to be right."""
        session = opened(path, chosen, None)
        if probe is not None:
            _require_right(path.name, place, session, on_cpu(), probe(session))
        return Placed(session, _nodes(session))

    if CPU in providers:
        return checked(with_place())
    return _open_whole(path, place, with_place, checked, contexts)


def _open_whole(
    path: Path,
    place: Place,
    with_place: Callable[[], Any],
    checked: Callable[[Any], Placed],
    contexts: Contexts | None,
) -> Placed:
    """Open a graph that runs there alone, compiled before where that was kept."""

    def whole() -> Any:
        found = with_place()
        found.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return found

    if contexts is None or not place.accelerator.keeps_contexts(place.device):
        return checked(whole())
    context = contexts.of(path, place.identity)
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
    name: str,
    place: Place,
    ours: Any,
    theirs: Any,
    feed: Mapping[str, NDArray[Any]],
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
                f"{name}: {place.identity} computes {output} wrongly, cosine "
                f"{cosine:.3f} to the CPU, at least {LEAST_COSINE}",
                "export it with another --seq-len, or run it on the CPU",
            )


def _nodes(session: Any) -> dict[str, int]:
    found: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        found[str(part.ep_name)] += len(part.get_nodes())
    return dict(found)
