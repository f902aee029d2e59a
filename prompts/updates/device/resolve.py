"""What a device takes of what is offered: versions only go up, and only what fits."""

from collections.abc import Mapping
from dataclasses import dataclass

from promptdial.prompts.errors import RolledBack, Untrusted
from promptdial.prompts.updates.device.trusted import TrustedRepository
from promptdial.prompts.updates.names import (
    CHANNELS,
    REVOKED,
    STABLE,
    BundleFileName,
    PromptName,
    parse_name,
    short,
)
from promptdial.prompts.updates.offer import Offer
from promptdial.prompts.updates.receiver import (
    BaseState,
    Following,
    PromptState,
    is_refused,
)

Key = tuple[str, str]
Refused = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Held:
    """Something newer that this device does not take, and why.

    Attributes:
        name: The task (`tenant/task`), or the bundle.
        why: One line.
    """

    name: str
    why: str


@dataclass(frozen=True)
class Device:
    """What a device has and wants, as it was when the update began.

    Attributes:
        following: What it wants.
        prompts: What it has.
        refused: (tenant, beginning of a digest) of what it does not use.
    """

    following: Following
    prompts: Mapping[Key, PromptState]
    refused: Refused


@dataclass(frozen=True)
class Choice:
    """What a device takes on one base.

    Attributes:
        offers: New versions.
        served: Tasks that have a prompt for this base, new or unchanged.
        held: What it does not take, and why.
        revoked: (tenant, beginning of a digest) of what may not be used any more.
    """

    offers: tuple[Offer, ...]
    served: frozenset[Key]
    held: tuple[Held, ...]
    revoked: Refused


def choose_bundle(
    repository: TrustedRepository, device: Device, base: BaseState | None
) -> Offer | None:
    """The newest bundle that is open to the device; None where it has that one.

    Raises:
        RolledBack: Only older ones are offered.
        UpdateError: The repository cannot be trusted or reached.
    """
    name = device.following.bundle
    if not name:
        return None
    stable = repository.offer(BundleFileName(name))
    has = base.digest if base else ""
    offers = _open(repository, device, BundleFileName(name), stable, has)
    best = max(offers, key=lambda offer: offer.version, default=None)
    if best is None or best.digest == has:
        return None
    newest = base.version if base else 0
    if best.version < newest:
        raise RolledBack(
            f"bundle {name}: version {best.version} is offered, had {newest}"
        )
    if best.version == newest:
        raise Untrusted(
            f"bundle {name}: version {newest} is offered with other content"
        )
    return best


def choose_prompts(
    repository: TrustedRepository, device: Device, base: BaseState, moving: bool
) -> Choice:
    """The newest prompts for a base that are open to the device.

    Args:
        repository: What is offered.
        device: What it has and wants.
        base: The base that they must be for.
        moving: It is not the base in use: prompts in use are of another.

    Raises:
        RolledBack: A task is offered in older versions alone.
        Untrusted: A version that the device has is offered with other content.
        UpdateError: The repository cannot be trusted or reached.
    """
    offers: list[Offer] = []
    served: set[Key] = set()
    held: list[Held] = []
    revoked: set[tuple[str, str]] = set()
    for tenant in device.following.tenants:
        found = {
            task: _offered(repository, device, base, tenant, task)
            for task in _tasks(repository, device, base, tenant)
        }
        loaded = found or device.following.tasks is None
        starts = repository.signed_texts(tenant, REVOKED) if loaded else ()
        revoked |= {(tenant, f"sha256:{start}") for start in starts}
        refused = device.refused | revoked
        for task, open_offers in found.items():
            state = device.prompts.get((tenant, task), PromptState())
            best, why = _best(open_offers, state, base, refused, moving)
            if why:
                held.append(Held(f"{tenant}/{task}" if tenant else task, why))
            if best is not None:
                offers.append(best)
            stays = state.digest and not moving
            if best or (stays and not is_refused(refused, tenant, state.digest)):
                served.add((tenant, task))
    new = frozenset(revoked) - device.refused
    return Choice(tuple(offers), frozenset(served), tuple(held), new)


def _tasks(
    repository: TrustedRepository, device: Device, base: BaseState, tenant: str
) -> list[str]:
    if device.following.tasks is not None:
        return sorted(device.following.tasks)
    names = [parse_name(name) for name in repository.names(tenant)]
    return sorted(
        {
            name.task
            for name in names
            if isinstance(name, PromptName)
            and name.tenant == tenant
            and name.base == short(base.fingerprint)
        }
    )


def _offered(
    repository: TrustedRepository,
    device: Device,
    base: BaseState,
    tenant: str,
    task: str,
) -> list[Offer]:
    name = PromptName(tenant, task, short(base.fingerprint))
    state = device.prompts.get((tenant, task), PromptState())
    return _open(repository, device, name, repository.offer(name), state.digest)


def _open(
    repository: TrustedRepository,
    device: Device,
    name: PromptName | BundleFileName,
    stable: Offer | None,
    has: str,
) -> list[Offer]:
    """All releases that are open to the device, and the one that it has."""
    following = device.following
    if stable is not None:
        found, channels = [stable], stable.also
    else:
        tenant = name.tenant if isinstance(name, PromptName) else ""
        found, channels = [], repository.signed_texts(tenant, CHANNELS)
    for channel in channels:
        # A device on a channel of its own takes no share of another one.
        if following.channel not in (STABLE, channel):
            continue
        other = repository.offer(_on_channel(name, channel))
        if other is not None:
            found.append(other)
    return [
        offer
        for offer in found
        if offer.digest == has
        or offer.is_open_to(following.channel, following.device_id)
    ]


def _on_channel(
    name: PromptName | BundleFileName, channel: str
) -> PromptName | BundleFileName:
    if isinstance(name, PromptName):
        return PromptName(name.tenant, name.task, name.base, channel)
    return BundleFileName(name.bundle, name.file, channel)


def _best(
    offers: list[Offer],
    state: PromptState,
    base: BaseState,
    refused: Refused,
    moving: bool,
) -> tuple[Offer | None, str]:
    """The version to take, if any, and why a newer one is not taken."""
    if not offers:
        return None, ""
    newest = max(offers, key=lambda offer: offer.version)
    if state.pinned:
        return None, f"pinned at version {state.version}" if _is_newer(
            newest, state
        ) else ""
    fits = [offer for offer in offers if offer.tokenizer == _tokenizer(base)]
    if not fits:
        return None, f"version {newest.version} is for another tokenizer"
    tenant = newest.name.tenant if isinstance(newest.name, PromptName) else ""
    usable = [offer for offer in fits if not is_refused(refused, tenant, offer.digest)]
    if not usable:
        return None, f"version {newest.version} is revoked, or failed on this device"
    best = max(usable, key=lambda offer: offer.version)
    if best.digest == state.digest:
        return None, ""
    highest = max(state.floor, state.version)
    if moving or (state.digest and is_refused(refused, tenant, state.digest)):
        # What it has may not be used: an older one is no attack, and not taken either.
        below = best.version < highest
        return (None, _below(best, highest)) if below else (best, "")
    if best.version < highest and len(usable) == len(fits):
        raise RolledBack(
            f"{best.name.target}: version {best.version} is offered, this device had "
            f"{highest}"
        )
    if best.version < highest:
        return None, f"version {newest.version} is revoked, or failed on this device"
    if best.version == state.version:
        raise Untrusted(
            f"{best.name.target}: version {best.version} is offered with other content"
        )
    return best, ""


def _is_newer(offer: Offer, state: PromptState) -> bool:
    return offer.version > state.version


def _below(offer: Offer, floor: int) -> str:
    return f"version {offer.version} is below {floor}, which this device had"


def _tokenizer(base: BaseState) -> str:
    return short(base.tokenizer_fingerprint)
