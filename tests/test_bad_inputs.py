"""Bad inputs: one line with a code and a hint, the right exit, nothing changed.

The numbers are those of the project's list of bad inputs. The tests write what they saw
to tests/bad_inputs.md (`python -m pytest tests/test_bad_inputs.py --write-tables`), and
fail where that page differs.
"""

import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_blobs import BAD_BLOBS, TASK, Maker, encoded_good
from bad_bundles import BAD_BUNDLES, Breaker, edit_graph, not_finite

from promptdial.prompts.errors import EXIT_CODES, PromptdialError
from promptdial.runtime import Classification, Engine
from promptdial.runtime.cli import main
from promptdial.runtime.manifest import Manifest, from_json

PAGE = Path(__file__).with_name("bad_inputs.md")
HEAD = """\
# Bad inputs

Written by `python -m pytest tests/test_bad_inputs.py --write-tables`; the same tests
fail where a message or an exit code differs from this page.

| number | input | exit | message |
|---|---|---|---|
"""
WANTED = {*map(str, range(1, 27)), "39", "41", "43", "44", "45"}
Captured = pytest.CaptureFixture[str]
Row = tuple[str, str, int, str]


@pytest.fixture(scope="module")
def table() -> list[Row]:
    """Rows of the page, in the order of the tests."""
    return []


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return from_json((tiny_bundle / "manifest.json").read_text())


def shown(text: str, *folders: Path) -> str:
    """A message without what differs from run to run and between processors."""
    for folder in folders:
        text = text.replace(str(folder), "DIR")
    text = re.sub(r"\b[0-9a-f]{64}\b", "<digest>", text)
    text = re.sub(r"(\[ONNXRuntimeError\]).*?(;|$)", r"\1 ...\2", text)
    text = re.sub(r"process \d+|fork \d+", lambda m: m[0].split()[0] + " N", text)
    return text.strip().replace("|", "\\|")


def refused(code: str, status: int, captured: str) -> str:
    """The one line of an error, once its form was checked."""
    lines = captured.strip().splitlines()
    assert len(lines) == 1, captured
    assert lines[0].startswith(f"promptdial: {code}: "), lines[0]
    assert "Traceback" not in captured
    assert "; " in lines[0], "no hint"
    assert status == EXIT_CODES[code]
    return lines[0]


def run_arguments(bundle: Path, prompts: Path, text: str = "good film") -> list[str]:
    return ["run", str(bundle), TASK, text, "--prompts", str(prompts)]


@pytest.mark.parametrize(
    ("number", "what", "code", "make"),
    BAD_BLOBS,
    ids=[f"{number} {what}" for number, what, _, _ in BAD_BLOBS],
)
def test_bad_blobs(
    number: str,
    what: str,
    code: str,
    make: Maker,
    tiny_bundle: Path,
    manifest: Manifest,
    tmp_path: Path,
    capsys: Captured,
    table: list[Row],
) -> None:
    path = tmp_path / f"{TASK}.safetensors"
    path.write_bytes(encoded_good(manifest))
    with Engine(tiny_bundle) as engine:
        engine.load(path)
        before = engine.classify(TASK, "good film")
        path.write_bytes(make(manifest))
        with pytest.raises(PromptdialError) as caught:
            engine.load(path)
        assert caught.value.code == code
        assert engine.classify(TASK, "good film") == before
    status = main(run_arguments(tiny_bundle, tmp_path))
    captured = capsys.readouterr()
    assert captured.out == ""
    line = refused(code, status, captured.err)
    table.append((number, what, status, shown(line, tmp_path, tiny_bundle)))


@pytest.mark.parametrize(
    ("number", "what", "break_it"),
    BAD_BUNDLES,
    ids=[f"{number} {what}" for number, what, _ in BAD_BUNDLES],
)
def test_bad_bundles(
    number: str,
    what: str,
    break_it: Breaker,
    tiny_bundle: Path,
    manifest: Manifest,
    tmp_path: Path,
    capsys: Captured,
    table: list[Row],
) -> None:
    bundle, prompts = tmp_path / "b.bundle", tmp_path / "prompts"
    shutil.copytree(tiny_bundle, bundle)
    prompts.mkdir()
    (prompts / f"{TASK}.safetensors").write_bytes(encoded_good(manifest))
    assert main(run_arguments(bundle, prompts)) == 0
    capsys.readouterr()
    break_it(bundle)
    status = main(run_arguments(bundle, prompts))
    captured = capsys.readouterr()
    assert captured.out == ""
    line = refused("BUNDLE_INVALID", status, captured.err)
    table.append((number, what, status, shown(line, tmp_path)))


@pytest.mark.parametrize(
    ("number", "what", "code", "line"),
    [
        ("41", "empty text", "TEXT_INVALID", {"text": " "}),
        ("41", "lone surrogate", "TEXT_INVALID", {"text": "good \ud800 film"}),
        ("39", "unknown task", "UNKNOWN_TASK", {"text": "good"}),
        ("43", "answers not finite", "NONFINITE", {"text": "good film"}),
    ],
)
def test_bad_requests(
    number: str,
    what: str,
    code: str,
    line: dict[str, str],
    tiny_bundle: Path,
    manifest: Manifest,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    table: list[Row],
) -> None:
    bundle = tiny_bundle
    if code == "NONFINITE":
        bundle = shutil.copytree(tiny_bundle, tmp_path / "b.bundle")
        edit_graph(not_finite)(bundle)
    (tmp_path / f"{TASK}.safetensors").write_bytes(encoded_good(manifest))
    task = "weather" if code == "UNKNOWN_TASK" else TASK
    stdin = (tmp_path / "stdin").open("w+", encoding="utf-8")
    stdin.write(json.dumps(line) + "\n")
    stdin.seek(0)
    monkeypatch.setattr("sys.stdin", stdin)
    status = main(["run", str(bundle), task, "--prompts", str(tmp_path)])
    stdin.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    message = refused(code, status, captured.err)
    table.append((number, what, status, shown(message, tmp_path)))


def test_a_text_that_is_too_long_says_so(
    tiny_bundle: Path,
    manifest: Manifest,
    tmp_path: Path,
    capsys: Captured,
    table: list[Row],
) -> None:
    (tmp_path / f"{TASK}.safetensors").write_bytes(encoded_good(manifest))
    arguments = run_arguments(tiny_bundle, tmp_path, "good film " * 500)
    status = main([*arguments, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert status == 0
    assert answer["truncated"] is True
    table.append(("41", "text too long", status, 'answered, with `"truncated": true`'))


def _use_in_fork(engine: Engine, report: Callable[[str], None]) -> None:
    try:
        engine.classify(TASK, "good")
    except PromptdialError as error:
        report(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_engines_that_cannot_be_used_any_more(
    tiny_bundle: Path, manifest: Manifest, table: list[Row]
) -> None:
    engine = Engine(tiny_bundle)
    engine.load(encoded_good(manifest))
    assert isinstance(engine.classify(TASK, "good"), Classification)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_use_in_fork, args=(engine, sender.send))
    child.start()
    assert receiver.poll(30)
    forked = receiver.recv()
    child.kill()
    child.join()
    engine.close()
    with pytest.raises(PromptdialError) as caught:
        engine.classify(TASK, "good")
    for number, what, code, message in (
        ("44", "used after fork", "FORKED", forked),
        ("45", "closed engine", "CLOSED", str(caught.value)),
    ):
        line = refused(code, EXIT_CODES[code], f"promptdial: {message}")
        table.append((number, what, EXIT_CODES[code], shown(line)))


def test_the_page_is_what_the_tests_saw(
    table: list[Row], request: pytest.FixtureRequest
) -> None:
    """Runs last: the tests above fill the table."""
    if {number for number, _, _, _ in table} != WANTED:
        pytest.skip("wants all tests of this file")
    rows = sorted(table, key=lambda row: int(row[0]))
    lines = [f"| {n} | {what} | {status} | {line} |" for n, what, status, line in rows]
    text = HEAD + "\n".join(lines) + "\n"
    if request.config.getoption("--write-tables"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text("utf-8") == text
