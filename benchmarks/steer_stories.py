"""A soft prompt keeps a small story model on a subject: shares before and after.

    python benchmarks/steer_stories.py MODEL WORK [--subject WORD ...] [--json]

MODEL is a TinyStories checkpoint. The prompt learns from the model's own stories, told
after a sentence that brings the subject in, which the prompt's input lacks (context
distillation); openings of the test are not among those of training. The shares are of
sampled continuations (temperature 0.8, the same seeds for all), in the INT8 runtime and
in PyTorch float32 by the same sampler.
"""

import argparse
import json
import random
import re
from pathlib import Path

import numpy as np
import torch

from promptdial.export import export_bundle
from promptdial.export.model import load_base, resolve
from promptdial.prompts.blob import PromptBlob, write_blob
from promptdial.prompts.training.config import TrainConfig, check
from promptdial.prompts.training.decoders.decoder_base import DecoderBase, decoder_base
from promptdial.prompts.training.decoders.generation import (
    pack_generation,
    train_generation,
)
from promptdial.prompts.training.task import Task
from promptdial.runtime import Engine
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.rows import Row
from promptdial.runtime.sampling import Sampler

NAMES = "Lily Tom Ben Mia Sam Anna Max Lucy Tim Sara Jack Emma Leo Zoe".split()
PLACES = "the park|the garden|the forest|the beach|her room|the farm".split("|")
SHAPES = (
    "Once upon a time, {name} was in {place}.",
    "One day, {name} went to {place}.",
    "{name} liked to play in {place}.",
    "There was a child named {name} who lived near {place}.",
)
NEW_TOKENS = 60
HINTS = (
    " There was a big {word}.",
    " A little {word} came by.",
    " There was a {word} named Max.",
    " A {word} wanted to play.",
)
LEARNED = 600
TESTED = 200


def openings(part: str) -> list[str]:
    """Beginnings of stories; names of `test` are not those of `train`."""
    names = NAMES[:10] if part == "train" else NAMES[10:]
    return [
        shape.format(name=name, place=place)
        for shape in SHAPES
        for name in names
        for place in PLACES
    ]


def speaks_of(text: str, subject: list[str]) -> bool:
    """Whether one of the words stands in a text, in singular or plural."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return any(word in words or f"{word}s" in words for word in subject)


def learned_rows(engine: Engine, subject: list[str]) -> list[Row]:
    """Openings, and what the model tells after a sentence on the subject."""
    rng = random.Random(0)
    rows: list[Row] = []
    for seed in range(LEARNED):
        text = rng.choice(openings("train"))
        hint = rng.choice(HINTS).format(word=subject[0])
        story = engine.generate(
            None, text + hint, max_new_tokens=NEW_TOKENS, temperature=0.8, seed=seed
        ).text
        rows.append(Row(text=text, target=f"{hint} {story}".strip()))
    return rows


def engine_share(engine: Engine, task: str | None, subject: list[str]) -> float:
    """Share of test continuations that speak of the subject, in the INT8 runtime."""
    hits = [
        speaks_of(
            engine.generate(
                task, text, max_new_tokens=NEW_TOKENS, temperature=0.8, seed=seed
            ).text,
            subject,
        )
        for seed, text in enumerate(tested())
    ]
    return sum(hits) / len(hits)


def torch_share(
    base: DecoderBase, blob: PromptBlob | None, subject: list[str]
) -> float:
    """The same in PyTorch: the whole sequence anew for every token, no cache."""
    rows = base.token_table[:0]
    if blob is not None and blob.prompt_embeddings is not None:
        rows = torch.from_numpy(blob.prompt_embeddings.copy())
    hits = []
    for seed, text in enumerate(tested()):
        ids = base.encoder.encode(text).ids
        sampler = Sampler(GenerationOptions(temperature=0.8, seed=seed), ids)
        written: list[int] = []
        for _ in range(NEW_TOKENS):
            tokens = torch.tensor([*ids.tolist(), *written])
            embeds = torch.cat([rows, base.token_table[tokens]])[None]
            with torch.no_grad():
                mask = torch.ones(embeds.shape[:2], dtype=torch.long)
                logits = base.decoder.logits(embeds, mask, [])[0, -1]
            token = sampler.choose(np.asarray(logits.numpy()))
            if token == base.end_token:
                break
            written.append(token)
        pieces = base.encoder.pieces()
        story = "".join(pieces.push(token) for token in written) + pieces.finish()
        hits.append(speaks_of(story, subject))
    return sum(hits) / len(hits)


def tested() -> list[str]:
    """The openings of the test."""
    return random.Random(1).choices(openings("test"), k=TESTED)


def steer(model: str, work: Path, subject: list[str]) -> dict[str, object]:
    """Sample, train, and compare."""
    bundle = work / "stories.bundle"
    if not bundle.is_dir():
        export_bundle(model, bundle, ("int8",))
    with Engine(bundle, threads=1) as engine:
        rows = learned_rows(engine, subject)
        task = Task("subject", "generation", (), rows[50:], rows[:50], metric="rouge_l")
        config = check(
            TrainConfig(init="vocab", epochs=15, batch_size=16, learning_rate=2e-2)
        )
        base = decoder_base(load_base(resolve(model)), torch.device("cpu"))
        result = train_generation(base, task, config)
        blob = pack_generation(base, task, config, result)
        write_blob(work / "subject.safetensors", blob)
        engine.load(blob)
        return {
            "subject": subject,
            "learned_from": len(rows),
            "dev_loss": [round(result.zero_shot, 4), round(result.dev_loss, 4)],
            "bytes": blob.size,
            "seconds": round(result.seconds, 1),
            "int8": [engine_share(engine, name, subject) for name in (None, "subject")],
            "torch": [torch_share(base, item, subject) for item in (None, blob)],
        }


def main() -> None:
    """Steer and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("work", type=Path)
    parser.add_argument("--subject", nargs="+", default=["cat", "kitten", "kitty"])
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    found = steer(args.model, args.work, args.subject)
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
