"""Releases: what may be published, under which name, and what is taken out again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuf.api.metadata import TargetFile

from promptdial.prompts.blob import MAX_BLOB_BYTES, SUFFIX, decode
from promptdial.prompts.errors import (
    FileFailed,
    UsageError,
    VersionPublished,
)
from promptdial.prompts.updates.names import (
    CHANNELS,
    REVOKED,
    STABLE,
    BundleFileName,
    PromptName,
    check_channel,
    check_name,
    short,
)
from promptdial.prompts.updates.offer import Offer, read_offer
from promptdial.prompts.updates.publishing.draft import Draft
from promptdial.prompts.updates.publishing.files import put_bytes
from promptdial.prompts.updates.publishing.layout import (
    find,
    holder_of,
    put,
    remove,
)

REVOKED_DIGITS = 32
"""Hexadecimal digits of a revoked digest: as good as all 64, at half the bytes."""

_MAX_REVOKED = 500


@dataclass(frozen=True)
class Audience:
    """Whom a release is for.

    Attributes:
        tenant: Whose it is; "" for everyone's.
        channel: `stable`, or another one.
        percent: Share of the devices on channel stable that take a release of another
            channel, 0 to 100.
    """

    tenant: str = ""
    channel: str = STABLE
    percent: int = 0


def check_audience(audience: Audience) -> None:
    """Refuse an audience that cannot be.

    Raises:
        UsageError: A channel that cannot be one, or a share outside 0 to 100 or on the
            channel that everyone takes.
    """
    check_channel(audience.channel)
    if not 0 <= audience.percent <= 100:
        raise UsageError(f"share of {audience.percent} percent", "give 0 to 100")
    if audience.percent and audience.channel == STABLE:
        raise UsageError(
            f"a share of {audience.percent} percent on channel {STABLE}, which every "
            "device takes",
            "give --channel canary as well",
        )


def release_prompt(draft: Draft, public: Path, path: Path, audience: Audience) -> bool:
    """Publish a blob under its own task and version.

    Returns:
        Whether anything is new.

    Raises:
        VersionPublished: Its version has other content, or a newer one is published.
        PromptError: The file is no blob.
        UsageError: No such tenant, or a name that no target can have.
    """
    data = _read(path)
    meta = decode(data, path.name.removesuffix(SUFFIX)).meta
    base = short(meta.base_fingerprint)
    name = PromptName(audience.tenant, meta.task, base, audience.channel)
    check_name(name.target)
    return release(
        draft,
        Offer(
            name=name,
            version=meta.version,
            sha256=put_bytes(public, name.target, data),
            length=len(data),
            tokenizer=short(meta.tokenizer_fingerprint),
            base=base,
            percent=audience.percent,
        ),
    )


def read_target(name: PromptName | BundleFileName, target: TargetFile) -> Offer:
    """The offer that a published target is."""
    return read_offer(name, target.length, target.hashes, target.custom)


def revoke_offers(draft: Draft, tenant: str, offers: Sequence[Offer]) -> None:
    """Take releases out, and name their digests as such that no device may use."""
    holder = draft.targets(holder_of(draft, tenant))
    revoked = list(holder.unrecognized_fields.get(REVOKED, []))
    for offer in offers:
        remove(draft, offer.name)
        revoked.append(offer.sha256[:REVOKED_DIGITS])
        _forget_channel(draft, offer.name)
    # The oldest go first, when there are very many: devices have heard of them.
    holder.unrecognized_fields[REVOKED] = list(dict.fromkeys(revoked))[-_MAX_REVOKED:]
    draft.touch(holder_of(draft, tenant))


def release(draft: Draft, offer: Offer) -> bool:
    """Publish an offer whose content lies in the public folder.

    Returns:
        Whether anything is new.

    Raises:
        VersionPublished: Its version has other content, or was revoked, or a newer one
            is published.
    """
    tenant = offer.name.tenant if isinstance(offer.name, PromptName) else ""
    holder_name = holder_of(draft, tenant)
    holder = draft.targets(holder_name)
    if offer.sha256[:REVOKED_DIGITS] in holder.unrecognized_fields.get(REVOKED, []):
        raise VersionPublished(
            f"{offer.name.target} version {offer.version} was revoked",
            "publish it under a new version",
        )
    channels = list(holder.unrecognized_fields.get(CHANNELS, []))
    for channel in (STABLE, *channels):
        _check_version(draft, offer, channel)
    old = _published(draft, offer.name, offer.name.channel)
    if offer.name.channel == STABLE:
        offer = _promoted(draft, offer, channels)
    if old == offer:
        return False
    put(draft, offer.name, _target(offer))
    if offer.name.channel != STABLE:
        _name_channel(draft, offer.name, holder_name)
    return True


def _check_version(draft: Draft, offer: Offer, channel: str) -> None:
    old = _published(draft, offer.name, channel)
    if old is None:
        return
    if old.version == offer.version and old.sha256 != offer.sha256:
        raise VersionPublished(
            f"{offer.name.target} version {offer.version} is published with digest "
            f"{old.sha256[:12]}, this one has {offer.sha256[:12]}"
        )
    if old.version > offer.version and channel == offer.name.channel:
        raise VersionPublished(
            f"{offer.name.target} version {old.version} is published, this one is "
            f"{offer.version}",
            "to go back, publish the old content under a new version",
        )


def _promoted(draft: Draft, offer: Offer, channels: Sequence[str]) -> Offer:
    """The stable offer with the channels that still have something newer."""
    also = []
    for channel in channels:
        other = _published(draft, offer.name, channel)
        if other is None:
            continue
        if other.version > offer.version:
            also.append(channel)
        elif isinstance(other.name, PromptName):
            remove(draft, other.name)
    return replace(offer, also=tuple(also))


def _name_channel(
    draft: Draft, name: PromptName | BundleFileName, holder_name: str
) -> None:
    """Let devices know of the channel: in the holder, and at the stable release."""
    holder = draft.targets(holder_name)
    known = holder.unrecognized_fields.get(CHANNELS, [])
    if name.channel not in known:
        holder.unrecognized_fields[CHANNELS] = sorted({*known, name.channel})
        draft.touch(holder_name)
    stable = _published(draft, name, STABLE)
    if stable is not None and name.channel not in stable.also:
        also = tuple(sorted({*stable.also, name.channel}))
        put(draft, stable.name, _target(replace(stable, also=also)))


def _forget_channel(draft: Draft, name: PromptName | BundleFileName) -> None:
    stable = _published(draft, name, STABLE) if name.channel != STABLE else None
    if stable is not None:
        also = tuple(channel for channel in stable.also if channel != name.channel)
        put(draft, stable.name, _target(replace(stable, also=also)))


def _published(
    draft: Draft, name: PromptName | BundleFileName, channel: str
) -> Offer | None:
    there = replace(name, channel=channel)
    target = find(draft, there)
    return None if target is None else read_target(there, target)


def _target(offer: Offer) -> TargetFile:
    custom = {"custom": offer.custom}
    return TargetFile(offer.length, {"sha256": offer.sha256}, offer.name.target, custom)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BLOB_BYTES + 1)
    except OSError as error:
        raise FileFailed(f"{path}: {error.strerror}", "check the path") from None
