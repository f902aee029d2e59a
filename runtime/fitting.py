"""Whether a blob fits a bundle, and making it ready to use on it."""

from typing import Protocol

import numpy as np

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.metadata import LIKELIHOOD, NEUTRAL, feature_width
from promptdial.runtime.errors import (
    BundleInvalid,
    NoPrefix,
    PromptRefused,
    RuntimeFailure,
    WrongBase,
    WrongKind,
)
from promptdial.runtime.generation_options import (
    DEFAULTS,
    OptionsInvalid,
    with_changes,
)
from promptdial.runtime.manifest import DECODER, ENCODER, Manifest
from promptdial.runtime.prompt_cache import ReadyPrompt
from promptdial.runtime.prompt_limits import PromptLimits, check_prompt, check_state
from promptdial.runtime.session import Floats, PromptState
from promptdial.runtime.tagging import allowed_steps

KINDS = {
    ENCODER: ("classification", "pair", "token", "embedding"),
    DECODER: ("generation", "classification"),
}
"""Kinds of prompt that a family answers."""


class PromptSession(Protocol):
    """A session of either family, as far as prompts go."""

    takes_prefix: bool
    no_prompt: PromptState

    @property
    def limits(self) -> PromptLimits | None:
        """What its graphs were calibrated for; None where any prompt will do."""
        ...

    def state_of(self, rows: Floats) -> PromptState:
        """Prompt rows [P, H] ready to run."""
        ...


def check_fit(blob: PromptBlob, manifest: Manifest) -> None:
    """Check a blob against a bundle's manifest.

    Raises:
        WrongBase: Fingerprints differ; the message shows both.
        WrongKind: The bundle's family has no answer of the blob's kind.
        NoPrefix: The blob's attention is not the bundle's, or it is deep and the base
            has convolutions.
        PromptRefused: Widths, layers, positions or norms do not fit.
    """
    meta, base, dims = blob.meta, manifest.base, manifest.dims
    for what, has, wanted in (
        ("base", meta.base_fingerprint, base.fingerprint),
        ("tokenizer", meta.tokenizer_fingerprint, base.tokenizer_fingerprint),
    ):
        if has != wanted:
            raise WrongBase(
                f"prompt {meta.task!r} is for {what} {has}, the bundle has {wanted}",
                f"get the prompt for {base.model}",
            )
    kinds = KINDS[manifest.family]
    if meta.kind not in kinds:
        raise WrongKind(
            f"prompt {meta.task!r} is {meta.kind}, the {manifest.family} answers "
            f"{', '.join(kinds)}",
            "use a bundle of the model that it was trained for",
        )
    if blob.num_virtual_tokens and meta.attention != manifest.attention:
        raise NoPrefix(
            f"prompt {meta.task!r} has attention {meta.attention}, "
            f"the bundle {manifest.attention}",
            "train the prompt for this base",
        )
    if (meta.pooling == LIKELIHOOD) != (
        meta.kind == "classification" and manifest.family == DECODER
    ):
        raise WrongKind(
            f"prompt {meta.task!r} has pooling {meta.pooling!r}, the bundle is of "
            f"family {manifest.family}",
            "use a bundle of the model that it was trained for",
        )
    if meta.kind == "generation":
        try:
            options = with_changes(DEFAULTS, meta.generation)
        except OptionsInvalid as error:
            raise PromptRefused(f"generation of {meta.task!r}: {error}") from None
        asked = options.max_new_tokens if "max_new_tokens" in meta.generation else 0
        if blob.num_virtual_tokens + asked >= dims.max_positions:
            raise PromptRefused(
                f"{blob.num_virtual_tokens} virtual tokens and max_new_tokens {asked} "
                f"of {meta.task!r} leave no room in {dims.max_positions} positions"
            )
    if blob.num_virtual_tokens > dims.max_positions:
        raise PromptRefused(
            f"{blob.num_virtual_tokens} virtual tokens, the base has "
            f"{dims.max_positions} positions"
        )
    for item in meta.golden:
        if max(item.tokens, default=0) >= dims.vocab:
            raise PromptRefused(
                f"a golden input of {meta.task!r} has token id {max(item.tokens)}, the "
                f"vocabulary of the base ends at {dims.vocab - 1}"
            )
    _check_widths(blob, manifest)


def fits(blob: PromptBlob, manifest: Manifest) -> bool:
    """Whether `check_fit` lets a blob pass."""
    try:
        check_fit(blob, manifest)
    except RuntimeFailure:
        return False
    return True


def _check_widths(blob: PromptBlob, manifest: Manifest) -> None:
    dims, task = manifest.dims, blob.meta.task
    rows, head, mix = blob.prompt_embeddings, blob.head_weight, blob.head_mix
    read = feature_width(blob.meta.pooling, dims.hidden)
    for what, array, width in (
        ("prompt rows", rows, dims.embedding),
        ("class vectors", head, read * (1 if mix is None else len(mix))),
    ):
        if array is not None and array.shape[1] != width:
            raise PromptRefused(
                f"{what} of {task!r} are {array.shape[1]} wide, the base {width}"
            )
    if mix is not None:
        _check_mix(mix, manifest, task)
    if rows is not None:
        norm = float(np.sqrt((rows * rows).sum(1).max()))
        if norm > manifest.row_norm_limit:
            raise PromptRefused(
                f"a prompt row of {task!r} has norm {norm:.3g}, "
                f"at most {manifest.row_norm_limit:.3g} on this base"
            )
    past = blob.past_key_values
    if past and dims.conv_layers:
        raise NoPrefix(
            f"{task!r} is a deep prompt, and {len(dims.conv_layers)} of the base's "
            f"{dims.layers} layers are convolutions, which take no keys and values",
            "train the prompt with --method prompt",
        )
    if past:
        shape = (dims.kv_heads, blob.num_virtual_tokens, dims.head_dim)
        if len(past) != dims.layers or past[0][0].shape != shape:
            raise PromptRefused(
                f"{task!r} has {len(past)} layers of {past[0][0].shape}, "
                f"the base {dims.layers} of {shape}"
            )


def _check_mix(mix: Floats, manifest: Manifest, task: str) -> None:
    levels = manifest.dims.layers + 1
    if mix.shape[1] != levels:
        raise PromptRefused(
            f"{task!r} mixes {mix.shape[1]} levels, the base has {levels}"
        )
    if not manifest.level_outputs:
        raise PromptRefused(
            f"{task!r} mixes levels, the bundle's graphs give the last one alone",
            "export the bundle again",
        )


def check_attention(manifest: Manifest, *, takes_prefix: bool) -> None:
    """Check that a graph takes prompts as its manifest says.

    Raises:
        BundleInvalid: A blob would be judged by one and run by the other.
    """
    wanted = "one_way" if takes_prefix else "full"
    if (manifest.prefix, manifest.attention) != (takes_prefix, wanted):
        raise BundleInvalid(
            f"the manifest says prefix {manifest.prefix} and attention "
            f"{manifest.attention}, the graph is {takes_prefix} and {wanted}",
            "export the bundle again",
        )


def input_rows(blob: PromptBlob, manifest: Manifest) -> Floats | None:
    """The rows [P, H] of a blob as the graph takes them; None for a deep prompt."""
    if blob.prompt_embeddings is None:
        return None
    return blob.prompt_embeddings * np.float32(manifest.input_multiplier)


def make_ready(
    blob: PromptBlob,
    manifest: Manifest,
    session: PromptSession,
    state: PromptState | None = None,
) -> ReadyPrompt:
    """The prefix and head of a blob: at most one forward pass of P rows.

    Args:
        blob: The blob.
        manifest: The bundle's.
        session: The graph.
        state: The prefix, where a pass has given it already.

    Raises:
        RuntimeFailure: As `check_fit` and `check_prompt`, or the graph fails.
    """
    check_fit(blob, manifest)
    limits = session.limits
    if limits is not None:
        check_prompt(blob, manifest, limits)
    head, bias = blob.head_weight, blob.head_bias
    rows = input_rows(blob, manifest)
    if state is not None:
        pass
    elif rows is not None:
        state = session.state_of(rows)
        if limits is not None:
            check_state(blob.meta.task, state, manifest.dims, limits)
    elif blob.past_key_values:
        if not session.takes_prefix:
            raise NoPrefix("the graph has no past_key_values", "use another base")
        pairs = blob.past_key_values
        state = tuple(
            np.ascontiguousarray(item[None]) for pair in pairs for item in pair
        )
    else:
        state = session.no_prompt
    if head is not None:
        zeros = np.zeros(len(head), np.float32)
        bias = zeros if bias is None else bias
        head = np.ascontiguousarray(head.T)
    calibrated = NEUTRAL in blob.meta.template
    return ReadyPrompt(
        meta=blob.meta,
        digest=blob.digest,
        state=state,
        length=blob.num_virtual_tokens,
        head=head,
        bias=bias,
        steps=allowed_steps(blob.meta.labels if blob.meta.kind == "token" else ()),
        prior=np.full(len(blob.meta.labels), np.nan) if calibrated else None,
        mix=blob.head_mix,
        query=blob.head_query,
    )
