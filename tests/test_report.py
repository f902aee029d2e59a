"""The training report: whole, escaped, without network; the curves of resumed runs."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from training_tasks import (
    COLOURS,
    colour_rows,
    colour_task,
    embedding_task,
    pair_task,
    token_task,
)

from promptdial.prompts.blob import read_blob
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.comparison.baselines import Baseline
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.packing import pack
from promptdial.prompts.training.reports.confusion import (
    confusion_matrix,
    confusions,
    entity_scores,
)
from promptdial.prompts.training.reports.line_chart import Chart, draw
from promptdial.prompts.training.reports.nearest_words import nearest_words
from promptdial.prompts.training.reports.report import (
    Trained,
    report_html,
    write_report,
)
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.trainer import train
from promptdial.prompts.training.units import gold_units
from promptdial.runtime.cli import main
from promptdial.runtime.rows import Row

CONFIG = TrainConfig(batch_size=12, num_virtual_tokens=3, epochs=2, patience=9)
EVIL = "<script>alert('x')</script>"
VOID = {"meta", "br"}


def trained(base: FrozenBase, task: Task, config: TrainConfig = CONFIG) -> Trained:
    result = train(base, task, config)
    return Trained(task, config, result, pack(task, config, result))


class Page(HTMLParser):
    """Tags that are opened and closed in order, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "task",
    [colour_task(), pair_task(), token_task(), embedding_task()],
    ids=lambda task: task.kind,
)
@pytest.mark.parametrize("method", ["prompt", "prefix", "probe"])
def test_every_kind_and_method_has_a_report(
    base: FrozenBase, task: Task, method: str
) -> None:
    if (method, task.kind) == ("probe", "embedding"):
        pytest.skip("embedding has no probe")
    run = trained(base, task, replace(CONFIG, method=method))
    page = Page(report_html(run))
    assert run.blob.digest in page.text
    assert f"{run.blob.size} bytes" in page.text
    assert ("Confusions on dev" in page.text) == (
        task.kind in ("classification", "pair")
    )
    assert ("Entities on dev" in page.text) == (task.kind == "token")
    assert page.tags.count("svg") == (0 if method == "probe" else 2)
    for finding in run.result.warnings:
        assert finding.message in page.text


def test_it_asks_no_network_and_runs_no_script(base: FrozenBase) -> None:
    html = report_html(trained(base, colour_task()))
    tags = set(Page(html).tags)
    assert not tags & {"script", "link", "img", "iframe", "object"}
    addresses = set(re.findall(r"https?://[^\"' <]+", html))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert "url(" not in html and "@import" not in html


def test_labels_and_rows_that_hold_html_are_shown_as_text(base: FrozenBase) -> None:
    task = colour_task()
    rows = [
        replace(row, text=f"{row.text} {EVIL}", label=(row.label or "") + EVIL)
        for row in task.train
    ]
    labels = tuple(name + EVIL for name in COLOURS)
    other = [replace(row, label=labels[0]) for row in rows[:9]]
    run = trained(base, replace(task, labels=labels, train=rows, dev=other))
    run = replace(run, config=replace(run.config, init_text=EVIL))
    html = report_html(run)
    assert "<script" not in html
    page = Page(html)
    assert f"red{EVIL}" in page.text
    assert f"the blue film {EVIL}" in page.text


def test_baselines_stand_beside_the_prompt(base: FrozenBase) -> None:
    run = trained(base, colour_task())
    lora = Baseline("lora", 97.25, 96.5, 1234, 1e-3, 4, 9.5)
    text = Page(report_html(replace(run, baselines=(lora,)))).text
    assert "lora97.2512349.5" in text.replace("\n", "")
    assert "zero-shot" in text and "linear probe" in text


def test_writing_is_all_or_nothing(base: FrozenBase, tmp_path: Path) -> None:
    run = trained(base, colour_task())
    path = tmp_path / "report.html"
    path.write_text("before")
    write_report(path, run)
    assert path.read_text("utf-8") == report_html(run)
    assert list(tmp_path.iterdir()) == [path]


def test_the_chart_is_well_formed_and_true() -> None:
    chart = Chart(
        "loss <of> a & b", (3.0, 1.0, 2.0), levels=(("probe", 2.5),), marked=2
    )
    svg = ElementTree.fromstring(draw(chart))
    name = "{http://www.w3.org/2000/svg}"
    (curve,) = svg.iter(f"{name}polyline")
    points = [tuple(map(float, p.split(","))) for p in curve.attrib["points"].split()]
    heights = [y for _, y in points]
    assert heights[1] > heights[2] > heights[0]
    radii = [float(item.attrib["r"]) for item in svg.iter(f"{name}circle")]
    assert radii.index(max(radii)) == 1
    assert svg[0].text == "loss <of> a & b"
    assert "no epoch" in draw(replace(chart, values=()))
    assert ElementTree.fromstring(draw(replace(chart, values=(1.0,)))) is not None


def test_words_themselves_are_their_nearest_words(base: FrozenBase) -> None:
    """A prompt that starts from words and never moved is most like those words."""
    still = replace(
        CONFIG,
        init="text",
        init_text="film blue seven",
        epochs=1,
        learning_rate=1e-12,
        precision="f32",
    )
    for method in ("prompt", "prefix"):
        config = replace(still, method=method)
        if method == "prefix":
            config = replace(config, precision="f16")
        found = nearest_words(base, trained(base, colour_task(), config).blob, 2)
        assert [words[0].word for words in found] == ["film", "blue", "seven"]
        assert all(words[0].cosine > 0.999 > words[1].cosine for words in found)


def test_a_moved_prompt_has_other_cosines(base: FrozenBase) -> None:
    config = replace(CONFIG, init="text", init_text="film blue seven")
    config = replace(config, learning_rate=0.5, precision="f32")
    found = nearest_words(base, trained(base, colour_task(), config).blob)
    assert all(words[0].cosine < 0.99 for words in found)


def test_confusions_are_counted_largest_first() -> None:
    gold = gold_units([Row(text=str(i), label=x) for i, x in enumerate("aabbbc")])
    found = gold_units([Row(text=str(i), label=x) for i, x in enumerate("abcacc")])
    assert confusion_matrix(gold, found, ("a", "b", "c")) == [
        [1, 1, 0],
        [1, 0, 2],
        [0, 0, 1],
    ]
    worst = confusions(gold, found)
    assert (worst[0].gold, worst[0].found, worst[0].count, worst[0].example) == (
        "b",
        "c",
        2,
        2,
    )
    assert len(worst) == 3


def test_entities_are_scored_by_kind() -> None:
    gold = [("B-x", "I-x", "O", "B-y"), ("B-x", "O")]
    found = [("B-x", "O", "O", "B-y"), ("B-x", "B-z")]
    scores = entity_scores(
        *(
            gold_units([Row(text="t", tokens=("t",), tags=tags) for tags in both])
            for both in (gold, found)
        )
    )
    assert [(s.name, s.gold, s.found, s.right) for s in scores] == [
        ("x", 2, 2, 1),
        ("y", 1, 1, 1),
        ("z", 0, 1, 0),
    ]
    assert [s.f1 for s in scores] == [50.0, 100.0, 0.0]


def test_many_labels_are_listed_not_tabled(base: FrozenBase) -> None:
    labels = tuple(f"label {index}" for index in range(30))
    rows = [
        Row(text=row.text, label=labels[index % 30])
        for index, row in enumerate(colour_rows() * 2)
    ]
    task = Task("many", "classification", labels, rows, rows)
    text = Page(report_html(trained(base, task))).text
    assert "label \\ answer" not in text
    assert re.search(r"The largest 20 of \d\d pairs", text)


def test_a_resumed_run_has_the_whole_curve(base: FrozenBase, tmp_path: Path) -> None:
    file = tmp_path / "run"
    config = replace(CONFIG, epochs=3, max_grad_norm=1e-3)
    whole = train(base, colour_task(), config, file)
    assert len(whole.dev_metrics) == len(whole.losses) == 3
    resumed = train(base, colour_task(), replace(config, resume=True), file)
    assert resumed.dev_metrics == whole.dev_metrics
    assert resumed.facts == whole.facts
    assert max(whole.dev_metrics) == whole.dev_metric


def write_task(folder: Path) -> Path:
    folder.mkdir()
    for name, rows in (("train", colour_rows()), ("dev", colour_rows()[:9])):
        lines = [json.dumps({"text": r.text, "label": r.label}) for r in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def test_the_command_runs_baselines_and_writes_the_report(
    tiny_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    task, out = write_task(tmp_path / "colour"), tmp_path / "colour.safetensors"
    report = tmp_path / "reports" / "colour.html"
    command = ["train", str(tiny_model), "--task", str(task), "--out", str(out)]
    command += ["--epochs", "1", "--batch-size", "24", "--device", "cpu", "--json"]
    assert main(command) == 0
    alone = json.loads(capfd.readouterr().out)
    assert "baselines" not in alone
    before = out.read_bytes()
    assert main([*command, "--baselines", "--report", str(report)]) == 0
    answer = json.loads(capfd.readouterr().out)
    # The blob does not hang on what was trained beside it.
    assert out.read_bytes() == before
    assert set(answer["baselines"]) == {"lora", "full"}
    for found in answer["baselines"].values():
        assert set(found) == {"dev_metric", "parameters", "learning_rate", "seconds"}
        assert found["parameters"] > 0
    text = Page(report.read_text("utf-8")).text
    assert "lora" in text and "full" in text
    assert answer["report"] == str(report)


def test_several_seeds_keep_the_best(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = write_task(tmp_path / "colour"), tmp_path / "colour.safetensors"
    command = ["train", str(tiny_model), "--task", str(task), "--out", str(out)]
    command += ["--epochs", "1", "--device", "cpu", "--init", "random", "--seed", "4"]
    command += ["--head-learning-rate", "1e-6", "--learning-rate", "0.5", "--json"]
    assert main([*command, "--seeds", "3"]) == 0
    answer = json.loads(capfd.readouterr().out)
    seeds = answer["seeds"]
    assert set(seeds) == {"4", "5", "6"}
    assert seeds[str(answer["seed"])] == max(seeds.values())
    assert read_blob(out).meta.training["recipe"]["seed"] == answer["seed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "colour",
        "colour.safetensors",
    ]
    assert main([*command, "--seeds", "0"]) == 2
    assert "--seeds is 0; give at least 1" in capfd.readouterr().err


def test_a_report_that_cannot_be_written_is_refused_before_training(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = write_task(tmp_path / "colour"), tmp_path / "colour.safetensors"
    command = ["train", str(tiny_model), "--task", str(task), "--out", str(out)]
    for report, says in ((tmp_path, "is a folder"), (out, "is the blob itself")):
        assert main([*command, "--report", str(report)]) == 2
        error = capfd.readouterr().err
        assert error.count("\n") == 1
        assert says in error and "name an .html file" in error
    assert not out.exists()
