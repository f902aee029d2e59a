"""What static graphs make of a prompt far beyond the vocabulary, by their calibration.

    python benchmarks/static_ranges.py MODEL WORK [TEXTS.jsonl]

A soft prompt of 20 rows, each of 20 times the median norm of a token row, over held
texts. Graphs that were calibrated on texts alone (their token rows stand for prompts),
and on texts and this prompt: how near to FP32 the pooled answers are, how much of the
prompt's effect is left, and whether the device would take the prompt.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from promptdial.export.calibration import calibration_texts
from promptdial.export.encoder_graph import export_graph
from promptdial.export.model import LoadedBase, load_base, resolve
from promptdial.export.session import cpu_session
from promptdial.export.sides import GraphSide, Side, batch_of, pooled
from promptdial.export.targets.parity import static_side
from promptdial.export.targets.variant import build_static, encoder_buckets
from promptdial.export.verify import Prompt
from promptdial.runtime.manifest import GraphVariant
from promptdial.runtime.rows import Row, read_rows
from promptdial.runtime.session import Floats
from promptdial.runtime.text import Encoded, TextEncoder

TIMES = 20.0
ROWS = 20
LENGTH = 64


def far_prompt(table: Floats) -> Floats:
    """Rows [P, H] of directions drawn like tokens', all of the one large norm."""
    rng = np.random.default_rng(0)
    rows = rng.normal(table.mean(0), table.std(0), (ROWS, table.shape[1]))
    norm = TIMES * float(np.median(np.linalg.norm(table, axis=1)))
    rows *= norm / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def token_prompts(texts: list[Encoded], table: Floats) -> list[Prompt]:
    """Texts' own rows as prompts: what a calibration on texts alone has seen."""
    return [Prompt(table[text.ids[:ROWS]]) for text in texts]


def answers(side: Side, texts: list[Encoded], rows: Floats | None) -> Floats:
    """Pooled rows [N, H] over a prompt, or without any."""
    state = [] if rows is None else side.state(rows)
    batches = [batch_of([text]) for text in texts]
    found = [pooled(side.hidden(batch, state), batch.mask) for batch in batches]
    return np.concatenate(found)


def compare(
    exact: GraphSide, side: Side, texts: list[Encoded], rows: Floats
) -> dict[str, float]:
    """Cosines to FP32 with and without the prompt, and the share of its effect left."""
    plain, steered = answers(exact, texts, None), answers(exact, texts, rows)
    ours_plain, ours = answers(side, texts, None), answers(side, texts, rows)
    effect = steered - plain
    left = ((ours - ours_plain) * effect).sum(1) / (effect * effect).sum(1)
    cosines = (ours * steered).sum(1)
    return {
        "cosine_plain": float((ours_plain * plain).sum(1).mean()),
        "cosine": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "effect_left": float(left.mean()),
        "effect": float(np.linalg.norm(effect, axis=1).mean()),
    }


def outside(variant: GraphVariant, rows: Floats) -> dict[str, float]:
    """The share of the rows' numbers outside the range, which decides a refusal."""
    low, high = variant.ranges["inputs_embeds"]
    share = float(((rows < low) | (rows > high)).mean())
    return {"low": low, "high": high, "numbers_outside": share}


def measure(
    loaded: LoadedBase, work: Path, used: list[Row], held: list[Row]
) -> dict[str, dict[str, float]]:
    """Figures by kind of calibration."""
    table = loaded.token_table.cpu().numpy()
    encoder = TextEncoder(loaded.tokenizer_json, LENGTH)
    texts = [encoder.encode(row.text) for row in held]
    model = export_graph(loaded)
    session = cpu_session(model.SerializeToString())
    exact = GraphSide(session, loaded.dims, loaded.attention, table)
    rows = far_prompt(table)
    seen = token_prompts([encoder.encode(row.text) for row in used], table)
    result = {}
    for name, prompts in (("texts", seen), ("texts and prompt", [Prompt(rows)])):
        folder = work / name.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        print(name, file=sys.stderr, flush=True)
        buckets = encoder_buckets(loaded, "qnn", prompts, (LENGTH,))
        variant = build_static(loaded, model, folder, "qnn", used, prompts, buckets)
        side = static_side(folder, variant, loaded.dims, table)
        figures = compare(exact, side, texts, rows)
        result[name] = {**figures, **outside(variant, rows)}
    return result


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("work", type=Path)
    parser.add_argument("texts", type=Path, nargs="?")
    args = parser.parse_args()
    rows = read_rows(args.texts) if args.texts else calibration_texts()
    loaded = load_base(resolve(args.model))
    # Every other text calibrates, the rest are answered.
    found = measure(loaded, args.work, rows[::2], rows[1::2])
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
