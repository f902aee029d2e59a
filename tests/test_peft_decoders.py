"""Adapters of PEFT on a decoder: packed, they give PEFT's own logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import (
    MadeDecoder,
    made_decoder,
    plain_model,
)
from made_once import MakeOnce
from peft import (
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)

from promptdial.export.decoder_sides import GraphDecoder
from promptdial.export.model import load_base, resolve
from promptdial.export.session import cpu_session
from promptdial.prompts.blob import read_blob
from promptdial.runtime import Engine
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main

# PEFT asks transformers for attributes that are about to be renamed.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

IDS = [1, 20, 31, 47, 102, 250]
CONFIGS: dict[str, Any] = {
    "prompt": PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=6),
    "p-tuning": PromptEncoderConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=6, encoder_hidden_size=32
    ),
    "prefix": PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=6),
}


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> MadeDecoder:
    return made_decoder(make_once, "llama", exact=True)


@pytest.fixture(scope="module")
def model(made: MadeDecoder) -> Path:
    return made.model


@pytest.fixture(scope="module")
def bundle(made: MadeDecoder) -> Path:
    return made.bundle


@pytest.mark.parametrize("method", CONFIGS)
def test_an_adapter_gives_the_logits_of_peft(
    method: str, model: Path, bundle: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    tuned = get_peft_model(plain_model(model), CONFIGS[method]).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        wanted = tuned(input_ids=torch.tensor([IDS])).logits[0, -len(IDS) :].numpy()
    out = tmp_path / "adapted.safetensors"
    precision = "f16" if method == "prefix" else "f32"
    arguments = ["pack", str(tmp_path / "adapter"), str(out), "--bundle", str(bundle)]
    assert main([*arguments, "--kind", "generation", "--precision", precision]) == 0
    blob = read_blob(out)
    opened = open_bundle(bundle, "fp32")
    table = load_base(resolve(str(model))).token_table.numpy()
    graph = GraphDecoder(
        cpu_session(opened.graph_path, threads=1), opened.manifest.dims, table
    )
    rows = blob.prompt_embeddings
    state: Any = [(key[None], value[None]) for key, value in blob.past_key_values]
    if rows is not None:
        state = graph.state(rows)
    feed = graph.feed(table[IDS][None], np.ones((1, len(IDS)), np.int64), state)
    found = graph.session.run(["logits"], feed)[0][0]
    plain = graph.session.run(
        ["logits"], graph.feed(table[IDS][None], np.ones((1, len(IDS)), np.int64), [])
    )[0][0]
    # A deep prompt is stored in half precision.
    assert np.abs(found - wanted).max() < (2e-2 if method == "prefix" else 1e-4)
    assert np.abs(plain - wanted).max() > 0.1
    with Engine(bundle, threads=1) as engine:
        engine.load(blob)
        engine.generate("adapted", "play the news", max_new_tokens=4)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_a_blob_goes_back_to_peft(
    method: str, model: Path, bundle: Path, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    tuned = get_peft_model(plain_model(model), CONFIGS[method]).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    out, again = tmp_path / "adapted.safetensors", tmp_path / "again"
    precision = "f16" if method == "prefix" else "f32"
    arguments = ["pack", str(tmp_path / "adapter"), str(out), "--bundle", str(bundle)]
    assert main([*arguments, "--kind", "generation", "--precision", precision]) == 0
    assert main(["unpack", str(out), str(again)]) == 0
    loaded = PeftModel.from_pretrained(plain_model(model), str(again)).eval()
    with torch.no_grad():
        ids = torch.tensor([IDS])
        wanted, found = tuned(input_ids=ids).logits, loaded(input_ids=ids).logits
    assert float((wanted - found).abs().max()) < 2e-2
