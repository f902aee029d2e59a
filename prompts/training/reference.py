"""The PyTorch reference: a blob's answers on the frozen float32 model.

What the device's answers are compared with (`promptdial eval --backend torch`). Of
decoders, decoder_reference.py has the answers.
"""

import torch

from promptdial.export.forward import PromptState
from promptdial.export.model import DECODER, LoadedBase, load_base, resolve
from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import (
    FrozenBase,
    PromptBase,
    encoder_base,
    pick_device,
)
from promptdial.prompts.training.batches import Example, encode_rows
from promptdial.prompts.training.decoders.decoder_base import decoder_base
from promptdial.prompts.training.decoders.decoder_reference import (
    DecoderReader,
    answers_of,
    label_choices,
)
from promptdial.prompts.training.heads import Head
from promptdial.prompts.training.scoring import (
    Reader,
    choices_of,
    labels_of,
    logits_of,
    tags_of,
)
from promptdial.runtime.manifest import Base
from promptdial.runtime.rows import Row


def blob_state(base: PromptBase, blob: PromptBlob) -> PromptState:
    """A blob's prompt ready to run on a base; empty where it has none."""
    if blob.past_key_values:
        return [
            (_tensor(key, base)[None], _tensor(value, base)[None])
            for key, value in blob.past_key_values
        ]
    rows = blob.prompt_embeddings
    if rows is None:
        return []
    with torch.no_grad():
        return base.state_of(_tensor(rows, base))


def blob_reader(base: FrozenBase, blob: PromptBlob) -> Reader:
    """What reads answers with a blob on a base.

    Raises:
        UsageError: The blob was made for another base.
    """
    require_same_base(base.base, blob)
    head = None
    if blob.head_weight is not None:
        bias, mix, query = blob.head_bias, blob.head_mix, blob.head_query
        head = Head(
            _tensor(blob.head_weight, base),
            None if bias is None else _tensor(bias, base),
            None if mix is None else _tensor(mix, base),
            None if query is None else _tensor(query, base),
        ).to(base.device)
    meta = blob.meta
    return Reader(
        base,
        blob_state(base, blob),
        head,
        meta.kind,
        meta.pooling,
        meta.labels,
        meta.scores,
    )


def require_same_base(base: Base, blob: PromptBlob) -> None:
    """Refuse a blob that was made for another base.

    Raises:
        UsageError: It was; the message shows both fingerprints.
    """
    if blob.meta.base_fingerprint != base.fingerprint:
        raise UsageError(
            f"blob is for {blob.meta.base_fingerprint}, "
            f"the model is {base.fingerprint}",
            "give the model that the blob was trained on",
        )


def evaluate_torch(
    model: str, blob: PromptBlob, rows: list[Row], device: str = "auto"
) -> list[str] | list[list[str]] | list[list[float]]:
    """Predictions of the float32 PyTorch model with a blob.

    Args:
        model: Hub id, folder or `minilm`.
        blob: The prompt.
        rows: Inputs.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        A label a row (classification, pair; the out-of-scope label of a prompt that has
        one for an abstention), tags a row (token), the embedding [H] of each text
        (embedding), or the text that was written (generation).

    Raises:
        UsageError: The blob was made for another base.
    """
    loaded = load_base(resolve(model), pick_device(device))
    require_same_base(loaded.base, blob)
    if loaded.family == DECODER:
        decoder = decoder_base(loaded, pick_device(device))
        return answers_of(
            DecoderReader(decoder, blob_state(decoder, blob), blob.meta), rows
        )
    reader, examples = _encoder(loaded, blob, rows, device)
    if blob.meta.kind == "token":
        return tags_of(reader, examples)
    if blob.meta.kind == "embedding":
        return [row.tolist() for row in logits_of(reader, examples)]
    return labels_of(reader, examples)


def choices_torch(
    model: str, blob: PromptBlob, rows: list[Row], device: str = "auto"
) -> tuple[list[str], list[bool]]:
    """Best label of each row, and whether the prompt abstains (classification, pair).

    Args:
        model: Hub id, folder or `minilm`.
        blob: The prompt.
        rows: Inputs.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UsageError: The blob was made for another base.
    """
    loaded = load_base(resolve(model), pick_device(device))
    require_same_base(loaded.base, blob)
    if loaded.family != DECODER:
        return choices_of(*_encoder(loaded, blob, rows, device))
    decoder = decoder_base(loaded, pick_device(device))
    reader = DecoderReader(decoder, blob_state(decoder, blob), blob.meta)
    return label_choices(reader, rows)


def _encoder(
    loaded: LoadedBase, blob: PromptBlob, rows: list[Row], device: str
) -> tuple[Reader, list[Example]]:
    """An encoder with the blob's prompt, and the rows as it reads them."""
    base = encoder_base(loaded, pick_device(device))
    template = {key: str(value) for key, value in blob.meta.template.items()}
    meta = blob.meta
    examples = encode_rows(rows, base.encoder, meta.labels, template, meta.pooling)
    return blob_reader(base, blob), examples


def _tensor(array: object, base: PromptBase) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float32, device=base.device)
