"""A store that takes updates over the air: its root of trust, and what it follows."""

import os
import secrets
import sqlite3
from dataclasses import replace
from pathlib import Path

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.errors import DataInvalid, PromptError, UsageError
from promptdial.prompts.metadata import is_task_name
from promptdial.prompts.store.blobs import BlobFiles
from promptdial.prompts.store.device_rows import (
    Device,
    base_key,
    device_of,
    put_device,
)
from promptdial.prompts.store.index import Index
from promptdial.prompts.store.layout import Layout, mapped_errors
from promptdial.prompts.store.making import make_store
from promptdial.prompts.store.taking import require_base
from promptdial.prompts.strict_json import JsonInvalid, parse_json
from promptdial.prompts.tenants import check_tenant
from promptdial.prompts.updates.names import (
    BundleFileName,
    check_channel,
    check_name,
)
from promptdial.prompts.updates.receiver import BaseState, Following

MAX_ROOT_BYTES = 65_536


def set_up_updates(
    path: str | os.PathLike[str],
    root: bytes,
    following: Following | None = None,
    base: BaseState | None = None,
) -> Following:
    """Set a store up for updates, durably; it is made where it is missing.

    Once more, with the same root, it changes what the store follows. The root of trust
    never changes: what replaces keys is signed by those before.

    Args:
        path: The store's folder.
        root: The repository's root.json, from a source that is trusted.
        following: What the device wants; None for what it says already, or all that is
            stable. Its id is drawn where there is none.
        base: The base that the device has; None for what is known already.

    Returns:
        What the store follows.

    Raises:
        UsageError: It was set up with another root, or a name that cannot be one.
        DataInvalid: The root is none.
        OtherBase: A prompt in use is for another base.
        StoreError, NoSpace, FileFailed: It cannot be written.
    """
    _check_root(root)
    if following is not None:
        check_following(following)
    layout = Layout(Path(path))
    make_store(path)
    index = Index(layout)
    try:
        _keep_root(layout, index, root)
        bases = _bases_of(index, BlobFiles(layout))
        with index.writing() as connection:
            found = device_of(connection) or Device(Following(""))
            wanted = following or found.following
            name = wanted.device_id or found.following.device_id
            wanted = replace(wanted, device_id=name or secrets.token_hex(16))
            device = replace(found, following=wanted, base=base or found.base)
            if base is not None and found.base is not None and found.base.digest:
                raise UsageError(
                    f"{layout.root} has a base that updates brought", "give no base"
                )
            put_device(connection, device)
            _put_bases(connection, bases)
            require_base(connection)
    finally:
        index.close()
    return wanted


def check_following(following: Following) -> None:
    """Refuse names that cannot be any.

    Raises:
        UsageError: One cannot.
    """
    check_channel(following.channel)
    for tenant in filter(None, following.tenants):
        check_tenant(tenant)
    for task in following.tasks or ():
        if not is_task_name(task):
            raise UsageError(f"task {task[:64]!r}", "use letters, digits, . - and _")
    if following.bundle:
        check_name(BundleFileName(following.bundle).target)


def _check_root(root: bytes) -> None:
    """Whether it looks like a root; only an update tells whether it is one."""
    what = ""
    try:
        if len(root) > MAX_ROOT_BYTES:
            raise JsonInvalid(f"{len(root)} bytes, at most {MAX_ROOT_BYTES}")
        body = parse_json(root.decode("utf-8"))
        if body["signed"]["_type"] != "root":
            what = f"type {str(body['signed']['_type'])[:32]!r}"
    except (JsonInvalid, UnicodeDecodeError, KeyError, TypeError) as error:
        what = str(error)[:100] or type(error).__name__
    if what:
        raise DataInvalid(
            f"the root of trust is none: {what}",
            "give the repository's public/metadata/1.root.json",
        )


def _keep_root(layout: Layout, index: Index, root: bytes) -> None:
    """Write the root, read-only; what broke off before the index said so is nothing."""
    path = layout.root_of_trust
    with index.reading() as connection:
        known = device_of(connection) is not None
    if known and path.exists():
        with mapped_errors(path):
            if path.read_bytes() == root:
                return
        raise UsageError(
            f"{layout.root} was set up with another root of trust", "make another store"
        )
    write_atomic(path, root)
    with mapped_errors(path):
        path.chmod(0o444)


def _bases_of(index: Index, blobs: BlobFiles) -> dict[str, str]:
    """Digest to base of what came before stores kept that."""
    with index.reading() as connection:
        rows = connection.execute(
            "SELECT DISTINCT digest FROM versions WHERE base = ''"
        )
        digests = [str(digest) for (digest,) in rows.fetchall()]
    found = {}
    for digest in digests:
        try:
            meta = blobs.read(digest).meta
        except (FileNotFoundError, PromptError):
            # Damaged: it cannot go into use either.
            continue
        found[digest] = base_key(meta.base_fingerprint, meta.tokenizer_fingerprint)
    return found


def _put_bases(connection: sqlite3.Connection, bases: dict[str, str]) -> None:
    connection.executemany(
        "UPDATE versions SET base = ? WHERE digest = ? AND base = ''",
        [(base, digest) for digest, base in bases.items()],
    )
