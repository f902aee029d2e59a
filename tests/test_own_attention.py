"""The check that promptdial's attention computes what a decoder's own code computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import DECODERS, Decoder, make_decoder, plain_model
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from promptdial.export import model as model_file
from promptdial.export.errors import Unsupported
from promptdial.export.model import load_base, quiet_transformers, resolve
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
