"""What is signed about a release besides its digest, and which devices take it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from promptdial.prompts.errors import Untrusted
from promptdial.prompts.updates.names import SHORT, STABLE, BundleFileName, PromptName

MAX_VERSION = 2**31 - 1
_SHARES = 10_000
"""Steps of a share: a hundredth of a percent."""


@dataclass(frozen=True)
class Offer:
    """A release as the repository signs it.

    Task, tenant, base and channel stand in the target's name.

    Attributes:
        name: What the target's name says.
        version: Of the prompt, or of the bundle.
        sha256: Hexadecimal digest of the file.
        length: Bytes of the file.
        tokenizer: Shortened fingerprint of the tokenizer.
        base: Shortened fingerprint of the base.
        percent: Share of the devices on channel stable that take it as well, 0 to 100.
        also: Other channels that have a release of the same prompt or bundle.
    """

    name: PromptName | BundleFileName
    version: int
    sha256: str
    length: int
    tokenizer: str
    base: str
    percent: int = 0
    also: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """`sha256:` and the digest of the file."""
        return f"sha256:{self.sha256}"

    @property
    def custom(self) -> dict[str, Any]:
        """The signed `custom` field: as short as can be, a bin has some 40 of them."""
        found: dict[str, Any] = {"tokenizer": self.tokenizer, "version": self.version}
        if isinstance(self.name, BundleFileName):
            found["base"] = self.base
        if self.percent:
            found["percent"] = self.percent
        if self.also:
            found["also"] = list(self.also)
        return found

    def is_open_to(self, channel: str, device_id: str) -> bool:
        """Whether a device on a channel takes this release.

        A device on a channel takes that channel's releases and the stable ones; of
        other channels' releases, those on channel stable take the share `percent`.
        """
        if self.name.channel in (STABLE, channel):
            return True
        return channel == STABLE and self.share_of(device_id) < self.percent * 100

    def share_of(self, device_id: str) -> int:
        """Where a device stands among all, 0 to 9,999; another place for each release.

        A larger share takes in more devices and lets none go.
        """
        subject = (
            f"{self.name.tenant}/{self.name.task}"
            if isinstance(self.name, PromptName)
            else self.name.bundle
        )
        text = f"{device_id}\n{subject}\n{self.version}"
        found = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(found[:8], "big") % _SHARES


def read_offer(
    name: PromptName | BundleFileName,
    length: int,
    hashes: Mapping[str, str],
    custom: object,
) -> Offer:
    """The offer of a target whose metadata is verified.

    Raises:
        Untrusted: What is signed about it is not of this form.
    """
    fields = dict(custom) if isinstance(custom, Mapping) else {}
    base = name.base if isinstance(name, PromptName) else fields.get("base")
    also = fields.get("also", [])
    offer = Offer(
        name=name,
        version=_number(name, fields, "version", 1, MAX_VERSION),
        sha256=_hex(name, hashes.get("sha256"), 64),
        length=length,
        tokenizer=_hex(name, fields.get("tokenizer"), SHORT),
        base=_hex(name, base, SHORT),
        percent=_number(name, {"percent": 0, **fields}, "percent", 0, 100),
        also=tuple(str(item) for item in also) if isinstance(also, list) else (),
    )
    return offer


def _number(
    name: PromptName | BundleFileName,
    fields: Mapping[str, Any],
    key: str,
    low: int,
    high: int,
) -> int:
    value = fields.get(key)
    if type(value) is not int or not low <= value <= high:
        raise Untrusted(
            f"{name.target}: signed {key} is {str(value)[:32]!r}, not {low} to {high}"
        )
    return value


def _hex(name: PromptName | BundleFileName, value: object, digits: int) -> str:
    plain = isinstance(value, str) and len(value) == digits
    if not plain or not set(str(value)) <= set("0123456789abcdef"):
        raise Untrusted(
            f"{name.target}: signed value {str(value)[:80]!r}, not {digits} "
            "hexadecimal digits"
        )
    return str(value)
