"""A decoder in graphs of fixed sizes: some rows at a time to read, one to write.

What it has in common with `DecoderSession` is what prompts, caches and answers need;
a pass gives logits after its last row alone, so that labels are compared by writing
each of their beginnings (static_labels.py). One sequence goes at a time.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from promptdial.runtime.contexts import Contexts
from promptdial.runtime.errors import PromptRefused
from promptdial.runtime.graph_state import empty_state, flat, past_names, present_names
from promptdial.runtime.manifest import Dims, GraphVariant, StaticBucket
from promptdial.runtime.profiles import Profile
from promptdial.runtime.prompt_limits import PromptLimits
from promptdial.runtime.session import Floats, PromptState, run_named
from promptdial.runtime.static_cache import StaticCache, StaticPasses, pass_feed
from promptdial.runtime.static_checks import (
    Likely,
    check_ranges,
    check_sizes,
    inputs_of,
)
from promptdial.runtime.static_feed import (
    BIAS_NAME,
    EMBEDS_NAME,
    POSITIONS_NAME,
    Feed,
)
from promptdial.runtime.static_opening import open_buckets

_LOGITS = "logits"


class StaticDecoderSession:
    """The graphs of a variant. Safe to share among threads."""

    takes_prefix = True
    packed_cache = False

    def __init__(
        self,
        folder: Path,
        variant: GraphVariant,
        dims: Dims,
        profile: Profile,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        contexts: Contexts | None = None,
    ) -> None:
        """Open every graph.

        Args:
            folder: The bundle's.
            variant: Its buckets and ranges.
            dims: Sizes that the graphs must have.
            profile: How to run what runs on the CPU.
            threads: Threads of one request there; None for the profile's.
            providers: As `accelerator.open_placed`; None for the variant's target.
            contexts: Where compiled graphs are kept; None for nowhere.

        Raises:
            MissingExtra: The provider is not installed.
            SessionFailed: onnxruntime or the provider refuses.
            BundleInvalid: A graph is broken, or not the contract's.
            UsageError: `threads` is out of range.
        """
        check_ranges(variant, flat(past_names(dims)))
        self._outputs = [_LOGITS, *flat(present_names(dims))]
        self._placed = open_buckets(
            folder,
            variant,
            profile,
            threads,
            providers,
            contexts,
            partial(_probe, dims=dims, variant=variant),
            partial(_check_graph, dims=dims),
        )
        self.placement = {
            bucket.file: placed.nodes for bucket, placed in self._placed.items()
        }
        hidden = variant.ranges[BIAS_NAME][0]
        self._passes = StaticPasses(variant.text_buckets, dims, hidden, self._run)
        # A text needs a row at least.
        self.limits = PromptLimits(self._passes.window - 1, variant.ranges)
        self.no_prompt: PromptState = empty_state(dims)

    def begin(self, state: PromptState, rows: int) -> StaticCache:
        """A cache that begins with the first rows of a state."""
        return StaticCache(self._passes, state, rows)

    def state_of(self, rows: Floats) -> PromptState:
        """What prompt rows [P, H] leave in each layer.

        Raises:
            SessionFailed: onnxruntime fails.
            PromptRefused: There are more rows than the window has room for.
        """
        if len(rows) > self.limits.rows:
            raise PromptRefused(
                f"{len(rows)} virtual tokens, the variant's graphs have room for "
                f"{self.limits.rows}",
                "export the variant again with a longer --window",
            )
        cache = self.begin(self.no_prompt, 0)
        cache.forward(rows[None])
        return cache.head(len(rows))

    def _run(self, bucket: StaticBucket, feed: Feed) -> list[Floats]:
        session = self._placed[bucket].session
        return run_named(session, self._outputs, feed)


def _probe(
    session: Any, bucket: StaticBucket, dims: Dims, variant: GraphVariant
) -> Feed:
    """Inputs that look like a text that nearly fills a graph, over half a window.

    Within the calibrated ranges, the same at every opening.

    Raises:
        BundleInvalid: The session's graph is not of the bucket's sizes.
    """
    _check_graph(session, bucket, dims)
    like = Likely(variant.ranges).values
    used = max(1, bucket.prefix // 2)
    rows = like(EMBEDS_NAME, 1, max(1, bucket.text - 1), dims.embedding)
    feed = pass_feed(rows, used, bucket, variant.ranges[BIAS_NAME][0])
    for name in flat(past_names(dims)):
        past = like(name, 1, dims.kv_heads, bucket.prefix, dims.head_dim)
        past[:, :, used:] = 0.0
        feed[name] = past
    return {name: feed[name] for name in inputs_of(session)}


def _check_graph(session: Any, bucket: StaticBucket, dims: Dims) -> None:
    """Check names and sizes of what goes in and comes out."""
    text, window = bucket.text, bucket.prefix
    past = (1, dims.kv_heads, window, dims.head_dim)
    new = (1, dims.kv_heads, text, dims.head_dim)
    inputs: dict[str, tuple[int, ...]] = {
        EMBEDS_NAME: (1, text, dims.embedding),
        POSITIONS_NAME: (1, text),
        BIAS_NAME: (1, 1, text, window + text),
        **dict.fromkeys(flat(past_names(dims)), past),
    }
    outputs: dict[str, tuple[int, ...]] = {
        _LOGITS: (1, 1, dims.vocab),
        **dict.fromkeys(flat(present_names(dims)), new),
    }
    check_sizes(bucket.file, session, inputs, outputs)
