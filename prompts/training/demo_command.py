"""The demo command: arguments, and the table people see. Light to import."""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from promptdial.runtime.command import Command

_ANSWER_WIDTH = 58


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="minilm", help="hub id, folder or minilm")
    parser.add_argument(
        "--work", type=Path, help="keep the bundle and the new blob in this folder"
    )


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from promptdial.prompts.training.demo import run_demo

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if args.work is not None:
        args.work.mkdir(parents=True, exist_ok=True)
        return asdict(run_demo(args.model, args.work, say))
    with tempfile.TemporaryDirectory(prefix="promptdial-demo-") as folder:
        return asdict(run_demo(args.model, Path(folder), say))


def _show(report: dict[str, Any]) -> str:
    head = f"{'task':14} {'KB':>6} {'ms':>6} {'first':>7} {'switch':>7}  answers"
    lines = [head, "-" * (len(head) + 40)]
    for item in report["tasks"]:
        answer = item["answer"]
        if len(answer) > _ANSWER_WIDTH:
            answer = answer[: _ANSWER_WIDTH - 3] + "..."
        lines.append(
            f"{item['task']:14} {item['kilobytes']:6.1f} {item['ms']:6.2f} "
            f"{item['first_ms']:7.2f} {item['switch_ms']:7.3f}  {answer}"
        )
    live = report["live"]
    lines += [
        "",
        f"{len(report['tasks'])} tasks, {report['prompt_bytes'] / 1000:.0f} KB of "
        f"prompts, one {report['bundle_bytes'] / 1e6:.1f} MB bundle "
        f"(INT8 against PyTorch: cosine {report['cosine']:.4f})",
        "ms: a request of the same task again; first: with file and prefix; "
        "switch: what a request costs more after another task",
        f"trained live in {live['seconds']:.0f} s from written examples: dev "
        f"{live['dev_before']:.1f} -> {live['dev_after']:.1f}, "
        f"{live['test_right']} of {live['test_rows']} test rows right",
    ]
    return "\n".join(lines)


demo = Command(
    summary="export MiniLM, run the shipped prompts, train one live; offline",
    configure=_configure,
    run=_run,
    show=_show,
)
