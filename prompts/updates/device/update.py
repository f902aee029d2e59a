"""One update of a device: check, choose, download, stage, commit; or nothing."""

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from promptdial.prompts.blob import MAX_BLOB_BYTES, decode
from promptdial.prompts.errors import ClockBack, TooBig, Untrusted
from promptdial.prompts.updates.device.download import (
    check_space,
    download,
    sweep,
    writing,
)
from promptdial.prompts.updates.device.fetcher import BoundedFetcher, Source
from promptdial.prompts.updates.device.limits import DEFAULT_LIMITS, Limits
from promptdial.prompts.updates.device.plan import Plan, Session, make_plan
from promptdial.prompts.updates.device.progress import Progress
from promptdial.prompts.updates.device.resolve import Device, Held
from promptdial.prompts.updates.device.trusted import TrustedRepository, when
from promptdial.prompts.updates.lock import locked
from promptdial.prompts.updates.names import PromptName
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
        session = Session(
            receiver,
            device,
            repository,
            fetcher,
            source,
            limits,
            progress or Progress(None),
            staging,
        )
        plan = make_plan(session, receiver.base())
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


def _needed(session: Session, plan: Plan) -> list[tuple[str, int]]:
    """Digest and bytes of what is not here, without doubles."""
    found = {offer.sha256: offer.length for offer in plan.choice.offers}
    found |= {wanted.sha256: wanted.length for wanted in plan.files.values()}
    has = session.receiver.has
    return [(digest, n) for digest, n in found.items() if not has(f"sha256:{digest}")]


def _bring(session: Session, plan: Plan, needed: list[tuple[str, int]]) -> None:
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
        try:
            data = path.read_bytes()
            _check_blob(data, offer, plan.base)
            session.receiver.stage(offer.digest, data)
        finally:
            # Also where the disk is full: the room is given back.
            path.unlink(missing_ok=True)


def _check_blob(data: bytes, offer: Offer, base: BaseState) -> None:
    """Whether a blob is what was signed about it, to the whole fingerprints."""
    assert isinstance(offer.name, PromptName)
    meta = decode(data).meta
    found = (
        meta.task,
        meta.version,
        meta.base_fingerprint,
        meta.tokenizer_fingerprint,
    )
    signed = (
        offer.name.task,
        offer.version,
        base.fingerprint,
        base.tokenizer_fingerprint,
    )
    for seen, wanted in zip(found, signed, strict=True):
        if seen != wanted:
            raise Untrusted(f"{offer.name.target} is of {seen}, signed for {wanted}")


def _change(session: Session, plan: Plan, now: int) -> Change:
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
