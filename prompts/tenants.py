"""Names of tenants: one rule for the store of a device and for what is published."""

import re

from promptdial.prompts.errors import UsageError

ALL = "all"
"""The role of the publisher's own targets, once they are in bins."""

_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_RESERVED = frozenset({"root", "targets", "snapshot", "timestamp", ALL})
"""Names of a repository's roles: a tenant is a role of its own there."""


def is_tenant_name(name: str) -> bool:
    """Whether a name may be a tenant's."""
    return _TENANT.fullmatch(name) is not None and name not in _RESERVED


def check_tenant(tenant: str) -> None:
    """Refuse what cannot be a tenant's name.

    Raises:
        UsageError: It is not of the form, or names a role of a repository.
    """
    if not is_tenant_name(tenant):
        raise UsageError(
            f"tenant {tenant[:64]!r} is not {_TENANT.pattern}, or is one of "
            f"{', '.join(sorted(_RESERVED))}",
            "choose another name",
        )
