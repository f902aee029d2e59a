"""Bad inputs by their numbers: exit code, code, one line that says what to do.

The numbers are those of the project's list of bad inputs; 27 to 36, 38 and 50 are about
repositories, which this version does not have.
"""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from bad_blobs import BLOB_CASES, BlobCase, good
from bad_bundles import BUNDLE_CASES, BundleCase
from bad_inputs_table import Table
from bad_stores import STORE_CASES, StoreCase
from blobs import random_blob
from stores import make_good, new_store

from promptdial.export.errors import ExportError
from promptdial.prompts.blob import write_blob
from promptdial.prompts.errors import EXIT_CODES, PromptdialError
from promptdial.prompts.store import PromptStore
from promptdial.runtime import Engine
from promptdial.runtime.cli import main
from promptdial.runtime.errors import EngineClosed, EngineForked
from promptdial.runtime.manifest import Manifest, from_json

ROOT = Path(__file__).parents[1]
NUMBERS = {*range(1, 27), 37, *range(39, 50), 51}
TEXT = "the film was great"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    found = Table()
    yield found
    if found.numbers() == NUMBERS:
        (ROOT / "build").mkdir(exist_ok=True)
        (ROOT / "build" / "bad_inputs.md").write_text(found.text(), encoding="utf-8")


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return from_json((tiny_bundle / "manifest.json").read_text())


@pytest.fixture(scope="module")
def prompts(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    for blob in (good(manifest), random_blob(manifest, "other", seed=9)):
        write_blob(folder / f"{blob.meta.task}.safetensors", blob)
    return folder


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path, manifest: Manifest) -> Iterator[Engine]:
    with Engine(tiny_bundle, threads=1) as found:
        found.load(good(manifest))
        yield found


def refusal(capfd: Captured, exit_code: int, code: str, says: tuple[str, ...]) -> str:
    """The one line on stderr, checked; native code's output would be seen as well."""
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    line = err.rstrip("\n")
    check_line(line, code, says)
    assert exit_code == EXIT_CODES[code]
    return line


def check_line(line: str, code: str, says: tuple[str, ...]) -> None:
    assert line.startswith(f"promptdial: {code}: ")
    for part in says:
        assert part in line, line
    # What is wrong; what to do.
    wrong, _, hint = line.rpartition("; ")
    assert wrong and len(hint) > 8, line


def run_command(bundle: Path, prompts: Path, task: str, *texts: str) -> int:
    return main(["run", str(bundle), task, *texts, "--prompts", str(prompts), "--json"])


@pytest.mark.parametrize("case", BLOB_CASES, ids=lambda c: f"{c.number}-{c.name}")
def test_bad_blobs(
    case: BlobCase,
    tiny_bundle: Path,
    manifest: Manifest,
    engine: Engine,
    tmp_path: Path,
    capfd: Captured,
    table: Table,
) -> None:
    data = case.make(manifest)
    (tmp_path / "colour.safetensors").write_bytes(data)
    exit_code = run_command(tiny_bundle, tmp_path, "colour", TEXT)
    line = refusal(capfd, exit_code, case.code, case.says)
    before = engine.run("colour", TEXT)
    with pytest.raises(PromptdialError) as caught:
        engine.load(data)
    assert caught.value.code == case.code
    assert engine.run("colour", TEXT) == before
    table.add(case.number, case.name, case.code, exit_code, line)


@pytest.mark.parametrize("case", BUNDLE_CASES, ids=lambda c: f"{c.number}-{c.name}")
def test_bad_bundles(
    case: BundleCase,
    tiny_bundle: Path,
    prompts: Path,
    tmp_path: Path,
    capfd: Captured,
    table: Table,
) -> None:
    bundle = tmp_path / "tiny.bundle"
    shutil.copytree(tiny_bundle, bundle)
    case.change(bundle)
    if case.command == "inspect":
        exit_code = main(["inspect", str(bundle)])
    else:
        exit_code = run_command(bundle, prompts, "colour", TEXT)
    line = refusal(capfd, exit_code, case.code, case.says)
    table.add(case.number, case.name, case.code, exit_code, line)


def test_a_good_copy_is_taken(
    tiny_bundle: Path, prompts: Path, tmp_path: Path, capfd: Captured
) -> None:
    """Else every bundle above might be refused for being a copy."""
    bundle = tmp_path / "tiny.bundle"
    shutil.copytree(tiny_bundle, bundle)
    assert main(["inspect", str(bundle)]) == 0
    assert run_command(bundle, prompts, "colour", TEXT) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "name", "task", "text", "code", "says"),
    [
        (39, "unknown task", "nope", TEXT, "UNKNOWN_TASK", ("'nope'", "colour, other")),
        (39, "path as a task", "../x", TEXT, "UNKNOWN_TASK", ("'../x'", "colour")),
        (41, "empty text", "colour", "", "TEXT_INVALID", ("text is empty", "give a")),
        (41, "blank text", "colour", " \n", "TEXT_INVALID", ("text is empty", "give")),
        (
            41,
            "lone surrogate",
            "colour",
            "good \ud800",
            "TEXT_INVALID",
            ("lone surrogate at character 5",),
        ),
    ],
)
def test_bad_calls(
    tiny_bundle: Path,
    prompts: Path,
    capfd: Captured,
    table: Table,
    number: int,
    name: str,
    task: str,
    text: str,
    code: str,
    says: tuple[str, ...],
) -> None:
    exit_code = run_command(tiny_bundle, prompts, task, text)
    table.add(number, name, code, exit_code, refusal(capfd, exit_code, code, says))


def test_a_long_text_is_answered_and_says_so(
    tiny_bundle: Path, prompts: Path, capfd: Captured, table: Table
) -> None:
    exit_code = run_command(tiny_bundle, prompts, "colour", "good film " * 200_000)
    out, err = capfd.readouterr()
    assert (exit_code, err) == (0, "")
    assert json.loads(out)["truncated"] is True
    line = f"stdout: {out.strip()}"
    table.add(41, "text too long (2 MB)", "-", exit_code, line)


def test_an_engine_in_a_fork_says_so(engine: Engine, table: Table) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            engine.run("colour", TEXT)
        except EngineForked as error:
            os.write(writing, f"promptdial: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        line = file.read()
    check_line(line, "FORKED", (f"process {os.getpid()}", f"fork {child}"))
    table.add(44, "used after fork", "FORKED", EXIT_CODES["FORKED"], line)
    assert engine.run("colour", TEXT)


def test_a_closed_engine_says_so(tiny_bundle: Path, table: Table) -> None:
    engine = Engine(tiny_bundle, threads=1)
    engine.close()
    with pytest.raises(EngineClosed) as caught:
        engine.run(None, TEXT)
    line = f"promptdial: {caught.value}"
    check_line(line, "CLOSED", ("is closed", "open another"))
    table.add(45, "closed engine", "CLOSED", caught.value.exit_code, line)


@pytest.mark.parametrize("case", STORE_CASES, ids=lambda c: f"{c.number}-{c.name}")
def test_bad_commands_on_a_store(
    case: StoreCase, capfd: Captured, table: Table
) -> None:
    # Not pytest's folder: another user may not enter that.
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder, file = Path(name) / "store", Path(name) / "a.safetensors"
        with new_store(folder) as store:
            make_good(store, "a", 1)
            case.prepare(store, file)
            before = (store.tasks(), store.versions(), store.get("a").digest)
        assert main(["store", "list", str(folder)]) == 0
        capfd.readouterr()
        places = {"STORE": str(folder), "FILE": str(file)}
        words = [places.get(word, word) for word in case.words]
        with case.around(folder):
            exit_code = main(["store", *words])
        line = refusal(capfd, exit_code, case.code, case.says)
        with PromptStore(folder) as store:
            after = (store.tasks(), store.versions(), store.get("a").digest)
        assert after == before
        assert list((folder / "staging").iterdir()) == []
    table.add(case.number, case.name, case.code, exit_code, line)


def test_another_tenants_task_is_as_unknown_as_any(
    tiny_bundle: Path,
    manifest: Manifest,
    tmp_path: Path,
    capfd: Captured,
    table: Table,
) -> None:
    def ask() -> str:
        command = ["run", str(tiny_bundle), "secret", TEXT, "--tenant", "mine"]
        exit_code = main([*command, "--prompts", str(tmp_path / "store")])
        says = ("no task 'secret'; there is colour",)
        return refusal(capfd, exit_code, "UNKNOWN_TASK", says)

    with new_store(tmp_path / "store") as store:
        mine, theirs = store.for_tenant("mine"), store.for_tenant("theirs")
        mine.install(random_blob(manifest))
        mine.activate("colour")
        unknown = ask()
        theirs.install(random_blob(manifest, "secret"))
        theirs.activate("secret")
        line = ask()
    assert line == unknown
    code = "UNKNOWN_TASK"
    table.add(40, "another tenant's task", code, EXIT_CODES[code], line)


def test_a_swap_during_a_request(
    tiny_bundle: Path,
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    table: Table,
) -> None:
    """The request ends on the version that it began with, and says which."""
    begun, go = threading.Event(), threading.Event()
    versions: list[int] = []

    with (
        new_store(tmp_path / "store") as store,
        Engine(tiny_bundle, store, threads=1) as served,
    ):

        def ask() -> None:
            versions.append(served.classify("colour", TEXT).prompt_version)

        for version in (1, 2):
            store.install(random_blob(manifest, seed=version, version=version))
        store.activate("colour", 1)
        ask()
        session = served._encoder_model("test").session
        hidden = session.hidden

        def waiting(*arguments: object) -> object:
            begun.set()
            assert go.wait(30)
            return hidden(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(session, "hidden", waiting)
        thread = threading.Thread(target=ask)
        thread.start()
        assert begun.wait(30)
        monkeypatch.setattr(session, "hidden", hidden)
        store.activate("colour", 2)
        ask()
        go.set()
        thread.join()
    assert versions == [1, 2, 1]
    line = "prompt_version: 1 before, 2 after, 1 of the request that had begun"
    table.add(42, "a swap during a request", "-", 0, line)


def errors_below(kind: type[PromptdialError]) -> Iterator[type[PromptdialError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from errors_below(child)


def test_every_error_has_its_exit_code_in_the_one_table() -> None:
    assert issubclass(ExportError, PromptdialError)  # its tree is loaded as well
    codes = {kind.code for kind in errors_below(PromptdialError)}
    # These two the command line gives without an error of ours.
    assert codes | {"INTERNAL", "INTERRUPTED"} == set(EXIT_CODES)
    assert set(EXIT_CODES.values()) <= {2, 3, 4, 5, 6, 7}


def test_the_table_is_complete_and_the_committed_one(
    table: Table, request: pytest.FixtureRequest
) -> None:
    """Last in the file: what ran before it has filled the table."""
    wanted = len(BLOB_CASES) + len(BUNDLE_CASES)
    here = [item for item in request.session.items if item.path == request.path]
    if len(here) < wanted:
        pytest.skip("only some of the cases were chosen")
    assert table.numbers() == NUMBERS
    committed = (ROOT / "tests" / "bad_inputs.md").read_text(encoding="utf-8")
    assert committed == table.text()
