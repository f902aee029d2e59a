"""Starts of virtual tokens and class vectors.

Prompts that start as real words end better on small models than random ones
(Lester et al. 2021, arXiv:2104.08691, section 3.2; SPoT, Vu et al. 2022,
arXiv:2110.07904, for a start from another task's prompt).
"""

import re

import torch
from torch import Tensor

from promptdial.prompts.metadata import feature_width
from promptdial.prompts.training.base import FrozenBase, PromptBase
from promptdial.prompts.training.batches import collate
from promptdial.prompts.training.blending import FROM, blended
from promptdial.prompts.training.config import ATTENTION, TrainConfig
from promptdial.prompts.training.heads import Head, features, pooling_of, starting_mix
from promptdial.prompts.training.parameters import Prompt, keep_within, make_prompt
from promptdial.prompts.training.task import Task

_COMMON_TOKENS = 5000
"""Random starts come from the front of the vocabulary, where frequent words are."""


def label_words(label: str) -> str:
    """A label as words: `B-object_type` is "object type", `O` is "other"."""
    bare = re.sub(r"^[BI]-", "", label)
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|[_\-./]+", " ", bare).strip().lower()
    return "other" if spaced in ("", "o") else spaced


def starting_prompt(base: PromptBase, task: Task, config: TrainConfig) -> Prompt:
    """The virtual tokens before the first step.

    Raises:
        NoPrefix: The base takes no prompt of this method.
        UsageError: `from:` names a blob of another base, length or method.
    """
    if config.init.startswith(FROM) and config.method != "probe":
        prompt = blended(config.init, base).prompt(base, config)
    else:
        rows = prompt_rows(base, task, config)
        prompt = make_prompt(config.method, base, rows, config.encoder_hidden_size)
    keep_within(prompt, base)
    return prompt.to(base.device)


def prompt_rows(base: PromptBase, task: Task, config: TrainConfig) -> Tensor:
    """Rows [P, H] of virtual tokens from words, or at random, as `init` says.

    Label names stand in where it names blobs.
    """
    count = config.num_virtual_tokens
    generator = torch.Generator().manual_seed(config.seed)
    table = base.token_table
    if config.init == "random":
        spread = float(table.std())
        return (torch.randn(count, table.shape[1], generator=generator) * spread).to(
            table.device
        )
    if config.init == "vocab":
        top = min(_COMMON_TOKENS, table.shape[0])
        ids = torch.randperm(top, generator=generator)[:count]
    else:
        names = dict.fromkeys(label_words(label) for label in task.labels)
        text = " ".join(names) or label_words(task.name)
        if config.init == "text":
            text = config.init_text
        found = base.encoder.token_ids(text)
        # Repeated or cut to the wanted length, as PEFT does for init text.
        ids = torch.tensor((found * (count // len(found) + 1))[:count])
    return table[ids.to(table.device)].detach().clone()


def starting_head(base: FrozenBase, task: Task, config: TrainConfig) -> Head:
    """Class vectors from label names, zero for lower levels; or those of blobs.

    Raises:
        UsageError: The blobs of `init` have other labels or levels.
    """
    if config.head_init == "blob":
        return blended(config.init, base).head(task, config).to(base.device)
    vectors = class_vectors(base, task, config)
    mix = starting_mix(config.head_levels, base.dims.layers + 1)
    if mix is not None:
        count = (len(mix) - 1) * vectors.shape[1]
        below = vectors.new_zeros(len(vectors), count)
        vectors = torch.cat([below, vectors], dim=1)
    query = None
    if config.head_pooling == ATTENTION:
        query = vectors.new_zeros(1 if mix is None else len(mix), base.dims.hidden)
    return Head(vectors, mix=mix, query=query).to(base.device)


def class_vectors(base: FrozenBase, task: Task, config: TrainConfig) -> Tensor:
    """Starting class vectors [C, H]: the label names as the base itself embeds them.

    Pairs start from zero, [C, 2 H] where they are read apart: their features compare
    two texts, and no label's name is one.

    Args:
        base: The frozen model.
        task: For its labels.
        config: For `pairs`, and `head_scale`: length of each vector times the length
            of a feature; pooled features have length 1, hidden rows of tokens one of
            their own.
    """
    if task.kind == "pair":
        width = feature_width(pooling_of(task.kind, config), base.dims.hidden)
        return torch.zeros(len(task.labels), width, device=base.device)
    scale = config.head_scale
    texts = [base.encoder.encode(label_words(label)) for label in task.labels]
    batch = collate(texts, base.device)
    with torch.no_grad():
        hidden = base.hidden(batch, [])
        vectors = features(hidden, batch, "mean_l2")
        if task.kind == "token":
            scale /= float(features(hidden, batch, "first_token").norm(dim=-1).mean())
    # Names share much of their direction; the difference is what tells them apart.
    vectors = vectors - vectors.mean(0, keepdim=True)
    lengths: Tensor = vectors.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return vectors / lengths * scale
