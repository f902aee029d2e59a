"""The check that promptdial's attention computes what a model's own code computes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, class_of, make_model
from decoders import DECODERS, Decoder, make_decoder, plain_model
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.masking_utils import sdpa_mask

from promptdial.export import model as model_file
from promptdial.export.errors import Unsupported
from promptdial.export.forward import ONE_WAY
from promptdial.export.model import ENCODER, load_base, quiet_transformers, resolve
from promptdial.export.model_probe import require_own_function
from promptdial.export.prefix_attention import ATTENTION, Prefix, prefix_attention

FORGETFUL = "forgets_softcap"
GEMMA2 = next(kind for kind in DECODERS if kind.name == "gemma2")


def forgetful(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    prefix: Prefix | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As an attention function that knows nothing of Gemma 2's bent scores."""
    del softcap
    return prefix_attention(
        module, query, key, value, attention_mask, scaling, prefix=prefix
    )


AttentionInterface.register(FORGETFUL, forgetful)
AttentionMaskInterface.register(FORGETFUL, sdpa_mask)


@pytest.mark.parametrize("kind", DECODERS, ids=lambda kind: str(kind.name))
def test_the_model_runs_its_own_code_and_then_ours_again(
    kind: Decoder, tmp_path: Path
) -> None:
    """What the check compares with is what a plain load of the checkpoint computes."""
    folder = make_decoder(kind, tmp_path / "model")
    model: Any = load_base(resolve(str(folder))).model
    rows = 0.3 * torch.randn(
        1, 5, model.get_input_embeddings().weight.shape[1], generator=seeded()
    )
    plain = plain_model(folder)
    with quiet_transformers(), torch.no_grad():
        require_own_function(model)
        assert model.config._attn_implementation == ATTENTION
        prefix = Prefix()
        ours = model(inputs_embeds=rows, prefix=prefix, use_cache=False).logits
        kinds = getattr(model.config, "layer_types", None) or []
        attending = model.config.num_hidden_layers - list(kinds).count("conv")
        assert prefix.layers == attending
        model.set_attn_implementation("eager")
        own = model(inputs_embeds=rows, prefix=Prefix(), use_cache=False).logits
        wanted = plain(inputs_embeds=rows, use_cache=False).logits
    assert torch.equal(own, wanted)
    assert torch.allclose(ours, wanted, atol=1e-4)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_an_attention_that_drops_an_argument_is_refused(tmp_path: Path) -> None:
    kind = Decoder(
        GEMMA2.name,
        GEMMA2.config,
        GEMMA2.model,
        # Bent so much that a few rows show it.
        {**GEMMA2.options, "attn_logit_softcapping": 0.5},
    )
    base = load_base(resolve(str(make_decoder(kind, tmp_path / "model"))))
    model: Any = base.model
    model.set_attn_implementation(FORGETFUL)
    with pytest.raises(Unsupported, match="Gemma2ForCausalLM computes its attention"):
        require_own_function(model)
    assert model.config._attn_implementation == FORGETFUL


T5 = next(kind for kind in ARCHITECTURES if kind.name == "t5")


def test_an_encoder_whose_positions_would_be_dropped_is_refused(tmp_path: Path) -> None:
    """T5 hands what its relative positions add to scores to the attention function."""
    model: Any = load_base(resolve(str(make_model(T5, tmp_path / "model")))).model
    model.set_attn_implementation(FORGETFUL)
    with pytest.raises(Unsupported, match="T5EncoderModel computes its attention"):
        require_own_function(model)


@pytest.mark.parametrize(("name", "classes"), [("mt5", "MT5"), ("umt5", "UMT5")])
def test_relatives_of_t5_answer_over_a_prefix_as_in_one_sequence(
    tmp_path: Path, name: str, classes: str
) -> None:
    """Distances count the prefix; umT5 has a table of them in every layer."""
    kind = replace(T5, name=name, classes=classes)
    folder = make_model(kind, tmp_path / "model")
    base = load_base(resolve(str(folder)))
    assert base.attention == ONE_WAY
    rows = torch.randn(1, 12, base.dims.hidden, generator=seeded())
    count, text = 5, 7
    with quiet_transformers(), torch.no_grad():
        plain = class_of(kind).from_pretrained(folder).eval()
        near = torch.ones(1, 1, count + text, count + text, dtype=torch.bool)
        near[..., :count, count:] = False
        wanted = plain(inputs_embeds=rows, attention_mask=near).last_hidden_state
        state = base.frozen.state_of(rows[0, :count])
        mask = torch.ones(1, text, dtype=torch.long)
        found = base.frozen.hidden(rows[:, count:], mask, torch.zeros_like(mask), state)
        alone = base.frozen.hidden(rows[:, count:], mask, torch.zeros_like(mask), [])
    assert torch.allclose(found, wanted[:, count:], atol=1e-5)
    assert float((alone - found).abs().max()) > 0.01


def test_the_encoder_of_a_whole_t5_is_taken(tmp_path: Path) -> None:
    """What T5 is usually saved as: an encoder and a decoder in one checkpoint."""
    half = load_base(resolve(str(make_model(T5, tmp_path / "half"))))
    config: Any = half.model.config
    whole = T5ForConditionalGeneration(T5Config(**config.to_dict()))
    whole.encoder.load_state_dict(half.model.encoder.state_dict())  # type: ignore[union-attr]
    folder = tmp_path / "whole"
    with quiet_transformers():
        whole.save_pretrained(folder)
    text = (tmp_path / "half" / "tokenizer.json").read_text("utf-8")
    (folder / "tokenizer.json").write_text(text, "utf-8")
    base = load_base(resolve(str(folder)))
    assert (base.family, base.base.architecture) == (ENCODER, "T5EncoderModel")
    rows = torch.randn(1, 6, base.dims.hidden, generator=seeded())
    with torch.no_grad():
        ones = torch.ones(1, 6, dtype=torch.long)
        found, wanted = (
            one.frozen.hidden(rows, ones, torch.zeros_like(ones), [])
            for one in (base, half)
        )
    assert torch.equal(found, wanted)


def test_a_model_that_cannot_switch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers only warns then: ours would be compared with itself."""
    model = load_base(resolve(str(make_decoder(GEMMA2, tmp_path / "model")))).model
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", lambda *_: False)
    with quiet_transformers(), pytest.raises(Unsupported, match="unknown way"):
        require_own_function(model)


def test_a_decoder_is_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = model_file._load

    def counted(folder: Path, model_type: str, family: str, attention: str) -> Any:
        loads.append(attention)
        return load(folder, model_type, family, attention)

    monkeypatch.setattr(model_file, "_load", counted)
    load_base(resolve(str(make_decoder(GEMMA2, tmp_path / "model"))))
    assert loads == [ATTENTION]
