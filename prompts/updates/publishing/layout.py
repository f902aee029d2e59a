"""Where a target stands: in the top list, a tenant's list, or one of its bins.

Every holder of targets (the publisher itself, each tenant) has a list of its own. Above
some 200 targets a list is split into bins by the hash of the name (TAP 15), so that a
device that wants one prompt of 10,000 loads a bin and not all names. A list of targets
can either delegate by path or into bins. So where there are tenants and bins, the bins
of the publisher's own targets are those of a role `all`, which the top list delegates
to beside the tenants; without tenants that would be one more file for every device.
"""

import math
from collections.abc import Iterator

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    SuccinctRoles,
    TargetFile,
    Targets,
)

from promptdial.prompts.errors import UsageError
from promptdial.prompts.tenants import ALL
from promptdial.prompts.updates.names import (
    CHANNELS,
    REVOKED,
    BundleFileName,
    PromptName,
)
from promptdial.prompts.updates.publishing.draft import Draft, bin_prefix

TOP = "targets"
SPLIT_ABOVE = 200
"""Targets of a list that is not split."""

_TARGET_BYTES = 192
_BIN_BYTES = 28
"""JSON of a target in a list (a name of ten letters), and of a bin in the snapshot (a
version of three digits)."""

_MAX_BITS = 14
_GROW = 2
"""Bits that the best number of bins must be above the present one before all move."""

Name = PromptName | BundleFileName


def bin_bits(count: int) -> int:
    """Bits of the number of bins at which snapshot and a bin are smallest together.

    B bins of N targets cost B * _BIN_BYTES + N / B * _TARGET_BYTES, least where both
    terms are equal; TAP 15 knows powers of two alone.
    """
    best = math.log2(math.sqrt(count * _TARGET_BYTES / _BIN_BYTES)) if count else 0
    return max(1, min(_MAX_BITS, round(best)))


def holder_of(draft: Draft, tenant: str) -> str:
    """The list that a tenant's targets begin at; "" are the publisher's own.

    Raises:
        UsageError: There is no such tenant.
    """
    delegations = draft.targets().delegations
    named = delegations.roles or {} if delegations else {}
    if not tenant:
        return ALL if ALL in named else TOP
    if tenant not in named:
        known = ", ".join(sorted(set(named) - {ALL})) or "none"
        raise UsageError(
            f"no tenant {tenant!r}, there is: {known}",
            "add it with promptdial repo tenant",
        )
    return tenant


def tenants_of(draft: Draft) -> list[str]:
    """All tenants, "" first."""
    delegations = draft.targets().delegations
    named = delegations.roles or {} if delegations else {}
    return ["", *sorted(set(named) - {ALL})]


def add_tenant(draft: Draft, tenant: str, keys: list[Key], threshold: int) -> None:
    """Delegate `prompts/<tenant>/*` to keys of its own, and nothing else to them."""
    bins = _bins(draft.targets(TOP))
    if bins is not None:
        _move_to_all(draft)
        _delegate_bins(draft, ALL, bins.bit_length, *_keys_of(draft, TOP))
    _delegate(draft, tenant, keys, threshold, _paths(tenant))
    draft.add(tenant)


def find(draft: Draft, name: Name) -> TargetFile | None:
    """A target, where it is published."""
    role = _list_of(draft, _tenant(name), name.target)
    return draft.targets(role).targets.get(name.target)


def put(draft: Draft, name: Name, target: TargetFile) -> None:
    """Add a target, or replace one."""
    role = _list_of(draft, _tenant(name), name.target)
    draft.targets(role).targets[name.target] = target
    draft.touch(role)


def remove(draft: Draft, name: Name) -> None:
    """Take a target out."""
    role = _list_of(draft, _tenant(name), name.target)
    del draft.targets(role).targets[name.target]
    draft.touch(role)


def targets_of(draft: Draft, tenant: str) -> Iterator[TargetFile]:
    """All targets of a holder."""
    for role in _lists(draft, holder_of(draft, tenant)):
        yield from list(draft.targets(role).targets.values())


def rebalance(draft: Draft, tenant: str) -> None:
    """Split a list that has grown over its size, or into more bins than it has."""
    holder = holder_of(draft, tenant)
    found = draft.targets(holder)
    bins = _bins(found)
    if bins is None:
        if len(found.targets) > SPLIT_ABOVE:
            _split(draft, tenant, bin_bits(len(found.targets)))
        return
    names = [name for name in draft.touched if bins.is_delegated_role(name)]
    if names:
        mean = sum(len(draft.targets(name).targets) for name in names) / len(names)
        best = bin_bits(int(mean * bins.number_of_bins))
        if best >= bins.bit_length + _GROW:
            _split(draft, tenant, best)


def used_lists(draft: Draft) -> set[str]:
    """Names of all lists that a device can reach."""
    used = {TOP}
    for tenant in tenants_of(draft):
        holder = holder_of(draft, tenant)
        used |= {holder, *_lists(draft, holder)}
    return used


def renew_keys(draft: Draft, tenant: str, keys: list[Key], threshold: int) -> None:
    """Give a holder's list and its bins to other keys; each is signed again."""
    holder = holder_of(draft, tenant)
    bins = _bins(draft.targets(holder))
    for name in _lists(draft, holder):
        # Read before the keys change: what lies there is signed by the old ones.
        draft.targets(name)
        draft.touch(name)
    if holder != TOP:
        _delegate(draft, holder, keys, threshold, _paths(tenant))
    if bins is not None:
        _delegate_bins(draft, holder, bins.bit_length, keys, threshold)


def _split(draft: Draft, tenant: str, bits: int) -> None:
    everything = {target.path: target for target in targets_of(draft, tenant)}
    holder = holder_of(draft, tenant)
    draft.targets(holder).targets.clear()
    if holder == TOP and len(tenants_of(draft)) > 1:
        _move_to_all(draft)
        holder = ALL
    bins = _delegate_bins(draft, holder, bits, *_keys_of(draft, holder))
    lists = {name: draft.add(name) for name in bins.get_roles()}
    for path, target in everything.items():
        lists[bins.get_role_for_target(path)].targets[path] = target


def _move_to_all(draft: Draft) -> None:
    """Let the publisher's own targets begin at `all`, and the top list delegate."""
    top = draft.targets(TOP)
    if _bins(top) is not None:
        top.delegations = None
    _delegate(draft, ALL, *_keys_of(draft, TOP), _paths(""))
    moved = draft.add(ALL)
    for key in (CHANNELS, REVOKED):
        if key in top.unrecognized_fields:
            moved.unrecognized_fields[key] = top.unrecognized_fields.pop(key)


def _delegate_bins(
    draft: Draft, holder: str, bits: int, keys: list[Key], threshold: int
) -> SuccinctRoles:
    """Let a holder's list delegate to bins of these keys."""
    keyids = [key.keyid for key in keys]
    bins = SuccinctRoles(keyids, threshold, bits, bin_prefix(holder))
    by_id = {key.keyid: key for key in keys}
    draft.targets(holder).delegations = Delegations(by_id, succinct_roles=bins)
    draft.touch(holder)
    return bins


def _keys_of(draft: Draft, holder: str) -> tuple[list[Key], int]:
    if holder == TOP:
        role = draft.root.roles[TOP]
        return [draft.root.get_key(keyid) for keyid in role.keyids], role.threshold
    top = draft.targets()
    role = top.get_delegated_role(holder)
    return [top.get_key(keyid) for keyid in role.keyids], role.threshold


def _delegate(
    draft: Draft, name: str, keys: list[Key], threshold: int, paths: list[str]
) -> None:
    top = draft.targets()
    if top.delegations is None:
        top.delegations = Delegations({}, roles={})
    delegations = top.delegations
    assert delegations.roles is not None
    delegations.roles[name] = DelegatedRole(
        name, [key.keyid for key in keys], threshold, terminating=True, paths=paths
    )
    delegations.keys.update({key.keyid: key for key in keys})
    used = {keyid for role in delegations.roles.values() for keyid in role.keyids}
    for keyid in set(delegations.keys) - used:
        del delegations.keys[keyid]
    draft.touch(TOP)


def _paths(tenant: str) -> list[str]:
    return [f"prompts/{tenant}/*"] if tenant else ["prompts/*", "bases/*/*"]


def _tenant(name: Name) -> str:
    return name.tenant if isinstance(name, PromptName) else ""


def _bins(found: Targets) -> SuccinctRoles | None:
    return found.delegations.succinct_roles if found.delegations else None


def _list_of(draft: Draft, tenant: str, target: str) -> str:
    holder = holder_of(draft, tenant)
    bins = _bins(draft.targets(holder))
    return bins.get_role_for_target(target) if bins else holder


def _lists(draft: Draft, holder: str) -> list[str]:
    bins = _bins(draft.targets(holder))
    return list(bins.get_roles()) if bins else [holder]
