"""The log: one logger, silent by default, prompts in it and never a user's text."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from blobs import random_blob
from test_cli import promptdial

from promptdial.prompts.blob import encode, write_blob
from promptdial.prompts.errors import PromptdialError
from promptdial.runtime import Engine
from promptdial.runtime.cli import main
from promptdial.runtime.manifest import Manifest, from_json

Log = pytest.LogCaptureFixture
SECRET = "blue music at seven"


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return from_json((tiny_bundle / "manifest.json").read_text())


@pytest.fixture
def folder(manifest: Manifest, tmp_path: Path) -> Path:
    write_blob(tmp_path / "one.safetensors", random_blob(manifest, "one", seed=1))
    write_blob(tmp_path / "two.safetensors", random_blob(manifest, "two", seed=2))
    (tmp_path / "broken.safetensors").write_bytes(b"nothing like a blob")
    return tmp_path


@pytest.fixture
def log(caplog: Log) -> Iterator[Log]:
    with caplog.at_level(logging.DEBUG, "promptdial"):
        yield caplog


def lines(log: Log, level: int) -> list[str]:
    found = [item for item in log.records if item.name.startswith("promptdial")]
    assert {item.name for item in found} <= {"promptdial"}
    return [item.getMessage() for item in found if item.levelno == level]


def test_prompts_that_are_loaded_are_named_once(
    tiny_bundle: Path, folder: Path, log: Log
) -> None:
    with Engine(tiny_bundle, folder) as engine:
        assert lines(log, logging.INFO) == []
        engine.run("one", SECRET)
        engine.run("one", SECRET)
        digest = engine._prompts.source.get("one").digest  # type: ignore[union-attr]
    (line,) = lines(log, logging.INFO)
    assert line.startswith("prompt one version 1 is ready: 4 virtual tokens, ")
    assert line.endswith(digest)
    assert lines(log, logging.DEBUG) == []


def test_prompts_that_are_refused_are_named_with_the_reason(
    tiny_bundle: Path, manifest: Manifest, folder: Path, log: Log
) -> None:
    blob = random_blob(manifest, "foreign")
    meta = replace(blob.meta, base_fingerprint="ckpt1:" + "0" * 64)
    with Engine(tiny_bundle, folder) as engine:
        for wrong in (b"no blob at all", encode(meta, blob.tensors)):
            with pytest.raises(PromptdialError):
                engine.load(wrong)
        with pytest.raises(PromptdialError):
            engine.run("broken", SECRET)
    first, second, third = lines(log, logging.INFO)
    assert first.startswith("a given prompt is refused: BLOB_INVALID: ")
    assert second.startswith("prompt foreign version 1 is refused: WRONG_BASE: ")
    assert third.startswith("prompt broken is refused: BLOB_INVALID: ")


def test_prompts_that_leave_the_cache_are_named(
    tiny_bundle: Path, folder: Path, log: Log
) -> None:
    with Engine(tiny_bundle, folder, prompt_cache_bytes=1) as engine:
        engine.run_batch([("one", SECRET), ("two", SECRET)])
    (line,) = lines(log, logging.DEBUG)
    assert line.startswith("prompt one version 1 left the cache: ")


def test_a_handler_may_use_the_engine(
    tiny_bundle: Path, folder: Path, log: Log
) -> None:
    """It is called where no lock is held."""
    found: list[list[str]] = []

    class Asking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(engine.tasks())
            engine.run(None, "good")

    logger, handler = logging.getLogger("promptdial"), Asking()
    logger.addHandler(handler)
    try:
        with Engine(tiny_bundle, folder, prompt_cache_bytes=1) as engine:
            engine.run_batch([("one", "good"), ("two", "good")])
    finally:
        logger.removeHandler(handler)
    assert len(found) == 3


def test_no_text_of_a_user_is_logged(tiny_bundle: Path, folder: Path, log: Log) -> None:
    with Engine(tiny_bundle, folder) as engine:
        engine.run_batch([("one", SECRET), (None, SECRET)])
        with pytest.raises(PromptdialError):
            engine.run("nothing", SECRET)
        with pytest.raises(PromptdialError):
            engine.run("one", SECRET, SECRET)
        with pytest.raises(PromptdialError):
            engine.tag("one", SECRET)
        with pytest.raises(PromptdialError):
            engine.run("one", SECRET + "\ud800")
    assert lines(log, logging.INFO)
    assert not any(word in log.text for word in ("blue", "music", "seven"))


WARN = """
import logging, promptdial.runtime.engine
logging.getLogger("promptdial").warning("nobody asked for this")
"""


def test_nothing_is_printed_without_a_handler() -> None:
    run = subprocess.run([sys.executable, "-c", WARN], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_verbose_shows_it_on_stderr_and_stdout_stays_json(
    tiny_bundle: Path, folder: Path
) -> None:
    arguments = ["run", str(tiny_bundle), "one", "--prompts", str(folder), "--json"]
    quiet = promptdial(*arguments, SECRET)
    assert quiet.returncode == 0 and quiet.stderr == ""
    loud = promptdial(*arguments, SECRET, "-v")
    assert loud.returncode == 0
    assert json.loads(loud.stdout)["label"] == json.loads(quiet.stdout)["label"]
    (line,) = loud.stderr.splitlines()
    assert line.startswith("promptdial: INFO: prompt one version 1 is ready: ")


def test_verbose_ends_with_the_command(
    tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("promptdial")
    before = (logger.level, list(logger.handlers))
    arguments = ["run", str(tiny_bundle), "one", "good", "--prompts", str(folder)]
    assert main([*arguments, "--verbose"]) == 0
    assert "is ready" in capsys.readouterr().err
    assert (logger.level, logger.handlers) == before
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
