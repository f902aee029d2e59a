"""promptdial's own round: a kept prefix, one made in the first pass, and none."""

import sys
from pathlib import Path

import numpy as np
from rounds import PROMPT, PROMPT_ROWS, STEPS, TEXT_IDS, THREADS, serve, timed

from promptdial.prompts import PromptBlob, PromptMeta, make_blob
from promptdial.runtime import Engine
from promptdial.runtime.caches import begin
from promptdial.runtime.generating import GenerationRequest, next_tokens, prefill
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.manifest import Manifest

ROOM = 128


def blob_of(manifest: Manifest, version: int) -> PromptBlob:
    """The benchmark's prompt; versions differ, so that each is cold once."""
    meta = PromptMeta(
        task="peer",
        version=version,
        kind="generation",
        attention=manifest.attention,
        base_model=manifest.base.model,
        base_fingerprint=manifest.base.fingerprint,
        tokenizer_fingerprint=manifest.base.tokenizer_fingerprint,
        labels=(),
        pooling="",
    )
    return make_blob(meta, embeddings=PROMPT_ROWS)


class Source:
    """Serves the newest version."""

    def __init__(self) -> None:
        self.blob: PromptBlob | None = None

    def get(self, task: str) -> PromptBlob:
        """The blob of this round."""
        assert self.blob is not None
        return self.blob

    def list(self) -> list[str]:
        """The one task."""
        return ["peer"]

    def report(self, task: str, digest: str, event: str) -> None:
        """Nothing to do."""


def main() -> None:
    """Serve rounds."""
    source = Source()
    bundle = Path(sys.argv[1]) / "a.bundle"
    engine = Engine(bundle, source, threads=THREADS)
    model = engine._decoder_model()
    ids = np.array(TEXT_IDS, np.int64)
    session = model.session
    prefix = session.state_of(PROMPT_ROWS)
    version = 0

    def request(task: str | None) -> GenerationRequest:
        prompt = engine._prompts.ready_or_cold(task, model)
        options = GenerationOptions(max_new_tokens=STEPS + 1)
        return GenerationRequest(prompt, ids, False, options, 0.0, frozenset())

    def one_round() -> dict[str, float]:
        nonlocal version
        version += 1
        source.blob = blob_of(engine.manifest, version)
        joined = np.concatenate([PROMPT_ROWS, model.table.embed(ids)])[None]
        found = {
            "prefix_copied": timed(lambda: begin(session, prefix, PROMPT, ROOM)),
            "concatenated": timed(
                lambda: begin(session, session.no_prompt, 0, ROOM).forward(joined)
            ),
            "cold": timed(lambda: prefill(request("peer"), model)),
            "warm": timed(lambda: prefill(request("peer"), model)),
            "plain": timed(lambda: prefill(request(None), model)),
        }
        tokens = next_tokens(request("peer"), model)
        next(tokens)
        found["per_token"] = timed(lambda: list(tokens)) / STEPS
        return found

    serve(f"int8, {THREADS} threads", one_round)


if __name__ == "__main__":
    main()
