"""Checks for the known silent failures of prompt tuning, in words with a next step.

Failures and signs from Lester et al. 2021, from the issue trackers of prompt-tuning
libraries (mask not extended, adapter ignored) and from our own runs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import Example, collate

_PAD_TOLERANCE = 1e-3
_SMALL_MOVE = 0.02
_SMALL_CHANGE = 0.005
_SMALL_GAIN = 0.2
_TRUNCATED_SHARE = 0.01


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        code: Short name.
        message: What was seen, and the step to take.
    """

    code: str
    message: str


@dataclass(frozen=True)
class RunFacts:
    """What a finished run says about itself.

    Attributes:
        method: prompt, prefix or probe.
        distance: Length of the prompt's move over the length of its start.
        answers_changed: Share of dev answers that differ without the prompt.
        truncated_share: Share of training rows cut by the window.
        first_loss: Mean loss of the first epoch.
        last_loss: Mean loss of the last epoch.
        dev_metric: Best dev metric, percent.
        probe: Dev metric of the linear probe, percent; None where not fitted.
    """

    method: str
    distance: float
    answers_changed: float
    truncated_share: float
    first_loss: float
    last_loss: float
    dev_metric: float
    probe: float | None


def mask_findings(
    base: FrozenBase, examples: list[Example], rows: Tensor
) -> list[Finding]:
    """Whether padding leaks into answers, and whether a prefix reaches them at all.

    Args:
        base: The frozen model.
        examples: Some rows of different lengths.
        rows: Prompt rows [P, H].
    """
    ordered = sorted(examples[:32], key=lambda item: len(item.text))
    short, long = ordered[0].text, ordered[-1].text
    findings = []
    with torch.no_grad():
        state = base.state_of(rows)
        alone = base.hidden(collate([short], base.device), state)[0]
        padded = base.hidden(collate([short, long], base.device), state)[
            0, : len(short)
        ]
        plain = base.hidden(collate([short], base.device), [])[0]
    leak = float((alone - padded).abs().max())
    if leak > _PAD_TOLERANCE:
        findings.append(
            Finding(
                "MASK",
                f"a row differs by {leak:.2g} when padded beside a longer one; the "
                "attention mask does not reach this model: check its attention class",
            )
        )
    if float((alone - plain).abs().max()) < 1e-6:
        findings.append(
            Finding(
                "PREFIX_IGNORED",
                "a prompt changes no hidden state; the model was not loaded with "
                "promptdial's attention",
            )
        )
    return findings


def run_findings(facts: RunFacts) -> list[Finding]:
    """Known failures that a finished run shows."""
    findings = []
    if facts.truncated_share > _TRUNCATED_SHARE:
        findings.append(
            Finding(
                "TRUNCATED",
                f"{facts.truncated_share:.1%} of the training rows are cut by the "
                "window; raise max_tokens or shorten the texts",
            )
        )
    if facts.method == "probe":
        return findings
    if facts.distance < _SMALL_MOVE:
        findings.append(
            Finding(
                "RATE_LOW",
                f"the prompt moved by {facts.distance:.2%} of its length; raise "
                "learning_rate tenfold or train longer",
            )
        )
    if facts.answers_changed < _SMALL_CHANGE:
        findings.append(
            Finding(
                "NO_EFFECT",
                f"{facts.answers_changed:.1%} of the dev answers change without the "
                "prompt; the class vectors do the work: try method prefix",
            )
        )
    if facts.last_loss > facts.first_loss * 1.02:
        findings.append(
            Finding(
                "UNSTABLE",
                f"the loss rose from {facts.first_loss:.3f} to {facts.last_loss:.3f}; "
                "lower learning_rate",
            )
        )
    if facts.probe is not None and facts.dev_metric < facts.probe + _SMALL_GAIN:
        findings.append(
            Finding(
                "PROBE_PLATEAU",
                f"dev {facts.dev_metric:.1f} is no better than the linear probe's "
                f"{facts.probe:.1f}; try method prefix, another init or more rows",
            )
        )
    return findings
