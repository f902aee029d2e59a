"""Which variant of a bundle runs, and on what: the caller's choice, or a policy's.

A policy looks at the providers that are at hand. The CPU's variant stands in for an
accelerator's only under the policy that says so.
"""

import logging
import os
from collections.abc import Sequence

from promptdial.prompts.errors import MissingExtra, PromptdialError, UsageError
from promptdial.runtime.accelerator import PROVIDERS_OF_TARGET
from promptdial.runtime.bundle import Bundle, open_bundle, read_manifest
from promptdial.runtime.errors import BundleInvalid, SessionFailed
from promptdial.runtime.manifest import Manifest
from promptdial.runtime.opening import Model, open_model
from promptdial.runtime.profiles import Profile

CPU_POLICY, ACCELERATOR, ACCELERATOR_OR_CPU = "cpu", "accelerator", "accelerator_or_cpu"
POLICIES = (CPU_POLICY, ACCELERATOR, ACCELERATOR_OR_CPU)
DEFAULT_POLICY = CPU_POLICY

_LOGGER = logging.getLogger("promptdial")


def open_chosen(
    path: str | os.PathLike[str],
    profile: Profile,
    threads: int | None,
    variant: str | None,
    providers: Sequence[str] | None,
    policy: str,
) -> tuple[Bundle, Model]:
    """Open the variant that was asked for.

    Args:
        path: The bundle's folder.
        profile: How to run.
        threads: Threads of one request; None for the profile's.
        variant: Its name; None for int8, or the first there is, or the policy's choice.
        providers: As `Engine`.
        policy: One of POLICIES.

    Raises:
        UsageError: An unknown policy, or one beside a variant or providers.
        PromptdialError: As `open_bundle` and `open_model`; where a policy wants an
            accelerator, what kept each of the bundle's variants from one.
    """
    if policy not in POLICIES:
        raise UsageError(
            f"policy {policy[:64]!r}, allowed: {', '.join(POLICIES)}", "choose of these"
        )
    if policy == CPU_POLICY:
        bundle = open_bundle(path, variant)
        return bundle, open_model(bundle, profile, threads, providers)
    if variant is not None or providers is not None:
        raise UsageError(
            f"policy {policy!r} beside a variant or providers, allowed: one of them",
            "leave the policy out, or both of the others",
        )
    failures: list[PromptdialError] = []
    for name in _accelerated(read_manifest(path)):
        try:
            bundle = open_bundle(path, name)
            return bundle, open_model(bundle, profile, threads, None)
        except (MissingExtra, SessionFailed) as error:
            failures.append(error)
    if policy == ACCELERATOR_OR_CPU:
        bundle = open_bundle(path)
        why = "; ".join(map(str, failures)) or "the bundle has no variant for one"
        _LOGGER.warning("no accelerator, %s runs: %s", bundle.variant_name, why)
        return bundle, open_model(bundle, profile, threads, None)
    raise _refused(failures)


def _accelerated(manifest: Manifest) -> list[str]:
    """Variants for accelerators, in the order of the targets."""
    targets = list(PROVIDERS_OF_TARGET)
    graphs = manifest.graphs
    names = [name for name in sorted(graphs) if graphs[name].target in targets]
    return sorted(names, key=lambda name: targets.index(graphs[name].target))


def _refused(failures: Sequence[PromptdialError]) -> PromptdialError:
    """One error for all that kept a bundle from an accelerator."""
    if not failures:
        return BundleInvalid(
            "the bundle has no variant for an accelerator, allowed targets: "
            f"{', '.join(PROVIDERS_OF_TARGET)}",
            "export one into it with --target",
        )
    if len(failures) == 1:
        return failures[0]
    return SessionFailed(
        "; ".join(error.message for error in failures),
        "; or ".join(dict.fromkeys(error.hint for error in failures)),
    )
