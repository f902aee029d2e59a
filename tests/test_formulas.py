"""Pooling, tagging, words, metrics and rows: small rules with known answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import normal

from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.training.batches import TextBatch
from promptdial.prompts.training.heads import features
from promptdial.prompts.training.initialise import label_words
from promptdial.runtime.metrics import accuracy, bio_spans, entity_f1
from promptdial.runtime.pooling import first_pieces, mean_l2, segments_l2, softmax
from promptdial.runtime.rows import parse_rows, read_rows
from promptdial.runtime.tagging import allowed_steps, best_tags
from promptdial.runtime.words import join_words, split_words


def batch_of(types: list[int], length: int) -> TextBatch:
    """One text padded by two tokens."""
    ids = torch.zeros(1, length + 2, dtype=torch.long)
    mask = torch.tensor([[1] * length + [0, 0]])
    first = torch.zeros(1, length + 2, dtype=torch.bool)
    first[0, 1:3] = True
    return TextBatch(ids, torch.tensor([[*types, 0, 0]]), mask, first)


def test_the_device_pools_as_the_trainer_does() -> None:
    hidden, types = normal(0, 7, 8), [0, 0, 0, 0, 1, 1, 1]
    batch = batch_of(types, 7)
    padded = torch.cat([torch.tensor(hidden), torch.full((2, 8), 9.0)])[None]
    for pooling, found in (
        ("mean_l2", mean_l2(hidden)),
        ("segments_l2", segments_l2(hidden, np.array(types))),
        ("first_token", hidden[1:3]),
    ):
        wanted = features(padded, batch, pooling).numpy().reshape(found.shape)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_device_weighs_rows_as_the_trainer_does() -> None:
    hidden, types = normal(0, 7, 8), [0, 0, 0, 0, 1, 1, 1]
    batch, query = batch_of(types, 7), normal(1, 8)
    padded = torch.cat([torch.tensor(hidden), torch.full((2, 8), 9.0)])[None]
    for pooling, found, plain in (
        ("mean_l2", mean_l2(hidden, query), mean_l2(hidden)),
        (
            "segments_l2",
            segments_l2(hidden, np.array(types), query),
            segments_l2(hidden, np.array(types)),
        ),
    ):
        wanted = features(padded, batch, pooling, torch.tensor(query)).numpy()[0]
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert np.abs(found - plain).max() > 0.05
    zero = np.zeros(8, np.float32)
    np.testing.assert_allclose(mean_l2(hidden, zero), mean_l2(hidden), atol=1e-6)
    # Two levels with a query each are two poolings.
    both = mean_l2(np.stack([hidden, hidden]), np.stack([query, zero]))
    np.testing.assert_allclose(both[0], mean_l2(hidden, query), atol=1e-6)
    np.testing.assert_allclose(both[1], mean_l2(hidden), atol=1e-6)


def test_segments_of_equal_texts_have_cosine_one() -> None:
    hidden = np.concatenate([normal(0, 3, 16), normal(0, 3, 16)])
    pooled = segments_l2(hidden, np.array([0, 0, 0, 1, 1, 1]))
    assert abs(float(pooled.sum()) / 4 - 1) < 1e-5


def test_softmax_of_huge_logits_is_finite() -> None:
    np.testing.assert_allclose(softmax(np.array([1e4, 0], np.float32)), [1, 0])


def test_first_pieces_begin_words() -> None:
    words = np.array([-1, 0, 0, 1, 2, 2, -1])
    assert first_pieces(words).tolist() == [1, 3, 4]


def test_tags_that_continue_nothing_are_never_chosen() -> None:
    labels = ("O", "B-x", "I-x", "B-y", "I-y")
    steps = allowed_steps(labels)
    rng = np.random.default_rng(0)
    for _ in range(50):
        logits = rng.standard_normal((6, 5)).astype(np.float32)
        before = "O"
        for index in best_tags(logits, steps):
            tag = labels[index]
            if tag.startswith("I-"):
                assert before in (f"B-{tag[2:]}", tag)
            before = tag
    assert best_tags(np.zeros((0, 5), np.float32), steps) == []


def test_the_best_sequence_beats_greedy_tags() -> None:
    labels = ("O", "B-x", "I-x")
    logits = np.log(np.array([[0.5, 0.4, 0.1], [0.1, 0.1, 0.8]], np.float32))
    assert best_tags(logits, allowed_steps(labels)) == [1, 2]


def test_words_have_places() -> None:
    text = "don't wake me, at 7:30"
    words, places = split_words(text)
    assert words == ["don't", "wake", "me", ",", "at", "7", ":", "30"]
    assert [text[start:end] for start, end in places] == words
    assert join_words(["a", "bc"]) == ("a bc", ((0, 1), (2, 4)))


def test_label_names_become_words() -> None:
    assert label_words("book_hotel") == "book hotel"
    assert label_words("B-objectType") == "object type"
    assert label_words("O") == "other"


def test_metrics_on_known_answers() -> None:
    assert accuracy(["a", "b"], ["a", "a"]) == 50.0
    assert bio_spans(["I-x", "I-x", "B-x", "O", "B-y", "I-x"]) == [
        ("x", 0, 2),
        ("x", 2, 3),
        ("y", 4, 5),
        ("x", 5, 6),
    ]
    assert entity_f1([["B-x", "I-x", "O"]], [["B-x", "I-x", "O"]]) == 100.0
    assert entity_f1([["B-x", "I-x", "B-y"]], [["B-x", "O", "B-y"]]) == 50.0
    assert entity_f1([["O"]], [["O"]]) == 100.0


BAD_ROWS = {
    "no object": ("[1]", "not a JSON object"),
    "broken": ("{", "line 1"),
    "no text": ('{"label": "a"}', "key text is missing"),
    "empty text": ('{"text": " ", "label": "a"}', "text is empty"),
    "surrogate": ('{"text": "\\ud800", "label": "a"}', "lone surrogate"),
    "label no text": ('{"text": "a", "label": 3}', "label is 3"),
    "tags too short": ('{"tokens": ["a", "b"], "tags": ["O"]}', "2 tokens but 1 tags"),
    "tokens no list": ('{"tokens": "a", "tags": []}', "tokens is not a list"),
    "deep": ("[" * 100_000, "line 1"),
    "long": ('{"text": "' + "a" * 1_000_001 + '"}', "characters, at most"),
    "mixed kinds": (
        '{"text": "a"}\n{"text": "a", "text_pair": "b"}',
        "line 2 is a pair",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_refused_with_their_line(name: str) -> None:
    text, message = BAD_ROWS[name]
    with pytest.raises(DataInvalid, match=r"rows\.jsonl line") as caught:
        parse_rows(text.splitlines(), "rows.jsonl")
    assert message in str(caught.value)


def test_files_without_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n")
    with pytest.raises(DataInvalid, match="has no rows"):
        read_rows(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataInvalid):
        read_rows(path)
    with pytest.raises(DataInvalid, match="No such file"):
        read_rows(tmp_path / "none.jsonl")
