"""One update of a device: check, choose, download, stage, commit; or nothing."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from promptdial.prompts.blob import MAX_BLOB_BYTES, decode
from promptdial.prompts.errors import ClockBack, TooBig, Untrusted, UsageError
from promptdial.prompts.updates.device.download import (
    Wanted,
    check_space,
    download,
    sweep,
    target_url,
    writing,
)
from promptdial.prompts.updates.device.fetcher import BoundedFetcher, Source
from promptdial.prompts.updates.device.limits import DEFAULT_LIMITS, Limits
from promptdial.prompts.updates.device.progress import Progress
from promptdial.prompts.updates.device.resolve import (
    Choice,
    Device,
    Held,
    choose_bundle,
    choose_prompts,
)
from promptdial.prompts.updates.device.trusted import TrustedRepository, when
from promptdial.prompts.updates.lock import locked
from promptdial.prompts.updates.names import MANIFEST, BundleFileName, PromptName, short
from promptdial.prompts.updates.offer import Offer
from promptdial.prompts.updates.receiver import (
    Activation,
    BaseState,
    BundleActivation,
    Change,
    Following,
    Receiver,
)

CLOCK_SLACK = 120
"""Seconds that a clock may be behind a time seen before: clocks are set by little."""

MAX_MANIFEST = 1_000_000
_MAX_BUNDLE_FILES = 256


@dataclass(frozen=True)
class Report:
    """What an update did, or would do.

    Attributes:
        checked: When, seconds since 1970.
        prompts: New versions that are in use now, as `Offer`s.
        bundle: The new base's offer; None where the base stays.
        held: What was not taken, and why.
        revoked: (tenant, beginning of a digest) of what was revoked.
        received: Bytes that came over the network, headers counted.
        needed: Bytes of files that were not here.
        seconds: How long it took.
        dry_run: Nothing was changed.
    """

    checked: int
    prompts: tuple[Offer, ...]
    bundle: Offer | None
    held: tuple[Held, ...]
    revoked: frozenset[tuple[str, str]]
    received: int
    needed: int
    seconds: float
    dry_run: bool = False


@dataclass(frozen=True)
class _Session:
    """What the steps of one update share."""

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
class _Plan:
    """What is to be done."""

    choice: Choice
    base: BaseState
    bundle: Offer | None = None
    files: dict[str, Wanted] = field(default_factory=dict)
    held: tuple[Held, ...] = ()


def update(
    receiver: Receiver,
    source: Source,
    following: Following | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
) -> Report:
    """Bring a device up to date with a repository: wholly, or not at all.

    Args:
        receiver: The device's store.
        source: Where the repository is; whoever answers there is not trusted.
        following: What the device wants; None for what its store says.
        limits: The most that it may cost.
        progress: Shows how far it is; None for nowhere.
        dry_run: Change nothing, say what would be done.
        clock: Seconds since 1970.

    Raises:
        UpdateError: The repository cannot be trusted or reached; nothing was changed.
        PromptError: A blob or the disk is not as it must be; nothing was changed.
        UsageError: The URL cannot be one, or the device has no base.
    """
    started, now = time.monotonic(), int(clock())
    with ExitStack() as stack:
        stack.enter_context(writing(receiver.staging_folder))
        folder, staging = receiver.metadata_folder, receiver.staging_folder
        if dry_run:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if folder.is_dir():
                shutil.copytree(folder, work / "metadata", symlinks=True)
            folder, staging = work / "metadata", work / "staging"
        else:
            stack.enter_context(locked(receiver.lock_path, "an update"))
        check_clock(now, receiver.time_floor(), "seen at an earlier check")
        fetcher = BoundedFetcher(source, limits)
        stack.callback(fetcher.close)
        fetcher.meter.begin(limits.metadata_seconds, limits.metadata_bytes)
        repository = TrustedRepository(
            receiver.root(),
            folder,
            source.metadata_url,
            fetcher,
            limits,
            receiver.last_check(),
        )
        repository.refresh()
        check_clock(now, repository.issued, "signed by the repository")
        device = Device(
            following or receiver.following(), receiver.prompts(), receiver.refused()
        )
        session = _Session(
            receiver,
            device,
            repository,
            fetcher,
            source,
            limits,
            progress or Progress(None),
            staging,
        )
        plan = _plan(session, receiver.base())
        needed = _needed(session, plan)
        if not dry_run:
            _bring(session, plan, needed)
            repository.keep()
            receiver.commit(_change(session, plan, now))
        return Report(
            checked=now,
            prompts=plan.choice.offers,
            bundle=plan.bundle,
            held=(*plan.held, *plan.choice.held),
            revoked=plan.choice.revoked,
            received=fetcher.meter.received,
            needed=sum(length for _, length in needed),
            seconds=time.monotonic() - started,
            dry_run=dry_run,
        )


def check_clock(now: int, seen: int, where: str) -> None:
    """Refuse a clock that is behind a time that is known to be past.

    Raises:
        ClockBack: It is; expiry cannot be told by such a clock.
    """
    if now < seen - CLOCK_SLACK:
        raise ClockBack(f"the clock shows {when(now)}, {when(seen)} was {where}")


def _plan(session: _Session, base: BaseState | None) -> _Plan:
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
            return _Plan(choice, new, offer, files)
        held = (Held(session.device.following.bundle, f"no prompt for it: {lost}"),)
    assert base is not None
    choice = choose_prompts(session.repository, session.device, base, False)
    return _Plan(choice, base, held=held)


def _bundle(session: _Session, offer: Offer) -> tuple[BaseState, dict[str, Wanted]]:
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
        target = session.repository.target(name.target)
        if target is None or target.hashes.get("sha256") != sha256:
            raise Untrusted(f"{name.target[:128]} is not signed as the manifest says")
        files[file] = _wanted(session, name, sha256, target.length)
    digest = offer.digest
    return BaseState(fingerprint, tokenizer, offer.version, digest), files


def _wanted(
    session: _Session, name: BundleFileName, sha256: str, length: int
) -> Wanted:
    url = target_url(session.source.targets_url, name.target, sha256)
    return Wanted(name.file, url, sha256, length)


def _lost(session: _Session, choice: Choice) -> str:
    """Tasks in use that would have no prompt; "" for none."""
    lost = [
        "/".join(filter(None, key))
        for key, state in session.device.prompts.items()
        if state.version and key not in choice.served
    ]
    return ", ".join(sorted(lost)[:8])


def _kind(base: BaseState) -> tuple[str, str]:
    return base.fingerprint, base.tokenizer_fingerprint


def _needed(session: _Session, plan: _Plan) -> list[tuple[str, int]]:
    """Digest and bytes of what is not here, without doubles."""
    found = {offer.sha256: offer.length for offer in plan.choice.offers}
    found |= {wanted.sha256: wanted.length for wanted in plan.files.values()}
    has = session.receiver.has
    return [(digest, n) for digest, n in found.items() if not has(f"sha256:{digest}")]


def _bring(session: _Session, plan: _Plan, needed: list[tuple[str, int]]) -> None:
    missing = {digest for digest, _ in needed}
    sweep(session.staging, missing)
    if not missing:
        return
    check_space(session.staging, sum(length for _, length in needed))
    for wanted in plan.files.values():
        if wanted.sha256 in missing:
            missing.remove(wanted.sha256)
            path = download(
                wanted,
                session.staging,
                session.fetcher,
                session.limits,
                session.progress,
            )
            session.receiver.stage_file(f"sha256:{wanted.sha256}", path)
    for offer in plan.choice.offers:
        if offer.sha256 not in missing:
            continue
        missing.remove(offer.sha256)
        assert isinstance(offer.name, PromptName)
        if offer.length > MAX_BLOB_BYTES:
            raise TooBig(
                f"{offer.name.target}: {offer.length} bytes, most {MAX_BLOB_BYTES}"
            )
        label = f"{offer.name.task} {offer.version}"
        path = session.fetch(label, offer.name.target, offer.sha256, offer.length)
        data = path.read_bytes()
        _check_blob(data, offer, plan.base)
        session.receiver.stage(offer.digest, data)
        path.unlink(missing_ok=True)


def _check_blob(data: bytes, offer: Offer, base: BaseState) -> None:
    """Whether a blob is what was signed about it, to the whole fingerprints."""
    assert isinstance(offer.name, PromptName)
    meta = decode(data, offer.name.task).meta
    found = meta.version, meta.base_fingerprint, meta.tokenizer_fingerprint
    signed = offer.version, base.fingerprint, base.tokenizer_fingerprint
    for seen, wanted in zip(found, signed, strict=True):
        if seen != wanted:
            raise Untrusted(f"{offer.name.target} is of {seen}, signed for {wanted}")


def _change(session: _Session, plan: _Plan, now: int) -> Change:
    activations = []
    for offer in plan.choice.offers:
        assert isinstance(offer.name, PromptName)
        name = offer.name
        activations.append(
            Activation(name.tenant, name.task, offer.version, offer.digest)
        )
    bundle = None
    if plan.bundle is not None:
        files = {name: f"sha256:{x.sha256}" for name, x in plan.files.items()}
        bundle = BundleActivation(session.device.following.bundle, plan.base, files)
    return Change(
        checked=now,
        time_floor=max(now, session.repository.issued),
        prompts=tuple(activations),
        bundle=bundle,
        revoked=plan.choice.revoked,
    )
