"""Signing keys: Ed25519 in files that nobody else can read.

Ed25519 alone, since a device without the package cryptography verifies nothing else.
"""

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.metadata import Role

from promptdial.prompts.atomic import disk_failure
from promptdial.prompts.errors import KeyRefused
from promptdial.prompts.updates.publishing.settings import Signers

SUFFIX = ".pem"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_keys(folder: Path, role: str, count: int) -> list[CryptoSigner]:
    """Make new keys, each in a file of its own with mode 0600.

    Raises:
        FileFailed: A file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return [_make_key(folder, role) for _ in range(count)]
    except OSError as error:
        raise disk_failure(folder, error) from None


def load_signers(folder: Path) -> dict[str, CryptoSigner]:
    """All keys of a folder by their id.

    Raises:
        KeyRefused: A key can be read by others, is no Ed25519 key, or there is no such
            folder.
    """
    if not folder.is_dir():
        raise KeyRefused(
            f"no folder of keys {folder}", "give --keys, or bring the keys back"
        )
    signers = [_load_key(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
    return {signer.public_key.keyid: signer for signer in signers}


def choose_signers(
    signers: dict[str, CryptoSigner], role: str, wanted: Role
) -> list[CryptoSigner]:
    """The keys that sign for a role: all that are there, at least its threshold.

    Raises:
        KeyRefused: There are too few.
    """
    found = [signers[keyid] for keyid in wanted.keyids if keyid in signers]
    if len(found) < wanted.threshold:
        missing = ", ".join(
            keyid[:8] for keyid in wanted.keyids if keyid not in signers
        )
        raise KeyRefused(
            f"role {role} has {len(found)} keys here, needs {wanted.threshold} "
            f"(missing: {missing})",
            "bring the key files back, or give --keys",
        )
    return found


def retire_keys(folder: Path, keys: list[str]) -> None:
    """Put the files of replaced keys aside, into `retired/`; nothing reads them there.

    Raises:
        FileFailed: They cannot be moved.
    """
    aside = folder / "retired"
    try:
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            if path.stem.rpartition("-")[2] in {keyid[:8] for keyid in keys}:
                aside.mkdir(exist_ok=True, mode=0o700)
                path.replace(aside / path.name)
    except OSError as error:
        raise disk_failure(folder, error) from None


def role_of(signers: list[CryptoSigner], threshold: int) -> tuple[Role, list[Key]]:
    """A role over these keys, and the keys."""
    keys: list[Key] = [signer.public_key for signer in signers]
    return Role([key.keyid for key in keys], threshold), keys


def check_signers(role: str, signers: Signers) -> None:
    """Refuse a threshold that no keys can meet.

    Raises:
        KeyRefused: It is not between 1 and the number of keys, or keys are too many.
    """
    if not 1 <= signers.threshold <= signers.keys <= 16:
        raise KeyRefused(
            f"role {role}: {signers.threshold} of {signers.keys} keys, allowed: "
            "1 to all, of at most 16",
            "give ROLE=THRESHOLD/KEYS, such as root=2/3",
        )


def _make_key(folder: Path, role: str) -> CryptoSigner:
    private = Ed25519PrivateKey.generate()
    signer = CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))
    path = folder / f"{role}-{signer.public_key.keyid[:8]}{SUFFIX}"
    data = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return signer


def _load_key(path: Path) -> CryptoSigner:
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as error:
        raise KeyRefused(f"{path}: {error.strerror}", "check the file") from None
    if mode & _OTHERS:
        raise KeyRefused(
            f"{path} has mode {stat.S_IMODE(mode):04o}, allowed: 0600",
            f"run chmod 600 {path}, and rotate the key if others had access",
        )
    try:
        private = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyRefused(f"{path} is no key: {error}", "bring it back") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyRefused(
            f"{path} is a {type(private).__name__}, allowed: Ed25519",
            "make keys with promptdial repo init or rotate",
        )
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))
