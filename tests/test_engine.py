"""The Engine on a tiny random model: every kind of prompt, alone and in company."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import random_blob

from promptdial.prompts.blob import PromptBlob, encode, make_blob, write_blob
from promptdial.prompts.errors import BlobInvalid, UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import encode_rows
from promptdial.prompts.training.reference import blob_reader
from promptdial.prompts.training.scoring import logits_of, tags_of
from promptdial.runtime import Classification, Engine, Spans
from promptdial.runtime.errors import (
    EngineClosed,
    EngineForked,
    NotFinite,
    PromptRefused,
    TextRefused,
    UnknownTask,
    WrongBase,
    WrongKind,
)
from promptdial.runtime.manifest import Manifest, from_json
from promptdial.runtime.reading import Answer
from promptdial.runtime.rows import Row

TEXTS = (
    "the film was great",
    "play some music",
    "wake me at seven , not at one",
    "who wrote this book",
    "good",
)


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return from_json((tiny_bundle / "manifest.json").read_text())


@pytest.fixture(scope="module")
def prompts(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blobs of all kinds and of lengths 0, 1, 4, 5, 20, soft and deep."""
    folder = tmp_path_factory.mktemp("prompts")
    for blob in (
        random_blob(manifest, "head_alone", length=0, seed=1),
        random_blob(manifest, "one", length=1, seed=2),
        random_blob(manifest, "five", length=5, seed=3),
        random_blob(manifest, "other_five", length=5, seed=33),
        random_blob(manifest, "twenty", length=20, seed=4, version=7),
        random_blob(manifest, "deep", length=5, deep=True, seed=5),
        random_blob(manifest, "pairs", kind="pair", seed=6),
        random_blob(manifest, "spans", kind="token", seed=7),
        random_blob(manifest, "search", kind="embedding", seed=8),
    ):
        write_blob(folder / f"{blob.meta.task}.safetensors", blob)
    return folder


@pytest.fixture(scope="module", params=["int8", "fp32"])
def engine(
    request: pytest.FixtureRequest, tiny_bundle: Path, prompts: Path
) -> Iterator[Engine]:
    with Engine(tiny_bundle, prompts, variant=request.param, threads=1) as found:
        yield found


def same(one: Answer, two: Answer) -> bool:
    if isinstance(one, np.ndarray) or isinstance(two, np.ndarray):
        return np.array_equal(np.asarray(one), np.asarray(two))
    return one == two


def test_tasks_are_those_of_the_folder(engine: Engine) -> None:
    assert "deep" in engine.tasks() and len(engine.tasks()) == 9


@pytest.mark.parametrize("task", ["one", "five", "twenty", "deep", "search", "spans"])
def test_the_prompt_changes_the_answer(engine: Engine, task: str) -> None:
    """Against the same blob without its virtual tokens."""
    blob = engine._prompts.source.get(task)  # type: ignore[union-attr]
    bare = make_blob(
        replace(blob.meta, task="bare"), head_weight=blob.head_weight, precision="f16"
    )
    engine.load(bare)
    changed = [
        not same(engine.run(task, text), engine.run("bare", text)) for text in TEXTS
    ]
    assert all(changed) or (task == "spans" and any(changed))


@pytest.mark.parametrize("task", ["head_alone", "one", "five", "twenty", "deep"])
def test_answers_equal_the_pytorch_reference(
    tiny_bundle: Path, prompts: Path, base: FrozenBase, task: str
) -> None:
    with Engine(tiny_bundle, prompts, variant="fp32") as engine:
        blob = engine._prompts.source.get(task)  # type: ignore[union-attr]
        reader = blob_reader(base, blob)
        rows = [Row(text=text, label="red") for text in TEXTS]
        examples = encode_rows(rows, base.encoder, blob.meta.labels, {})
        for text, logits in zip(TEXTS, logits_of(reader, examples), strict=True):
            answer = engine.classify(task, text)
            wanted = torch.softmax(logits, -1).numpy()
            found = [answer.scores[label] for label in blob.meta.labels]
            # The token table is int8, PyTorch's is not.
            np.testing.assert_allclose(found, wanted, atol=0.05)
            assert answer.label == blob.meta.labels[int(wanted.argmax())]


def test_pairs_equal_the_pytorch_reference(
    tiny_bundle: Path, prompts: Path, base: FrozenBase
) -> None:
    with Engine(tiny_bundle, prompts, variant="fp32") as engine:
        blob = engine._prompts.source.get("pairs")  # type: ignore[union-attr]
        reader = blob_reader(base, blob)
        row = Row(text=TEXTS[0], text_pair=TEXTS[1], label="same")
        examples = encode_rows([row], base.encoder, blob.meta.labels, {})
        wanted = torch.softmax(logits_of(reader, examples)[0], -1).numpy()
        answer = engine.classify("pairs", TEXTS[0], text_pair=TEXTS[1])
        np.testing.assert_allclose(list(answer.scores.values()), wanted, atol=0.05)


def test_tags_equal_the_pytorch_reference(
    tiny_bundle: Path, prompts: Path, base: FrozenBase
) -> None:
    with Engine(tiny_bundle, prompts, variant="fp32") as engine:
        blob = engine._prompts.source.get("spans")  # type: ignore[union-attr]
        reader = blob_reader(base, blob)
        words = ("wake", "me", "at", "seven")
        row = Row(text=" ".join(words), tokens=words, tags=("O",) * 4)
        wanted = tags_of(reader, encode_rows([row], base.encoder, blob.meta.labels, {}))
        assert engine.tag("spans", words).tags == tuple(wanted[0])


def mixed_requests() -> list[tuple[str | None, str, str | None]]:
    items: list[tuple[str | None, str, str | None]] = []
    for text in TEXTS:
        for task in ("head_alone", "one", "five", "other_five", "deep", "twenty"):
            items.append((task, text, None))
        items.append(("pairs", text, TEXTS[0]))
        items.append(("search", text, None))
        items.append((None, text, None))
    return items * 2


def test_a_batch_of_everything_equals_one_by_one(engine: Engine) -> None:
    items = mixed_requests()
    together = engine.run_batch(items)
    for item, answer in zip(items, together, strict=True):
        assert same(answer, engine.run(*item)), item


def test_spans_in_a_batch_equal_spans_alone(engine: Engine) -> None:
    items = [("spans", text) for text in TEXTS]
    assert engine.run_batch(items) == [engine.run(*item) for item in items]


def test_an_empty_batch_has_no_answers(engine: Engine) -> None:
    assert engine.run_batch([]) == []


def test_offsets_are_characters_of_the_text(engine: Engine) -> None:
    text = "  wake me at seven, blue  light"
    answer = engine.tag("spans", text)
    words = [text[start:end] for start, end in answer.words]
    assert words == ["wake", "me", "at", "seven", ",", "blue", "light"]
    assert len(answer.tags) == 7
    for span in answer.spans:
        assert text[span.start : span.end] == span.text


def test_split_words_are_accepted(engine: Engine) -> None:
    answer = engine.tag("spans", ["wake", "me"])
    assert isinstance(answer, Spans)
    assert answer.words == ((0, 4), (5, 7))


def test_long_texts_are_cut_and_say_so(engine: Engine) -> None:
    long = "the film was great " * 40
    assert engine.classify("five", long).truncated
    assert not engine.classify("five", "the film").truncated
    answer = engine.tag("spans", long)
    assert answer.truncated
    assert len(answer.tags) == 160
    assert set(answer.tags[70:]) == {"O"}


def test_the_base_alone_embeds(engine: Engine) -> None:
    vector = engine.embed(None, TEXTS[0])
    assert vector.shape == (64,)
    assert abs(float(np.linalg.norm(vector)) - 1) < 1e-5
    with pytest.raises(WrongKind):
        engine.tag(None, "x")  # type: ignore[arg-type]


def test_answers_say_which_version_gave_them(engine: Engine) -> None:
    assert engine.classify("twenty", "good").prompt_version == 7


def test_templates_are_put_around_the_text(engine: Engine, manifest: Manifest) -> None:
    blob = random_blob(manifest, "plain", seed=3)
    around = replace(
        blob.meta, task="around", template={"before": "the film ", "after": " now"}
    )
    engine.load(blob)
    engine.load(encode(around, blob.tensors))
    expected = engine.classify("plain", "the film was good now")
    assert engine.classify("around", "was good").scores == expected.scores


def test_unknown_tasks_are_listed(engine: Engine) -> None:
    with pytest.raises(UnknownTask, match=r"no task 'nope'; there is .*deep"):
        engine.run("nope", "x")


@pytest.mark.parametrize("text", ["", "   ", "a \ud800 b", 7, None])
def test_texts_that_are_none_are_refused(engine: Engine, text: object) -> None:
    with pytest.raises(TextRefused):
        engine.run("five", text)  # type: ignore[arg-type]
    with pytest.raises(TextRefused):
        engine.tag("spans", text)  # type: ignore[arg-type]


def test_kinds_are_kept_apart(engine: Engine) -> None:
    with pytest.raises(WrongKind, match="answers with token"):
        engine.classify("spans", "wake me")
    with pytest.raises(WrongKind, match="is classification, not token"):
        engine.tag("five", "wake me")
    with pytest.raises(WrongKind, match="answers with classification"):
        engine.embed("five", "wake me")
    with pytest.raises(WrongKind, match="is pair and was given one text"):
        engine.classify("pairs", "wake me")
    with pytest.raises(WrongKind, match="was given two texts"):
        engine.classify("five", "wake me", text_pair="x")


def test_blobs_of_another_base_are_refused_with_both_values(
    engine: Engine, manifest: Manifest
) -> None:
    blob = random_blob(manifest, "foreign")
    meta = replace(blob.meta, base_fingerprint="ckpt1:" + "0" * 64)
    foreign = encode(meta, blob.tensors)
    with pytest.raises(WrongBase) as caught:
        engine.load(foreign)
    assert "ckpt1:0000" in str(caught.value)
    assert manifest.base.fingerprint in str(caught.value)
    assert caught.value.exit_code == 4
    assert "foreign" not in engine.tasks()


def test_values_that_do_not_fit_are_refused(engine: Engine, manifest: Manifest) -> None:
    blob = random_blob(manifest, "loud")
    rows = blob.prompt_embeddings
    assert rows is not None
    loud = make_blob(blob.meta, embeddings=rows * 1e4, head_weight=blob.head_weight)
    assert not engine.compatible(loud).ok
    with pytest.raises(PromptRefused, match="has norm"):
        engine.load(loud)
    narrow = make_blob(
        blob.meta,
        embeddings=rows[:, :32],
        head_weight=blob.head_weight[:, :32],  # type: ignore[index]
    )
    with pytest.raises(PromptRefused, match="32 wide, the base 64"):
        engine.load(narrow)
    assert engine.compatible(blob).ok


def test_a_refused_blob_leaves_the_loaded_one(
    engine: Engine, manifest: Manifest
) -> None:
    engine.load(random_blob(manifest, "kept", seed=1))
    before = engine.run("kept", TEXTS[0])
    with pytest.raises(BlobInvalid):
        engine.load(b"nothing like a blob")
    assert engine.run("kept", TEXTS[0]) == before


def test_infinite_outputs_are_never_label_zero(
    engine: Engine, manifest: Manifest
) -> None:
    blob = random_blob(manifest, "wild", length=2, deep=True)
    huge = [(key * 0, np.full_like(value, 6e4)) for key, value in blob.past_key_values]
    head = np.full((3, 64), 6e4, np.float32)
    wild = make_blob(blob.meta, past=huge, head_weight=head * 1.0, precision="f16")
    nan = PromptBlob(
        wild.meta,
        {**wild.tensors, "head.weight": np.full((3, 64), np.nan, np.float16)},
        "sha256:nan",
        wild.size,
    )
    engine.load(nan)
    with pytest.raises(NotFinite):
        engine.classify("wild", "good")


def test_a_replaced_prompt_is_used_from_the_next_request(
    tiny_bundle: Path, manifest: Manifest, tmp_path: Path
) -> None:
    path = tmp_path / "colour.safetensors"
    write_blob(path, random_blob(manifest, seed=1, version=1))
    with Engine(tiny_bundle, tmp_path) as engine:
        assert engine.classify("colour", "good").prompt_version == 1
        write_blob(path, random_blob(manifest, seed=2, version=2))
        assert engine.classify("colour", "good").prompt_version == 2
        path.unlink()
        with pytest.raises(UnknownTask):
            engine.classify("colour", "good")


def test_the_cache_stays_under_its_bound(tiny_bundle: Path, prompts: Path) -> None:
    with Engine(tiny_bundle, prompts, prompt_cache_bytes=30_000) as engine:
        for _ in range(3):
            for task in ("one", "five", "twenty", "deep", "search"):
                engine.run(task, "good")
                assert (
                    engine._prompts.cache.nbytes <= 30_000
                    or len(engine._prompts.cache) == 1
                )
        total = sum(item.nbytes for item in engine._prompts.cache._ready.values())
        assert total == engine._prompts.cache.nbytes


@pytest.mark.parametrize("profile", ["latency", "memory", "battery"])
def test_profiles_answer_alike(tiny_bundle: Path, prompts: Path, profile: str) -> None:
    with Engine(tiny_bundle, prompts) as plain:
        wanted = plain.classify("five", TEXTS[0])
    with Engine(tiny_bundle, prompts, profile=profile) as engine:
        assert engine.classify("five", TEXTS[0]).label == wanted.label


def test_unknown_profiles_are_wrong_use(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="profile 'fast'"):
        Engine(tiny_bundle, profile="fast")


def test_a_closed_engine_says_so(tiny_bundle: Path, prompts: Path) -> None:
    engine = Engine(tiny_bundle, prompts)
    engine.close()
    engine.close()
    with pytest.raises(EngineClosed):
        engine.run("five", "good")


def test_closing_lets_running_requests_end(tiny_bundle: Path, prompts: Path) -> None:
    engine = Engine(tiny_bundle, prompts, threads=1)
    odd: list[Exception] = []

    def work() -> None:
        try:
            while True:
                engine.run("five", TEXTS[0])
        except EngineClosed:
            return
        except Exception as error:
            odd.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    engine.close()
    for thread in threads:
        thread.join(timeout=10)
    assert odd == []
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_is_told(engine: Engine) -> None:
    child = os.fork()
    if child == 0:
        try:
            engine.run("five", "good")
            os._exit(1)
        except EngineForked:
            os._exit(42)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 42


def test_threads_get_their_own_answers(engine: Engine) -> None:
    items = mixed_requests()[:18]
    wanted = engine.run_batch(items)
    wrong: list[object] = []

    def work(start: int) -> None:
        for step in range(36):
            place = (start + 5 * step) % len(items)
            if not same(engine.run(*items[place]), wanted[place]):
                wrong.append(items[place])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_scores_add_up(engine: Engine) -> None:
    answer = engine.classify("five", TEXTS[0])
    assert isinstance(answer, Classification)
    assert abs(sum(answer.scores.values()) - 1) < 1e-5
    assert answer.score == max(answer.scores.values()) == answer.scores[answer.label]
