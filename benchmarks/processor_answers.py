"""Answers of one processor, as JSON; other_processors.py runs it.

    python benchmarks/processor_answers.py BUNDLE PROMPTS TEXTS.json

TEXTS.json is a list of texts to embed without a prompt.
"""

import json
import platform
import sys
from pathlib import Path

import onnxruntime

from promptdial.prompts.folder import PromptFolder
from promptdial.runtime import Engine
from promptdial.runtime.processor import lacks_all, processor_features
from promptdial.runtime.selftest import run_self_test


def main() -> None:
    """Print golden results and embeddings of every variant."""
    bundle, prompts, texts = (Path(item) for item in sys.argv[1:4])
    source = PromptFolder(prompts)
    with Engine(bundle, source, profile="memory") as engine:
        tests = [run_self_test(engine, source.get(name).meta) for name in source.list()]
        wanted = engine.manifest.graphs[engine.variant].cpu_features
        vectors = [
            [round(float(value), 6) for value in engine.embed(None, text)]
            for text in json.loads(texts.read_text("utf-8"))
        ]
    found = {
        "machine": platform.machine(),
        "onnxruntime": onnxruntime.__version__,
        "features": processor_features(),
        "exact_mode": lacks_all(wanted),
        "asked": sum(test.asked for test in tests),
        "failures": [line for test in tests for line in test.failures],
        "vectors": vectors,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
