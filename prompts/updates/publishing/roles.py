"""Keys and lifetimes: a new repository, its tenants, other keys, fresh signatures."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from tuf.api.metadata import Root, Signed

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.errors import FileFailed, KeyRefused, UsageError
from promptdial.prompts.tenants import check_tenant
from promptdial.prompts.updates.lock import locked
from promptdial.prompts.updates.publishing.destination import open_destination
from promptdial.prompts.updates.publishing.draft import first_files
from promptdial.prompts.updates.publishing.files import TARGETS
from promptdial.prompts.updates.publishing.keys import (
    check_signers,
    make_keys,
    retire_keys,
    role_of,
)
from promptdial.prompts.updates.publishing.layout import (
    add_tenant,
    renew_keys,
    tenants_of,
    used_lists,
)
from promptdial.prompts.updates.publishing.repository import (
    LOCK,
    Published,
    Repository,
    changing,
    finish,
    send,
    signing,
)
from promptdial.prompts.updates.publishing.settings import (
    TOP_ROLES,
    Lifetimes,
    Settings,
    Signers,
    write_settings,
)

_RENEW = 0.5
"""Share of a lifetime that is left when `refresh` signs again."""


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did.

    Attributes:
        published: Files written and sent.
        expires: When the timestamp expires, and devices call the repository stale.
        due: Roles that must be signed soon and whose keys are not here, with the time
            of their expiry.
    """

    published: Published
    expires: datetime
    due: Mapping[str, datetime]


def init_repository(
    folder: Path,
    signers: Mapping[str, Signers] | None = None,
    lifetimes: Lifetimes | None = None,
    keys: str = "",
    to: str = "",
) -> Published:
    """Make an empty repository with keys of its own.

    Args:
        folder: Made where it is missing.
        signers: Keys and threshold of each role; one of one where none is given.
        lifetimes: Days from signing to expiry.
        keys: Folder of the private keys; "" for `keys` in the repository's folder.
        to: Folder or URL that the static files go to as well.

    Raises:
        UsageError: There is a repository, or an unknown role.
        KeyRefused: A threshold that the keys cannot meet.
        FileFailed: Something cannot be written.
    """
    signers = dict(signers or {})
    for role, number in signers.items():
        if role not in TOP_ROLES:
            raise UsageError(f"role {role!r}", f"choose from {', '.join(TOP_ROLES)}")
        check_signers(role, number)
    repository = Repository(folder, Settings(lifetimes or Lifetimes(), keys, to))
    if any(repository.metadata.glob("*.json")):
        raise UsageError(f"{folder} has a repository", "give another folder")
    if to:
        # Before there are keys: a URL that cannot be is no reason to leave some.
        open_destination(to)
    with locked(folder / LOCK, "a change of the repository"):
        try:
            repository.metadata.mkdir(parents=True, exist_ok=True)
            (repository.public / TARGETS).mkdir(exist_ok=True)
        except OSError as error:
            raise FileFailed(f"{folder}: {error.strerror}", "check it") from None
        root, roles = Root(consistent_snapshot=True), {}
        for name in TOP_ROLES:
            number = signers.get(name, Signers())
            made = make_keys(repository.keys, name, number.keys)
            roles[name], public_keys = role_of(made, number.threshold)
            root.roles[name] = roles[name]
            for key in public_keys:
                root.keys[key.keyid] = key
        written = first_files(roles, root, signing(repository))
        for file, data in written.items():
            write_atomic(repository.metadata / file, data)
        write_settings(folder, repository.settings)
        return Published(tuple(written), sent=send(repository))


def delegate(repository: Repository, tenant: str, signers: Signers) -> Published:
    """Add a tenant: `prompts/<tenant>/*` belongs to keys of its own.

    Raises:
        UsageError: A name that cannot be, or that is taken.
        KeyRefused: A threshold that the keys cannot meet, or a missing key.
    """
    check_tenant(tenant)
    check_signers(tenant, signers)
    with changing(repository) as draft:
        if draft.knows(tenant):
            raise UsageError(f"tenant {tenant!r} is there", "choose another name")
        made = make_keys(repository.keys, tenant, signers.keys)
        draft.take_keys(made)
        _, keys = role_of(made, signers.threshold)
        add_tenant(draft, tenant, keys, signers.threshold)
        return finish(repository, draft, [tenant])


def rotate(
    repository: Repository, role: str, signers: Signers | None = None
) -> Published:
    """Replace the keys of a role, or a tenant's, by new ones.

    Devices learn of it by the next root (specification 5.3), or by the top list where
    it is a tenant. The old key files go to `retired/` in the folder of keys.

    Args:
        repository: Where.
        role: root, targets, snapshot, timestamp, or a tenant.
        signers: Keys and threshold from now on; as many as before where None.

    Raises:
        UsageError: No such role.
        KeyRefused: Too few keys are there to sign the change.
    """
    with changing(repository) as draft:
        if role not in (*TOP_ROLES, *tenants_of(draft)) or not role:
            known = ", ".join([*TOP_ROLES, *tenants_of(draft)[1:]])
            raise UsageError(f"no role {role!r}", f"choose from {known}")
        top = role in TOP_ROLES
        owner = draft.root if top else draft.targets()
        old = owner.get_delegated_role(role)
        replaced = list(old.keyids)
        number = signers or Signers(old.threshold, len(replaced))
        check_signers(role, number)
        made = make_keys(repository.keys, role, number.keys)
        draft.take_keys(made)
        new, keys = role_of(made, number.threshold)
        if not top:
            renew_keys(draft, role, keys, number.threshold)
        if role == "targets":
            renew_keys(draft, "", keys, number.threshold)
        if top:
            for keyid in replaced:
                draft.root.revoke_key(keyid, role)
            for key in keys:
                draft.root.add_key(key, role)
            draft.root.roles[role].threshold = new.threshold
            draft.touch(role)
            draft.touch("root")
        if role == "snapshot":
            # Devices take a snapshot of new keys without comparing: names may go.
            draft.drop_unused(used_lists(draft))
        published = finish(repository, draft, [role])
        retire_keys(repository.keys, replaced)
        return published


def refresh(repository: Repository) -> Refreshed:
    """Sign the timestamp again, and what has lived half its life; for cron.

    Needs the timestamp's keys alone while nothing else is due.

    Raises:
        KeyRefused: The timestamp's keys are not here, or the snapshot's are not and it
            is about to expire.
        PromptError: A file cannot be written or sent.
    """
    with changing(repository) as draft:
        due: dict[str, datetime] = {}
        documents: dict[str, Signed] = {"root": draft.root, "snapshot": draft.snapshot}
        documents |= {name: draft.targets(name) for name in sorted(used_lists(draft))}
        lifetimes = repository.settings.lifetimes
        for name, signed in documents.items():
            left = signed.expires - draft.now
            if left >= timedelta(days=lifetimes.of(name)) * _RENEW:
                continue
            if draft.can_sign(name):
                draft.touch(name)
            else:
                due[name] = signed.expires
        if "snapshot" in due and due["snapshot"] <= draft.now:
            raise KeyRefused(
                f"the snapshot expired at {due['snapshot']:%Y-%m-%dT%H:%M:%SZ} and its "
                "keys are not here",
                "bring the key files back, or give --keys",
            )
        draft.touch("timestamp")
        published = finish(repository, draft, [])
        expires = draft.now + timedelta(days=lifetimes.timestamp)
        return Refreshed(published, expires, due)
