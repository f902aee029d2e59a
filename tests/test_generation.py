"""Generation in the Engine against transformers, with prompts of every kind."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blobs import normal, random_blob
from decoders import (
    DECODERS,
    MadeDecoder,
    made_decoder,
    made_exact,
    plain_model,
    transformers_greedy,
)
from made_once import MakeOnce
from stores import new_store, states
from tokenizers import normalizers, processors

from promptdial.export import export_bundle
from promptdial.export.model import load_base, resolve
from promptdial.prompts.blob import Golden, PromptBlob, make_blob, write_blob
from promptdial.prompts.errors import UsageError
from promptdial.runtime import (
    Engine,
    Generation,
    answering,
    caches,
    generating,
    writing_together,
)
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.decoder_session import DecoderSession
from promptdial.runtime.errors import (
    BundleInvalid,
    EngineClosed,
    PromptRefused,
    TextRefused,
    UnknownTask,
    WrongKind,
)
from promptdial.runtime.selftest import ask_golden
from promptdial.runtime.stop_tokens import stop_tokens

TEXT = "the film was good and"
KINDS = {kind.name: kind for kind in DECODERS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decoder")


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> MadeDecoder:
    return made_decoder(make_once, "llama")


@pytest.fixture(scope="module")
def model(made: MadeDecoder) -> Path:
    return made.model


@pytest.fixture(scope="module")
def bundle(made: MadeDecoder) -> Path:
    return made.bundle


def prompt_blob(bundle: Path, task: str, seed: int, **changes: Any) -> PromptBlob:
    """A soft prompt of 5 rows about as large as tokens."""
    manifest = open_bundle(bundle).manifest
    blob = random_blob(manifest, task, "generation", length=5, seed=seed)
    rows = 0.5 * normal(seed, 5, manifest.dims.embedding)
    return make_blob(replace(blob.meta, **changes), embeddings=rows)


@pytest.fixture(scope="module")
def prompts(bundle: Path, folder: Path) -> Path:
    """Soft prompts `one` and `two`, and the deep prompt `deep`."""
    place = folder / "prompts"
    place.mkdir()
    manifest = open_bundle(bundle).manifest
    deep = random_blob(manifest, "deep", "generation", length=3, deep=True, seed=9)
    for blob in (
        prompt_blob(bundle, "one", 1),
        prompt_blob(bundle, "two", 2, generation={"max_new_tokens": 7}),
        deep,
    ):
        write_blob(place / f"{blob.meta.task}.safetensors", blob)
    return place


@pytest.fixture
def engine(bundle: Path, prompts: Path) -> Iterator[Engine]:
    with Engine(bundle, prompts, threads=1) as opened:
        yield opened


def rows_of(model: Path, text: str) -> Any:
    """Embedding rows [T, H] of a text as transformers reads it."""
    base = load_base(resolve(str(model)))
    from promptdial.runtime.text import TextEncoder

    ids = TextEncoder(base.tokenizer_json, base.dims.max_positions).encode(text).ids
    return base.token_table.numpy()[ids]


@pytest.mark.parametrize("name", ["tinystories-260k-llama", "tinystories-tiny1m-llama"])
def test_64_greedy_tokens_are_those_of_transformers(
    name: str, shared_models: Path, make_once: MakeOnce
) -> None:
    """On real weights, without a prompt and over two, on the FP32 graph."""
    source = shared_models / name
    bundle = made_exact(make_once, source)
    plain, table = plain_model(source), load_base(resolve(str(source))).token_table
    text = "Once upon a time"
    rows, spread = rows_of(source, text), float(table.std())
    blobs = [prompt_blob(bundle, f"p{seed}", seed) for seed in (1, 2)]
    answers = []
    with Engine(bundle, threads=1) as engine:
        for blob in (None, *blobs):
            front, task = np.empty((0, rows.shape[1]), np.float32), None
            if blob is not None:
                assert blob.prompt_embeddings is not None
                front = blob.prompt_embeddings * np.float32(spread)
                blob = make_blob(blob.meta, embeddings=front)
                assert blob.prompt_embeddings is not None
                front, task = blob.prompt_embeddings, engine.load(blob)
            together = np.concatenate([front, rows])
            wanted = transformers_greedy(plain, together, 64)
            found = engine.generate(task, text, max_new_tokens=64)
            answers.append(found.text)
            assert list(found.tokens) == wanted[: len(found.tokens)]
            assert len(found.tokens) in (64, len(wanted))
    assert len(set(answers)) == 3


@pytest.mark.parametrize(
    "name",
    [
        "tinystories-260k-llama",
        pytest.param("tinystories-tiny1m-llama", marks=pytest.mark.slow),
    ],
)
def test_int8_in_company_is_int8_alone_on_real_weights(
    name: str, shared_models: Path, tmp_path: Path
) -> None:
    """Twelve stories of different lengths, with and without a prompt, together."""
    bundle = export_bundle(str(shared_models / name), tmp_path / "a.bundle").bundle
    texts = ("Once upon a time", "The cat", "One day a little girl named Lily went to")
    with Engine(bundle, threads=1) as engine:
        tasks = (
            None,
            *(engine.load(prompt_blob(bundle, f"p{n}", n)) for n in range(3)),
        )
        items = [(task, text) for task in tasks for text in texts]
        together = engine.run_batch(items)
        alone = [engine.run(*item) for item in items]
    for found, wanted in zip(together, alone, strict=True):
        assert isinstance(found, Generation)
        assert isinstance(wanted, Generation)
        assert (found.tokens, found.text) == (wanted.tokens, wanted.text)
    assert len({answer.text for answer in alone if isinstance(answer, Generation)}) > 9


def test_a_prompt_changes_the_answer_to_that_of_pytorch(
    prompts: Path, model: Path, make_once: MakeOnce
) -> None:
    bundle = made_decoder(make_once, "llama", exact=True).bundle
    plain, rows = plain_model(model), rows_of(model, TEXT)
    answers = []
    with Engine(bundle, prompts, threads=1) as engine:
        for task in ("one", "two"):
            blob = engine._prompts.source.get(task)  # type: ignore[union-attr]
            together = np.concatenate([blob.prompt_embeddings, rows])
            wanted = transformers_greedy(plain, together, 24)
            found = engine.generate(task, TEXT, max_new_tokens=24)
            assert list(found.tokens) == wanted[: len(found.tokens)]
            answers.append(found.tokens)
        plainly = engine.generate(None, TEXT, max_new_tokens=24)
        deep = engine.generate("deep", TEXT, max_new_tokens=24)
    assert len({*answers, plainly.tokens, deep.tokens}) == 4


def test_a_prefix_is_the_same_whoever_came_first(bundle: Path, prompts: Path) -> None:
    """INT8: the keys and values of a prompt do not depend on requests before it."""
    states = []
    for first in (None, "two"):
        with Engine(bundle, prompts, threads=1) as engine:
            engine.generate(first, TEXT * 3, max_new_tokens=4)
            answer = engine.generate("one", TEXT, max_new_tokens=12)
            ready = engine._prompts.ready("one", engine._open_model())
            assert ready is not None
            states.append((ready.state, answer.tokens))
    assert states[0][1] == states[1][1]
    for left, right in zip(states[0][0], states[1][0], strict=True):
        assert np.array_equal(left, right)


@pytest.mark.parametrize("length", [1, 2, 5, 20])
def test_the_first_request_makes_the_prefix_in_its_own_pass(
    bundle: Path, length: int
) -> None:
    """INT8: bit for bit the prefix of a pass of its own, and the same answer."""
    manifest = open_bundle(bundle).manifest
    blob = random_blob(manifest, "p", "generation", length=length, seed=length)
    with Engine(bundle, prompts=_OnePrompt(blob), threads=1) as engine:
        cold = engine.generate("p", TEXT, max_new_tokens=9)
        ready = engine._prompts.ready("p", engine._open_model())
        assert ready is not None
        assert blob.prompt_embeddings is not None
        own = engine._open_model().session.state_of(blob.prompt_embeddings)
        for left, right in zip(ready.state, own, strict=True):
            assert np.array_equal(left, right)
        assert engine.generate("p", TEXT, max_new_tokens=9).tokens == cold.tokens
        assert cold.tokens != engine.generate(None, TEXT, max_new_tokens=9).tokens
        assert engine._prompts.source.heard == ["loaded"]  # type: ignore[union-attr]


class _OnePrompt:
    """A source of one blob that writes down what it hears."""

    def __init__(self, blob: PromptBlob) -> None:
        self.blob = blob
        self.heard: list[str] = []

    def get(self, task: str) -> PromptBlob:
        return self.blob

    def list(self) -> list[str]:
        return [self.blob.meta.task]

    def report(self, task: str, digest: str, event: str) -> None:
        self.heard.append(event)


def test_pieces_together_are_the_answer(engine: Engine) -> None:
    for seed in range(8):
        options = {"temperature": 2.0, "seed": seed, "max_new_tokens": 40}
        stream = engine.stream("one", TEXT, **options)  # type: ignore[arg-type]
        pieces = list(stream)
        assert all(pieces)
        whole = engine.generate("one", TEXT, **options)  # type: ignore[arg-type]
        assert "".join(pieces) == whole.text == stream.generation.text
        assert stream.generation.tokens == whole.tokens
        tokenizer = engine._open_model().encoder._tokenizer
        kept = [token for token in whole.tokens if token != 2]
        assert tokenizer.decode(kept) == whole.text


def test_batches_answer_as_one_by_one(engine: Engine) -> None:
    """Prompts and texts of different lengths; two of them end early."""
    assert engine._decoder_model().session.packed_cache
    items = [("one", TEXT), ("two", "wake me"), (None, "play"), ("deep", TEXT)]
    items += [("two", TEXT[:count]) for count in range(3, 20)]
    for item, answer in zip(items, engine.run_batch(items), strict=True):
        alone = engine.run(*item)
        assert isinstance(answer, Generation)
        assert isinstance(alone, Generation)
        assert replace(answer, timing=alone.timing) == alone
        assert answer.prompt_version == (1 if item[0] else 0)


def test_a_batch_has_a_bound_of_its_own(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups are closed by bytes too, and every request is answered."""
    items = [("one", TEXT), ("two", "wake me"), (None, "play"), ("one", "play")]
    wanted = engine.run_batch(items)
    sizes: list[int] = []
    together = writing_together.written_together

    def counted(requests: Any, model: Any) -> Any:
        found = together(requests, model)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(answering, "written_together", counted)
    engine.run_batch(items)
    monkeypatch.setattr(answering, "TOGETHER_BYTES", 1)
    alone = engine.run_batch(items)
    assert sizes == [4]
    for found, before in zip(alone, wanted, strict=True):
        assert isinstance(found, Generation)
        assert found.tokens == before.tokens  # type: ignore[union-attr]


def test_a_full_buffer_grows(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone and together: the answers are those of a buffer with room for all."""
    items = [("one", TEXT), ("two", "wake me"), (None, "play")]
    wanted = engine.run_batch(items)
    for module in (caches, generating):
        monkeypatch.setattr(module, "ROOM", 1)
    for found in (engine.run_batch(items), [engine.run(*item) for item in items]):
        for answer, before in zip(found, wanted, strict=True):
            assert isinstance(answer, Generation)
            assert answer.tokens == before.tokens  # type: ignore[union-attr]
            assert len(answer.tokens) > 3


def test_eight_threads_get_the_answers_of_one(engine: Engine) -> None:
    tasks = ("one", "two", "deep", None)
    wanted = {task: engine.generate(task, TEXT).tokens for task in tasks}
    wrong: list[object] = []

    def work(number: int) -> None:
        for step in range(6):
            task = tasks[(number + step) % len(tasks)]
            found = engine.generate(task, TEXT)
            if found.tokens != wanted[task]:
                wrong.append((task, found))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_stream_may_be_left(engine: Engine) -> None:
    stream = engine.stream("one", TEXT, max_new_tokens=50)
    first = next(stream)
    begun = stream.generation
    assert begun.text == first
    assert 0 < len(begun.tokens) < 50
    del stream
    again = engine.generate("one", TEXT, max_new_tokens=len(begun.tokens))
    assert again.tokens == begun.tokens


def test_options_of_call_prompt_and_default(engine: Engine) -> None:
    assert len(engine.generate("two", TEXT).tokens) == 7
    assert len(engine.generate("two", TEXT, max_new_tokens=9).tokens) == 9
    assert len(engine.generate("deep", TEXT).tokens) == 64
    greedy = engine.generate("one", TEXT, max_new_tokens=20)
    drawn = [
        engine.generate("one", TEXT, max_new_tokens=20, temperature=1.5, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert drawn[0].tokens == drawn[1].tokens != drawn[2].tokens
    assert drawn[0].tokens != greedy.tokens
    only = engine.generate("one", TEXT, max_new_tokens=20, temperature=1.5, top_k=1)
    assert only.tokens == greedy.tokens
    repeated = engine.generate("one", TEXT, max_new_tokens=20, repetition_penalty=50.0)
    assert len(set(repeated.tokens)) == len(repeated.tokens)


def test_a_stop_string_ends_the_answer(engine: Engine) -> None:
    whole = engine.generate("one", TEXT, max_new_tokens=30)
    assert whole.finish_reason == "length"
    stop = whole.text[len(whole.text) // 2 :][:3]
    cut = engine.generate("one", TEXT, max_new_tokens=30, stop=stop)
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert len(cut.tokens) < len(whole.tokens)


def test_the_end_token_ends_the_answer(engine: Engine) -> None:
    model = engine._open_model()
    fourth = engine.generate("one", TEXT, max_new_tokens=8).tokens[3]
    engine._model = replace(model, stop_tokens=frozenset({fourth}))  # type: ignore[arg-type]
    found = engine.generate("one", TEXT, max_new_tokens=8)
    assert found.finish_reason == "stop"
    assert found.tokens[-1] == fourth
    assert len(found.tokens) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0, allowed: 1"),
        ({"temperature": -1.0}, "temperature -1"),
        ({"temperature": 1e-40}, "temperature 1e-40"),
        ({"top_p": 0.0}, "top_p 0"),
        ({"seed": 1.5}, "not a whole number"),
        ({"stop": ""}, "not 1 to 256 characters"),
        ({"stop": ["a"] * 17}, "at most 16"),
        ({"temperature": float("nan")}, "temperature nan"),
    ],
)
def test_options_out_of_range_are_refused(
    engine: Engine, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        engine.generate("one", TEXT, **options)


def test_what_does_not_fit_is_cut_and_said(engine: Engine) -> None:
    window = engine.manifest.dims.max_positions
    long = engine.generate("one", TEXT * 200, max_new_tokens=20)
    assert long.truncated
    assert len(long.tokens) == 20
    assert not engine.generate("one", TEXT, max_new_tokens=20).truncated
    with pytest.raises(TextRefused, match="leave no room"):
        engine.generate("one", TEXT, max_new_tokens=window - 5)


def test_the_template_is_never_cut(bundle: Path) -> None:
    """The text gives way; what stands behind it stays."""
    template = {"before": "play: ", "after": " now:"}
    with Engine(bundle, threads=1) as engine:
        engine.load(prompt_blob(bundle, "t", 1, template=template))
        encoder = engine._open_model().encoder
        engine.load(prompt_blob(bundle, "plain", 1))
        short = engine.generate("t", TEXT, max_new_tokens=9)
        same = engine.generate("plain", f"play: {TEXT} now:", max_new_tokens=9)
        assert short.tokens == same.tokens
        request = engine._generation(engine._open_model(), "t", TEXT * 90)  # type: ignore[arg-type]
        assert request.truncated
        shown = encoder._tokenizer.decode(request.tokens.tolist())
        assert shown.startswith("play: ")
        assert shown.endswith(" now:")
        used = 5 + len(request.tokens) + request.options.max_new_tokens
        assert engine.manifest.dims.max_positions - 3 <= used
        assert used <= engine.manifest.dims.max_positions


def test_calls_of_the_other_family_are_refused(
    engine: Engine, tiny_bundle: Path, bundle: Path
) -> None:
    for call in (engine.classify, engine.tag, engine.embed):
        with pytest.raises(WrongKind, match="use generate"):
            call("one", TEXT)
    with pytest.raises(WrongKind, match="was given two"):
        engine.run("one", TEXT, "another")
    with Engine(tiny_bundle) as other, pytest.raises(WrongKind, match="encoder"):
        other.generate(None, TEXT)
    manifest = open_bundle(bundle).manifest
    with pytest.raises(WrongKind, match="family decoder"):
        engine.load(random_blob(manifest, "c", "classification"))


def test_unknown_tasks_and_closed_engines(engine: Engine) -> None:
    with pytest.raises(UnknownTask, match="deep, one, two"):
        engine.generate("three", TEXT)
    with pytest.raises(TextRefused):
        engine.generate("one", "   ")
    stream = engine.stream("one", TEXT)
    next(stream)
    engine.close()
    assert list(stream)  # what has begun ends as it would have
    with pytest.raises(EngineClosed):
        engine.generate("one", TEXT)


def test_odd_options_in_a_blob_are_refused(engine: Engine, bundle: Path) -> None:
    for options in ({"beams": 4}, {"temperature": "hot"}):
        with pytest.raises(PromptRefused, match="generation of 'odd'"):
            engine.load(prompt_blob(bundle, "odd", 1, generation=options))
    with pytest.raises(PromptRefused, match="leave no room"):
        blob = prompt_blob(bundle, "odd", 1, generation={"max_new_tokens": 123})
        engine.load(blob)


def test_a_batch_makes_a_prefix_once(engine: Engine) -> None:
    session = engine._decoder_model().session
    assert isinstance(session, DecoderSession)
    lengths: list[int] = []
    forward = session.forward_bound

    def counted(bound: Any, embeds: Any, *rest: Any) -> Any:
        lengths.append(embeds.shape[1])
        return forward(bound, embeds, *rest)

    session.forward_bound = counted  # type: ignore[assignment,method-assign]
    answers = engine.run_batch([("two", TEXT)] * 3)
    long = [length for length in lengths if length > 1]
    assert long[0] == long[1] + 5
    assert long[1] == long[2]
    times = [answer.timing.first_token_ms for answer in answers]  # type: ignore[union-attr]
    assert max(times) < sum(times)


def test_a_kept_prefix_holds_its_own_memory_alone(engine: Engine) -> None:
    engine.generate("one", TEXT, max_new_tokens=2)
    ready = engine._prompts.ready("one", engine._open_model())
    assert ready is not None
    assert all(array.base is None for array in ready.state)


def test_a_special_token_may_stop_an_answer(engine: Engine) -> None:
    model = engine._decoder_model()
    found = engine._generation(model, "one", TEXT, None, {"stop": ["<pad>", "x"]})
    assert found.stop_tokens == {2, 0}


def test_a_text_of_no_tokens_is_refused_cold_and_warm(
    bundle: Path, prompts: Path
) -> None:
    with Engine(bundle, prompts, threads=1) as engine:
        model = engine._decoder_model()
        tokenizer = model.encoder._tokenizer
        tokenizer.post_processor = processors.ByteLevel()
        tokenizer.normalizer = normalizers.Replace("\x01", "")
        for _ in range(2):
            with pytest.raises(TextRefused, match="no tokens"):
                engine.generate("one", "\x01")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"eos_token_id": 7}', {7}),
        ('{"eos_token_id": [7, 8]}', {7, 8}),
        ('{"eos_token_id": null}', set()),
        ('{"eos_token_id": []}', set()),
        ("{}", set()),
    ],
)
def test_end_tokens_come_from_the_configuration(
    text: str, found: set[int], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(text)
    assert stop_tokens(tmp_path, ["config.json"], 9) == found


@pytest.mark.parametrize("text", ['{"eos_token_id": 9}', '{"eos_token_id": "x"}', "[]"])
def test_end_tokens_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BundleInvalid):
        stop_tokens(tmp_path, ["config.json"], 9)


def test_a_store_tries_prompts_that_write(bundle: Path, tmp_path: Path) -> None:
    with new_store(tmp_path / "store") as store, Engine(bundle, store) as engine:

        def put(seed: int, version: int, label: str) -> None:
            golden = (Golden(TEXT, None, (1, 2, 3), label, 0.5),)
            store.install(
                prompt_blob(bundle, "one", seed, version=version, golden=golden)
            )
            store.activate("one", version)

        blob = prompt_blob(bundle, "one", 1)
        with Engine(bundle) as alone:
            alone.load(blob)
            golden = Golden(TEXT, None, (), "", 0.0)
            right = ask_golden(alone, blob.meta, golden).label
        put(1, 1, right)
        before = engine.generate("one", TEXT)
        assert before.prompt_version == 1
        put(2, 2, f"{right} and more")
        for _ in range(3):
            again = engine.generate("one", TEXT)
            assert (again.text, again.prompt_version) == (before.text, 1)
        assert states(store, "one") == {1: "good", 2: "bad"}
