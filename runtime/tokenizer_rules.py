"""What a bundle's tokenizer.json may hold: nothing that runs away on a long text.

A `Split` or `Replace` may carry any regular expression for a backtracking engine
(Oniguruma). `(a+)+$` on 26 letters ends in a Rust panic, which is no Exception in
Python, and others take minutes. Two ways to be safe were weighed:

- Trying the tokenizer on long texts in a process with a time limit. It proves nothing:
  only a text that fits the pattern makes it run away, and who writes the pattern knows
  the text; it also costs a process at every opening.
- A list of what is allowed, which is what this file does. Patterns are compared letter
  by letter with those of the known families; components are those of the library. A
  check for nested quantifiers instead would have to know all of Oniguruma's syntax, and
  an error in it is a hole; an unknown pattern here is a clear refusal at export time.

Replacements may not lengthen a text: ten that each write ten letters for one would
make 10**10 of one. Words longer than MAX_WORD_CHARS are [UNK] to a WordPiece model,
whose search takes the cube of a word's length. Tokens and merges are not read here:
the library's own reader checks those.
"""

import re
from typing import Any

from promptdial.prompts.strict_json import JsonInvalid, parse_json

MAX_JSON_CHARS = 64_000_000
MAX_WORD_CHARS = 256
MAX_COMPONENTS = 64

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

PATTERNS = frozenset(
    {
        # GPT-2, RoBERTa, ModernBERT and Phi, where written out
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
        r"|\s+(?!\S)|\s+",
        # Llama 3 and cl100k
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL,
        # Qwen 2, Qwen 2.5, Qwen 3
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL,
        # Qwen 3.5
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        # o200k
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        # CLIP
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        # what converted SentencePiece models do to blanks
        r" {2,}",
        r"\s{2,}|[\n\r\t]",
        r"[\n\r\t]",
        r"\n",
        r"\s+",
        r"\s",
        r"\p{N}{1,3}",
    }
)
"""Regular expressions that are known to take a time linear in any text."""

_TYPES: dict[str, frozenset[str]] = {
    "normalizer": frozenset(
        "BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend "
        "Replace Sequence Strip StripAccents".split()
    ),
    "pre_tokenizer": frozenset(
        "BertPreTokenizer ByteLevel CharDelimiterSplit Digits FixedLength Metaspace "
        "Punctuation Sequence Split UnicodeScripts Whitespace WhitespaceSplit".split()
    ),
    "post_processor": frozenset(
        "BertProcessing ByteLevel RobertaProcessing Sequence TemplateProcessing".split()
    ),
    "decoder": frozenset(
        "BPEDecoder ByteFallback ByteLevel CTC Fuse Metaspace Replace Sequence Strip "
        "WordPiece".split()
    ),
}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:\s*[0-9]+\s*,)?', re.DOTALL)
_READ_NUMBER = '"max_input_chars_per_word"'
_PARTS = ("normalizers", "pretokenizers", "processors", "decoders")
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")


class TokenizerRefused(ValueError):
    """tokenizer.json holds what a bundle may not; the message names the rule."""


def check_tokenizer(text: str) -> None:
    """Check the text of a tokenizer.json before the library compiles its patterns.

    Raises:
        TokenizerRefused: It is no JSON, or a component or pattern is not allowed.
    """
    if len(text) > MAX_JSON_CHARS:
        raise TokenizerRefused(f"{len(text)} characters, at most {MAX_JSON_CHARS}")
    try:
        # A key given twice could show one value here and another to the library.
        body = parse_json(_without_tokens(text))
    except JsonInvalid as error:
        raise TokenizerRefused(f"no JSON: {error}") from None
    if not isinstance(body, dict):
        raise TokenizerRefused("no JSON object")
    _check_model(body.pop("model", None))
    for place, allowed in _TYPES.items():
        budget = [MAX_COMPONENTS]
        _check_component(place, body.get(place), allowed, budget)
    _check_patterns(body)


def _without_tokens(text: str) -> str:
    """The text without its vocabulary: `"token": 17,` by the ten thousand.

    Parsed, it would take more memory than everything else at opening. Every string is
    read whole, so that nothing inside of one can look like structure; a key with an
    escape stays, as it might be another key in disguise.
    """
    return _STRING.sub(_kept, text)


def _kept(found: re.Match[str]) -> str:
    whole, number = found[0], found[1]
    if not number or "\\" in whole or whole.startswith(_READ_NUMBER):
        return whole
    return ""


def _check_model(model: object) -> None:
    """Files of 2020 do not say the model's type; the library finds it by its keys."""
    if not isinstance(model, dict) or model.get("type", "BPE") not in _MODELS:
        raise TokenizerRefused(f"model is not one of {', '.join(_MODELS)}")
    longest = model.get("max_input_chars_per_word", 0)
    if type(longest) is not int or not 0 <= longest <= MAX_WORD_CHARS:
        raise TokenizerRefused(
            f"max_input_chars_per_word is {str(longest)[:32]}, at most {MAX_WORD_CHARS}"
        )


def _check_component(
    place: str, item: object, allowed: frozenset[str], budget: list[int]
) -> None:
    if item is None:
        return
    kind = item.get("type") if isinstance(item, dict) else None
    if not isinstance(item, dict) or str(kind) not in allowed:
        raise TokenizerRefused(
            f"{place} is {str(kind)[:32]!r}, allowed: {', '.join(sorted(allowed))}"
        )
    budget[0] -= 1
    if budget[0] < 0:
        raise TokenizerRefused(f"{place} has over {MAX_COMPONENTS} parts")
    if kind in ("Replace", "Prepend"):
        _check_growth(kind, item)
    for key in _PARTS:
        parts = item.get(key, [])
        if not isinstance(parts, list):
            raise TokenizerRefused(f"{place}: {key} is no list")
        for part in parts:
            _check_component(place, part, allowed, budget)


def _check_growth(kind: str, item: dict[str, Any]) -> None:
    """A replacement is no longer than what it replaces: then chains cannot explode."""
    if kind == "Prepend":
        found, most = item.get("prepend"), 1
    else:
        pattern = item.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        found, most = item.get("content"), len(literal) if literal else 1
    if not isinstance(found, str) or len(found) > most:
        raise TokenizerRefused(
            f"{kind} writes {str(found)[:32]!r}, at most {most} characters there"
        )


def _check_patterns(value: object) -> None:
    """Look everywhere but in the model: a pattern counts wherever the library finds it.

    Also in places that are not checked above, such as forms of older files.
    """
    if isinstance(value, list):
        for item in value:
            _check_patterns(item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key == "Regex" and not (isinstance(item, str) and item in PATTERNS):
            raise TokenizerRefused(
                f"pattern {str(item)[:80]!r} may run away on a long text, allowed: "
                f"the {len(PATTERNS)} known ones of runtime/tokenizer_rules.py"
            )
        if key == "pattern" and item in ("", {"String": ""}):
            raise TokenizerRefused("pattern '' is empty, at least 1 character")
        _check_patterns(item)
