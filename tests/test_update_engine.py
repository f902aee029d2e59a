"""Engines on a store that updates itself: a new base, and prompts under load."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from blobs import random_blob
from update_server import serving
from update_world import World

from promptdial.prompts.blob import PromptBlob, write_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.updates.publishing.publish import (
    publish_bundle,
    publish_prompts,
)
from promptdial.prompts.updates.publishing.roles import init_repository
from promptdial.prompts.updates.receiver import BaseState, Change, Following
from promptdial.runtime import Classification, Engine
from promptdial.runtime.errors import WrongBase
from promptdial.runtime.manifest import Manifest, from_json

TEXTS = ("the film was great", "play some music", "wake me at seven", "blue light")
TASKS = tuple(f"task{number}" for number in range(12))
THREADS = 8


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    init_repository(folder / "repository")
    with serving(folder / "repository" / "public") as server:
        yield World(folder, server)


def manifest_of(bundle: Path) -> Manifest:
    return from_json((bundle / "manifest.json").read_text())


def another_base(bundle: Path, folder: Path) -> Path:
    """The same files under another fingerprint: prompts of the one do not fit."""
    shutil.copytree(bundle, folder)
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    body["base"]["fingerprint"] = "ckpt1:" + "d" * 64
    path.write_text(json.dumps(body))
    return folder


def publish(world: World, *blobs: PromptBlob) -> None:
    paths = []
    for blob in blobs:
        path = world.folder / "out" / f"{blob.meta.task}.safetensors"
        path.parent.mkdir(exist_ok=True)
        write_blob(path, blob)
        paths.append(path)
    publish_prompts(world.repository, paths)


def answer(engine: Engine, task: str, text: str = TEXTS[0]) -> Classification:
    found = engine.classify(task, text)
    assert isinstance(found, Classification)
    return found


def alone(bundle: Path, blob: PromptBlob) -> dict[str, tuple[float, ...]]:
    """What a prompt answers to each text when nothing else is there."""
    with Engine(bundle, threads=1) as engine:
        engine.load(blob)
        return {text: scores_of(engine, blob.meta.task, text) for text in TEXTS}


def scores_of(engine: Engine, task: str, text: str) -> tuple[float, ...]:
    return tuple(answer(engine, task, text).scores.values())


def test_a_new_base_and_its_prompts_become_active_together(
    world: World, tiny_bundle: Path, tmp_path: Path
) -> None:
    first = manifest_of(tiny_bundle)
    publish_bundle(world.repository, tiny_bundle, "tiny", 1)
    publish(world, *(random_blob(first, task) for task in ("colour", "taste")))
    world.set_up_device(Following("d", bundle="tiny"), base=None)
    with pytest.raises(UsageError, match="no base of its own"):
        world.store.base_folder()
    world.update()
    old_folder = world.store.base_folder()
    with Engine(old_folder, world.store, threads=1) as old:
        for task in ("colour", "taste"):
            assert answer(old, task).prompt_version == 1
        assert {item.state for item in world.store.versions()} == {"good"}

        new_bundle = another_base(tiny_bundle, tmp_path / "new")
        second = manifest_of(new_bundle)
        publish_bundle(world.repository, new_bundle, "tiny", 2)
        blobs = [random_blob(second, task, seed=5, version=2) for task in ("colour",)]
        publish(world, *blobs)
        assert world.update().bundle is None  # `taste` would be lost
        assert world.store.base_folder() == old_folder
        assert answer(old, "colour").prompt_version == 1
        blobs.append(random_blob(second, "taste", seed=6, version=2))
        publish(world, blobs[1])
        report = world.update()
        assert report.bundle is not None
        # Only what is new came: the graph's files were copied here.
        assert report.needed < 20_000
        # An engine on the old base has no prompts any more, and spoils no trial.
        with pytest.raises(WrongBase):
            old.classify("colour", TEXTS[0])
        versions = world.store.versions("colour")
        assert [(x.version, x.state, x.tries) for x in versions] == [(2, "trial", 0)]
    folder = world.store.base_folder()
    assert folder != old_folder and old_folder.is_dir()
    with Engine(folder, world.store, threads=1) as engine:
        for blob in blobs:
            found = answer(engine, blob.meta.task)
            assert found.prompt_version == 2
            scores = tuple(found.scores.values())
            assert scores == alone(new_bundle, blob)[TEXTS[0]]
    assert {item.state for item in world.store.versions()} == {"good"}
    # The folder before stays to who is opening it, until the next check is noted.
    later = world.device.last_check() + 1_000
    world.device.commit(Change(checked=later, time_floor=later))
    assert not old_folder.exists() and folder.is_dir()


def test_a_prompt_that_fails_on_the_new_base_leaves_none(
    world: World, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Back to the good one would be back to a prompt of another base."""
    publish_bundle(world.repository, tiny_bundle, "tiny", 1)
    publish(world, random_blob(manifest_of(tiny_bundle)))
    world.set_up_device(Following("d", bundle="tiny"), base=None)
    world.update()
    world.pass_trials()
    new_bundle = another_base(tiny_bundle, tmp_path / "new")
    publish_bundle(world.repository, new_bundle, "tiny", 2)
    publish(world, random_blob(manifest_of(new_bundle), version=2))
    world.update()
    store = world.store
    for _ in range(3):
        _, digest = store.serving("colour")
        assert digest is not None and store.begin_trial("colour", digest, wait=False)
        store.end_trial("colour", digest, "failed")
    (task,) = store.tasks()
    assert (task.active, task.previous) == (None, None)


@dataclass
class Load:
    """Requests of many threads, until they are told to stop.

    Attributes:
        answers: (task, text, version, scores) of every one that was answered.
        failures: Of those that were not.
    """

    engine: Engine
    answers: list[tuple[str, str, int, tuple[float, ...]]]
    failures: list[BaseException]
    stop: threading.Event

    def ask(self, number: int) -> None:
        while not self.stop.is_set():
            task, text = TASKS[number % len(TASKS)], TEXTS[number % len(TEXTS)]
            number += 1
            try:
                found = answer(self.engine, task, text)
            except BaseException as error:
                self.failures.append(error)
                return
            scores = tuple(found.scores.values())
            self.answers.append((task, text, found.prompt_version, scores))


def test_an_update_under_load_fails_no_request_and_mixes_nothing(
    world: World, tiny_bundle: Path
) -> None:
    manifest = manifest_of(tiny_bundle)
    seeds = {task: 10 * number for number, task in enumerate(TASKS)}
    blobs = {(t, 1): random_blob(manifest, t, seed=s) for t, s in seeds.items()}
    publish(world, *blobs.values())
    base = manifest.base
    world.set_up_device(base=BaseState(base.fingerprint, base.tokenizer_fingerprint))
    world.update()
    with Engine(tiny_bundle, world.folder / "device", threads=1) as engine:
        load = Load(engine, [], [], threading.Event())
        threads = [
            threading.Thread(target=load.ask, args=(number,))
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        changed = TASKS[3]
        try:
            for version in (2, 3, 4):
                seed = 1_000 * version
                blob = random_blob(manifest, changed, seed=seed, version=version)
                blobs[changed, version] = blob
                publish(world, blob)
                assert [x.version for x in world.update().prompts] == [version]
                # Until every thread has asked for all tasks anew.
                enough = len(load.answers) + THREADS * len(TASKS) * 2
                while len(load.answers) < enough and not load.failures:
                    load.stop.wait(0.01)
        finally:
            load.stop.set()
            for thread in threads:
                thread.join()
    assert load.failures == []
    wanted = {key: alone(tiny_bundle, blob) for key, blob in blobs.items()}
    for task, text, version, scores in load.answers:
        assert scores == wanted[task, version][text], (task, text, version)
    # Each version answered, the last one in the end, and others' tasks never changed.
    seen = {task: set[int]() for task in TASKS}
    for task, _, version, _ in load.answers:
        seen[task].add(version)
    assert seen.pop(changed) == {1, 2, 3, 4}
    assert all(versions == {1} for versions in seen.values())
    # The texts tell versions apart: else a mixture would not show.
    for text in TEXTS:
        assert len({wanted[changed, version][text] for version in range(1, 5)}) == 4
