"""Every option of a training run with its one default, read from YAML or flags.

Names follow PEFT's PromptTuningConfig where it has one (num_virtual_tokens).
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from promptdial.prompts.errors import UsageError

METHODS = ("prompt", "prefix", "probe")
HEAD_INITS = ("labels", "probe")
INITS = ("labels", "text", "vocab", "random")
PRECISIONS = ("int8", "f16", "f32")
RATES = {"prompt": 5e-3, "prefix": 5e-2, "probe": 1.0}
"""Peak rates: keys and values are some ten times as large as embedding rows."""
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class TrainConfig:
    """Options of one training run.

    Attributes:
        method: `prompt` (embedding rows), `prefix` (keys and values of every layer),
            or `probe` (class vectors alone, no virtual token).
        init: Start of the virtual tokens: `labels`, `text`, `vocab`, `random`, or
            `from:BLOB`.
        head_init: Start of the class vectors: `labels` (their names, as the base embeds
            them) or `probe` (a linear probe over the starting prompt).
        init_text: Text for `init: text`.
        num_virtual_tokens: P.
        epochs: Passes over the training rows, at most.
        batch_size: Rows of one step [B].
        learning_rate: Peak rate of the virtual tokens; 0 for the method's own
            (RATES).
        head_learning_rate: Peak rate of the class vectors.
        head_scale: Spread of the logits at the start: length of a class vector times
            length of a feature.
        weight_decay: AdamW's, on the class vectors only.
        warmup: Share of the steps with a rising rate.
        label_smoothing: Share of the target spread over all classes.
        temperature: Of the contrastive loss (embedding).
        max_grad_norm: Gradients are cut to this length.
        patience: Epochs without a better dev metric before an early stop.
        limit: Use the first rows of train only; 0 for all.
        max_tokens: Longest text in training, in tokens; 0 for the base's window.
        seed: Of order and random starts.
        device: `auto`, `cpu` or `cuda`.
        bf16: Run the frozen model in bfloat16 while training (dev stays float32).
        gradient_checkpointing: Compute the frozen layers' activations again for the
            gradients instead of keeping them: less memory, more time, the same blob.
        precision: How the blob stores the virtual tokens.
        version: The blob's version.
        resume: Go on from the checkpoint beside OUT.
    """

    method: str = "prompt"
    init: str = "labels"
    head_init: str = "labels"
    init_text: str = ""
    num_virtual_tokens: int = 20
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 0.0
    head_learning_rate: float = 1e-2
    head_scale: float = 10.0
    weight_decay: float = 0.01
    warmup: float = 0.06
    label_smoothing: float = 0.0
    temperature: float = 0.05
    max_grad_norm: float = 1.0
    patience: int = 3
    limit: int = 0
    max_tokens: int = 0
    seed: int = 0
    device: str = "auto"
    bf16: bool = False
    gradient_checkpointing: bool = False
    precision: str = "int8"
    version: int = 1
    resume: bool = False


def peak_rate(config: TrainConfig) -> float:
    """Peak rate of the virtual tokens: the one given, or the method's own."""
    return config.learning_rate or RATES[config.method]


def check(config: TrainConfig) -> TrainConfig:
    """The configuration itself, once every value is in range.

    Raises:
        UsageError: One is not; the message names it.
    """
    for name, allowed in (
        ("method", METHODS),
        ("head_init", HEAD_INITS),
        ("precision", PRECISIONS),
        ("device", DEVICES),
    ):
        value = getattr(config, name)
        if value not in allowed:
            raise UsageError(
                f"{name} is {value!r}", f"choose from {', '.join(allowed)}"
            )
    if config.init not in INITS and not config.init.startswith("from:"):
        raise UsageError(
            f"init is {config.init!r}", f"choose from {', '.join(INITS)}, from:BLOB"
        )
    if config.init == "text" and not config.init_text.strip():
        raise UsageError("init is 'text' without init_text", "give --init-text")
    for name, low, high in (
        ("num_virtual_tokens", 1, 512),
        ("epochs", 1, 10_000),
        ("batch_size", 1, 4096),
        ("learning_rate", 0.0, 10.0),
        ("head_learning_rate", 1e-8, 10.0),
        ("temperature", 1e-4, 10.0),
        ("max_grad_norm", 1e-6, 1e6),
        ("warmup", 0.0, 0.9),
        ("label_smoothing", 0.0, 0.9),
        ("patience", 1, 10_000),
        ("limit", 0, 10**9),
        ("max_tokens", 0, 10**6),
        ("version", 1, 2**31),
    ):
        value = getattr(config, name)
        if not low <= value <= high:
            raise UsageError(f"{name} is {value}", f"allowed: {low} to {high}")
    return config


def with_values(config: TrainConfig, values: dict[str, Any], where: str) -> TrainConfig:
    """A copy with some values replaced; numbers in text become numbers.

    Raises:
        UsageError: An unknown name or a value of the wrong type; names `where`.
    """
    known = {field.name: type(getattr(config, field.name)) for field in fields(config)}
    clean: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(
                f"{where}: unknown option {name!r}",
                f"known: {', '.join(sorted(known))}",
            )
        wanted = known[name]
        if wanted is bool and not isinstance(value, bool):
            raise UsageError(f"{where}: {name} is {value!r}", "give true or false")
        try:
            clean[name] = wanted(value)
        except (TypeError, ValueError):
            raise UsageError(
                f"{where}: {name} is {value!r}", f"give a {wanted.__name__}"
            ) from None
    return replace(config, **clean)


def read_config(path: Path, config: TrainConfig) -> TrainConfig:
    """The configuration with what a YAML file sets.

    Raises:
        UsageError: The file cannot be read or names something unknown.
    """
    import yaml  # here, so that the command's options can be listed without the extra

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {error}", "give a readable YAML file") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} is no mapping", "write one `option: value` a line")
    return with_values(config, values, str(path))


@dataclass(frozen=True)
class WeightConfig:
    """Options of a baseline that trains weights; all others are the run's own.

    Attributes:
        learning_rates: Peak rates of the weights; the one that is best on dev is kept.
        epochs: Passes over the training rows, at most.
        least_steps: Few rows are passed over more often, up to this many steps: a
            handful of steps would make a straw man (Mosbach et al. 2021,
            arXiv:2006.04884).
        warmup: Share of the steps with a rising rate.
        weight_decay: AdamW's, on matrices only.
    """

    learning_rates: tuple[float, ...]
    epochs: int
    least_steps: int = 200
    warmup: float = 0.1
    weight_decay: float = 0.01


FULL_TUNING = WeightConfig(learning_rates=(5e-5, 1e-4, 2e-4), epochs=8)
"""Devlin et al. 2019 (arXiv:1810.04805) try 2e-5 to 5e-5 over 2 to 4 epochs on BERT;
dev may choose higher ones here."""
LORA_TUNING = WeightConfig(learning_rates=(1e-3, 3e-3), epochs=10)
LORA_RANK = 8
LORA_ALPHA = 16
LORA_DROPOUT = 0.1
"""Of PEFT's own example for encoders (examples/sequence_classification/LoRA.ipynb)."""
