"""Names of targets: what a release is for stands in its name, which is signed.

    prompts/<task>~<base>.safetensors                     a prompt
    prompts/<tenant>/<task>~<base>~<channel>.safetensors  of a tenant, on a channel
    bases/<bundle>/<file>                                 a file of a base bundle
    bases/<bundle>~<channel>/<file>

`<base>` is the beginning of the base's fingerprint, so that a device asks only for what
fits its bundle; the blob itself carries the whole one. A name that is not of this form
is never published, asked for, or used as a path.
"""

import re
from dataclasses import dataclass

from promptdial.prompts.blob import SUFFIX
from promptdial.prompts.errors import UsageError
from promptdial.prompts.metadata import is_task_name
from promptdial.prompts.tenants import is_tenant_name

STABLE = "stable"
SHORT = 8
"""Hexadecimal digits of a shortened fingerprint: it chooses, the whole one decides."""

MANIFEST = "manifest.json"

CHANNELS = "channels"
"""Key of a holder's list: channels other than stable that have releases."""

REVOKED = "revoked"
"""Key of a holder's list: beginnings of the digests that no device may use."""

ISSUED = "issued"
"""Key of the timestamp: when it was signed, seconds since 1970. A device whose clock
shows less knows that its clock is wrong."""

_BUNDLE = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_CHANNEL = re.compile(r"[a-z][a-z0-9-]{0,15}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_BASE = re.compile(rf"[0-9a-f]{{{SHORT}}}")


@dataclass(frozen=True)
class PromptName:
    """What the name of a prompt's target says.

    Attributes:
        tenant: Whose it is; "" for everyone's.
        task: The task.
        base: Shortened fingerprint of the base.
        channel: `stable`, or another one.
    """

    tenant: str
    task: str
    base: str
    channel: str = STABLE

    @property
    def target(self) -> str:
        """The target's name."""
        folder = f"prompts/{self.tenant}/" if self.tenant else "prompts/"
        return f"{folder}{self.task}~{self.base}{_tail(self.channel)}{SUFFIX}"


@dataclass(frozen=True)
class BundleFileName:
    """What the name of a bundle file's target says.

    Attributes:
        bundle: Name of the bundle.
        file: Name of the file in it.
        channel: `stable`, or another one.
    """

    bundle: str
    file: str = MANIFEST
    channel: str = STABLE

    @property
    def target(self) -> str:
        """The target's name."""
        return f"bases/{self.bundle}{_tail(self.channel)}/{self.file}"


def short(fingerprint: str) -> str:
    """The shortened form of `ckpt1:...` or `tok1:...`."""
    return fingerprint.partition(":")[2][:SHORT]


def parse_name(name: str) -> PromptName | BundleFileName | None:
    """What a target's name says; None for a name that is not of this form."""
    parts = name.split("/")
    if parts[0] == "prompts" and len(parts) in (2, 3) and name.endswith(SUFFIX):
        tenant = parts[1] if len(parts) == 3 else ""
        fields = parts[-1].removesuffix(SUFFIX).split("~")
        if len(fields) not in (2, 3):
            return None
        found = PromptName(tenant, fields[0], fields[1], (*fields[2:], STABLE)[0])
        return found if _prompt_is_valid(found) and found.target == name else None
    if parts[0] == "bases" and len(parts) == 3:
        bundle, _, channel = parts[1].partition("~")
        file = BundleFileName(bundle, parts[2], channel or STABLE)
        return file if _file_is_valid(file) and file.target == name else None
    return None


def check_name(name: str) -> None:
    """Refuse a name that may not be a target's.

    Raises:
        UsageError: It leads out of its folder, or is not of the form above.
    """
    if ".." in name.split("/") or name.startswith("/") or "\\" in name:
        raise UsageError(
            f"target {name[:128]!r} leads out of its folder", "give a plain name"
        )
    if parse_name(name) is None:
        raise UsageError(
            f"target {name[:128]!r} is not prompts/[TENANT/]TASK~BASE[~CHANNEL]"
            f"{SUFFIX} or bases/BUNDLE[~CHANNEL]/FILE",
            "use letters, digits, dots, - and _",
        )


def check_channel(channel: str) -> None:
    """Refuse what cannot be a channel's name.

    Raises:
        UsageError: It is not of the form.
    """
    if not _CHANNEL.fullmatch(channel):
        raise UsageError(
            f"channel {channel[:64]!r} is not {_CHANNEL.pattern}", "choose another"
        )


def _tail(channel: str) -> str:
    return "" if channel == STABLE else f"~{channel}"


def _prompt_is_valid(name: PromptName) -> bool:
    return (
        (not name.tenant or is_tenant_name(name.tenant))
        and is_task_name(name.task)
        and _BASE.fullmatch(name.base) is not None
        and _CHANNEL.fullmatch(name.channel) is not None
    )


def _file_is_valid(name: BundleFileName) -> bool:
    return (
        _BUNDLE.fullmatch(name.bundle) is not None
        and _CHANNEL.fullmatch(name.channel) is not None
        and _FILE.fullmatch(name.file) is not None
    )
