"""What a step costs on this machine, for this task: a few real ones, timed."""

import time

import torch

from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import Example, batches_of, collate
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.heads import Head, read
from promptdial.prompts.training.parameters import Prompt
from promptdial.prompts.training.probe import PENALTIES, STEPS
from promptdial.prompts.training.search.budget import Pace
from promptdial.prompts.training.step import batch_loss, make_optimiser, take_step

_TIMED_STEPS = 4
_PROBE_ROWS = 256


def measure(
    base: FrozenBase,
    examples: list[Example],
    dev: list[Example],
    prompt: Prompt,
    head: Head | None,
    config: TrainConfig,
    pooling: str,
) -> Pace:
    """Time a few real steps and passes; medians. Prompt and head are used up by it.

    Passes are those over dev rows, which are read whole where training rows are cut.
    """
    optimiser, _ = make_optimiser(prompt, head, config, len(examples))
    steps: list[float] = []
    passes: list[float] = []
    batches = list(batches_of(examples, config.batch_size, config.seed))
    wholes = list(batches_of(dev, config.batch_size, config.seed))
    # One more in front: the first step also pays for what is set up once.
    for turn in range(_TIMED_STEPS + 1):
        chosen = [examples[index] for index in batches[turn % len(batches)]]
        seen = [dev[index] for index in wholes[turn % len(wholes)]]
        began = time.monotonic()
        state = prompt.state(base)
        loss = batch_loss(base, config, state, head, chosen, pooling)
        take_step(loss, base, prompt, head, optimiser, config)
        middle = time.monotonic()
        with torch.no_grad():
            batch = collate([example.text for example in seen], base.device)
            read(base, batch, prompt.state(base), pooling, head).cpu()
        if turn:
            steps.append((middle - began) / len(chosen))
            passes.append((time.monotonic() - middle) / len(seen))
    probe = 0.0 if head is None else _probe_row(head)
    return Pace(step=_middle(steps), forward=_middle(passes), probe=probe)


def _probe_row(head: Head) -> float:
    """Seconds a row of all that a probe's fit may take: steps of every penalty."""
    classes, hidden = head.weight.shape
    device = head.weight.device
    inputs = torch.randn(_PROBE_ROWS, hidden, device=device)
    targets = torch.arange(_PROBE_ROWS, device=device) % classes
    times: list[float] = []
    for _ in range(_TIMED_STEPS + 1):
        began = time.monotonic()
        loss = torch.nn.functional.cross_entropy(head(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        times.append((time.monotonic() - began) / _PROBE_ROWS)
    return _middle(times[1:]) * STEPS * len(PENALTIES)


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
