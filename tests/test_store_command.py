"""`promptdial store` and the commands that take a store where a folder is taken."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blobs import random_blob
from packs import metas_of, random_pack
from stores import end_trial, install, make_good, small_blob, states

from promptdial.prompts.blob import encode, write_blob
from promptdial.prompts.distribution import REFERENCE, reference
from promptdial.prompts.errors import EXIT_CODES
from promptdial.prompts.pack import write_pack
from promptdial.prompts.store import PromptStore
from promptdial.runtime.cli import main
from promptdial.runtime.manifest import from_json

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, capfd: Captured) -> Path:
    found = tmp_path / "store"
    assert main(["store", "init", str(found)]) == 0
    capfd.readouterr()
    return found


def answer(capfd: Captured, *arguments: str | Path) -> Any:
    """The object that a command prints."""
    assert main([*map(str, arguments), "--json"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    return json.loads(out)


def refused(capfd: Captured, code: str, *arguments: str | Path) -> str:
    assert main([*map(str, arguments)]) == EXIT_CODES[code]
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"promptdial: {code}: ")
    return err


def file(folder: Path, task: str, version: int) -> Path:
    path = folder.parent / f"v{version}" / f"{task}.safetensors"
    path.parent.mkdir(exist_ok=True)
    write_blob(path, small_blob(task, version))
    return path


def test_the_whole_road(folder: Path, capfd: Captured) -> None:
    one, two = file(folder, "a", 1), file(folder, "a", 2)
    found = answer(capfd, "store", "install", folder, one, two)
    assert [item["state"] for item in found["versions"]] == ["staged", "staged"]
    found = answer(capfd, "store", "activate", folder, "a", "1")
    assert (found["task"], found["version"], found["state"]) == ("a", 1, "trial")
    with PromptStore(folder) as store:
        end_trial(store, "a")
        store.activate("a")
        end_trial(store, "a")
    found = answer(capfd, "store", "list", folder)
    assert [(i["version"], i["active"]) for i in found["versions"]] == [
        (1, False),
        (2, True),
    ]
    assert found["floors"] == {"a": 2}
    said = refused(capfd, "ROLLBACK", "store", "rollback", folder, "a")
    assert "version 1 of task 'a', at least 2" in said
    back = ("store", "rollback", folder, "a", "--to", "1", "--allow-below-floor")
    assert answer(capfd, *back)["version"] == 1
    found = answer(capfd, "store", "list", folder, "a", "--events")
    assert "below_floor" in [item["event"] for item in found["events"]]
    assert answer(capfd, "store", "pin", folder, "a")["pinned"]
    refused(capfd, "IN_USE", "store", "remove", folder, "a")
    assert not answer(capfd, "store", "pin", folder, "a", "--off")["pinned"]
    answer(capfd, "store", "install", folder, file(folder, "a", 3))
    found = answer(capfd, "store", "gc", folder, "--keep", "1")
    assert [item["version"] for item in found["removed"]] == [2]
    assert found["blobs"] == 1
    found = answer(capfd, "store", "remove", folder, "a")
    assert [item["version"] for item in found["removed"]] == [1, 3]
    assert answer(capfd, "store", "gc", folder)["blobs"] == 2


def test_people_read_lines(folder: Path, capfd: Captured) -> None:
    assert main(["store", "install", str(folder), str(file(folder, "a", 1))]) == 0
    assert main(["store", "list", str(folder), "--events"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[1].startswith("a 1\tstaged\t-\t")
    assert out[-1].startswith("installed\ta 1\tsha256:")
    assert main(["store", "activate", str(folder), "a"]) == 0
    assert capfd.readouterr().out.startswith("a 1\ttrial\tactive\t")


def test_two_versions_are_shared_and_compared(folder: Path, capfd: Captured) -> None:
    with PromptStore(folder) as store:
        make_good(store, "a", 1)
        install(store, "a", 2)
    found = answer(capfd, "store", "share", folder, "a", "2", "25")
    assert (found["state"], found["share"]) == ("trial", 25)
    refused(capfd, "IN_USE", "store", "remove", folder, "a", "2")
    with PromptStore(folder) as store:
        store.serving("a")
        for number in range(600):
            version = 1 + (number % 4 == 0)
            sure, ms = 0.5 + 0.1 * version + 0.001 * (number % 7), 1.0 + number % 5
            store.count("a", version, sure, 10, ms, number % 8 == 0)
    found = answer(capfd, "store", "compare", folder, "a")
    assert (found["compared"], found["percent"]) == ("a", 25)
    assert (found["incumbent"]["version"], found["challenger"]["version"]) == (1, 2)
    assert (found["incumbent"]["answers"], found["challenger"]["answers"]) == (450, 150)
    differs = {item["measure"]: item["significant"] for item in found["differences"]}
    assert differs == {"confidence": True, "latency_ms": False, "abstained": True}
    assert main(["store", "compare", str(folder), "a"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[1].startswith(
        "a 1\tincumbent\tthe rest\t450 answers\tconfidence 0.603"
    )
    assert lines[2].startswith("a 2\tchallenger\t25 %\t150 answers\tconfidence 0.703")
    assert lines[3].startswith("confidence: +0.100, significant (p ")
    assert lines[4].startswith("latency_ms: ") and "not significant" in lines[4]
    assert lines[6].startswith("confidence is no accuracy")
    assert main(["store", "list", str(folder)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[2].startswith("a 2\ttrial\t25 %\t")
    assert lines[-1] == "a 2\t150 answers"
    assert answer(capfd, "store", "share", folder, "a", "2", "0")["share"] == 0
    assert main(["store", "compare", str(folder), "a"]) == 0
    assert "a 2\tchallenger\tover\t150 answers" in capfd.readouterr().out


def test_list_says_where_texts_are_others(folder: Path, capfd: Captured) -> None:
    seen = reference([0.97] * 300, [12] * 300)
    with PromptStore(folder) as store:
        for task in ("calm", "moved", "silent"):
            blob = small_blob(task, 1)
            metrics = {} if task == "silent" else {REFERENCE: seen}
            store.install(encode(replace(blob.meta, metrics=metrics), blob.tensors))
            store.activate(task)
            sure, tokens = (0.96, 13) if task == "calm" else (0.55, 90)
            for _ in range(250):
                store.count(task, 1, sure, tokens, None, False)
    found = answer(capfd, "store", "list", folder)
    shifts = [(item["task"], item["measure"]) for item in found["shifts"]]
    assert shifts == [("moved", "confidence"), ("moved", "tokens")]
    assert [item["answers"] for item in found["answers"]] == [250, 250, 250]
    assert main(["store", "list", str(folder), "moved"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-2].startswith("moved 1\tshifted: confidence is lower than on its dev")
    assert "(PSI 1" in lines[-2] and "over 250 answers)" in lines[-2]
    assert lines[-1].startswith(
        "moved 1\tshifted: texts are longer than on its dev rows"
    )
    assert answer(capfd, "store", "list", folder, "calm")["shifts"] == []
    # A version that answers no more is not watched, and a damaged one no obstacle.
    for path in (folder / "blobs" / "sha256").iterdir():
        path.write_bytes(b"damaged")
    assert answer(capfd, "store", "list", folder)["shifts"] == []


def test_init_says_its_limits_and_may_change_them(
    folder: Path, capfd: Captured
) -> None:
    found = answer(capfd, "store", "init", folder, "--max-versions", "1")
    assert (found["made"], found["limits"]["versions"]) == (False, 1)
    files = [file(folder, "a", version) for version in (1, 2)]
    said = refused(capfd, "QUOTA", "store", "install", folder, *files)
    assert "has 2 versions, at most 1" in said
    assert answer(capfd, "store", "init", folder)["limits"]["versions"] == 1


def test_packs_are_installed_as_their_blobs(folder: Path, capfd: Captured) -> None:
    path = folder.parent / "all.pack.safetensors"
    pack = random_pack(metas_of(dict.fromkeys(("one", "two"), "classification")))
    write_pack(path, pack)
    found = answer(capfd, "store", "install", folder, path, "--activate")
    digests = {blob.meta.task: blob.digest for blob in pack.blobs}
    assert {item["task"]: item["digest"] for item in found["versions"]} == digests


@pytest.mark.parametrize(
    ("code", "words", "says"),
    [
        ("USAGE", ("fly", "DIR"), "invalid choice: 'fly'"),
        ("USAGE", ("fly", "list", "DIR"), "invalid choice: 'fly'"),
        ("USAGE", (), "the following arguments are required: PART"),
        ("USAGE", ("install", "DIR"), "the following arguments are required: FILE"),
        (
            "USAGE",
            ("activate", "DIR"),
            "arguments are required: TASK",
        ),
        ("USAGE", ("list", "DIR", "a", "b"), "unrecognized arguments: b"),
        ("USAGE", ("list", "DIR", "--to", "3"), "unrecognized arguments: --to 3"),
        ("USAGE", ("gc", "DIR", "--activate"), "unrecognized arguments: --activate"),
        ("USAGE", ("activate", "DIR", "a", "x"), "version 'x'"),
        ("USAGE", ("gc", "DIR", "--keep", "0"), "keep 0"),
        ("USAGE", ("share", "DIR", "a", "1"), "required: PERCENT"),
        ("USAGE", ("share", "DIR", "a", "1", "half"), "'half' percent; give 1 to 99"),
        ("USAGE", ("share", "DIR", "a", "1", "100"), "100 percent, allowed: 0 to 99"),
        ("USAGE", ("share", "DIR", "a", "1", "0"), "version 1 of task 'a' answers no"),
        ("USAGE", ("share", "DIR", "a", "x", "9"), "version 'x'"),
        ("NO_PREVIOUS", ("share", "DIR", "a", "1", "9"), "no good active version"),
        ("USAGE", ("compare", "DIR", "a"), "no two versions of task 'a' ever shared"),
        ("UNKNOWN_TASK", ("compare", "DIR", "b"), "no task 'b' in the store"),
        ("USAGE", ("list", "DIR", "--tenant", "../a"), "tenant '../a'"),
        ("USAGE", ("init", "DIR", "--max-bytes", "0"), "limits"),
        ("UNKNOWN_TASK", ("activate", "DIR", "b"), "no task 'b' in the store"),
        ("UNKNOWN_TASK", ("list", "DIR", "b"), "no task 'b' in the store"),
        ("UNKNOWN_VERSION", ("activate", "DIR", "a", "9"), "no version 9; there is 1"),
        ("FILE", ("install", "DIR", "none.safetensors"), "No such file"),
        ("STORE_INVALID", ("list", "."), ". is no store"),
    ],
)
def test_what_is_wrong_is_said(
    folder: Path, capfd: Captured, code: str, words: tuple[str, ...], says: str
) -> None:
    with PromptStore(folder) as store:
        store.install(small_blob("a", 1))
    wanted = [str(folder) if word == "DIR" else word for word in words]
    assert says in refused(capfd, code, "store", *wanted)


def test_a_broken_store_has_one_line_too(folder: Path, capfd: Captured) -> None:
    (folder / "index.sqlite").write_bytes(b"broken" * 1000)
    for command in (("list",), ("gc",), ("activate", "a")):
        name, *more = command
        said = refused(capfd, "STORE_INVALID", "store", name, folder, *more)
        assert "file is not a database" in said


def test_tenants_of_the_command(folder: Path, capfd: Captured) -> None:
    for tenant, task in (("a", "one"), ("b", "two")):
        install = ("store", "install", folder, file(folder, task, 1))
        answer(capfd, *install, "--tenant", tenant, "--activate")
    found = answer(capfd, "store", "list", folder, "--tenant", "b")
    assert [item["task"] for item in found["versions"]] == ["two"]
    assert answer(capfd, "store", "list", folder)["versions"] == []
    before = ("store", "--tenant", "b", "--json", "list", folder)
    assert answer(capfd, *before) == found
    unknown = ("store", "activate", folder, "two", "--tenant")
    assert refused(capfd, "UNKNOWN_TASK", *unknown, "a") == refused(
        capfd, "UNKNOWN_TASK", *unknown, "nobody"
    )


def test_run_eval_and_inspect_take_a_store(
    tiny_bundle: Path, folder: Path, capfd: Captured
) -> None:
    manifest = from_json((tiny_bundle / "manifest.json").read_text())
    with PromptStore(folder) as store:
        for view in (store, store.for_tenant("a")):
            view.install(random_blob(manifest))
            view.activate("colour")
    run = ("run", tiny_bundle, "colour", "good film", "--prompts", folder)
    label = answer(capfd, *run)["label"]
    with PromptStore(folder) as store:
        assert states(store, "colour") == {1: "good"}
        assert states(store.for_tenant("a"), "colour") == {1: "trial"}
    assert answer(capfd, *run, "--tenant", "a")["label"] == label
    said = refused(capfd, "UNKNOWN_TASK", *run, "--tenant", "b")
    assert "no task 'colour'; there is none" in said
    rows = folder.parent / "rows.jsonl"
    rows.write_text(json.dumps({"text": "good film", "label": label}) + "\n")
    evaluate = ("eval", tiny_bundle, folder, rows)
    assert answer(capfd, *evaluate, "--task", "colour")["value"] == 100.0
    more = ("--task", "colour", "--tenant", "a")
    assert answer(capfd, *evaluate, *more)["value"] == 100.0
    assert "give --task TASK" in refused(capfd, "USAGE", *evaluate)
    blob = folder.parent / "colour.safetensors"
    write_blob(blob, random_blob(manifest))
    said = refused(capfd, "USAGE", "eval", tiny_bundle, blob, rows, "--task", "x")
    assert "--task or --tenant with the file" in said
    found = answer(capfd, "inspect", folder)
    assert (found["type"], found["damaged"]) == ("store", {})
    assert set(found["tenants"]) == {"", "a"}
    next((folder / "blobs" / "sha256").iterdir()).write_bytes(b"x")
    assert len(answer(capfd, "inspect", folder)["damaged"]) == 1


def test_the_python_that_only_opens_folders_loads_no_sqlite() -> None:
    import subprocess
    import sys

    code = (
        "import sys; import promptdial.runtime.engine, promptdial.prompts; "
        "sys.exit('sqlite3' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
