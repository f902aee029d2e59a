"""Stores with small blobs, and trials that pass or fail as a test wants."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from blobs import META, normal

from promptdial.prompts.blob import PromptBlob, make_blob
from promptdial.prompts.store import Limits, PromptStore, make_store


@cache
def small_blob(task: str, version: int, seed: int = 0) -> PromptBlob:
    """A blob of a few hundred bytes; it fits no bundle."""
    meta = replace(META, task=task, version=version)
    return make_blob(
        meta, embeddings=normal(seed, 2, 8), head_weight=normal(seed + 1, 3, 8)
    )


def new_store(folder: Path, limits: Limits | None = None) -> PromptStore:
    """An empty store, opened."""
    make_store(folder, limits)
    return PromptStore(folder)


def install(store: PromptStore, task: str, *versions: int) -> None:
    for version in versions:
        store.install(small_blob(task, version))


def end_trial(store: PromptStore, task: str, failure: str = "") -> None:
    """The trial of what is active, begun and ended."""
    _, digest = store.serving(task)
    assert digest is not None
    assert store.begin_trial(task, digest, wait=False)
    store.end_trial(task, digest, failure)


def make_good(store: PromptStore, task: str, *versions: int) -> None:
    """Install, activate and pass, one version after another."""
    for version in versions:
        install(store, task, version)
        store.activate(task, version)
        end_trial(store, task)


def states(store: PromptStore, task: str) -> dict[int, str]:
    return {item.version: item.state for item in store.versions(task)}


def served(store: PromptStore, task: str) -> int:
    return store.get(task).meta.version
