"""Decoders in graphs of fixed sizes: against transformers, on the CPU and on QNN."""

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from blobs import random_blob
from decoders import (
    DECODERS,
    Decoder,
    MadeDecoder,
    label_likelihood,
    made_decoder,
    make_decoder,
    make_tokenizer,
    plain_logits,
    plain_model,
    transformers_greedy,
)
from made_once import MakeOnce
from openvino_anywhere import needs_openvino

from promptdial.export import export_bundle, verify_bundle
from promptdial.export.decoder_graph import export_decoder
from promptdial.export.decoder_sides import GraphDecoder
from promptdial.export.errors import Unsupported
from promptdial.export.model import LoadedBase, load_base, resolve
from promptdial.export.session import cpu_session
from promptdial.export.targets.decoder_graph import TAKEN, decoder_graph
from promptdial.export.targets.decoder_parity import StaticDecoderSide
from promptdial.export.targets.decoder_variant import require_static_decoder
from promptdial.export.token_table import read_table
from promptdial.prompts.blob import PromptBlob, make_blob, write_blob
from promptdial.runtime import Engine
from promptdial.runtime.accelerator import CPU
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main
from promptdial.runtime.errors import PromptRefused, TextRefused
from promptdial.runtime.graph_state import empty_state, flat, present_names
from promptdial.runtime.label_scoring import label_trie
from promptdial.runtime.manifest import (
    TOKEN_TABLE_NAME,
    Manifest,
    StaticBucket,
)
from promptdial.runtime.openvino import OPENVINO
from promptdial.runtime.profiles import PROFILES
from promptdial.runtime.qnn import QNN
from promptdial.runtime.static_cache import StaticCache, StaticPasses
from promptdial.runtime.static_decoder import StaticDecoderSession
from promptdial.runtime.text import TextEncoder

TEXT = "the film was good and"
LONG = " ".join(["the book was great and the film was not very good"] * 8)
LABELS = ("red", "green", "very green", "very red")
KINDS = {kind.name: kind for kind in DECODERS}
WINDOW, READS = 96, (4, 8)

REFUSED = {
    "mistral": "see 9 rows alone",
    "gemma2": "see 9 rows alone",
    "gemma3_text": "see 9 rows alone",
    "lfm2": "2 of 3 layers .* are convolutions",
    "opt": "computes with positions",
}
QUICK = ("llama", "phi3")
WRITTEN_OUT = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in KINDS
    if name not in REFUSED
]

needs_qnn = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None,
    reason="the package onnxruntime-qnn is not installed",
)


def loaded_base(kind: Decoder, folder: Path) -> LoadedBase:
    return load_base(resolve(str(make_decoder(kind, folder))))


def soft_blob(manifest: Manifest, task: str, seed: int, size: float = 0.15) -> Any:
    """A soft prompt of 5 rows of the size of the tokens'."""
    blob = random_blob(manifest, task, "generation", length=5, seed=seed)
    rows = np.random.default_rng(seed).normal(0, size, (5, manifest.dims.embedding))
    return make_blob(blob.meta, embeddings=rows.astype(np.float32))


def label_blob(manifest: Manifest, task: str, **changes: Any) -> PromptBlob:
    blob = soft_blob(manifest, task, 3)
    meta = replace(
        blob.meta,
        kind="classification",
        pooling="likelihood",
        labels=LABELS,
        **changes,
    )
    return make_blob(meta, embeddings=blob.prompt_embeddings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("static")


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> MadeDecoder:
    return made_decoder(make_once, "llama", exact=True)


@pytest.fixture(scope="module")
def model(made: MadeDecoder) -> Path:
    return made.model


@pytest.fixture(scope="module")
def prompts(made: MadeDecoder, folder: Path) -> Path:
    """Soft prompts `one` and `two`, the deep one `deep`, and labels' `which`."""
    place = folder / "prompts"
    place.mkdir()
    shutil.copytree(made.bundle, folder / "plain.bundle")
    manifest = open_bundle(made.bundle).manifest
    deep = random_blob(manifest, "deep", "generation", length=3, deep=True, seed=9)
    for blob in (
        soft_blob(manifest, "one", 1),
        soft_blob(manifest, "two", 2),
        deep,
        label_blob(manifest, "which"),
        label_blob(manifest, "weighed", template={"neutral": "N/A"}),
    ):
        write_blob(place / f"{blob.meta.task}.safetensors", blob)
    return place


@pytest.fixture(scope="module")
def bundle(model: Path, prompts: Path, folder: Path) -> Path:
    """The variants fp32 and qnn, calibrated on all of the prompts."""
    files = sorted(prompts.iterdir())
    out = folder / "plain.bundle"
    export_bundle(
        str(model), out, target="qnn", calibrate=files, lengths=READS, window=WINDOW
    )
    return out


@pytest.fixture
def on_cpu(bundle: Path, prompts: Path) -> Iterator[Engine]:
    with Engine(bundle, prompts, variant="qnn", providers=[CPU], threads=1) as opened:
        yield opened


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_fp32_graphs_give_what_the_graph_of_any_size_gives(
    name: str, tmp_path: Path
) -> None:
    """Two passes that read, then single rows, one of a prompt's window in front."""
    base = loaded_base(KINDS[name], tmp_path / "model")
    exact, dims = export_decoder(base), base.dims
    require_static_decoder(base, "qnn")
    buckets = [StaticBucket(str(text), 24, text) for text in (1, 4, 8)]
    graphs = {bucket: decoder_graph(exact, dims, bucket) for bucket in buckets}
    for graph in graphs.values():
        assert {node.op_type for node in graph.graph.node} <= TAKEN
    sessions = {
        bucket: cpu_session(graph.SerializeToString())
        for bucket, graph in graphs.items()
    }
    names = ["logits", *flat(present_names(dims))]
    passes = StaticPasses(
        buckets, dims, -1e4, lambda bucket, feed: sessions[bucket].run(names, feed)
    )
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 0.3, (1, 18, dims.embedding)).astype(np.float32)
    first = StaticCache(passes, empty_state(dims), 0)
    first.forward(rows[:, :5])
    cache = StaticCache(passes, first.head(5), 5)
    found = [cache.forward(rows[:, 5:15])]
    found += [cache.forward(rows[:, place : place + 1]) for place in (15, 16, 17)]
    table = base.token_table.numpy()
    whole = GraphDecoder(cpu_session(exact.SerializeToString()), dims, table)
    mask = np.ones((1, 18), np.int64)
    wanted, state = whole.run(whole.feed(rows, mask, []))
    assert np.abs(np.concatenate(found, 1) - wanted[:, 14:]).max() < 1e-4
    held = [part for layer in state for part in layer]
    for ours, theirs in zip(cache.head(18), held, strict=True):
        assert np.abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_out_is_refused(name: str, tmp_path: Path) -> None:
    model = make_decoder(KINDS[name], tmp_path / "model")
    out = tmp_path / "a.bundle"
    with pytest.raises(Unsupported, match=REFUSED[name]):
        export_bundle(str(model), out, (), target="qnn", lengths=READS, window=WINDOW)
    assert not out.exists()
    assert main(["export", str(model), str(out), "--target", "qnn"]) == 4


def test_bent_scores_are_refused(tmp_path: Path) -> None:
    kind = KINDS["gemma2"]
    options = {**kind.options, "layer_types": ["full_attention"] * 2}
    base = loaded_base(replace(kind, options=options), tmp_path / "model")
    exact = export_decoder(base)
    with pytest.raises(Unsupported, match="0 of 2 layers have plain attention"):
        decoder_graph(exact, base.dims, StaticBucket("a", 24, 4))


def test_sizes_that_leave_no_room_are_wrong_use(
    model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.bundle"
    static = ["export", str(model), str(out), "--target", "qnn"]
    assert main([*static, "--window", "8"]) == 2  # prompts of 20 rows are tried
    assert main([*static, "--seq-len", "2"]) == 2
    assert main(["export", str(model), str(out), "--window", "64"]) == 2
    encoder = ["export", str(tiny_model), str(out), "--target", "qnn"]
    assert main([*encoder, "--window", "64"]) == 2
    assert not out.exists()


def test_one_graph_writes_and_the_others_read(bundle: Path) -> None:
    variant = open_bundle(bundle).manifest.graphs["qnn"]
    sizes = [(bucket.prefix, bucket.text) for bucket in variant.buckets]
    assert sizes == [(WINDOW, 1), (WINDOW, 4), (WINDOW, 8)]
    assert len(variant.files) == len(sizes) + 1
    assert {"inputs_embeds", "attention_bias", "past_key_values.1.value"} <= set(
        variant.ranges
    )


def rows_of(bundle: Path, blob: PromptBlob | None, text: str) -> Any:
    """Rows [P+T, H] of a soft prompt and a text, of the bundle's table."""
    encoder = TextEncoder(open_bundle(bundle).tokenizer_json(), 128)
    rows = read_table(bundle / TOKEN_TABLE_NAME)[encoder.encode(text).ids]
    if blob is None:
        return rows
    assert blob.prompt_embeddings is not None
    return np.concatenate([blob.prompt_embeddings, rows])


def cosine(one: Any, other: Any) -> float:
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


def test_logits_are_those_of_transformers_within_rounding(
    bundle: Path, model: Path
) -> None:
    """A prompt's effect is many times what fixed ranges and 8 bits leave."""
    manifest = open_bundle(bundle).manifest
    variant = manifest.graphs["qnn"]
    session = StaticDecoderSession(
        bundle, variant, manifest.dims, PROFILES["latency"], 1, [CPU]
    )
    table = read_table(bundle / TOKEN_TABLE_NAME)
    side = StaticDecoderSide(session, manifest.dims, table)
    plain = plain_model(model)
    encoder = TextEncoder(open_bundle(bundle).tokenizer_json(), 30)
    for text in (TEXT, LONG):
        encoded = encoder.encode(text)
        alone = side.last_logits(encoded, [])
        for seed in (1, 2):
            blob = soft_blob(manifest, "p", seed)
            rows = np.concatenate([blob.prompt_embeddings, table[encoded.ids]])
            wanted = plain_logits(plain, rows)[-len(alone) :]
            found = side.last_logits(encoded, side.state(blob.prompt_embeddings))
            assert cosine(found, wanted) > 0.998
            assert cosine(found, alone) < 0.97


def test_verify_compares_with_pytorch(bundle: Path, model: Path) -> None:
    found = verify_bundle(bundle, str(model)).variants["qnn"]
    assert found.cosine > 0.998
    assert found.batch_diff == 0
    assert found.prompt_effect > 0.01


@pytest.mark.parametrize(
    "name",
    [
        "tinystories-260k-llama",
        pytest.param("tinystories-tiny1m-llama", marks=pytest.mark.slow),
    ],
)
def test_greedy_tokens_of_real_weights_are_those_of_transformers(
    name: str, shared_models: Path, tmp_path: Path
) -> None:
    """The first of them: once rounding has turned a near tie, stories part."""
    source = shared_models / name
    out = tmp_path / "a.bundle"
    found = export_bundle(
        str(source), out, ("fp32",), target="qnn", lengths=(8,), window=64
    )
    assert found.parity.variants["qnn"].agreement > 0.95
    with Engine(out, variant="qnn", providers=[CPU], threads=1) as engine:
        answer = engine.generate(None, "Once upon a time", max_new_tokens=16)
    rows = rows_of(out, None, "Once upon a time")
    wanted = transformers_greedy(plain_model(source), rows, 16)
    assert list(answer.tokens) == wanted[: len(answer.tokens)]


def test_prompts_of_every_kind_answer(on_cpu: Engine, bundle: Path) -> None:
    """A prompt changes the answer; one's first request is as its later ones."""
    tasks = (None, "one", "two", "deep")
    answers = {
        task: on_cpu.generate(task, TEXT, max_new_tokens=6).tokens for task in tasks
    }
    assert len(set(answers.values())) == len(tasks)
    for task, tokens in answers.items():
        assert on_cpu.generate(task, TEXT, max_new_tokens=6).tokens == tokens
        stream = on_cpu.stream(task, TEXT, max_new_tokens=6)
        assert "".join(stream) == stream.generation.text
        assert stream.generation.tokens == tokens
    assert all(set(nodes) == {CPU} for nodes in on_cpu.placement().values())
    assert len(on_cpu.placement()) == 3


def test_several_texts_are_answered_as_alone(on_cpu: Engine) -> None:
    items = [("one", TEXT), ("which", TEXT), (None, LONG[:40]), ("two", LONG[:60])]
    together = on_cpu.run_batch(items)
    for (task, text), answer in zip(items, together, strict=True):
        alone = on_cpu.run(task, text)
        if task == "which":
            assert alone == answer
        else:
            assert alone.tokens == answer.tokens  # type: ignore[union-attr]


def test_labels_are_as_likely_as_in_transformers(
    on_cpu: Engine, bundle: Path, model: Path
) -> None:
    manifest = open_bundle(bundle).manifest
    encoder = TextEncoder(open_bundle(bundle).tokenizer_json(), 128)
    trie = label_trie(encoder, 2, LABELS)
    table, plain = read_table(bundle / TOKEN_TABLE_NAME), plain_model(model)
    rows = rows_of(bundle, soft_blob(manifest, "which", 3), TEXT)
    paths = [list(path) for path in trie.paths]
    wanted = np.exp(
        [label_likelihood(plain, rows, table, path, paths) for path in paths]
    )
    found = on_cpu.classify("which", TEXT)
    scores = [found.scores[label] for label in LABELS]
    assert np.abs(np.array(scores) - wanted).max() < 0.03
    assert wanted.max() > 0.3
    # Calibrated ones are taken over those of the neutral text.
    assert on_cpu.classify("weighed", TEXT).scores != found.scores
    assert on_cpu.classify("weighed", TEXT) == on_cpu.classify("weighed", TEXT)


def test_text_prompt_and_answer_share_the_window(on_cpu: Engine) -> None:
    whole = on_cpu.generate("one", TEXT, max_new_tokens=20)
    assert len(whole.tokens) <= 20 and not whole.truncated
    cut = on_cpu.generate("one", LONG, max_new_tokens=20)
    assert cut.truncated
    with pytest.raises(TextRefused, match=f"no room for the text in {WINDOW} pos"):
        on_cpu.generate("one", TEXT, max_new_tokens=WINDOW)


def test_a_prompt_outside_the_ranges_is_refused(bundle: Path, on_cpu: Engine) -> None:
    manifest = open_bundle(bundle).manifest
    on_cpu.load(soft_blob(manifest, "fresh", 5))
    before = on_cpu.generate("fresh", TEXT, max_new_tokens=3)
    far = soft_blob(manifest, "fresh", 5, size=3.0)
    with pytest.raises(PromptRefused, match=r"inputs_embeds.*calibrated for"):
        on_cpu.load(far)
    deep = random_blob(manifest, "fresh", "generation", length=3, deep=True, seed=4)
    pairs = [(100 * key, value) for key, value in deep.past_key_values]
    with pytest.raises(PromptRefused, match=r"past_key_values\.0\.key.*calibrated"):
        on_cpu.load(make_blob(deep.meta, past=pairs))
    long = random_blob(manifest, "fresh", "generation", length=WINDOW, deep=True)
    with pytest.raises(
        PromptRefused, match=f"{WINDOW} virtual tokens.*room for"
    ) as caught:
        on_cpu.load(long)
    assert "--window" in caught.value.hint
    after = on_cpu.generate("fresh", TEXT, max_new_tokens=3)
    assert after.tokens == before.tokens


def wide_model(folder: Path) -> Path:
    """Two layers of random weights, as wide as those of SmolLM2-135M."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=576,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=1000,
        max_position_embeddings=2048,
        initializer_range=0.05,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def openvino_bundle(made: MadeDecoder, folder: Path) -> Path:
    """The variants fp32 and openvino, calibrated on texts alone."""
    out = folder / "openvino.bundle"
    shutil.copytree(made.bundle, out)
    export_bundle(str(made.model), out, target="openvino", lengths=READS, window=WINDOW)
    return out


def test_for_openvino_weights_alone_have_levels(
    openvino_bundle: Path, prompts: Path
) -> None:
    """So no prompt is cut; answers are those of FP32 but for the weights' rounding."""
    variant = open_bundle(openvino_bundle, "openvino").variant
    kinds = [
        node.op_type
        for bucket in variant.buckets
        for node in onnx.load(openvino_bundle / bucket.file).graph.node
    ]
    assert "DequantizeLinear" in kinds and "QuantizeLinear" not in kinds
    exact = Engine(openvino_bundle, prompts, variant="fp32", threads=1)
    ours = Engine(
        openvino_bundle, prompts, variant="openvino", providers=[CPU], threads=1
    )
    with exact, ours:
        for task in ("one", "deep"):
            answers = [
                engine.generate(task, TEXT, max_new_tokens=4)
                for engine in (exact, ours)
            ]
            assert answers[0].tokens == answers[1].tokens
        scores = [
            np.array(list(engine.classify("which", TEXT).scores.values()))
            for engine in (exact, ours)
        ]
        assert np.abs(scores[0] - scores[1]).max() < 0.02


@needs_openvino
def test_every_node_runs_on_openvino(openvino_bundle: Path, prompts: Path) -> None:
    on_cpu = Engine(openvino_bundle, prompts, variant="openvino", providers=[CPU])
    with on_cpu, Engine(openvino_bundle, prompts, policy="accelerator") as engine:
        assert engine.variant == "openvino"
        placed = engine.placement()
        assert len(placed) == 1 + len(READS)
        assert all(set(nodes) == {OPENVINO} for nodes in placed.values())
        plain = engine.generate(None, TEXT, max_new_tokens=4).tokens
        for task in ("one", "deep"):
            found = engine.generate(task, TEXT, max_new_tokens=4).tokens
            assert found == on_cpu.generate(task, TEXT, max_new_tokens=4).tokens
            assert found != plain


@needs_qnn
def test_every_node_runs_on_qnn_and_is_compiled_once(tmp_path: Path) -> None:
    """In the simulator where there is no such processor."""
    model, out = wide_model(tmp_path / "model"), tmp_path / "a.bundle"
    export_bundle(str(model), out, (), target="qnn", lengths=(32,), window=128)
    manifest = open_bundle(out).manifest
    variant, dims = manifest.graphs["qnn"], manifest.dims
    blob = soft_blob(manifest, "one", 1, size=0.05)
    kept = tmp_path / "a.bundle.contexts"
    times, answers = [], []
    for _ in range(2):
        with Engine(out, variant="qnn") as engine:
            assert len(engine.placement()) == 2
            assert all(set(nodes) == {QNN} for nodes in engine.placement().values())
            engine.load(blob)
            answers.append(engine.generate("one", TEXT, max_new_tokens=2).tokens)
        times.append({path: path.stat().st_mtime_ns for path in kept.iterdir()})
    assert times[0] == times[1] and len(times[0]) == 4
    assert answers[0] == answers[1]
    sides = [
        StaticDecoderSide(
            StaticDecoderSession(out, variant, dims, PROFILES["latency"], 1, where),
            dims,
            read_table(out / TOKEN_TABLE_NAME),
        )
        for where in ([QNN], [CPU])
    ]
    encoded = TextEncoder(open_bundle(out).tokenizer_json(), 30).encode(TEXT)
    prompted = [
        side.last_logits(encoded, side.state(blob.prompt_embeddings)) for side in sides
    ]
    assert cosine(*prompted) > 0.99
    assert cosine(prompted[0], sides[0].last_logits(encoded, [])) < 0.9
