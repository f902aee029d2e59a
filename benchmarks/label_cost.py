"""What it costs to compare the labels of a task on a decoder, in passes over the text.

    python benchmarks/label_cost.py BUNDLE ROWS.jsonl [--corpus TEXTS.jsonl.xz ...]
        [--texts N] [--rounds N]

ROWS has objects with `text` and `label`, such as clinc150's test rows. BUNDLE is a
decoder's, such as the one that decoder_peers.py makes; that one's tokenizer knows bytes
alone, and labels would be spelled: --corpus gives texts to learn a byte-level BPE of
the base's vocabulary size from, for labels and texts.
"""

import argparse
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from timing import alternate
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from promptdial.runtime import Engine
from promptdial.runtime.generating import (
    DecoderModel,
    GenerationRequest,
    prefill,
)
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.label_scoring import label_trie, score_labels, verbalised
from promptdial.runtime.label_trie import LabelTrie, make_trie

TEXTS, ROUNDS, THREADS = 20, 10, 2


def lines_of(path: Path) -> Iterator[dict[str, str]]:
    """The objects of a file, compressed or not."""
    opened = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def learned(corpus: list[Path], vocab: int) -> Tokenizer:
    """A byte-level BPE of some texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (row["text"] for path in corpus for row in lines_of(path))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--corpus", type=Path, nargs="*", default=[])
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    rows = list(lines_of(options.rows))
    labels = sorted({row["label"] for row in rows} - {"oos", "out of scope"})
    texts = [row["text"] for row in rows[:: max(1, len(rows) // options.texts)]]
    engine = Engine(options.bundle, threads=THREADS)
    model = engine._decoder_model()
    trie: LabelTrie = label_trie(model.encoder, model.end_token, labels)
    ids = [model.encoder.token_ids(text) for text in texts]
    if options.corpus:
        tokenizer = learned(options.corpus, model.manifest.dims.vocab)
        words = [tokenizer.encode(verbalised(label)).ids for label in labels]
        trie = make_trie([[*tokens, 2] for tokens in words])
        ids = [tokenizer.encode(text).ids for text in texts]
    requests = [
        GenerationRequest(
            None, np.array(tokens, np.int64), False, GenerationOptions(), 0, frozenset()
        )
        for tokens in ids[: options.texts]
    ]
    lengths = [len(request.tokens) for request in requests]
    places = [place for place in trie.following if place]
    run = {place[:end] for place in places for end in range(1, len(place) + 1)}
    print(
        f"{len(labels)} labels of {np.mean([len(p) for p in trie.paths]):.1f} tokens; "
        f"{len(places)} places where they part, {len(run)} rows to run; "
        f"{len(requests)} texts of {min(lengths)} to {max(lengths)} tokens"
    )
    ratios = [cost(request, trie, model, options.rounds) for request in requests]
    low, middle, high = np.percentile(ratios, [0, 50, 100])
    print(
        f"all labels of a text cost {middle:.2f} passes over it "
        f"({low:.2f} to {high:.2f}, by text)"
    )


def cost(
    request: GenerationRequest, trie: LabelTrie, model: DecoderModel, rounds: int
) -> float:
    """Time of comparing all labels over that of reading the text, of one text."""
    found = alternate(
        {
            "plain": lambda: prefill(request, model),
            "labels": lambda: score_labels(request, trie, model),
        },
        rounds,
    )
    return found["labels"].p50 / found["plain"].p50


if __name__ == "__main__":
    main()
