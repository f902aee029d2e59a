"""From task folders to a pack's file: what `train-pack` and the benchmark both do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptdial.export.model import ENCODER, load_base, resolve
from promptdial.prompts.errors import UsageError
from promptdial.prompts.pack import Pack, write_pack
from promptdial.prompts.training.base import pick_device
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.graphs.graph_base import training_base
from promptdial.prompts.training.packs.shared import SharedResult, train_shared
from promptdial.prompts.training.packs.shared_members import require_shareable
from promptdial.prompts.training.packs.shared_packing import (
    PackedTask,
    pack_shared,
    require_pack_fits,
)
from promptdial.prompts.training.scores.calibration import rule_of
from promptdial.prompts.training.task import CHAT, Task, read_task


@dataclass(frozen=True)
class PackFile:
    """A pack that was trained and written.

    Attributes:
        pack: What the file holds.
        tasks: Those that it was trained on, in the order of its blobs.
        packed: What the stored numbers of each task give.
        result: The joint run.
    """

    pack: Pack
    tasks: list[Task]
    packed: list[PackedTask]
    result: SharedResult


def make_pack_file(
    model: str,
    folders: Sequence[Path],
    out: Path,
    config: TrainConfig,
    teachers: Path | None = None,
) -> PackFile:
    """Train a pack and write it; its checkpoint, OUT.checkpoint, is gone after that.

    Args:
        model: Hub id, folder or a name that `resolve` knows.
        folders: Of the tasks, or their task.yaml.
        out: The file; its folder is made.
        config: Options.
        teachers: As train_shared.

    Raises:
        BlobTooBig: It would not fit; told before any training.
        UsageError: The model is no encoder, or options, tasks or a checkpoint do not
            go together.
        DataInvalid: A task cannot be read, or the loss is not finite.
        PromptError: A teacher cannot be read.
        ExportError: There is no such model, it cannot be used, it takes no prefix, or
            a bundle's graph lacks the levels that class vectors are to read.
    """
    tasks = [read_task(folder, config.limit) for folder in folders]
    require_shareable(tasks, config)
    if any(CHAT in task.template for task in tasks):
        raise UsageError("a chat template belongs to decoders", "leave chat out")
    device = pick_device(config.device)
    loaded = load_base(resolve(model), device)
    if loaded.family != ENCODER:
        raise UsageError(
            f"{loaded.base.model} is of family {loaded.family}", "give an encoder"
        )
    base = training_base(loaded, device, config)
    # Before the hours of training, not after them.
    for task in tasks:
        rule_of(config, task)
    require_pack_fits(base, tasks, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_name(out.name + ".checkpoint")
    result = train_shared(base, tasks, config, checkpoint, teachers)
    pack, packed = pack_shared(config, result)
    write_pack(out, pack)
    # The pack is written: nothing is left to go on with.
    checkpoint.unlink(missing_ok=True)
    return PackFile(pack, tasks, packed, result)
