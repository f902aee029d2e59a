"""Publishing and revoking: the changes that releases make."""

from collections.abc import Sequence
from pathlib import Path

from promptdial.prompts.errors import UsageError
from promptdial.prompts.updates.names import PromptName, parse_name
from promptdial.prompts.updates.offer import Offer
from promptdial.prompts.updates.publishing.bundles import release_bundle
from promptdial.prompts.updates.publishing.draft import Draft
from promptdial.prompts.updates.publishing.layout import rebalance, targets_of
from promptdial.prompts.updates.publishing.releases import (
    Audience,
    check_audience,
    read_target,
    release_prompt,
    revoke_offers,
)
from promptdial.prompts.updates.publishing.repository import (
    Published,
    Repository,
    changing,
    finish,
)


def publish_prompts(
    repository: Repository, paths: Sequence[Path], audience: Audience | None = None
) -> Published:
    """Publish blobs; what is published as it is stays untouched.

    Raises:
        PromptError: A file is no blob, its version is taken, a key is missing.
        UsageError: Nothing to publish, no such tenant or channel.
    """
    audience = audience or Audience()
    check_audience(audience)
    if not paths:
        raise UsageError("no blob to publish", "give a blob, or --bundle")
    with changing(repository) as draft:
        changed = [
            path.name
            for path in paths
            if release_prompt(draft, repository.public, path, audience)
        ]
        rebalance(draft, audience.tenant)
        return finish(repository, draft, changed)


def publish_bundle(
    repository: Repository,
    folder: Path,
    name: str,
    version: int,
    audience: Audience | None = None,
) -> Published:
    """Publish a bundle by file.

    Raises:
        PromptError: A file is not what the manifest says, the version is taken.
        UsageError: A name that cannot be, or no such channel.
    """
    audience = audience or Audience()
    check_audience(audience)
    with changing(repository) as draft:
        new = release_bundle(draft, repository.public, folder, name, version, audience)
        rebalance(draft, "")
        return finish(repository, draft, [name] if new else [])


def revoke(
    repository: Repository, task: str, tenant: str = "", base: str = ""
) -> Published:
    """Take a task's releases out, on all channels, and let no device use them.

    Args:
        repository: Where.
        task: The task, or the full name of one target.
        tenant: Whose it is; "" for everyone's.
        base: Beginning of the base's fingerprint; "" for all bases.

    Raises:
        UsageError: There is none.
    """
    with changing(repository) as draft:
        found = [
            offer
            for offer in _offers(draft, tenant)
            if offer.name.target == task
            or (
                isinstance(offer.name, PromptName)
                and offer.name.task == task
                and offer.name.base.startswith(base)
            )
        ]
        if not found:
            raise UsageError(
                f"no release of {task!r} to revoke", "give a task, and its --tenant"
            )
        revoke_offers(draft, tenant, found)
        return finish(repository, draft, [offer.name.target for offer in found])


def _offers(draft: Draft, tenant: str) -> list[Offer]:
    found = []
    for target in targets_of(draft, tenant):
        name = parse_name(target.path)
        if isinstance(name, PromptName):
            found.append(read_target(name, target))
    return found
