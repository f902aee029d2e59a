"""The prompts in the package: small, licensed, right on their own golden inputs."""

import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from promptdial.prompts.blob import read_blob
from promptdial.prompts.folder import PromptFolder
from promptdial.prompts.training.demo_inputs import DEMO_INPUTS
from promptdial.runtime import Classification, Engine, Spans
from promptdial.runtime.selftest import run_self_test

SHIPPED = Path(str(files("promptdial.prompts") / "shipped"))
ALLOWED = {"CC-BY-3.0", "CC-BY-4.0", "CC0-1.0", "MIT", "Apache-2.0"}


def test_there_are_twelve_under_500_kb_with_licences() -> None:
    blobs = [read_blob(path) for path in SHIPPED.glob("*.safetensors")]
    assert len(blobs) >= 12
    assert sum(blob.size for blob in blobs) < 500_000
    assert {blob.meta.license for blob in blobs} <= ALLOWED
    assert {blob.meta.kind for blob in blobs} == {
        "classification",
        "pair",
        "token",
        "embedding",
    }


def test_the_table_of_sources_names_every_prompt() -> None:
    text = (SHIPPED / "README.md").read_text("utf-8")
    named = set(re.findall(r"[a-z_]+", text))
    assert set(PromptFolder(SHIPPED).list()) <= named


def test_the_demo_asks_every_prompt() -> None:
    assert set(DEMO_INPUTS) == set(PromptFolder(SHIPPED).list())


def test_golden_inputs_have_their_golden_answers(minilm_bundle: Path) -> None:
    source = PromptFolder(SHIPPED)
    with Engine(minilm_bundle, source) as engine:
        tests = [run_self_test(engine, source.get(name).meta) for name in source.list()]
    assert [test for test in tests if test.failures] == []
    assert sum(test.asked for test in tests) >= 40


def test_a_batch_of_all_tasks_equals_one_by_one(minilm_bundle: Path) -> None:
    """Tasks, prefix lengths and text lengths mixed, on the INT8 graph."""
    items = [
        (task, text, pair)
        for task, inputs in DEMO_INPUTS.items()
        for text, pair in inputs
    ]
    items += [
        (task, f"{text}, and please be quick", pair) for task, text, pair in items
    ]
    with Engine(minilm_bundle, SHIPPED) as engine:
        together = engine.run_batch(items)
        for item, answer in zip(items, together, strict=True):
            alone = engine.run(*item)
            if isinstance(answer, Classification | Spans):
                assert answer == alone
            else:
                assert np.array_equal(np.asarray(answer), np.asarray(alone))


@pytest.mark.slow
def test_the_demo_runs_and_trains_a_useful_prompt(tmp_path: Path) -> None:
    from promptdial.prompts.training.demo import run_demo

    report = run_demo("minilm", tmp_path, lambda _: None)
    assert len(report.tasks) >= 12
    assert report.cosine > 0.997
    assert report.live.seconds < 60
    assert report.live.test_right >= 0.7 * report.live.test_rows
