"""From the arguments of a call to an encoded request."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.errors import UsageError
from promptdial.prompts.metadata import APART, PromptMeta
from promptdial.runtime.constraint import Constraint, Constraints
from promptdial.runtime.errors import TextRefused, WrongKind
from promptdial.runtime.generating import DecoderModel, GenerationRequest
from promptdial.runtime.generation_options import (
    DEFAULTS,
    GenerationOptions,
    OptionsInvalid,
    with_changes,
)
from promptdial.runtime.prompt_cache import ColdPrompt, ReadyPrompt
from promptdial.runtime.reading import Request
from promptdial.runtime.text import TextEncoder, TextInvalid, check_text
from promptdial.runtime.vocabulary import Vocabulary
from promptdial.runtime.window import NoRoom, fitted
from promptdial.runtime.words import join_words, split_words

T = TypeVar("T")
NO_CHANGES: Mapping[str, Any] = MappingProxyType({})


def make_request(
    encoder: TextEncoder,
    prompt: ReadyPrompt | None,
    text: str,
    text_pair: str | None = None,
) -> Request:
    """A request of any kind.

    Args:
        encoder: The base's.
        prompt: The prompt that answers; None for the base alone.
        text: The input; the template's texts are put around it here.
        text_pair: The second text of a pair.

    Raises:
        TextRefused: A text cannot be encoded.
        WrongKind: A second text where none belongs, or none where one does.
    """
    kind = "embedding" if prompt is None else prompt.meta.kind
    if (kind == "pair") != (text_pair is not None):
        task = "the base" if prompt is None else f"task {prompt.meta.task!r}"
        given = "one text" if text_pair is None else "two texts"
        raise WrongKind(
            f"{task} is {kind} and was given {given}",
            "give text_pair to pair tasks and to no others",
        )
    if prompt is not None and kind == "token":
        return make_token_request(encoder, prompt, text)
    try:
        if prompt is not None and prompt.meta.template:
            # A blank text is refused even where the template would fill it.
            check_text(text)
            template = prompt.meta.template
            text = f"{template.get('before', '')}{text}{template.get('after', '')}"
        apart = prompt is not None and prompt.meta.pooling == APART
        if apart and text_pair is not None:
            encoded = encoder.encode_apart(text, text_pair)
        else:
            encoded = encoder.encode(text, text_pair)
        # Without special tokens, what a normaliser drops may be all there is.
        if not all(len(one) for one in encoded.passes):
            raise TextInvalid("the tokenizer leaves nothing of it")
        return Request(prompt, encoded, text)
    except TextInvalid as error:
        raise TextRefused(str(error), "give a text") from None


def make_generation_request(
    model: DecoderModel,
    prompt: ReadyPrompt | ColdPrompt | None,
    text: str,
    changes: Mapping[str, Any],
    began: float,
) -> GenerationRequest:
    """A request to write.

    Args:
        model: The decoder.
        prompt: The prompt that answers; None for the base alone.
        text: The input; the template's texts are put around it here.
        changes: Options of the call by name; None is the prompt's own, or the default.
        began: When the call was made.

    Raises:
        UsageError: An option is out of range, or a constraint cannot be met.
        CannotConstrain: The bundle's tokenizer takes no schema or expression.
        MissingExtra: A schema or expression without the extra `constrained`.
        TextRefused: The text cannot be encoded, or there is no room for it.
    """
    meta = prompt.meta if prompt else None
    options, constraint = constrained(
        model.constraints,
        chosen_options(meta, changes),
        Vocabulary(model.encoder, model.manifest.dims.vocab, model.stop_tokens),
        own_limit=changes.get("max_new_tokens") is None,
    )
    used = prompt.length if prompt else 0
    window = model.encoder.max_tokens
    ids, cut = text_to_continue(
        model.encoder, meta, text, used, options.max_new_tokens, window
    )
    ends = tokens_to_end_at(model.encoder, options, model.stop_tokens)
    return GenerationRequest(prompt, ids, cut, options, began, ends, constraint)


def constrained(
    constraints: Constraints,
    options: GenerationOptions,
    vocabulary: Vocabulary,
    *,
    own_limit: bool,
) -> tuple[GenerationOptions, Constraint | None]:
    """The constraint of an answer, and options that leave it room.

    Args:
        constraints: Where those that were made are kept.
        options: What is asked for.
        vocabulary: The base's.
        own_limit: Whether the constraint's longest answer sets the limit of tokens.

    Raises:
        UsageError, CannotConstrain, MissingExtra: As `Constraints.begin`.
    """
    constraint = constraints.begin(options, vocabulary)
    longest = constraint.longest if constraint else None
    if own_limit and longest is not None:
        options = replace(options, max_new_tokens=longest)
    return options, constraint


def chosen_options(
    meta: PromptMeta | None, changes: Mapping[str, Any]
) -> GenerationOptions:
    """What a call asks for, else the prompt, else the defaults.

    Raises:
        UsageError: An option is out of range.
    """
    try:
        own = with_changes(DEFAULTS, meta.generation if meta else {})
        return with_changes(own, changes)
    except OptionsInvalid as error:
        raise UsageError(str(error), "give another value") from None


def text_to_continue(
    encoder: TextEncoder,
    meta: PromptMeta | None,
    text: str,
    used: int,
    new_tokens: int,
    window: int,
) -> tuple[NDArray[np.int64], bool]:
    """Token ids [T] of a text in its prompt's template, and whether it was cut.

    Args:
        encoder: The base's.
        meta: Of the prompt; None for the base alone.
        text: The input.
        used: Virtual tokens [P] in front of it.
        new_tokens: Tokens that are to come.
        window: Positions that all of these share.

    Raises:
        TextRefused: The text cannot be encoded, or there is no room for it.
    """
    template = meta.template if meta else {}
    room = window - used - new_tokens
    before, after = template.get("before", ""), template.get("after", "")
    try:
        ids, cut = fitted(encoder, before, text, after, room)
    except NoRoom:
        raise TextRefused(
            f"{used} virtual tokens and {new_tokens} new ones leave no "
            f"room for the text in {window} positions",
            "ask for fewer new tokens",
        ) from None
    except TextInvalid as error:
        raise TextRefused(str(error), "give a text") from None
    if not len(ids):
        raise TextRefused("the text has no tokens", "give a text")
    return ids, cut


def tokens_to_end_at(
    encoder: TextEncoder, options: GenerationOptions, stop_tokens: frozenset[int]
) -> frozenset[int]:
    """Token ids that end an answer: the base's, and special tokens among the stops."""
    stops = [encoder.special_token(text) for text in options.stop]
    return stop_tokens.union(token for token in stops if token is not None)


def with_units(
    items: Iterable[T], units: Iterable[str | None] | None
) -> list[tuple[T, str | None]]:
    """Items of a batch with the unit of each.

    Raises:
        UsageError: There are more of the one than of the other.
    """
    wanted = list(items)
    given = [None] * len(wanted) if units is None else list(units)
    if len(given) != len(wanted):
        raise UsageError(
            f"{len(given)} units for {len(wanted)} items", "give one for each"
        )
    return list(zip(wanted, given, strict=True))


def make_token_request(
    encoder: TextEncoder, prompt: ReadyPrompt, text: str | Sequence[str]
) -> Request:
    """A request to a tagger, of a text or of words that are already split.

    Raises:
        TextRefused: It cannot be encoded.
    """
    try:
        if isinstance(text, str):
            words, places = split_words(text)
        else:
            words = list(text)
            text, places = join_words(words)
        return Request(prompt, encoder.encode_words(words), text, places)
    except (TextInvalid, TypeError) as error:
        raise TextRefused(str(error), "give a text, or a list of words") from None
