"""The prompt artifact: formats of blob and pack, folder of prompts, interchange."""

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
from promptdial.prompts.pack import (
    Factor,
    Pack,
    TaskHead,
    decode_pack,
    encode_pack,
    make_pack,
    read_pack,
    write_pack,
)

__all__ = [
    "Factor",
    "Golden",
    "Pack",
    "PromptBlob",
    "PromptFolder",
    "PromptMeta",
    "TaskHead",
    "decode",
    "decode_pack",
    "encode",
    "encode_pack",
    "make_blob",
    "make_pack",
    "read_blob",
    "read_pack",
    "write_blob",
    "write_pack",
]
