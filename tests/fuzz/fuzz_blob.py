"""Fuzz target: bytes to a prompt blob, and what was taken can be written again.

python tests/fuzz/fuzz_blob.py CORPUS -runs=N
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["promptdial"]):
    from promptdial.prompts.blob import decode, encode
    from promptdial.prompts.errors import PromptError

from fuzz.harness import check_message, run
from fuzz.seeds import blobs
from mutation import damaged_file


def one_input(data: bytes) -> bool:
    """Only errors of the artifact may come out."""
    try:
        blob = decode(data)
    except PromptError as error:
        check_message(error)
        return False
    again = decode(encode(blob.meta, blob.tensors))
    if again.meta != blob.meta or set(again.tensors) != set(blob.tensors):
        raise AssertionError("read, written and read again it is another blob")
    # What a request reads of it.
    _ = blob.prompt_embeddings, blob.past_key_values, blob.head_weight, blob.head_bias
    return True


if __name__ == "__main__":
    run(one_input, damaged_file, list(blobs().values()))
