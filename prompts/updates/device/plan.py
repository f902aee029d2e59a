"""What an update is to do: which base, which prompts, and what has to wait."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from promptdial.prompts.errors import TooBig, Untrusted, UsageError
from promptdial.prompts.updates.device.download import (
    Wanted,
    check_space,
    download,
    target_url,
)
from promptdial.prompts.updates.device.fetcher import BoundedFetcher, Source
from promptdial.prompts.updates.device.limits import Limits
from promptdial.prompts.updates.device.progress import Progress
from promptdial.prompts.updates.device.resolve import (
    Choice,
    Device,
    Held,
    choose_bundle,
    choose_prompts,
)
from promptdial.prompts.updates.device.trusted import TrustedRepository
from promptdial.prompts.updates.names import (
    MANIFEST,
    BundleFileName,
    parse_name,
    short,
)
from promptdial.prompts.updates.offer import Offer
from promptdial.prompts.updates.receiver import BaseState, Receiver

MAX_MANIFEST = 1_000_000
_MAX_BUNDLE_FILES = 256


@dataclass(frozen=True)
class Session:
    """What the steps of one update share.

    Attributes:
        receiver: The device's store.
        device: What the device had and wanted when the update began.
        repository: What is offered.
        fetcher: What fetches it.
        source: Where it is.
        limits: The most that it may cost.
        progress: Shows how far it is.
        staging: Folder of what is half downloaded.
    """

    receiver: Receiver
    device: Device
    repository: TrustedRepository
    fetcher: BoundedFetcher
    source: Source
    limits: Limits
    progress: Progress
    staging: Path

    def fetch(self, label: str, target: str, sha256: str, length: int) -> Path:
        """Bring a target's content to the staging folder, verified."""
        url = target_url(self.source.targets_url, target, sha256)
        wanted = Wanted(label, url, sha256, length)
        return download(wanted, self.staging, self.fetcher, self.limits, self.progress)

    def begin_metadata(self) -> None:
        """Metadata comes next."""
        limits = self.limits
        self.fetcher.meter.begin(limits.metadata_seconds, limits.metadata_bytes)


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        choice: Prompts to take.
        base: The base that they are for.
        bundle: The new base's offer; None where the base stays.
        files: The new base's files by name, the manifest among them.
        held: What else is not taken, and why.
    """

    choice: Choice
    base: BaseState
    bundle: Offer | None = None
    files: dict[str, Wanted] = field(default_factory=dict)
    held: tuple[Held, ...] = ()


def make_plan(session: Session, base: BaseState | None) -> Plan:
    """What a device takes of what is offered, on the base that it will have.

    A new base is taken when every task in use has a prompt for it; else it waits.

    Raises:
        UsageError: The device has no base and none is offered to it.
        UpdateError: The repository cannot be trusted or reached.
    """
    offer = choose_bundle(session.repository, session.device, base)
    if offer is None and base is None:
        raise UsageError(
            "the device has no base, and follows no bundle that is offered",
            "tell the store its bundle",
        )
    held: tuple[Held, ...] = ()
    if offer is not None:
        new, files = _bundle(session, offer)
        session.begin_metadata()
        moving = base is None or _kind(base) != _kind(new)
        choice = choose_prompts(session.repository, session.device, new, moving)
        lost = _lost(session, choice)
        if base is None or not lost:
            return Plan(choice, new, offer, files)
        held = (Held(session.device.following.bundle, f"no prompt for it: {lost}"),)
    assert base is not None
    choice = choose_prompts(session.repository, session.device, base, False)
    return Plan(choice, base, held=held)


def _bundle(session: Session, offer: Offer) -> tuple[BaseState, dict[str, Wanted]]:
    """The base that a bundle's manifest describes, and its files by name."""
    assert isinstance(offer.name, BundleFileName)
    if offer.length > MAX_MANIFEST:
        raise TooBig(f"{offer.name.target}: {offer.length} bytes, most {MAX_MANIFEST}")
    check_space(session.staging, offer.length)
    path = session.fetch(MANIFEST, offer.name.target, offer.sha256, offer.length)
    try:
        body = json.loads(path.read_bytes())
        fingerprint = str(body["base"]["fingerprint"])
        tokenizer = str(body["base"]["tokenizer_fingerprint"])
        listed = {str(k): str(x["sha256"]) for k, x in body["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Untrusted(f"{offer.name.target}: {str(error)[:100]}") from None
    if (short(fingerprint), short(tokenizer)) != (offer.base, offer.tokenizer):
        raise Untrusted(f"{offer.name.target} is of another base than signed")
    if len(listed) > _MAX_BUNDLE_FILES:
        raise TooBig(f"{len(listed)} files in a bundle, most {_MAX_BUNDLE_FILES}")
    session.begin_metadata()
    files = {MANIFEST: _wanted(session, offer.name, offer.sha256, offer.length)}
    for file, sha256 in sorted(listed.items()):
        name = BundleFileName(offer.name.bundle, file, offer.name.channel)
        if parse_name(name.target) != name:
            raise Untrusted(f"{offer.name.target} lists {file[:128]!r}, no plain name")
        target = session.repository.target(name.target)
        if target is None or target.hashes.get("sha256") != sha256:
            raise Untrusted(f"{name.target[:128]} is not signed as the manifest says")
        files[file] = _wanted(session, name, sha256, target.length)
    digest = offer.digest
    return BaseState(fingerprint, tokenizer, offer.version, digest), files


def _wanted(session: Session, name: BundleFileName, sha256: str, length: int) -> Wanted:
    url = target_url(session.source.targets_url, name.target, sha256)
    return Wanted(name.file, url, sha256, length)


def _lost(session: Session, choice: Choice) -> str:
    """Tasks in use that would have no prompt; "" for none."""
    lost = [
        "/".join(filter(None, key))
        for key, state in session.device.prompts.items()
        if state.version and key not in choice.served
    ]
    return ", ".join(sorted(lost)[:8])


def _kind(base: BaseState) -> tuple[str, str]:
    return base.fingerprint, base.tokenizer_fingerprint
