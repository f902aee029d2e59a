"""Whether a file has the content that its digest says."""

import hashlib
from pathlib import Path

from promptdial.prompts.atomic import disk_failure


def file_has(path: Path, digest: str) -> bool:
    """Whether a file is there and its content has a digest `sha256:<hex>`.

    Raises:
        FileFailed: It is there and cannot be read.
    """
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise disk_failure(path, error) from None
    return f"sha256:{found}" == digest
