"""Calibrated scores and abstention: on the device, in PyTorch, on made-up logits."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import META, random_blob

from promptdial.prompts.blob import PromptBlob, decode, encode, write_blob
from promptdial.prompts.errors import BlobInvalid, DataInvalid, UsageError
from promptdial.prompts.metadata import to_strings
from promptdial.prompts.scores import PLAIN, Scores
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import encode_rows
from promptdial.prompts.training.config import TrainConfig, check
from promptdial.prompts.training.packing import pack, packed
from promptdial.prompts.training.reference import blob_reader, evaluate_torch
from promptdial.prompts.training.scores.abstain import (
    DevScores,
    choose_threshold,
    parse_rule,
)
from promptdial.prompts.training.scores.calibration import (
    calibrate,
    calibration_error,
    fit_temperature,
    nll,
    rule_of,
)
from promptdial.prompts.training.scoring import logits_of
from promptdial.prompts.training.task import Task, read_task
from promptdial.prompts.training.trainer import train
from promptdial.runtime import Classification, Engine
from promptdial.runtime.abstention import Abstention, abstention
from promptdial.runtime.cli import main
from promptdial.runtime.deciding import calibrated, decide
from promptdial.runtime.manifest import Manifest, from_json
from promptdial.runtime.rows import Row

TEXTS = ("the film was great", "play some music", "wake me at seven", "good")
Floats = np.ndarray[Any, Any]
LABELS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return from_json((tiny_bundle / "manifest.json").read_text())


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> Iterator[Engine]:
    with Engine(tiny_bundle, variant="fp32", threads=1) as found:
        yield found


def with_scores(blob: PromptBlob, task: str, scores: Scores) -> PromptBlob:
    meta = replace(blob.meta, task=task, scores=scores)
    return decode(encode(meta, blob.tensors))


def answers(engine: Engine, blob: PromptBlob) -> list[Classification]:
    engine.load(blob)
    return [engine.classify(blob.meta.task, text) for text in TEXTS]


@pytest.mark.parametrize("temperature", [0.4, 3.0])
def test_scores_are_the_softmax_over_the_temperature(
    engine: Engine, manifest: Manifest, base: FrozenBase, temperature: float
) -> None:
    """As PyTorch says; another temperature, other scores, the same labels."""
    plain = random_blob(manifest, "plain", seed=3)
    warm = with_scores(plain, "warm", Scores(temperature))
    reader = blob_reader(base, warm)
    rows = [Row(text=text, label="red") for text in TEXTS]
    logits = logits_of(reader, encode_rows(rows, base.encoder, LABELS, {}))
    pairs = zip(answers(engine, plain), answers(engine, warm), logits, strict=True)
    for before, after, row in pairs:
        wanted = torch.softmax(row / temperature, -1).numpy()
        found = [after.scores[label] for label in LABELS]
        np.testing.assert_allclose(found, wanted, atol=0.05)
        assert after.label == before.label
        assert abs(after.score - before.score) > 1e-3
        assert sum(found) == pytest.approx(1, abs=1e-5)


def test_a_blob_without_the_key_is_read_as_before(
    engine: Engine, manifest: Manifest
) -> None:
    blob = random_blob(manifest, "plain", seed=3)
    assert "scores" not in to_strings(blob.meta)
    assert blob.meta.scores == PLAIN
    for answer in answers(engine, blob):
        assert not answer.abstained
        assert answer.score == max(answer.scores.values())
    raw = encode(blob.meta, blob.tensors)
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["scores"] = "{}"
    text = json.dumps(header).encode()
    empty = decode(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    assert empty.meta == blob.meta


def test_an_answer_below_the_threshold_is_an_abstention(
    engine: Engine, manifest: Manifest
) -> None:
    blob = random_blob(manifest, "plain", seed=3)
    scores = sorted(answer.score for answer in answers(engine, blob))
    middle = (scores[1] + scores[2]) / 2
    found = answers(engine, with_scores(blob, "careful", Scores(threshold=middle)))
    assert [item.abstained for item in found] == [it.score < middle for it in found]
    assert sum(item.abstained for item in found) == 2
    assert [item.label for item in found] == [x.label for x in answers(engine, blob)]
    together = engine.run_batch([("careful", text) for text in TEXTS])
    assert together == found


def test_the_out_of_scope_label_is_never_the_answer(
    engine: Engine, manifest: Manifest
) -> None:
    blob = random_blob(manifest, "plain", seed=3)
    before = answers(engine, blob)
    outside = before[0].label
    scoped = with_scores(blob, "scoped", Scores(out_of_scope=outside))
    for plain, found in zip(before, answers(engine, scoped), strict=True):
        assert found.scores == plain.scores
        assert found.abstained == (plain.label == outside)
        assert found.label != outside
        others = {key: x for key, x in found.scores.items() if key != outside}
        assert found.score == max(others.values()) == others[found.label]


def test_tags_are_the_same_at_every_temperature(
    engine: Engine, manifest: Manifest
) -> None:
    plain = random_blob(manifest, "spans", "token", seed=7)
    engine.load(plain)
    engine.load(with_scores(plain, "warm_spans", Scores(2.0)))
    found = [(engine.tag("spans", x), engine.tag("warm_spans", x)) for x in TEXTS]
    assert all(one.tags == two.tags for one, two in found)
    pairs = [zip(one.spans, two.spans, strict=True) for one, two in found]
    spans = [pair for both in pairs for pair in both]
    assert spans and all(one.score != two.score for one, two in spans)


def test_commands_say_what_abstained(
    tiny_bundle: Path,
    tiny_model: Path,
    manifest: Manifest,
    engine: Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`run`, `inspect` and `eval`, the last one in both backends."""
    blob = random_blob(manifest, "plain", seed=3)
    outside = answers(engine, blob)[0].label
    scoped = with_scores(blob, "scoped", Scores(1.5, 0.2, outside))
    path = tmp_path / "scoped.safetensors"
    write_blob(path, scoped)
    run = ["run", str(tiny_bundle), "scoped", TEXTS[0], "--prompts", str(tmp_path)]
    assert main([*run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["abstained"] is True
    assert main(run) == 0
    assert capsys.readouterr().out.startswith("abstained (")
    assert main(["inspect", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["scores"]
    assert shown == {
        "temperature": 1.5,
        "threshold": 0.2,
        "out_of_scope": outside,
        "out_of_scope_bias": 0.0,
        "background": None,
    }
    rows = [json.dumps({"text": text, "label": outside}) for text in TEXTS]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(rows))
    found = []
    for more in ([], ["--backend", "torch", "--model", str(tiny_model)]):
        asked = ["eval", str(tiny_bundle), str(path), str(data), "--json", *more]
        assert main(asked) == 0
        found.append(json.loads(capsys.readouterr().out))
    # All rows are out of scope: recall is accuracy, and nothing is in scope.
    for answer in found:
        assert answer["value"] == answer["out_of_scope_recall"] == answer["abstained"]
        assert 0 < answer["value"] and "in_scope_accuracy" not in answer
    assert found[0]["value"] == found[1]["value"]


def test_abstentions_are_counted() -> None:
    gold, labels = ["a", "a", "none", "none"], ["a", "b", "a", "b"]
    declined = [False, True, True, False]
    found = abstention(gold, labels, declined, Scores(out_of_scope="none"))
    assert found == Abstention(50.0, 50.0, 50.0, 50.0)
    plain = abstention(gold[:2], labels[:2], [False, True], Scores(threshold=0.5))
    assert plain == Abstention(50.0, 100.0)
    nothing = abstention(gold, labels, [True] * 4, Scores(threshold=1.0))
    assert nothing == Abstention(100.0)


def test_huge_logits_at_a_low_temperature_are_finite() -> None:
    logits = np.array([3e38, 2e38, 0], np.float32)
    decision = decide(logits, LABELS, Scores(temperature=0.5))
    assert decision.shares.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("scores", "kind", "message"),
    [
        (Scores(temperature=float("nan")), "classification", "temperature nan"),
        (Scores(temperature=0.001), "classification", r"0\.001, allowed: 0\.01 to 100"),
        (Scores(temperature=10**400), "classification", "temperature 1000"),
        (Scores(threshold=1.5), "classification", r"threshold 1\.5, allowed: 0 to 1"),
        (Scores(background=1.0), "classification", "background without out_of_scope"),
        (
            Scores(out_of_scope="red", background=float("inf")),
            "classification",
            "background inf, allowed: -1000 to 1000",
        ),
        (Scores(out_of_scope="pink"), "classification", "'pink' is no label"),
        (Scores(temperature=2.0), "embedding", "kind embedding, which has none"),
        (Scores(threshold=0.5), "token", "threshold or out_of_scope in a prompt"),
    ],
)
def test_scores_without_a_meaning_are_refused(
    manifest: Manifest, scores: Scores, kind: str, message: str
) -> None:
    blob = random_blob(manifest, "odd", kind)
    with pytest.raises(BlobInvalid, match=message):
        encode(replace(blob.meta, scores=scores), blob.tensors)


def made_up(rows: int) -> tuple[Floats, Floats]:
    """Logits twice as certain as they should be, with classes drawn from them."""
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.standard_normal((rows, 4))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.array([rng.choice(4, p=row) for row in shares])
    return 2.0 * logits, targets


def test_the_temperature_is_found_again() -> None:
    logits, targets = made_up(4000)
    temperature = fit_temperature(logits, targets)
    assert temperature == pytest.approx(2.0, rel=0.05)
    assert nll(logits / temperature, targets) < nll(logits, targets)
    weights = np.full(4000, 1 / 4000)
    shares = [calibrated(logits, (), Scores(found)) for found in (1.0, temperature)]
    before, after = (calibration_error(item, targets, weights) for item in shares)
    assert after < 2.5 < 5 < before


def test_few_rows_that_are_all_right_prove_no_certainty() -> None:
    logits = np.tile([1.0, 0.0, 0.0], (4, 1))
    temperature = fit_temperature(logits, np.zeros(4, np.int64))
    assert 0.4 < temperature < 0.9
    found = calibrate(logits, np.zeros(4, np.int64), LABELS, parse_rule("none"), 0.0)
    assert [item.code for item in found.findings] == ["DEV_SMALL"]
    many = np.tile([1.0, 0.0, 0.0], (4000, 1))
    assert fit_temperature(many, np.zeros(4000, np.int64)) < 0.2


def dev_of(score: Floats, right: Floats, outside: int = 0) -> DevScores:
    """Answers of which the first `outside` are out of scope."""
    flags = np.arange(len(score)) < outside
    return DevScores(score, right & ~flags, flags, np.zeros(len(score), np.bool_))


def test_a_coverage_is_kept() -> None:
    score = np.random.default_rng(0).permutation(np.linspace(0.2, 1.0, 400))
    dev = dev_of(score, score > 0)
    choice = choose_threshold(parse_rule("coverage:0.9"), dev)
    assert choice.reason == ""
    assert (score >= choice.threshold).mean() == pytest.approx(0.9)
    few = dev_of(score[:40], score[:40] > 0)
    choice = choose_threshold(parse_rule("coverage:0.9"), few)
    assert choice.threshold == 0
    assert "leaves 4 out, too few" in choice.reason and "50 dev rows" in choice.reason


def test_kept_answers_are_accurate_enough() -> None:
    score = np.linspace(0.0, 1.0, 1000)
    rng = np.random.default_rng(1)
    right = rng.random(1000) < np.sqrt(score)
    choice = choose_threshold(parse_rule("accuracy:0.9"), dev_of(score, right))
    kept = score >= choice.threshold
    assert 0.9 <= right[kept].mean() < 0.93
    assert kept.mean() > 0.2
    never = choose_threshold(
        parse_rule("accuracy:0.98"), dev_of(score[-20:], right[-20:] | True)
    )
    assert never.threshold == 0 and "no threshold keeps answers" in never.reason
    always = choose_threshold(parse_rule("accuracy:0.5"), dev_of(score, right | True))
    assert always.threshold == 0 and "no threshold is needed" in always.reason


def scoped_rows(inside: int, outside: int) -> tuple[Floats, Floats]:
    """Logits [N, 4] of rows in scope, whose own class is strong, and of rows out of it.

    Out of scope no class is strong, and the last one, which stands for it, seldom.
    """
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((inside + outside, 4))
    targets = np.append(rng.integers(0, 3, inside), np.full(outside, 3))
    logits[np.arange(inside), targets[:inside]] += 3.5
    logits[:, 3] -= 2
    logits[inside : inside + outside // 3, 3] += 6
    return 2 * logits, targets


def test_what_fits_no_label_is_out_of_scope() -> None:
    logits, targets = scoped_rows(900, 60)
    labels = (*LABELS, "none")
    rule = parse_rule("out_of_scope:none")
    plain = calibrate(logits, targets, labels, parse_rule("none"), 0.0)
    own = calibrate(logits, targets, labels, rule, 0.0)
    even = calibrate(logits, targets, labels, rule, 0.5)
    assert plain.scores.background is None and not plain.findings
    recalls = [item.metrics["dev_out_of_scope_recall"] for item in (own, even)]
    assert 60 < recalls[0] < recalls[1]
    assert even.metrics["dev_in_scope_accuracy"] > 90
    assert own.metrics["dev_ece"] < own.metrics["dev_ece_uncalibrated"]
    bare = [decide(row, labels, Scores(out_of_scope="none")) for row in logits[900:]]
    assert np.mean([item.abstained for item in bare]) < 0.5
    few = calibrate(logits[:905], targets[:905], labels, rule, 0.0)
    assert [item.code for item in few.findings] == ["SCOPE_NOT_FITTED"]
    assert "5 rows out of scope of 905" in few.findings[0].message
    assert few.scores.background is None


def test_the_background_is_a_logit_beside_the_labels_own() -> None:
    """Against the formula in PyTorch, for one row and for many."""
    logits, _ = scoped_rows(5, 5)
    labels = (*LABELS, "none")
    scores = Scores(1.5, 0.0, "none", 0.7, 2.5)
    rows = torch.from_numpy(logits) / 1.5
    own = torch.logaddexp(rows[:, 3] + 0.7, torch.tensor(2.5).double())
    wanted = torch.softmax(torch.cat([rows[:, :3], own[:, None]], 1), 1).numpy()
    np.testing.assert_allclose(calibrated(logits, labels, scores), wanted, atol=1e-6)
    for row, shares in zip(logits, wanted, strict=True):
        decision = decide(row, labels, scores)
        np.testing.assert_allclose(decision.shares, shares, atol=1e-6)
        assert decision.best == int(shares[:3].argmax())
        assert decision.abstained == bool(shares.argmax() == 3)


def test_rules_that_are_none_are_refused() -> None:
    for text in ("sometimes", "coverage", "coverage:2", "accuracy:x", "out_of_scope:"):
        with pytest.raises(UsageError, match="abstain is"):
            check(TrainConfig(abstain=text))
    with pytest.raises(UsageError, match="it goes with out_of_scope"):
        check(TrainConfig(abstain="none", out_of_scope_share=0.2))
    task = Task("a", "classification", LABELS, [], [])
    with pytest.raises(UsageError, match="names no such label"):
        rule_of(TrainConfig(abstain="out_of_scope"), task)
    with pytest.raises(UsageError, match="'pink' is none of the task's 3"):
        rule_of(TrainConfig(abstain="out_of_scope:pink"), task)
    spans = replace(task, kind="token")
    with pytest.raises(UsageError, match="classification and pair tasks abstain"):
        rule_of(TrainConfig(abstain="coverage:0.9"), spans)
    own = replace(task, out_of_scope="blue")
    assert rule_of(TrainConfig(), own).label == "blue"


COLOURS = ("light", "blue", "red")
NOUNS = ("film", "music", "book", "station", "four", "five", "three", "seven")
QUICK = TrainConfig(epochs=3, batch_size=8, num_virtual_tokens=4, learning_rate=0.02)


def colour_task() -> Task:
    rows = [
        Row(text=f"{start} {colour} {noun}", label=colour)
        for start in ("the", "a", "this", "some")
        for noun in NOUNS
        for colour in COLOURS
    ]
    return Task("colour", "classification", COLOURS, rows, rows)


def test_training_writes_calibrated_scores(
    base: FrozenBase, tiny_model: Path, engine: Engine
) -> None:
    task = replace(colour_task(), out_of_scope="light")
    config = replace(QUICK, abstain="out_of_scope", out_of_scope_share=0.4)
    result = train(base, task, config)
    blob = pack(task, config, result)
    meta = blob.meta
    assert meta.scores.temperature != 1 and meta.scores.background is not None
    assert meta.scores.out_of_scope == "light"
    assert "light" not in {item.label for item in meta.golden}
    assert "abstain" in meta.training["recipe"]
    for name in ("in_scope_accuracy", "out_of_scope_recall", "abstained"):
        assert 0 <= meta.metrics[f"dev_{name}"] <= 100
    examples = encode_rows(task.dev, base.encoder, COLOURS, {})
    reader = blob_reader(base, blob)
    logits = torch.stack(logits_of(reader, examples)).double().numpy()
    targets = np.array([COLOURS.index(row.label or "") for row in task.dev])
    temperature = meta.scores.temperature
    assert nll(logits / temperature, targets) < nll(logits, targets)
    found = evaluate_torch(str(tiny_model), blob, task.dev, "cpu")
    right = [one == row.label for one, row in zip(found, task.dev, strict=True)]
    assert meta.metrics["dev_accuracy"] == pytest.approx(100 * np.mean(right), abs=0.01)
    engine.load(blob)
    device = [engine.classify("colour", row.text) for row in task.dev[:24]]
    shown = ["light" if item.abstained else item.label for item in device]
    agree = [one == two for one, two in zip(shown, found, strict=False)]
    # fp32 over an int8 token table: near the threshold an answer may differ.
    assert np.mean(agree) > 0.85


def test_what_dev_cannot_decide_is_said(base: FrozenBase) -> None:
    task = colour_task()
    few = replace(task, dev=task.dev[:12])
    config = replace(QUICK, epochs=1, abstain="coverage:0.95")
    found = packed(few, config, train(base, few, config))
    assert {item.code for item in found.findings} == {"DEV_SMALL", "NO_THRESHOLD"}
    assert found.blob.meta.scores.threshold == 0


def test_task_yaml_may_name_the_label(tmp_path: Path) -> None:
    row = json.dumps({"text": "a", "label": "red"})
    other = json.dumps({"text": "b", "label": "none"})
    for part in ("train", "dev"):
        (tmp_path / f"{part}.jsonl").write_text(f"{row}\n{other}\n")
    (tmp_path / "task.yaml").write_text("out_of_scope: none\n")
    assert read_task(tmp_path).out_of_scope == "none"
    (tmp_path / "task.yaml").write_text("out_of_scope: [a]\n")
    with pytest.raises(DataInvalid, match="out_of_scope"):
        read_task(tmp_path)


def test_metadata_with_scores_is_canonical() -> None:
    meta = replace(META, scores=Scores(1.5, 0.25, "blue", background=2.0))
    wanted = (
        '{"background":2.0,"out_of_scope":"blue","temperature":1.5,"threshold":0.25}'
    )
    assert to_strings(meta)["scores"] == wanted
