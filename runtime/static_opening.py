"""Opens every graph of a variant of fixed sizes, where its target runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from promptdial.runtime.accelerator import PROVIDERS_OF_TARGET, Placed, open_placed
from promptdial.runtime.contexts import Contexts
from promptdial.runtime.manifest import GraphVariant, StaticBucket
from promptdial.runtime.profiles import Profile
from promptdial.runtime.static_feed import Feed


def open_buckets(
    folder: Path,
    variant: GraphVariant,
    profile: Profile,
    threads: int | None,
    providers: Sequence[str] | None,
    contexts: Contexts | None,
    probe: Callable[[Any, StaticBucket], Feed],
    check: Callable[[Any, StaticBucket], None],
) -> dict[StaticBucket, Placed]:
    """Open them in their order.

    Args:
        folder: The bundle's.
        variant: Whose.
        profile: How to run what runs on the CPU.
        threads: Threads of one request there; None for the profile's.
        providers: As `accelerator.open_placed`; None for the variant's target.
        contexts: Where compiled graphs are kept; None for nowhere.
        probe: Makes inputs of a bucket's session, to compare it with the CPU.
        check: Refuses a session whose graph is not of the bucket's sizes.

    Raises:
        MissingExtra: The provider is not installed.
        SessionFailed: onnxruntime or the provider refuses.
        BundleInvalid: A graph is broken, or not the contract's.
        UsageError: `threads` is out of range.
    """
    if providers is None:
        providers = PROVIDERS_OF_TARGET.get(variant.target, ())
    found: dict[StaticBucket, Placed] = {}
    for bucket in variant.buckets:

        def inputs(session: Any, bucket: StaticBucket = bucket) -> Feed:
            return probe(session, bucket)

        path = folder / bucket.file
        placed = open_placed(path, profile, threads, providers, contexts, inputs)
        check(placed.session, bucket)
        found[bucket] = placed
    return found
