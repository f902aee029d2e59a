"""Constrained answers: choices, JSON schemas and expressions, on real graphs."""

import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import normal, random_blob
from conftest import tiny_tokenizer_json
from decoders import (
    MadeDecoder,
    made_decoder,
    made_exact,
    make_tokenizer,
    plain_model,
)
from made_once import MakeOnce
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from promptdial.export.model import load_base, quiet_transformers, resolve
from promptdial.prompts.blob import PromptBlob, make_blob, write_blob
from promptdial.prompts.errors import MissingExtra, UsageError
from promptdial.runtime import Engine, Generation
from promptdial.runtime.choices import Choices
from promptdial.runtime.cli import main
from promptdial.runtime.constraint import MAX_KEPT
from promptdial.runtime.errors import CannotConstrain, PromptRefused, TextRefused
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.grammar import GrammarCompiler
from promptdial.runtime.sampling import Sampler, filtered, penalised
from promptdial.runtime.text import TextEncoder
from promptdial.runtime.vocabulary import Vocabulary

TEXT = "the film was good and"
CHOICES = ("alarm", "alarm off", "radio news", "light")
SCHEMA = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["alarm", "radio"]},
        "hour": {"type": "integer", "minimum": 0, "maximum": 23},
        "words": {
            "type": "array",
            "items": {"type": "string", "maxLength": 6},
            "maxItems": 2,
        },
    },
    "required": ["intent", "hour"],
    "additionalProperties": False,
}
WIDE = "[é中🙂]{6}"
REAL = ("tinystories-260k-llama", "tinystories-tiny1m-llama")
BASES = ("random", REAL[0], pytest.param(REAL[1], marks=pytest.mark.slow))
"""A byte-level tokenizer, and two SentencePiece-like ones over real weights."""


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> MadeDecoder:
    return made_decoder(make_once, "llama", exact=True)


@pytest.fixture(scope="module")
def model(made: MadeDecoder) -> Path:
    return made.model


@pytest.fixture(scope="module")
def bundle(made: MadeDecoder) -> Path:
    return made.bundle


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    opened: dict[str, Engine] = {}
    yield opened
    for engine in opened.values():
        engine.close()


@pytest.fixture
def engine(
    request: pytest.FixtureRequest,
    engines: dict[str, Engine],
    bundle: Path,
    make_once: MakeOnce,
) -> Engine:
    """The engine of a base; `random` where no test names one."""
    name = getattr(request, "param", "random")
    if name not in engines:
        if name != "random":
            source = request.getfixturevalue("shared_models") / name
            bundle = made_exact(make_once, source)
        engines[name] = Engine(bundle, threads=1)
    return engines[name]


on_every_base = pytest.mark.parametrize("engine", BASES, indirect=True)


def needs_llguidance() -> None:
    pytest.importorskip("llguidance", reason="the extra constrained is not installed")


def prompt_blob(engine: Engine, task: str, seed: int, **generation: Any) -> PromptBlob:
    blob = random_blob(engine.manifest, task, "generation", length=5)
    rows = 0.5 * normal(seed, 5, engine.manifest.dims.embedding)
    meta = replace(blob.meta, generation=generation)
    return make_blob(meta, embeddings=rows)


def vocabulary_of(engine: Engine) -> Vocabulary:
    opened = engine._decoder_model()
    return Vocabulary(opened.encoder, opened.manifest.dims.vocab, opened.stop_tokens)


def check_answer(answer: Generation) -> None:
    """What fits SCHEMA, checked by hand."""
    value = json.loads(answer.text)
    assert set(value) - {"words"} == {"intent", "hour"}
    assert value["intent"] in ("alarm", "radio")
    assert type(value["hour"]) is int
    assert 0 <= value["hour"] <= 23
    for word in value.get("words", []):
        assert isinstance(word, str)
        assert len(word) <= 6


@on_every_base
def test_an_answer_is_exactly_one_of_the_choices(engine: Engine) -> None:
    greedy = engine.generate(None, TEXT, choices=CHOICES)
    assert greedy.text in CHOICES
    drawn = set()
    for seed in range(60):
        found = engine.generate(None, TEXT, choices=CHOICES, temperature=3.0, seed=seed)
        assert found.finish_reason == "stop"
        assert found.text in CHOICES
        drawn.add(found.text)
    # One that begins another is reached, and so is the other.
    assert drawn >= {"alarm", "alarm off"}
    single = engine.generate(None, TEXT, choices="light", temperature=2.0)
    assert (single.text, single.finish_reason) == ("light", "stop")
    # Nothing may follow: no pass is spent on an end token.
    tokens = engine._decoder_model().encoder.token_ids("light")
    assert list(single.tokens) == tokens
    last = engine.generate(None, TEXT, choices="light", max_new_tokens=len(tokens))
    assert (last.text, last.finish_reason) == ("light", "stop")


def test_the_choice_is_that_of_transformers_and_the_prompt_makes_it(
    engine: Engine, model: Path
) -> None:
    """Greedy under a mask, by `prefix_allowed_tokens_fn` of transformers."""
    plain, table = plain_model(model), load_base(resolve(str(model))).token_table
    choices = ("film", "book", "music", "news", "light", "station", "morning", "map")
    encoder = engine._decoder_model().encoder
    paths = [[*encoder.token_ids(choice), 2] for choice in choices]
    answers = []
    for seed in range(6):
        blob = prompt_blob(engine, "one", seed)
        engine.load(blob)
        found = engine.generate("one", TEXT, choices=choices)
        ids = encoder.encode(TEXT).ids
        rows = np.concatenate([blob.prompt_embeddings, table.numpy()[ids]])

        def allowed(_: int, written: Any) -> list[int]:
            # transformers begins with no ids where it was given embeddings.
            done = written.tolist()
            begun = [path for path in paths if path[: len(done)] == done]
            return [path[len(done)] for path in begun if len(path) > len(done)] or [2]

        with quiet_transformers(), torch.no_grad():
            wanted = plain.generate(
                inputs_embeds=torch.tensor(rows[None]),
                attention_mask=torch.ones(1, len(rows), dtype=torch.long),
                max_new_tokens=12,
                do_sample=False,
                prefix_allowed_tokens_fn=allowed,
            )[0].tolist()
        assert [*found.tokens, 2] == wanted
        answers.append(found.text)
    assert len(set(answers)) > 1


def test_choices_take_the_tokens_that_they_need(engine: Engine) -> None:
    """The default of 64 new tokens would cut a long one, and the window a text."""
    long = "the film was good and the book was dull " * 2
    found = engine.generate(None, TEXT, choices=[long])
    assert (found.text, found.finish_reason) == (long, "stop")
    cut = engine.generate(None, TEXT, choices=[long], max_new_tokens=5)
    assert cut.finish_reason == "length"
    assert len(cut.tokens) == 5
    assert cut.text
    assert long.startswith(cut.text)
    with pytest.raises(TextRefused, match="leave no room"):
        engine.generate(None, TEXT, choices=[long * 12])


@on_every_base
def test_json_fits_its_schema(engine: Engine) -> None:
    needs_llguidance()
    whole = 0
    for seed in range(12):
        found = engine.generate(
            None, TEXT, schema=SCHEMA, temperature=1.0, seed=seed, max_new_tokens=90
        )
        if found.finish_reason == "stop":
            check_answer(found)
            whole += 1
        else:
            assert len(found.tokens) == 90
    assert whole >= 4
    small = {"type": "array", "items": {"type": "boolean"}, "maxItems": 4}
    for seed in range(12):
        found = engine.generate(
            None, TEXT, schema=json.dumps(small), temperature=1.0, seed=seed
        )
        assert found.finish_reason == "stop"
        assert all(type(item) is bool for item in json.loads(found.text))


@on_every_base
@pytest.mark.parametrize(
    "regex",
    [
        r"[0-9]{1,2}:[0-5][0-9]",
        " ?(on|off|on and off)",
        "[ ]{2}x",
        WIDE,
        "(?i)wake|sleep",
        r"\p{Lu}[a-z ]*!?",
    ],
)
def test_an_expression_matches_the_whole_answer(engine: Engine, regex: str) -> None:
    needs_llguidance()
    checked = regex.replace(r"\p{Lu}", "[^\\W\\d_]")  # Python has no such class
    answers = set()
    for seed in range(8):
        found = engine.generate(
            None, TEXT, regex=regex, temperature=1.0, seed=seed, max_new_tokens=80
        )
        if found.finish_reason == "stop":
            assert re.fullmatch(checked, found.text), found.text
            answers.add(found.text)
    assert answers


def test_a_prompt_chooses_within_a_schema(engine: Engine) -> None:
    needs_llguidance()
    answers = []
    for seed in range(6):
        engine.load(prompt_blob(engine, "one", seed))
        found = engine.generate("one", TEXT, schema=SCHEMA, max_new_tokens=90)
        answers.append(found.tokens)
    assert len(set(answers)) > 1


@on_every_base
def test_what_is_cut_says_so(engine: Engine) -> None:
    needs_llguidance()
    found = engine.generate(None, TEXT, regex="[0-9]{200}", max_new_tokens=7)
    assert (found.finish_reason, len(found.tokens)) == ("length", 7)
    assert found.text.isdigit()
    # Whole with the last token that there is room for, and no end token: not cut.
    found = engine.generate(None, TEXT, regex="[a-z]", temperature=1.0)
    again = engine.generate(
        None, TEXT, regex="[a-z]", temperature=1.0, max_new_tokens=len(found.tokens)
    )
    assert again.text == found.text
    assert again.finish_reason == found.finish_reason == "stop"
    assert not vocabulary_of(engine).ends & set(found.tokens)


@on_every_base
def test_pieces_of_wide_characters_are_whole(engine: Engine) -> None:
    needs_llguidance()
    options: dict[str, Any] = {"regex": WIDE, "temperature": 1.0, "max_new_tokens": 60}
    for seed in range(6):
        stream = engine.stream(None, TEXT, seed=seed, **options)
        pieces = list(stream)
        found = stream.generation
        assert found.finish_reason == "stop"
        assert "".join(pieces) == found.text
        assert all(set(piece) <= set("é中🙂") for piece in pieces)
        assert len(found.text) == 6
        assert len(pieces) == 6


@on_every_base
def test_threads_with_constraints_of_their_own(engine: Engine) -> None:
    needs_llguidance()
    asked: list[dict[str, Any]] = [
        {"regex": "[0-9]{6}"},
        {"schema": {"type": "array", "items": {"type": "boolean"}, "maxItems": 5}},
        {"choices": CHOICES},
        {"regex": "[a-z ]{1,12}"},
    ]
    keys = [(number, seed) for number in range(4) for seed in range(4)]

    def answer(key: tuple[int, int]) -> tuple[int, ...]:
        options = {**asked[key[0]], "temperature": 1.0, "seed": key[1]}
        return engine.generate(None, TEXT, **options).tokens

    wanted = {key: answer(key) for key in keys}
    wrong: list[object] = []

    def work(first: int) -> None:
        for step in range(len(keys)):
            key = keys[(5 * first + step) % len(keys)]
            if answer(key) != wanted[key]:
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_mask_comes_before_everything(engine: Engine) -> None:
    """Top-k and top-p of what may be written, and the penalty after the mask."""
    vocabulary = vocabulary_of(engine)
    choices = Choices(tuple("abcdef"), vocabulary)
    allowed = np.flatnonzero(choices.begin().allowed())
    assert len(allowed) == 6
    logits = np.full(vocabulary.size, 9.0, np.float32)
    logits[allowed] = [1.0, 2.0, 3.0, 4.0, 5.0, 4.9]
    masked = np.full(vocabulary.size, -np.inf, np.float32)
    masked[allowed] = logits[allowed]
    none = np.empty(0, np.int64)

    def drawn(options: GenerationOptions, text: Any = none) -> set[int]:
        found = set()
        for seed in range(60):
            seeded = replace(options, seed=seed)
            sampler = Sampler(seeded, text, choices.begin())
            found.add(sampler.choose(logits))
        return found

    best = allowed[[4, 5]]
    assert drawn(GenerationOptions()) == {int(best[0])}
    # The penalty moves the best one below the next.
    seen = np.array([best[0]])
    penalty = GenerationOptions(repetition_penalty=2.0)
    assert drawn(penalty, seen) == {int(best[1])}
    assert penalised(masked, seen.tolist(), 2.0)[best[0]] == 2.5
    for changes in ({"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.7}):
        options = GenerationOptions(temperature=1.0, **changes)
        kept = np.flatnonzero(np.isfinite(filtered(masked, options)))
        assert drawn(options) == set(kept.tolist()) == set(best.tolist())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"schema": "false"}, "schema is false"),
    ({"schema": {"enum": []}}, "anyOf is empty"),
    ({"schema": {"type": "string", "minLength": 5, "maxLength": 2}}, "greater than"),
    ({"schema": {"allOf": [{"type": "string"}, {"type": "null"}]}}, "incompatible"),
    ({"schema": {"type": "bogus"}}, "Invalid type: bogus"),
    ({"schema": {"uniqueItems": True}}, "Unimplemented keys"),
    ({"schema": {"$ref": "http://localhost/x"}}, "not present in a registry"),
    ({"schema": "[1]"}, "must be an object or boolean"),
    ({"schema": '{"a":1,"a":2}'}, "duplicate name 'a'"),
    ({"schema": "{"}, "schema is no JSON"),
    ({"schema": {"x": float("nan")}}, "NaN is no JSON"),
    ({"schema": {"x": {1, 2}}}, "not JSON serializable"),
    ({"schema": 7}, "allowed: text"),
    ({"schema": {"enum": ["a" * 70_000]}}, "allowed: text, 1 to 65536"),
    ({"schema": '{"items":' * 500 + "{}" + "}" * 500}, "recursion limit"),
    ({"regex": "("}, "unclosed group"),
    ({"regex": "a)|(b"}, "unopened group"),
    ({"regex": "(?=a)b"}, "look-around"),
    ({"regex": r"(a)\1"}, "backreferences are not supported"),
    ({"regex": r"[^\s\S]"}, "allows no answer"),
    ({"regex": "a" * 5000}, "regex of 5000 characters, allowed: text, 1 to 4096"),
    ({"regex": "\ud800"}, "half a character"),
    ({"regex": ""}, "allowed: text, 1 to"),
    ({"choices": []}, "choices are none"),
    ({"choices": ["a", "a"]}, "given twice"),
    ({"choices": ["a", ""]}, "not 1 to 1024 characters"),
    ({"choices": ["x"] * 2000}, "at most 1024"),
    ({"choices": ["a", "\ud800"]}, "half a character"),
    ({"choices": ["a</s>"]}, "tokenizer writes it as 'a'"),
    ({"choices": ["a"], "regex": "a"}, "choices and regex, allowed: one of them"),
    ({"choices": ["a"], "stop": "b"}, "ends by itself"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_what_cannot_be_met_is_refused(
    engine: Engine, options: dict[str, Any], message: str
) -> None:
    needs_llguidance()
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        engine.generate(None, TEXT, **options)
    assert len(caught.value.message) < 320


@pytest.mark.parametrize("engine", REAL[:1], indirect=True)
def test_a_schema_that_fits_nothing_is_refused_behind_a_blank_too(
    engine: Engine,
) -> None:
    needs_llguidance()
    for options, message in REFUSED:
        if {"schema", "regex"} & set(options) and "choices" not in options:
            with pytest.raises(UsageError, match=re.escape(message)):
                engine.generate(None, TEXT, **options)
    found = engine.generate(None, TEXT, schema="true", max_new_tokens=4)
    assert found.tokens


def test_a_value_without_an_end_is_cut_not_endless(engine: Engine) -> None:
    """Only an endless value fits: it ends with the tokens that were asked for."""
    needs_llguidance()
    endless = {
        "type": "object",
        "properties": {"a": {"$ref": "#"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    found = engine.generate(None, TEXT, schema=endless, max_new_tokens=40)
    assert (found.finish_reason, len(found.tokens)) == ("length", 40)
    assert found.text.replace(" ", "").startswith('{"a":{"a":{')


def test_a_grammar_past_its_limits_is_an_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_llguidance()
    monkeypatch.setattr("promptdial.runtime.grammar._MAX_LEXER_STATES", 60)
    with pytest.raises(UsageError, match="regex: "):
        engine.generate(None, TEXT, regex="(.*a.{30}){2}", max_new_tokens=60)


def blanks_as_marks(*parts: Any) -> Tokenizer:
    """A tokenizer whose tokens write a blank as a mark, and what decodes them."""
    bytes_ = {f"<0x{number:02X}>": 4 + number for number in range(256)}
    tokens = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581": 3, **bytes_}
    found = Tokenizer(models.BPE(tokens, [], unk_token="<unk>", byte_fallback=True))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Sequence([decoders.ByteFallback(), *parts])
    return found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _: Tokenizer.from_str(tiny_tokenizer_json()), "decoder type"),
        (lambda it: setattr(it, "decoder", decoders.BPEDecoder()), "decoder type"),
        # llguidance takes the marks for signs of the text.
        (lambda _: blanks_as_marks(decoders.Metaspace()), "not plain bytes"),
    ],
    ids=["wordpiece", "bpe", "metaspace"],
)
def test_tokenizers_that_are_not_plain_bytes_are_refused(
    change: Any, reason: str
) -> None:
    needs_llguidance()
    tokenizer = make_tokenizer()
    tokenizer = change(tokenizer) or tokenizer
    encoder = TextEncoder(tokenizer.to_str(), 128)
    vocabulary = Vocabulary(encoder, encoder.vocab_size, frozenset({2}))
    with pytest.raises(CannotConstrain, match=reason) as caught:
        GrammarCompiler(vocabulary)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("strip", "first"), [([], "<0x78>"), ([decoders.Strip(" ", 1, 0)], "\u2581")]
)
def test_a_blank_that_is_taken_away_is_written(strip: list[Any], first: str) -> None:
    """Llama 2's decoder takes one in front, Gemma's none."""
    needs_llguidance()
    parts = [decoders.Replace("\u2581", " "), decoders.Fuse(), *strip]
    tokenizer = blanks_as_marks(*parts)
    encoder = TextEncoder(tokenizer.to_str(), 128)
    vocabulary = Vocabulary(encoder, encoder.vocab_size, frozenset({2}))
    mask = GrammarCompiler(vocabulary).regex("x").begin().allowed()
    assert np.flatnonzero(mask).tolist() == [tokenizer.token_to_id(first)]


def test_a_tokenizer_that_changes_the_text() -> None:
    """It writes in lower case: choices say so, expressions hold for what is written."""
    needs_llguidance()
    tokenizer = make_tokenizer()
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    encoder = TextEncoder(tokenizer.to_str(), 128)
    vocabulary = Vocabulary(encoder, encoder.vocab_size, frozenset({2}))
    with pytest.raises(UsageError, match="writes it as ' alarm'"):
        Choices(("Alarm",), vocabulary)
    assert GrammarCompiler(vocabulary).regex("A|B").begin().allowed().sum() == 2
    with pytest.raises(CannotConstrain, match="vocab size too small"):
        GrammarCompiler(replace(vocabulary, size=10))


def test_a_base_without_an_end_token(engine: Engine) -> None:
    needs_llguidance()
    endless = replace(vocabulary_of(engine), ends=frozenset())
    assert Choices(("radio", "light"), endless).begin().allowed().sum() == 2
    with pytest.raises(UsageError, match="begins another one"):
        Choices(CHOICES, endless)
    with pytest.raises(CannotConstrain, match="end token"):
        GrammarCompiler(endless)


def test_a_grammar_is_compiled_once_and_few_are_kept(bundle: Path) -> None:
    needs_llguidance()
    with Engine(bundle, threads=1) as engine:
        kept = engine._decoder_model().constraints
        for schema in (SCHEMA, json.dumps(SCHEMA), json.dumps(SCHEMA, indent=2)):
            engine.generate(None, TEXT, schema=schema, max_new_tokens=2)
        assert len(kept) == 1
        compiler = kept._compiler
        for number in range(MAX_KEPT + 5):
            regex = f"a{{{number + 1}}}"
            engine.generate(None, TEXT, regex=regex, max_new_tokens=2)
        assert len(kept) == MAX_KEPT
        assert kept._compiler is compiler
        # Not taken for the schema of the same words.
        engine.generate(None, TEXT, regex="alarm")
        found = engine.generate(None, TEXT, choices=["regex", "alarm"])
        assert found.text in ("regex", "alarm")


def test_a_prompt_may_bring_its_own_constraint(engine: Engine) -> None:
    needs_llguidance()
    engine.load(prompt_blob(engine, "json", 1, schema=SCHEMA, max_new_tokens=90))
    found = engine.run("json", TEXT)
    assert isinstance(found, Generation)
    assert found.finish_reason == "stop"
    check_answer(found)
    assert found.text.startswith('{"')
    batch = engine.run_batch([("json", TEXT), (None, TEXT), ("json", TEXT)])
    assert [item.tokens for item in (batch[0], batch[2])] == [found.tokens] * 2  # type: ignore[union-attr]
    # The call's takes its place; stop strings do not go with it.
    assert engine.generate("json", TEXT, choices=CHOICES).text in CHOICES
    with pytest.raises(UsageError, match="ends by itself"):
        engine.generate("json", TEXT, stop="a")
    engine.load(prompt_blob(engine, "stops", 1, stop=["a", "e"]))
    assert engine.generate("stops", TEXT, choices=CHOICES).text in CHOICES
    for odd in ({"schema": "{"}, {"choices": 3}, {"regex": "a", "schema": "{}"}):
        with pytest.raises(PromptRefused, match="generation of 'odd'"):
            engine.load(prompt_blob(engine, "odd", 1, **odd))


def test_without_the_extra_the_message_says_what_to_install(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with Engine(bundle, threads=1) as engine:
        with pytest.raises(MissingExtra, match=r"pip install 'promptdial\[constrained"):
            engine.generate(None, TEXT, regex="a")
        assert engine.generate(None, TEXT, choices=CHOICES).text in CHOICES


def test_run_takes_constraints(
    engine: Engine, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_llguidance()
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    write_blob(prompts / "one.safetensors", prompt_blob(engine, "one", 1))
    schema = tmp_path / "flags.json"
    schema.write_text('{"type": "array", "items": {"type": "boolean"}, "maxItems": 3}')
    asked = ["run", str(bundle), "one", TEXT, "--prompts", str(prompts), "--json"]
    capsys.readouterr()

    def answer(*options: str) -> str:
        assert main([*asked, *options]) == 0
        return str(json.loads(capsys.readouterr().out)["text"])

    assert answer("--choice", "radio", "--choice", "light") in ("radio", "light")
    assert re.fullmatch("[0-9]{3}", answer("--regex", "[0-9]{3}"))
    assert isinstance(json.loads(answer("--schema", str(schema))), list)
    assert main([*asked, "--schema", str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert main([*asked, "--regex", "("]) == 2
    assert "USAGE: regex: unclosed group" in capsys.readouterr().err
