"""A base's chat template as texts before and after the input.

The checkpoint's template is a program (Jinja) that no device should run: it is rendered
once, when a prompt is trained, around a mark that stands for the input. What it gives
must be, token for token, what transformers gives for the same turn.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from promptdial.export.model import quiet_transformers
from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.metadata import NEUTRAL
from promptdial.prompts.training.task import CHAT
from promptdial.runtime.text import TextEncoder

_MARK = "0input0"
_TRIED = "Wake me at seven, please."


def without_chat(
    template: dict[str, Any], folder: Path, encoder: TextEncoder
) -> dict[str, Any]:
    """A task's template with `chat` made into `before` and `after`.

    Args:
        template: Of the task; one without `chat` comes back as it is.
        folder: The checkpoint.
        encoder: The base's.

    Raises:
        DataInvalid: The base has no chat template, or none that can be told in texts
            around the input; or `before` or `after` are given beside it.
    """
    if CHAT not in template:
        return template
    if set(template) - {CHAT, NEUTRAL}:
        raise DataInvalid("template has chat and before or after", "give one of them")
    with quiet_transformers():
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if not getattr(tokenizer, "chat_template", None):
        raise DataInvalid(
            "the base's tokenizer has no chat template", "give before and after"
        )
    system = str(template[CHAT])
    before, mark, after = _rendered(tokenizer, system, _MARK).partition(_MARK)
    if not mark or _MARK in after:
        raise DataInvalid(
            "the base's chat template changes the input or repeats it",
            "give before and after",
        )
    wanted = tokenizer(
        _rendered(tokenizer, system, _TRIED), add_special_tokens=False
    ).input_ids
    # The tokenizer itself may put the beginning's token in front once more.
    for start in (before, before.removeprefix(tokenizer.bos_token or "")):
        if encoder.encode(f"{start}{_TRIED}{after}").ids.tolist() == wanted:
            neutral = {NEUTRAL: template[NEUTRAL]} if NEUTRAL in template else {}
            return {"before": start, "after": after, **neutral}
    raise DataInvalid(
        "the base's chat template gives other tokens than its texts",
        "give before and after",
    )


def _rendered(tokenizer: Any, system: str, text: str) -> str:
    """One turn of the user, and the beginning of the answer."""
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": text})
    try:
        found = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
    # Templates raise what they like, for a system's message that they do not take too.
    except Exception as error:
        raise DataInvalid(
            f"the base's chat template fails: {error}", "give before and after"
        ) from None
    return str(found)
