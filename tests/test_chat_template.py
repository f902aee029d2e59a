"""Chat templates: texts around the input that give transformers' own tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
from decoders import DECODERS, make_decoder
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from promptdial.export import export_bundle
from promptdial.prompts.blob import read_blob
from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.training.decoders.chat_template import without_chat
from promptdial.runtime import Engine
from promptdial.runtime.cli import main
from promptdial.runtime.text import TextEncoder

CHATML = (
    "{{ bos_token }}{% for turn in messages %}<{{ turn.role }}>\n{{ turn.content }}"
    "</s>\n{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
LOUD = "{% for turn in messages %}{{ turn.content | upper }}{% endfor %}"
TWICE = "{{ messages[0].content }} {{ messages[0].content }}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}"
    "{% endif %}{{ messages[0].content }}:"
)
TEXT = "turn the red light on"


def chat_model(folder: Path, template: str | None) -> Path:
    """A tiny Llama whose tokenizer has a chat template."""
    kind = next(kind for kind in DECODERS if kind.name == "llama")
    model = make_decoder(kind, folder)
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    made: Any = PreTrainedTokenizerFast
    tokenizer = made(tokenizer_file=str(model / "tokenizer.json"), **marks)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    return model


def encoder_of(model: Path) -> TextEncoder:
    return TextEncoder((model / "tokenizer.json").read_text("utf-8"), 100)


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_texts_give_the_tokens_of_transformers(system: str, tmp_path: Path) -> None:
    """The beginning's token is not put in front twice."""
    model = chat_model(tmp_path / "model", CHATML)
    found = without_chat({"chat": system, "neutral": "x"}, model, encoder_of(model))
    assert found["neutral"] == "x"
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": TEXT})
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    whole = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )
    wanted = tokenizer(whole, add_special_tokens=False).input_ids
    ids = encoder_of(model).encode(f"{found['before']}{TEXT}{found['after']}").ids
    assert ids.tolist() == wanted
    assert wanted.count(1) == 1


@pytest.mark.parametrize(
    ("template", "about", "message"),
    [
        (None, {"chat": ""}, "no chat template"),
        (LOUD, {"chat": ""}, "changes the input or repeats"),
        (TWICE, {"chat": ""}, "changes the input or repeats"),
        (NO_SYSTEM, {"chat": "Be brief."}, "no system here"),
        (CHATML, {"chat": "", "before": "x"}, "chat and before"),
    ],
)
def test_what_texts_cannot_tell_is_refused(
    template: str | None, about: dict[str, str], message: str, tmp_path: Path
) -> None:
    model = chat_model(tmp_path / "model", template)
    with pytest.raises(DataInvalid, match=message):
        without_chat(about, model, encoder_of(model))


def test_a_prompt_is_trained_and_run_in_its_chat_template(tmp_path: Path) -> None:
    model = chat_model(tmp_path / "model", CHATML)
    bundle = export_bundle(str(model), tmp_path / "a.bundle", ("fp32",)).bundle
    task = tmp_path / "talk"
    task.mkdir()
    for part in ("train", "dev"):
        row = json.dumps({"text": TEXT, "target": "it is on"})
        (task / f"{part}.jsonl").write_text(row)
    (task / "task.yaml").write_text("template: {chat: Be brief.}\n")
    out = tmp_path / "talk.safetensors"
    options = ["--epochs", "60", "--patience", "60", "--learning-rate", "0.1"]
    options += ["--num-virtual-tokens", "8", "--out", str(out)]
    assert main(["train", str(model), "--task", str(task), *options]) == 0
    template = read_blob(out).meta.template
    assert template["before"] == "<system>\nBe brief.</s>\n<user>\n"
    assert template["after"] == "</s>\n<assistant>\n"
    with Engine(bundle, threads=1) as engine:
        engine.load(out)
        assert engine.generate("talk", TEXT).text.strip() == "it is on"
