"""An encoder in graphs of fixed sizes, behind the interface of `EncoderSession`.

A request runs in the smallest bucket that has room for its prompt and its text, one row
after another: what such a graph computes for a row knows nothing of other rows, and an
accelerator takes one at a time.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from promptdial.runtime.contexts import Contexts
from promptdial.runtime.errors import PromptRefused, TextRefused
from promptdial.runtime.graph_state import (
    empty_state,
    flat,
    level_names,
    past_names,
    present_names,
)
from promptdial.runtime.manifest import Dims, GraphVariant, StaticBucket
from promptdial.runtime.profiles import Profile
from promptdial.runtime.prompt_limits import PromptLimits
from promptdial.runtime.session import Floats, Ints, PromptState, run_named
from promptdial.runtime.static_checks import (
    Likely,
    check_ranges,
    check_sizes,
    inputs_of,
    outputs_of,
)
from promptdial.runtime.static_feed import (
    BIAS_NAME,
    EMBEDS_NAME,
    TYPES_NAME,
    Feed,
    prompt_feed,
    smallest,
    text_feed,
)
from promptdial.runtime.static_opening import open_buckets

_HIDDEN = "last_hidden_state"


class StaticEncoderSession:
    """The buckets of a variant. Safe to share among threads."""

    takes_prefix = True

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
        """Open every bucket.

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
        self._past_names = flat(past_names(dims))
        self._present_names = flat(present_names(dims))
        self._level_names = level_names(dims)
        check_ranges(variant, self._past_names)
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
        self._texts = variant.text_buckets
        self._maker = next(item for item in variant.buckets if not item.prefix)
        most = max(bucket.prefix for bucket in self._texts)
        self.limits = PromptLimits(min(most, self._maker.text), variant.ranges)
        self.window = max(bucket.text for bucket in self._texts)
        self._hide = variant.ranges[BIAS_NAME][0]
        self.gives_levels = all(
            set(self._level_names) <= set(outputs_of(self._placed[bucket].session))
            for bucket in self._texts
        )
        self.no_prompt: PromptState = empty_state(dims)

    def hidden(
        self,
        embeds: Floats,
        mask: Ints,
        positions: Ints,
        types: Ints,
        state: PromptState,
    ) -> Floats:
        """Hidden states [B, T, H] after the last layer; arguments as `levels`.

        Raises:
            SessionFailed, TextRefused, PromptRefused: As `levels`.
        """
        return self._rows([_HIDDEN], embeds, mask, types, state)[0]

    def levels(
        self,
        embeds: Floats,
        mask: Ints,
        positions: Ints,
        types: Ints,
        state: PromptState,
    ) -> list[Floats]:
        """Hidden states [B, T, H] that enter each of L layers, and of the last.

        Args:
            embeds: [B, T, H].
            mask: [B, P+T], 0 where a key must not be seen.
            positions: [B, T]; the graph has its own, of a text from its beginning.
            types: [B, T] segments.
            state: The prompt.

        Raises:
            SessionFailed: onnxruntime fails.
            TextRefused, PromptRefused: No bucket has room for the text, or the prompt.
        """
        names = [*self._level_names, _HIDDEN]
        return self._rows(names, embeds, mask, types, state)

    def state_of(self, rows: Floats) -> PromptState:
        """Prompt rows [P, H] ready to run.

        Raises:
            SessionFailed: onnxruntime fails.
            PromptRefused: There are more rows than a bucket has room for.
        """
        self._require_room(len(rows))
        feed = prompt_feed(rows, self._maker, self._hide)
        found = self._run(self._maker, self._present_names, feed)
        return tuple(part[:, :, : len(rows)].copy() for part in found)

    def _rows(
        self,
        names: list[str],
        embeds: Floats,
        mask: Ints,
        types: Ints,
        state: PromptState,
    ) -> list[Floats]:
        length = embeds.shape[1]
        prefix = mask.shape[1] - length
        self._require_room(prefix)
        bucket = smallest(self._texts, prefix, length)
        if bucket is None:
            raise TextRefused(
                f"{length} tokens, the variant's graphs have room for {self.window}",
                "cut the text, or use another variant",
            )
        found = []
        for row in range(len(embeds)):
            one = slice(row, row + 1)
            past = {
                name: part if len(part) == 1 else part[one]
                for name, part in zip(self._past_names, state, strict=True)
            }
            feed = text_feed(
                embeds[one], types[one], mask[one], past, bucket, self._hide
            )
            values = self._run(bucket, names, feed)
            found.append([value[:, :length] for value in values])
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _require_room(self, rows: int) -> None:
        if rows > self.limits.rows:
            raise PromptRefused(
                f"{rows} virtual tokens, the variant's graphs have room for "
                f"{self.limits.rows}",
                "export the variant again with --calibrate and this prompt",
            )

    def _run(self, bucket: StaticBucket, names: list[str], feed: Feed) -> list[Floats]:
        placed = self._placed[bucket]
        used = {name: feed[name] for name in inputs_of(placed.session)}
        return run_named(placed.session, names, used)


def _probe(
    session: Any, bucket: StaticBucket, dims: Dims, variant: GraphVariant
) -> Feed:
    """Inputs that look like a prompt and a text that nearly fill a bucket.

    Within the calibrated ranges, the same at every opening.

    Raises:
        BundleInvalid: The session's graph is not of the bucket's sizes.
    """
    _check_graph(session, bucket, dims)
    like = Likely(variant.ranges).values
    length = max(1, bucket.text - 1)
    rows = like(EMBEDS_NAME, length, dims.embedding)
    if not bucket.prefix:
        return prompt_feed(rows, bucket, variant.ranges[BIAS_NAME][0])
    prefix = max(1, bucket.prefix - 1)
    shape = (1, dims.kv_heads, prefix, dims.head_dim)
    past = {name: like(name, *shape) for name in flat(past_names(dims))}
    mask = np.ones((1, prefix + length), np.int64)
    types = np.zeros((1, length), np.int64)
    hide = variant.ranges[BIAS_NAME][0]
    return text_feed(rows[None], types, mask, past, bucket, hide)


def _check_graph(session: Any, bucket: StaticBucket, dims: Dims) -> None:
    """Check names and sizes of what goes in and comes out."""
    inputs: dict[str, tuple[int, ...]] = {
        EMBEDS_NAME: (1, bucket.text, dims.embedding),
        BIAS_NAME: (1, 1, 1, bucket.prefix + bucket.text),
    }
    found = inputs_of(session)
    if TYPES_NAME in found:
        inputs[TYPES_NAME] = (1, bucket.text)
    outputs: dict[str, tuple[int, ...]] = {}
    if bucket.prefix:
        outputs[_HIDDEN] = (1, bucket.text, dims.hidden)
        past = (1, dims.kv_heads, bucket.prefix, dims.head_dim)
        inputs.update(dict.fromkeys(flat(past_names(dims)), past))
    else:
        present = (1, dims.kv_heads, bucket.text, dims.head_dim)
        outputs.update(dict.fromkeys(flat(present_names(dims)), present))
    check_sizes(bucket.file, session, inputs, outputs)
