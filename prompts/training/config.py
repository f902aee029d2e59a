"""Every option of a training run with its one default, read from YAML or flags.

Names follow PEFT's PromptTuningConfig where it has one (num_virtual_tokens).
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.scores.abstain import OUT_OF_SCOPE, parse_rule
from promptdial.prompts.training.search.budget import parse_budget

ROW_METHODS = ("prompt", "residual", "p-tuning")
"""Methods that end as embedding rows."""
METHODS = (*ROW_METHODS, "prefix", "probe")
NETWORK_METHODS = ("residual", "p-tuning")
"""Methods whose rows a network makes in training."""
HEAD_INITS = ("labels", "probe", "blob")
MEAN, ATTENTION = "mean", "attention"
HEAD_POOLINGS = (MEAN, ATTENTION)
PAIRS_TOGETHER, PAIRS_APART = "together", "apart"
PAIRS = (PAIRS_TOGETHER, PAIRS_APART)
INITS = ("labels", "text", "vocab", "random")
PRECISIONS = ("int8", "f16", "f32")
RATES = {
    "prompt": 5e-3,
    "residual": 5e-3,
    "p-tuning": 1e-3,
    "prefix": 5e-2,
    "probe": 1.0,
}
"""Peak rates: keys and values are some ten times as large as embedding rows, and all
numbers of a row move together through the weights of a network."""
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class TrainConfig:
    """Options of one training run.

    Attributes:
        method: `prompt` (embedding rows), `residual` and `p-tuning` (rows that a small
            network makes in training, folded at the end), `prefix` (keys and values of
            every layer), or `probe` (class vectors alone, no virtual token).
        init: Start of the virtual tokens: `labels`, `text`, `vocab`, `random`, or
            `from:BLOB` (SPoT, arXiv:2110.07904); `from:A,B` is the mean of several,
            `from:A*0.7,B*0.3` any other mixture.
        head_init: Start of the class vectors: `labels` (their names, as the base embeds
            them), `probe` (a linear probe over the starting prompt) or `blob` (those of
            the blobs of `init`, which have the same labels).
        init_text: Text for `init: text`.
        num_virtual_tokens: P.
        encoder_hidden_size: Width of the network of `residual` and `p-tuning`; 0 for H.
        epochs: Passes over the training rows, at most; 0 packs the start as it is.
        batch_size: Rows of one step [B].
        learning_rate: Peak rate of the virtual tokens; 0 for the method's own
            (RATES).
        head_learning_rate: Peak rate of the class vectors.
        head_scale: Spread of the logits at the start: length of a class vector times
            length of a feature.
        head_levels: M, the levels of the base that the class vectors read: the last M
            of L + 1 (all where it is more), as learned mixes of all of them; 0 for
            the last level alone.
        head_pooling: How the rows of a text become one feature: `mean`, or `attention`
            (each level has a learned query; rows count by their products with it).
        pairs: How the two texts of a pair are read: `together`, as one input whose
            words see each other, or `apart`, one after the other, so that the class
            vectors alone compare them, as sentence encoders were trained to be used.
        weight_decay: AdamW's, on the class vectors only.
        warmup: Share of the steps with a rising rate.
        label_smoothing: Share of the target spread over all classes.
        temperature: Of the contrastive loss (embedding).
        max_grad_norm: Gradients are cut to this length.
        patience: Epochs without a better dev metric before an early stop.
        limit: Use the first rows of train only; 0 for all.
        max_tokens: Longest training text, in tokens; 0 for the base's window. Of an
            encoder, longer ones keep their beginning, and dev is read whole. Of pairs
            that are read apart, each text has so many.
        seed: Of order and random starts.
        device: `auto`, `cpu` or `cuda`.
        bf16: Run the frozen model in bfloat16 while training (dev stays float32).
        gradient_checkpointing: Compute the frozen layers' activations again for the
            gradients instead of keeping them: less memory, more time, the same blob.
        quantised: A bundle of the same base whose graph runs in training, with the
            graph's own rounding; "" for the model in PyTorch.
        variant: Which of its graphs.
        abstain: When the prompt gives no answer: `none`, `coverage:0.95` (that share of
            the dev answers is kept), `accuracy:0.98` (kept dev answers are so
            accurate), `out_of_scope` or `out_of_scope:LABEL` (rows with that label want
            none; what is likelier to be one of them gets none).
        out_of_scope_share: Share of requests out of scope to reckon with; 0 for dev's
            own.
        precision: How the blob stores the virtual tokens.
        rounded: Share of the steps, the last ones, that run on the numbers as the blob
            will store them, so that the prompt makes up for the rounding. The dev
            metric is always that of the stored numbers.
        version: The blob's version.
        resume: Go on from the checkpoint beside OUT.
        budget: Wall time (`30s`, `2m`, `1h`) within which a search on dev picks method,
            length, rate, head and epochs; "" for none. Options that differ from their
            default are kept as they are.
        few_shot: Train on so many rows a class, drawn with the seed, and choose by
            folds of them; 0 for all rows and dev.
        word_dropout: Share of a text's words that are left out, others in every epoch.
        max_seconds: Wall time of the epochs: one that would not fit is not begun; 0 for
            no limit. The first epoch is always run.
    """

    method: str = "prompt"
    init: str = "labels"
    head_init: str = "labels"
    init_text: str = ""
    num_virtual_tokens: int = 20
    encoder_hidden_size: int = 0
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 0.0
    head_learning_rate: float = 1e-2
    head_scale: float = 10.0
    head_levels: int = 0
    head_pooling: str = MEAN
    pairs: str = PAIRS_TOGETHER
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
    quantised: str = ""
    variant: str = "int8"
    abstain: str = "none"
    out_of_scope_share: float = 0.0
    precision: str = "int8"
    rounded: float = 0.3
    version: int = 1
    resume: bool = False
    budget: str = ""
    max_seconds: float = 0.0
    few_shot: int = 0
    word_dropout: float = 0.0


PACK_DEFAULTS = TrainConfig(
    method="prefix",
    init="vocab",
    num_virtual_tokens=5,
    batch_size=16,
    head_levels=4,
    head_pooling=ATTENTION,
)
"""Of `train-pack`: what twelve tasks of MiniLM have room for (shared.py), in batches of
half the usual size, since each task has but its share of the steps."""

ENCODER_OPTIONS = (
    *("budget", "few_shot", "word_dropout", "temperature"),
    *("head_init", "head_levels", "head_pooling", "head_scale", "pairs"),
    *("head_learning_rate", "weight_decay"),
)
"""Options that a decoder has no use for: it answers without class vectors."""

NOT_IN_PACKS = (
    *("encoder_hidden_size", "few_shot", "budget", "word_dropout", "max_seconds"),
    *("abstain", "out_of_scope_share", "pairs"),
)
"""Options that a joint training has no use for."""


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
        ("head_pooling", HEAD_POOLINGS),
        ("pairs", PAIRS),
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
    if config.init_text and config.init != "text":
        raise UsageError(
            f"init_text with init {config.init!r}", "give --init text with it"
        )
    if config.encoder_hidden_size and config.method not in NETWORK_METHODS:
        raise UsageError(
            f"encoder_hidden_size with method {config.method!r}",
            f"it is for {' and '.join(NETWORK_METHODS)}",
        )
    if config.variant != TrainConfig.variant and not config.quantised:
        raise UsageError(
            f"variant is {config.variant!r} without quantised",
            "name the bundle: --quantised BUNDLE",
        )
    for name in ("bf16", "gradient_checkpointing"):
        if config.quantised and getattr(config, name):
            raise UsageError(
                f"{name} beside quantised: the bundle's graph runs as it is",
                "give one of the two",
            )
    for name, low, high in (
        ("num_virtual_tokens", 1, 512),
        ("encoder_hidden_size", 0, 65_536),
        ("epochs", 0, 10_000),
        ("rounded", 0.0, 1.0),
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
        ("head_levels", 0, 256),
        ("head_scale", 1e-3, 1e4),
        ("weight_decay", 0.0, 10.0),
        ("seed", 0, 2**32 - 1),
        ("out_of_scope_share", 0.0, 0.99),
        ("version", 1, 2**31),
        ("max_seconds", 0.0, 1e9),
        ("few_shot", 0, 1000),
        ("word_dropout", 0.0, 0.9),
    ):
        value = getattr(config, name)
        if not low <= value <= high:
            raise UsageError(f"{name} is {value}", f"allowed: {low} to {high}")
    rule = parse_rule(config.abstain)
    if config.out_of_scope_share and rule.name != OUT_OF_SCOPE:
        raise UsageError(
            f"out_of_scope_share with abstain {config.abstain!r}",
            f"it goes with {OUT_OF_SCOPE}",
        )
    if config.few_shot == 1:
        raise UsageError(
            "few_shot is 1", "folds need 2 rows a class or more; 0 for off"
        )
    if config.budget:
        parse_budget(config.budget)
        if config.few_shot:
            raise UsageError(
                "both budget and few_shot are given", "few_shot chooses by itself"
            )
        if not config.epochs or config.method == "probe":
            raise UsageError(
                f"budget with method {config.method!r} and epochs {config.epochs}",
                "a search needs a prompt and an epoch or more; leave budget out",
            )
    return config


def recipe_of(config: TrainConfig) -> dict[str, Any]:
    """The options that make the blob what it is, as it tells them itself."""
    recipe = asdict(config)
    for name in (
        *("resume", "version", "device", "gradient_checkpointing"),
        *("quantised", "variant"),  # a path; the blob names the graph by its digest
    ):
        recipe.pop(name)
    if config.pairs == TrainConfig.pairs:
        # Blobs of other kinds, and those made before there was a choice, stay alike.
        recipe.pop("pairs")
    return recipe


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
            clean[name] = value if wanted is bool else _made(wanted, value)
        except (TypeError, ValueError, OverflowError):
            raise UsageError(
                f"{where}: {name} is {value!r}", f"give a {wanted.__name__}"
            ) from None
    return replace(config, **clean)


def _made(wanted: type, value: object) -> Any:
    """A number or text; ValueError where the conversion would make another of it."""
    if not isinstance(value, str | int | float | Path) or isinstance(value, bool):
        raise ValueError
    made = wanted(value)
    if wanted is int and not isinstance(value, str) and made != value:
        raise ValueError
    return made


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
