"""Every supported architecture against PyTorch, through nothing that promptdial wrote.

The reference is transformers' own attention over prompt rows and text in one sequence.
Where a base takes a prefix, a mask keeps prompt rows from seeing the text: then their
keys and values do not depend on it, which is what a prefix is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CORPUS, EACH_ARCHITECTURE, Architecture, class_of, make_model
from blobs import normal, random_blob

from promptdial.export import export_bundle
from promptdial.export.model import quiet_transformers
from promptdial.prompts.blob import write_blob
from promptdial.prompts.training.base import open_base
from promptdial.prompts.training.batches import collate, encode_rows
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.graphs.graph_model import read_graph
from promptdial.prompts.training.parameters import make_prompt
from promptdial.prompts.training.reference import blob_reader
from promptdial.prompts.training.scoring import logits_of
from promptdial.runtime import Classification, Engine
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main
from promptdial.runtime.encoder_session import EncoderSession
from promptdial.runtime.manifest import Dims
from promptdial.runtime.profiles import PROFILES
from promptdial.runtime.rows import Row
from promptdial.runtime.words import split_words

VARIANTS = ("int8", "int4", "fp32")
Made = tuple[Architecture, Path, Path]
Floats = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module", params=EACH_ARCHITECTURE)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    """An architecture, its checkpoint, and its bundle with all variants."""
    kind: Architecture = request.param
    folder = tmp_path_factory.mktemp(kind.name)
    model = make_model(kind, folder / "model")
    bundle = folder / "a.bundle"
    export_bundle(str(model), bundle, VARIANTS)
    return kind, model, bundle


def session_of(bundle: Path, variant: str) -> EncoderSession:
    opened = open_bundle(bundle, variant)
    return EncoderSession(
        opened.graph_path,
        opened.manifest.dims,
        PROFILES["memory"],
        threads=1,
        cpu_features=opened.variant.cpu_features,
    )


def reference(model: Path, kind: Architecture, dims: Dims) -> Callable[..., Floats]:
    """Hidden states [B, T, H] from plain transformers."""
    plain: Any
    with quiet_transformers():
        attention = "eager" if kind.attention == "full" else "sdpa"
        plain = class_of(kind).from_pretrained(model, attn_implementation=attention)
        plain = plain.eval()
    window = getattr(plain.config, "sliding_window", None)
    layers = getattr(plain.config, "layer_types", None)

    def hidden(embeds: Floats, mask: Floats, rows: Floats) -> Floats:
        batch, text = mask.shape
        prompt = len(rows)
        front = np.broadcast_to(rows, (batch, *rows.shape))
        both = torch.tensor(np.concatenate([front, embeds], 1))
        order = [*range(prompt), *range(text)]
        seen = torch.cat([torch.ones(batch, prompt), torch.tensor(mask)], 1).bool()
        wide = seen[:, None, None, :].repeat(1, 1, prompt + text, 1)
        near = torch.ones(prompt + text, prompt + text, dtype=torch.bool)
        near[:prompt, prompt:] = False  # prompt rows do not see the text
        local = near.clone()
        if window and layers:
            places = torch.arange(text)
            distance = (places[:, None] - places[None]).abs()
            local[prompt:, prompt:] = distance <= window
            inside = torch.arange(prompt)
            local[:prompt, :prompt] = (inside[:, None] - inside[None]).abs() <= window
        masks: Any = seen.long() if kind.attention == "full" else wide & near
        if layers and len(set(layers)) > 1:
            masks = {"full_attention": wide & near, "sliding_attention": wide & local}
        with torch.no_grad():
            out = plain(
                inputs_embeds=both,
                attention_mask=masks,
                position_ids=torch.tensor([order] * batch) + dims.position_offset,
            )
        return np.asarray(out.last_hidden_state[:, prompt:].numpy())

    return hidden


def graph_hidden(
    session: EncoderSession, dims: Dims, embeds: Floats, mask: Floats, rows: Floats
) -> Floats:
    batch, text = mask.shape
    seen = np.concatenate([np.ones((batch, len(rows))), mask], 1).astype(np.int64)
    positions = np.tile(np.arange(text) + dims.position_offset, (batch, 1))
    state = session.state_of(rows) if len(rows) else session.no_prompt
    return session.hidden(embeds, seen, positions, np.zeros_like(positions), state)


def scores_of(engine: Engine, task: str, text: str) -> list[float]:
    return list(engine.classify(task, text).scores.values())


def batch_of(model: Path, lengths: list[int]) -> tuple[Floats, Floats]:
    """Embeddings [B, T, E] of random tokens and their mask [B, T]."""
    base = open_base(str(model), torch.device("cpu"))
    shape = (len(lengths), max(lengths))
    ids = np.random.default_rng(0).integers(5, base.dims.vocab, shape)
    mask = [[1.0] * n + [0.0] * (shape[1] - n) for n in lengths]
    return base.token_table.numpy()[ids], np.array(mask, np.float32)


def test_the_manifest_says_how_prompts_enter(made: Made) -> None:
    kind, _, bundle = made
    manifest = open_bundle(bundle).manifest
    assert manifest.attention == kind.attention
    assert manifest.prefix == (kind.attention == "one_way")
    assert manifest.dims.position_offset == (2 if kind.marks[0] == "<s>" else 0)


@pytest.mark.parametrize("lengths", [[19], [19, 4, 11]], ids=["one", "padded"])
def test_fp32_equals_transformers(made: Made, lengths: list[int]) -> None:
    kind, model, bundle = made
    dims = open_bundle(bundle).manifest.dims
    session, wanted = session_of(bundle, "fp32"), reference(model, kind, dims)
    embeds, mask = batch_of(model, lengths)
    answers = []
    for count in (0, 1, 5, 13):
        rows = normal(count, count, dims.embedding) * 0.3
        found = graph_hidden(session, dims, embeds, mask, rows)
        expected = wanted(embeds, mask, rows)
        for row, length in enumerate(lengths):
            difference = found[row, :length] - expected[row, :length]
            assert np.abs(difference).max() < 1e-4, (count, row)
        answers.append(found[0, : lengths[0]])
    for other in answers[1:]:
        assert np.abs(other - answers[0]).max() > 1e-2


def test_levels_are_the_hidden_states_of_transformers(made: Made) -> None:
    kind, model, bundle = made
    dims = open_bundle(bundle).manifest.dims
    embeds, mask = batch_of(model, [11])
    with quiet_transformers(), torch.no_grad():
        plain: Any = class_of(kind).from_pretrained(model).eval()
        output = plain(
            inputs_embeds=torch.tensor(embeds),
            position_ids=torch.arange(11)[None] + dims.position_offset,
            output_hidden_states=True,
        )
    session = session_of(bundle, "fp32")
    positions = np.arange(11)[None] + dims.position_offset
    found = session.levels(
        embeds,
        mask.astype(np.int64),
        positions,
        np.zeros_like(positions),
        session.no_prompt,
    )
    assert len(found) == dims.layers + 1
    for level, wanted in zip(found[:-1], output.hidden_states, strict=False):
        np.testing.assert_allclose(level, wanted.numpy(), atol=1e-4)
    np.testing.assert_allclose(found[-1], output.last_hidden_state, atol=1e-4)


@pytest.mark.parametrize("variant", ["int8", "int4"])
def test_rows_in_company_are_the_rows_alone(made: Made, variant: str) -> None:
    _, model, bundle = made
    dims = open_bundle(bundle).manifest.dims
    session = session_of(bundle, variant)
    embeds, mask = batch_of(model, [9, 9, 9])
    embeds[1] *= 30  # an outlier beside it must not change a row
    rows = normal(1, 5, dims.embedding) * 0.3
    together = graph_hidden(session, dims, embeds, mask, rows)
    for row in range(3):
        chosen = slice(row, row + 1)
        alone = graph_hidden(session, dims, embeds[chosen], mask[chosen], rows)
        assert np.array_equal(together[row], alone[0])


@pytest.mark.parametrize("count", [0, 3])
def test_graphs_in_torch_are_the_graphs_of_the_device(made: Made, count: int) -> None:
    """What training on a bundle's graph computes, beside onnxruntime, padded rows too.

    The exact graph to 1e-5. Where numbers are rounded, both sides meet the same steps
    but for ties that a last bit decides, and a tie moves its row by a step: so the mean
    difference is held against what rounding changes at all, of which it is a fraction.
    Of many texts, for one that meets a tie early is another from there on; and over the
    device's own prefix, for one that meets a tie there is another for every text.
    """
    kind, model, bundle = made
    dims = open_bundle(bundle).manifest.dims
    embeds, mask = batch_of(model, [19, 4, 11, 7, 16, 9, 13, 5, 18, 8, 12, 15])
    rows = normal(count, count, dims.embedding) * 0.3
    found: dict[str, Floats] = {}
    for variant in VARIANTS:
        path = open_bundle(bundle, variant).graph_path
        graph = read_graph(path, dims, kind.attention, torch.device("cpu"))
        session = session_of(bundle, variant)
        theirs = [torch.tensor(x) for x in session.state_of(rows)] if count else []
        width = 2 if session.takes_prefix else 1
        state = [tuple(theirs[i : i + width]) for i in range(0, len(theirs), width)]
        with torch.no_grad():
            ids = torch.tensor(mask).long()
            hidden = graph.hidden(
                torch.tensor(embeds), ids, torch.zeros_like(ids), state
            )
            ours = graph.state_of(torch.tensor(rows)) if count else []
        wanted = graph_hidden(session, dims, embeds, mask, rows)[mask > 0]
        flat = [part for layer in ours for part in layer]
        for one, other in zip(flat, theirs, strict=True):
            least = 1e-5 if variant == "fp32" else 0.1
            assert (one - other).abs().mean() < least * other.abs().mean()
        found[variant] = np.abs(hidden.numpy()[mask > 0] - wanted)
        found[f"wanted {variant}"] = wanted
    assert found["fp32"].max() < 1e-5
    for variant in ("int8", "int4"):
        rounding = np.abs(found[f"wanted {variant}"] - found["wanted fp32"]).mean()
        assert found[variant].mean() < 0.2 * rounding
        assert np.median(found[variant]) < 0.1 * rounding


def test_levels_of_graphs_in_torch_are_those_of_the_device(made: Made) -> None:
    kind, model, bundle = made
    opened = open_bundle(bundle, "fp32")
    dims = opened.manifest.dims
    embeds, mask = batch_of(model, [11])
    positions = np.arange(11)[None] + dims.position_offset
    session = session_of(bundle, "fp32")
    ones, zeros = mask.astype(np.int64), np.zeros_like(positions)
    wanted = session.levels(embeds, ones, positions, zeros, session.no_prompt)
    graph = read_graph(opened.graph_path, dims, kind.attention, torch.device("cpu"))
    rows, seen, types = (torch.tensor(item) for item in (embeds, ones, zeros))
    found = graph.levels(rows, seen, types, [])
    assert len(found) == dims.layers + 1
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


def test_engine_answers_equal_pytorch_with_the_same_blob(
    made: Made, tmp_path: Path
) -> None:
    """Tokenizer, positions, segments, prompt and head together."""
    _, model, bundle = made
    manifest = open_bundle(bundle).manifest
    blob = random_blob(manifest, "five", length=5, seed=3)
    bare = random_blob(manifest, "bare", length=0, seed=3)
    mixed = random_blob(manifest, "mixed", length=5, seed=3, mixes=2)
    weighed = random_blob(manifest, "weighed", length=5, seed=3, attends=True)
    both = random_blob(manifest, "both", length=5, seed=3, mixes=2, attends=True)
    for item in (blob, bare, mixed, weighed, both):
        write_blob(tmp_path / f"{item.meta.task}.safetensors", item)
    base = open_base(str(model), torch.device("cpu"))
    examples = encode_rows([Row(text) for text in CORPUS], base.encoder, (), {})
    with Engine(bundle, tmp_path, variant="fp32") as engine:
        others = np.log([scores_of(engine, "bare", text) for text in CORPUS])
        for item in (blob, mixed, weighed, both):
            task = item.meta.task
            found = np.log([scores_of(engine, task, text) for text in CORPUS])
            wanted = logits_of(blob_reader(base, item), examples)
            expected = torch.log_softmax(torch.stack(wanted), -1).numpy()
            # Token rows are int8 on one side; the prompt's effect is far above that.
            error = np.abs(found - expected).max()
            assert error < 0.1
            assert np.abs(others - found).max() > 10 * error
        tasks = ("five", "bare", "mixed", "weighed", "both")
        items = [(task, text) for text in CORPUS for task in tasks]
        for pair, together in zip(items, engine.run_batch(items), strict=True):
            assert isinstance(together, Classification)
            assert together == engine.run(*pair)


def test_words_keep_their_places(made: Made) -> None:
    """Offsets for tagging: every word has a first token, whatever the tokenizer."""
    _, model, _ = made
    base = open_base(str(model), torch.device("cpu"))
    words, places = split_words("wake me at 7, in Zürich — bitte!")
    encoded = base.encoder.encode_words(words)
    assert sorted(set(encoded.words.tolist()) - {-1}) == list(range(len(words)))
    assert [places[0], places[-1]] == [(0, 4), (31, 32)]


def test_gradients_reach_the_prompt(made: Made) -> None:
    _, model, _ = made
    base = open_base(str(model), torch.device("cpu"))
    rows = torch.tensor(normal(1, 4, base.dims.embedding))
    prompt = make_prompt(TrainConfig().method, base, rows)
    texts = [base.encoder.encode(text) for text in CORPUS[:2]]
    hidden = base.hidden(collate(texts, base.device), prompt.state(base))
    hidden.square().sum().backward()  # type: ignore[no-untyped-call]
    gradients = [item.grad for item in prompt.parameters()]
    assert all(item is not None and float(item.norm()) > 0 for item in gradients)


def test_prefixes_are_refused_where_none_is_taken(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, _, bundle = made
    if kind.attention == "one_way":
        pytest.skip("takes a prefix")
    manifest = open_bundle(bundle).manifest
    deep = random_blob(manifest, "deep", length=3, deep=True, seed=1)
    write_blob(tmp_path / "deep.safetensors", deep)
    code = main(["run", str(bundle), "deep", "hello", "--prompts", str(tmp_path)])
    assert code == 4
    assert "NO_PREFIX" in capsys.readouterr().err
