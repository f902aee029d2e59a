"""A folder of prompts: opened by name, replaced under way, huge or missing; packs."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from blobs import META, normal
from packs import metas_of, random_pack

from promptdial.prompts.blob import PromptBlob, encode, make_blob, write_blob
from promptdial.prompts.errors import BlobInvalid, FileFailed, TaskNotFound
from promptdial.prompts.folder import PromptFolder
from promptdial.prompts.kept_files import SETTLED_NS
from promptdial.prompts.pack import read_pack, write_pack


def named(task: str, seed: int = 0) -> PromptBlob:
    meta = replace(META, task=task)
    return make_blob(meta, embeddings=normal(seed, 4, 16), head_weight=normal(1, 3, 16))


def put(folder: Path, task: str, seed: int = 0) -> Path:
    path = folder / f"{task}.safetensors"
    write_blob(path, named(task, seed))
    return path


def settle() -> None:
    """Wait until a file written now is old enough to be kept."""
    time.sleep(2e-9 * SETTLED_NS)


def test_tasks_are_files(tmp_path: Path) -> None:
    put(tmp_path, "b")
    put(tmp_path, "a")
    (tmp_path / "notes.txt").write_text("x")
    folder = PromptFolder(tmp_path)
    assert folder.list() == ["a", "b"]
    assert folder.get("a").meta.task == "a"


def test_a_replaced_file_is_seen_at_once(tmp_path: Path) -> None:
    folder = PromptFolder(tmp_path)
    put(tmp_path, "a", seed=0)
    before = folder.get("a")
    put(tmp_path, "a", seed=5)
    after = folder.get("a")
    assert after.digest != before.digest
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(TaskNotFound):
        folder.get("a")


@pytest.mark.parametrize("name", ["none", "../a", "", "a/b", "A", ".", "x" * 80])
def test_names_that_are_no_task_are_not_found(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a")
    with pytest.raises(TaskNotFound):
        PromptFolder(tmp_path).get(name)


def test_links_and_folders_are_refused(tmp_path: Path) -> None:
    real = put(tmp_path, "a")
    (tmp_path / "b.safetensors").symlink_to(real)
    (tmp_path / "c.safetensors").mkdir()
    folder = PromptFolder(tmp_path)
    for name in ("b", "c"):
        with pytest.raises(BlobInvalid, match="no regular file"):
            folder.get(name)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileFailed, match="is no folder"):
        PromptFolder(tmp_path / "none")


def test_ten_thousand_tasks_are_not_listed_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = put(tmp_path, "wanted").read_bytes()
    for number in range(10_000):
        (tmp_path / f"task{number}.safetensors").write_bytes(data[:64])
    folder = PromptFolder(tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("the folder was listed")

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    assert folder.get("wanted").meta.task == "wanted"


def test_kept_blobs_are_bounded(tmp_path: Path) -> None:
    folder = PromptFolder(tmp_path)
    for number in range(300):
        put(tmp_path, f"t{number}")
    settle()
    for number in range(300):
        folder.get(f"t{number}")
    assert len(folder._blobs) == 256


def test_a_file_of_equal_times_and_size_is_seen_too(tmp_path: Path) -> None:
    """Tools that unpack reproducible archives set the time of every file alike."""
    path = put(tmp_path, "a", seed=0)
    os.utime(path, ns=(1, 1))
    settle()
    folder = PromptFolder(tmp_path)
    before = folder.get("a")
    other = encode(named("a", 5).meta, named("a", 5).tensors)
    assert len(other) == path.stat().st_size
    path.write_bytes(other)
    os.utime(path, ns=(1, 1))
    assert folder.get("a").digest != before.digest


def test_a_file_that_has_just_changed_is_read_again(tmp_path: Path) -> None:
    """Its next version may come within one tick of the file system's clock."""
    put(tmp_path, "a")
    folder = PromptFolder(tmp_path)
    assert folder.get("a") is not folder.get("a")
    settle()
    assert folder.get("a") is folder.get("a")


def put_pack(folder: Path, name: str, *tasks: str, seed: int = 0) -> Path:
    path = folder / f"{name}.pack.safetensors"
    pack = random_pack(metas_of(dict.fromkeys(tasks, "classification")), seed=seed)
    write_pack(path, pack)
    return path


def test_the_tasks_of_packs_are_there(tmp_path: Path) -> None:
    put(tmp_path, "alone")
    path = put_pack(tmp_path, "all", "one", "two")
    put_pack(tmp_path, "more", "three")
    folder = PromptFolder(tmp_path)
    assert folder.list() == ["alone", "one", "three", "two"]
    wanted = read_pack(path).get("two")
    assert wanted is not None
    assert folder.get("two").digest == wanted.digest
    for name in ("four", "all", "all.pack"):
        with pytest.raises(TaskNotFound):
            folder.get(name)


def test_a_blob_of_its_own_goes_before_a_packs(tmp_path: Path) -> None:
    put_pack(tmp_path, "all", "one", "two")
    folder = PromptFolder(tmp_path)
    before = folder.get("one")
    put(tmp_path, "one", seed=7)
    assert folder.get("one").digest == named("one", 7).digest != before.digest
    assert folder.list() == ["one", "two"]
    (tmp_path / "one.safetensors").unlink()
    assert folder.get("one").digest == before.digest


def test_packs_that_come_change_and_go_are_seen_at_once(tmp_path: Path) -> None:
    folder = PromptFolder(tmp_path)
    assert folder.list() == []
    path = put_pack(tmp_path, "all", "one")
    before = folder.get("one")
    settle()
    assert folder.get("one").digest == before.digest
    assert folder.get("one") is folder.get("one")
    put_pack(tmp_path, "all", "one", "two", seed=5)
    assert folder.get("one").digest != before.digest
    assert folder.list() == ["one", "two"]
    path.unlink()
    assert folder.list() == []
    with pytest.raises(TaskNotFound):
        folder.get("one")


def test_a_task_in_two_packs_is_refused(tmp_path: Path) -> None:
    put_pack(tmp_path, "a", "one", "two")
    put_pack(tmp_path, "b", "two", "three")
    folder = PromptFolder(tmp_path)
    said = r"'two' is in a\.pack\.safetensors and in b\.pack"
    with pytest.raises(BlobInvalid, match=said):
        folder.get("two")
    assert folder.get("three").meta.task == "three"
    put(tmp_path, "two")
    assert folder.get("two").digest == named("two").digest


def test_a_broken_pack_keeps_no_other_from_use(tmp_path: Path) -> None:
    put_pack(tmp_path, "good", "one")
    put(tmp_path, "alone")
    (tmp_path / "bad.pack.safetensors").write_bytes(b"broken")
    folder = PromptFolder(tmp_path)
    assert folder.list() == ["alone", "one"]
    assert folder.get("one").meta.task == "one"
    with pytest.raises(BlobInvalid, match=r"bad\.pack\.safetensors: 6 bytes"):
        folder.get("two")
    (tmp_path / "bad.pack.safetensors").unlink()
    (tmp_path / "link.pack.safetensors").symlink_to(tmp_path / "good.pack.safetensors")
    with pytest.raises(BlobInvalid, match="no regular file"):
        folder.get("two")
