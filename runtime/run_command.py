"""The run command: answers to texts, one line each."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from promptdial.prompts.errors import DataInvalid, UsageError
from promptdial.runtime.answers import Classification, Generation, Spans
from promptdial.runtime.command import Command
from promptdial.runtime.engine import Engine
from promptdial.runtime.policy import DEFAULT_POLICY, POLICIES
from promptdial.runtime.profiles import PROFILES
from promptdial.runtime.reading import Answer

Input = tuple[str, str | None]
_SHOWN_VALUES = 4


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("task", metavar="TASK")
    parser.add_argument("text", metavar="TEXT", nargs="*", help="else lines of stdin")
    parser.add_argument(
        "--prompts", type=Path, required=True, help="a folder of blobs, or a store"
    )
    parser.add_argument("--tenant", help="whose tasks of a store")
    parser.add_argument("--text-pair", help="the second text, for pair tasks")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="latency")
    parser.add_argument("--variant", help="graph variant (default: int8)")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default=DEFAULT_POLICY,
        help="whether an accelerator's variant runs (default: %(default)s)",
    )
    written = parser.add_argument_group("prompts that write")
    written.add_argument("--max-new-tokens", type=int, metavar="N")
    written.add_argument("--temperature", type=float, metavar="X", help="0: greedy")
    written.add_argument("--seed", type=int, metavar="N")
    written.add_argument("--stop", action="append", metavar="TEXT", help="repeatable")
    written.add_argument(
        "--choice",
        action="append",
        metavar="TEXT",
        help="the answer is one of these; repeatable",
    )
    written.add_argument(
        "--schema", type=Path, metavar="FILE", help="the answer fits this JSON schema"
    )
    written.add_argument(
        "--regex", metavar="RE", help="the answer matches this as a whole"
    )


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if args.text_pair is not None and len(args.text) != 1:
        raise UsageError("--text-pair goes with one TEXT", "use JSON lines for more")
    count = 0
    with Engine(
        args.bundle,
        args.prompts,
        profile=args.profile,
        variant=args.variant,
        policy=args.policy,
        tenant=args.tenant,
    ) as engine:
        for text, text_pair in _inputs(args):
            started = time.perf_counter()
            answer = _answer(engine, args, text, text_pair)
            ms = 1e3 * (time.perf_counter() - started)
            _print(as_object(args.task, answer, ms), args.json)
            count += 1
    if not count:
        raise UsageError("no text", "give TEXT or lines on stdin")
    return {}


def _answer(
    engine: Engine, args: argparse.Namespace, text: str, text_pair: str | None
) -> Answer:
    options = (args.max_new_tokens, args.temperature, args.seed, args.stop)
    constraints = (args.choice, args.schema, args.regex)
    if all(option is None for option in (*options, *constraints)):
        return engine.run(args.task, text, text_pair)
    return engine.generate(
        args.task,
        text,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        stop=args.stop,
        choices=args.choice,
        schema=None if args.schema is None else _schema(args.schema),
        regex=args.regex,
    )


def _schema(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--schema {path}: {error}", "give a JSON file") from None


def _inputs(args: argparse.Namespace) -> Iterator[Input]:
    if args.text:
        for text in args.text:
            yield text, args.text_pair
        return
    try:
        for number, line in enumerate(sys.stdin, 1):
            if line.strip():
                yield parse_line(line.rstrip("\r\n"), number)
    except UnicodeDecodeError as error:
        raise DataInvalid(f"stdin: {error}", f"send {sys.stdin.encoding}") from None


def parse_line(line: str, number: int) -> Input:
    """A line of stdin: plain text, or a JSON object with text and text_pair.

    Raises:
        DataInvalid: The line begins like an object and is none with a text.
    """
    if not line.lstrip().startswith("{"):
        return line, None
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataInvalid(f"line {number}: {error}", "write JSON or text") from None
    text, text_pair = item.get("text"), item.get("text_pair")
    if not isinstance(text, str) or not isinstance(text_pair, str | None):
        raise DataInvalid(f"line {number} has no text", 'write {"text": "..."}')
    return text, text_pair


def as_object(task: str, answer: Answer, ms: float) -> dict[str, Any]:
    """An answer as the object of one output line."""
    found: dict[str, Any] = {"task": task}
    if isinstance(answer, Classification):
        found["label"] = answer.label
        found["score"] = round(answer.score, 6)
        found["abstained"] = answer.abstained
        found["truncated"] = answer.truncated
    elif isinstance(answer, Spans):
        found["spans"] = [
            {"label": s.label, "text": s.text, "start": s.start, "end": s.end}
            for s in answer.spans
        ]
        scores = [span.score for span in answer.spans]
        found["score"] = round(min(scores), 6) if scores else 1.0
        found["truncated"] = answer.truncated
    elif isinstance(answer, Generation):
        found["text"] = answer.text
        found["tokens"] = len(answer.tokens)
        found["finish_reason"] = answer.finish_reason
        found["truncated"] = answer.truncated
        found["first_token_ms"] = round(answer.timing.first_token_ms, 3)
        found["per_token_ms"] = round(answer.timing.per_token_ms, 3)
    else:
        found["embedding"] = [round(float(value), 6) for value in answer]
    found["ms"] = round(ms, 3)
    return found


def _print(item: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(item, ensure_ascii=False), flush=True)
        return
    if "label" in item:
        # The label of an abstention is a guess, and is shown as one.
        label = f"abstained ({item['label']}?)" if item["abstained"] else item["label"]
        text = f"{label}\t{item['score']:.4f}"
    elif "spans" in item:
        text = "\t".join(f"{s['label']}={s['text']}" for s in item["spans"]) or "-"
    elif "text" in item:
        text = str(item["text"])
    else:
        head = ", ".join(str(value) for value in item["embedding"][:_SHOWN_VALUES])
        text = f"[{head}, ...] {len(item['embedding'])} values"
    print(f"{text}\t{item['ms']:.2f} ms", flush=True)


run = Command(
    summary="answer texts; with --json one object a line",
    configure=_configure,
    run=_run,
    streams=True,
)
