"""Fuzz target: bytes to a pack; what was taken, and its blobs, can be written again.

python tests/fuzz/fuzz_pack.py CORPUS -runs=N
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["promptdial"]):
    from promptdial.prompts.blob import decode, encode
    from promptdial.prompts.errors import PromptError
    from promptdial.prompts.pack import decode_pack, encode_pack

from fuzz.harness import check_message, run
from fuzz.seeds import packs
from mutation import damaged_file


def one_input(data: bytes) -> bool:
    """Only errors of the artifact may come out."""
    try:
        pack = decode_pack(data)
    except PromptError as error:
        check_message(error)
        return False
    metas = [blob.meta for blob in pack.blobs]
    again = decode_pack(encode_pack(metas, pack.tensors))
    if [blob.digest for blob in again.blobs] != [blob.digest for blob in pack.blobs]:
        raise AssertionError("read, written and read again it gives other blobs")
    for blob in pack.blobs:
        if decode(encode(blob.meta, blob.tensors)).digest != blob.digest:
            raise AssertionError("a blob of it is another one when it comes alone")
    return True


if __name__ == "__main__":
    run(one_input, damaged_file, list(packs().values()))
