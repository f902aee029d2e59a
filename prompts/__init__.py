"""The prompt artifact: blob format, folder of blobs, interchange."""

from promptdial.prompts.blob import (
    Golden,
    PromptBlob,
    PromptMeta,
    decode,
    encode,
    make_blob,
    read_blob,
    write_blob,
)
from promptdial.prompts.folder import PromptFolder

__all__ = [
    "Golden",
    "PromptBlob",
    "PromptFolder",
    "PromptMeta",
    "decode",
    "encode",
    "make_blob",
    "read_blob",
    "write_blob",
]
