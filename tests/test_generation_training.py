"""Training prompts that write: the loss against transformers, and what is learned."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import (
    MadeDecoder,
    made_decoder,
    plain_model,
)
from made_once import MakeOnce

from promptdial.export.model import load_base, resolve
from promptdial.prompts.blob import decode, encode, read_blob
from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.decoders.decoder_base import DecoderBase, decoder_base
from promptdial.prompts.training.decoders.generation import (
    pack_generation,
    train_generation,
)
from promptdial.prompts.training.decoders.generation_rows import (
    collate_generation,
    encode_generation,
)
from promptdial.prompts.training.initialise import prompt_rows
from promptdial.prompts.training.parameters import make_prompt
from promptdial.prompts.training.task import Task
from promptdial.runtime import Engine
from promptdial.runtime.cli import main
from promptdial.runtime.metrics import exact_match, rouge_l
from promptdial.runtime.rows import Row, parse_rows
from promptdial.runtime.selftest import SelfTest, run_self_test

CPU = torch.device("cpu")
ROWS = [
    Row("turn on the light", target="light on"),
    Row("play the news", target="news"),
    Row("wake me at seven", target="alarm 7"),
    Row("the book was dull but the film was good", target="film"),
]


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> MadeDecoder:
    return made_decoder(make_once, "llama")


@pytest.fixture(scope="module")
def model(made: MadeDecoder) -> Path:
    return made.model


@pytest.fixture(scope="module")
def base(model: Path) -> DecoderBase:
    return decoder_base(load_base(resolve(str(model)), CPU), CPU)


@pytest.fixture(scope="module")
def bundle(made: MadeDecoder) -> Path:
    return made.bundle


def examples_of(base: DecoderBase) -> Any:
    return encode_generation(ROWS, base.encoder, {}, base.end_token, 100)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_the_loss_is_that_of_transformers(
    base: DecoderBase, model: Path, method: str
) -> None:
    """Prompt first, positions counted, and only the target is asked for."""
    task = Task("t", "generation", (), ROWS, ROWS)
    rows = prompt_rows(base, task, TrainConfig(init="vocab", num_virtual_tokens=4))
    prompt = make_prompt(method, base, rows)
    examples = examples_of(base)
    batch = collate_generation(examples, CPU)
    with torch.no_grad():
        found = base.losses(batch, prompt.state(base))
        plain = plain_model(model)
        wanted: list[float] = []
        for example in examples:
            ids = torch.tensor([example.ids])
            embeds = torch.cat([rows[None], base.token_table[ids]], dim=1)
            labels = torch.cat([torch.full((1, 4), -100), ids], dim=1)
            labels[:, : 4 + example.start] = -100
            output = plain(inputs_embeds=embeds, labels=labels)
            count = example.weight - example.start
            wanted.append(float(output.loss) * count)
    assert float(found.sum()) == pytest.approx(sum(wanted), rel=1e-5)


def test_padding_changes_no_loss(base: DecoderBase) -> None:
    examples = examples_of(base)
    together = base.losses(collate_generation(examples, CPU), [])
    alone = [base.losses(collate_generation([item], CPU), []) for item in examples]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_targets_end_with_the_end_token(base: DecoderBase) -> None:
    assert base.end_token == 2
    for example in examples_of(base):
        assert example.ids[-1] == 2
        assert example.ids[0] == 1
        assert not example.truncated


def test_a_text_without_room_is_refused_and_a_cut_target_is_said(
    base: DecoderBase,
) -> None:
    with pytest.raises(DataInvalid, match="leaves no room"):
        encode_generation(ROWS[3:], base.encoder, {}, 2, 4)
    length = len(base.encoder.encode(ROWS[2].text))
    cut = encode_generation(ROWS[2:3], base.encoder, {}, 2, length + 1)[0]
    assert cut.truncated
    assert cut.weight == length + 1
    assert cut.ids[-1] != 2


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deep prompt that knows its four rows by heart, made by the command."""
    folder = tmp_path_factory.mktemp("task")
    lines = [json.dumps({"text": row.text, "target": row.target}) for row in ROWS]
    for part in ("train", "dev"):
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out = folder / "words.safetensors"
    (folder / "task.yaml").write_text("name: words\nmetric: exact_match\n")
    options = ["--method", "prefix", "--init", "vocab", "--num-virtual-tokens", "8"]
    options += ["--epochs", "150", "--patience", "150", "--learning-rate", "0.1"]
    options += ["--precision", "f16", "--out", str(out)]
    code = main(["train", str(model), "--task", str(folder), *options])
    assert code == 0
    return out


def test_what_was_learned_is_written_on_the_device(trained: Path, bundle: Path) -> None:
    blob = read_blob(trained)
    assert blob.meta.kind == "generation"
    assert blob.meta.metrics["dev_loss"] < 0.1 * blob.meta.metrics["zero_shot_loss"]
    for variant in ("fp32", "int8"):
        with Engine(bundle, threads=1, variant=variant) as engine:
            engine.load(blob)
            for row in ROWS:
                found = engine.generate("words", row.text)
                assert (found.text, found.finish_reason) == (row.target, "stop")
                assert engine.generate(None, row.text).text != row.target


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_golden_answers_are_checked_on_the_device(
    trained: Path, bundle: Path, variant: str
) -> None:
    """Whatever the prompt's own options are; another prompt or text fails."""
    blob = read_blob(trained)
    golden = blob.meta.golden
    assert [(item.text, item.label) for item in golden] == [
        (row.text, row.target) for row in ROWS
    ]
    assert all(item.margin >= 0.5 for item in golden)
    own = {"temperature": 2.0, "repetition_penalty": 5.0, "stop": ["l", "n"]}
    meta = replace(blob.meta, generation={**own, "max_new_tokens": 2})
    with Engine(bundle, threads=1, variant=variant) as engine:
        engine.load(blob)
        assert run_self_test(engine, blob.meta) == SelfTest("words", 4, ())
        engine.load(decode(encode(meta, blob.tensors)))
        assert run_self_test(engine, meta) == SelfTest("words", 4, ())
        wrong = replace(golden[0], label="light off")
        failures = run_self_test(engine, replace(meta, golden=(wrong,))).failures
        assert failures == ("'turn on the light' is 'light on', not 'light off'",)
        # The same blob but for its numbers: the answers are no longer the golden ones.
        zeros = {name: np.zeros_like(array) for name, array in blob.tensors.items()}
        engine.load(decode(encode(blob.meta, zeros)))
        assert len(run_self_test(engine, blob.meta).failures) == 4


def test_an_unclear_prompt_has_no_golden_answers(base: DecoderBase) -> None:
    """An untrained one of random weights: no answer is far enough before others."""
    task = Task("t", "generation", (), ROWS, ROWS)
    config = TrainConfig(init="vocab", num_virtual_tokens=4, epochs=1)
    result = train_generation(base, task, config)
    assert pack_generation(base, task, config, result).meta.golden == ()


def test_eval_and_run_know_generation(
    trained: Path,
    bundle: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = trained.parent / "dev.jsonl"
    capsys.readouterr()
    assert main(["eval", str(bundle), str(trained), str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metric"], found["value"], found["n"]) == ("rouge_l", 100.0, 4)
    chosen = ["eval", str(bundle), str(trained), str(data), "--json"]
    assert main([*chosen, "--metric", "exact_match"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metric"], found["value"]) == ("exact_match", 100.0)
    in_torch = [*chosen, "--backend", "torch", "--model", str(model)]
    assert main([*in_torch, "--metric", "exact_match"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metric"], found["value"]) == ("exact_match", 100.0)
    assert found["backend"] == "torch"
    arguments = ["run", str(bundle), "words", "play the news"]
    arguments += ["--prompts", str(trained.parent), "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == "news"
    assert found["finish_reason"] == "stop"
    assert found["ms"] >= found["first_token_ms"] > 0
    assert main([*arguments, "--max-new-tokens", "1", "--temperature", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tokens"], found["finish_reason"]) == (1, "length")
    assert main([*arguments, "--temperature", "-1"]) == 2
    assert "temperature -1.0, allowed" in capsys.readouterr().err


def test_task_and_family_must_agree(
    trained: Path,
    tiny_model: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "x.safetensors")
    task = str(trained.parent)
    assert main(["train", str(tiny_model), "--task", task, "--out", out]) == 2
    assert "is generation" in capsys.readouterr().err
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    lines = '{"text": "a", "text_pair": "b", "label": "x"}\n'
    lines += '{"text": "b", "text_pair": "a", "label": "y"}\n'
    for part in ("train", "dev"):
        (pairs / f"{part}.jsonl").write_text(lines)
    assert main(["train", str(model), "--task", str(pairs), "--out", out]) == 2
    assert "is pair" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--head-levels=2", "--temperature=1"])
def test_options_of_encoders_are_refused(
    trained: Path, model: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    words = ["train", str(model), "--task", str(trained.parent), "--out", str(trained)]
    before = trained.read_bytes()
    assert main([*words, option]) == 2
    assert "is for encoders, this is a decoder" in capsys.readouterr().err
    assert trained.read_bytes() == before


def test_rows_with_targets() -> None:
    lines = ['{"text": "a", "target": "b", "references": ["c", "d"]}']
    row = parse_rows(lines, "x")[0]
    assert (row.kind, row.target, row.references) == ("generation", "b", ("c", "d"))
    for line in ('{"text": "a", "target": ""}', '{"text": "a", "references": "b"}'):
        with pytest.raises(DataInvalid):
            parse_rows([line], "x")


def test_metrics_of_texts() -> None:
    gold = [("the cat sat", "a cat"), ("wake me",)]
    assert exact_match(gold, ["a  cat ", "Wake me"]) == 50.0
    assert rouge_l(gold, ["A cat", "Wake, me!"]) == 100.0
    # 2 words in common of 3 and 4: F1 = 4 / 7.
    assert rouge_l([("the cat sat",)], ["the dog cat ran"]) == pytest.approx(400 / 7)
    assert rouge_l([("the cat",)], [""]) == 0.0
    assert np.isclose(rouge_l([("a b c d",)], ["d c b a"]), 25.0)
