"""The same bundle on other processors, under emulation: golden answers and cosine.

    python benchmarks/other_processors.py BUNDLE PROMPTS [--work DIR] [--on NAME ...]

`haswell` is an x86-64 processor without VNNI (qemu-x86_64), `aarch64` an ARM one
(qemu-aarch64). Wants Debian's package qemu-user; for aarch64 also apt-get, dpkg and
pip, which fetch Debian's Python and the aarch64 wheels into DIR. `oldest` is this
processor with the oldest onnxruntime that an exported graph asks for.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from promptdial.export.calibration import SENTENCES
from promptdial.runtime.manifest import GraphVariant

ROOT = Path(__file__).parents[1]
PACKAGES = ("numpy", "onnxruntime", "tokenizers")
# qemu hands the host's /proc/cpuinfo on, unless one lies under its prefix.
HASWELL_INFO = "processor\t: 0\nflags\t\t: fpu sse sse2 sse4_2 avx avx2 fma\n\n"
AARCH64_INFO = """\
processor\t: {core}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics asimdrdm asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd0b
CPU revision\t: 0

"""


@dataclass(frozen=True)
class Processor:
    """How to run Python there: the command, and what PYTHONPATH holds."""

    command: tuple[str, ...]
    path: tuple[Path, ...]


def native(work: Path) -> Processor:
    """This processor."""
    return Processor((sys.executable,), (packages(work),))


def oldest(work: Path) -> Processor:
    """This processor with the oldest onnxruntime that graphs name, from PyPI."""
    site = work / "oldest-site"
    if not site.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
        wanted = f"onnxruntime=={GraphVariant.min_onnxruntime}.*"
        subprocess.run([*pip, str(site), wanted], check=True)
    return Processor((sys.executable,), (packages(work), site))


def haswell(work: Path) -> Processor:
    """This Python on an emulated processor with AVX2 and without VNNI."""
    prefix = work / "haswell"
    write_info(prefix, HASWELL_INFO)
    command = (need("qemu-x86_64"), "-cpu", "Haswell", "-L", str(prefix))
    return Processor((*command, sys.executable), (packages(work),))


def aarch64(work: Path) -> Processor:
    """Debian's Python with the aarch64 wheels on an emulated Cortex-A76."""
    root, site = work / "aarch64", work / "aarch64-site"
    if not site.is_dir():
        unpack_debian(work / "debian", root)
        unpack_wheels(work / "wheels", site)
    write_info(root, AARCH64_INFO.format(core=0) + AARCH64_INFO.format(core=1))
    python = sorted((root / "usr/bin").glob("python3.*"))[0]
    command = (need("qemu-aarch64"), "-cpu", "cortex-a76", "-L", str(root))
    return Processor((*command, str(python)), (packages(work), site))


PROCESSORS: dict[str, Callable[[Path], Processor]] = {
    "native": native,
    "oldest": oldest,
    "haswell": haswell,
    "aarch64": aarch64,
}


def packages(work: Path) -> Path:
    """A folder with promptdial's packages as an installation lays them out."""
    folder = work / "site"
    (folder / "promptdial").mkdir(parents=True, exist_ok=True)
    for name in ("prompts", "runtime"):
        link = folder / "promptdial" / name
        if not link.is_symlink():
            link.symlink_to(ROOT / name, target_is_directory=True)
    return folder


def write_info(prefix: Path, text: str) -> None:
    """Put a /proc/cpuinfo under a prefix."""
    (prefix / "proc").mkdir(parents=True, exist_ok=True)
    (prefix / "proc" / "cpuinfo").write_text(text, encoding="ascii")


def need(program: str) -> str:
    """The path of a program.

    Raises:
        SystemExit: It is not there; the message says what brings it.
    """
    found = shutil.which(program)
    if found is None:
        raise SystemExit(f"{program} is missing: apt-get install qemu-user")
    return found


def unpack_debian(state: Path, root: Path) -> None:
    """Fetch Debian's Python for arm64 into `root`, beside the system's own packages."""
    for name in ("lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    minor = f"python3.{sys.version_info.minor}"
    wanted = [f"{minor}-minimal", f"lib{minor}-stdlib", "libstdc++6"]
    subprocess.run([*apt, "update"], check=True)
    install = ["install", "--download-only", "-y", "--no-install-recommends"]
    subprocess.run([*apt, *install, *wanted], check=True)
    for package in sorted((state / "archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)


def unpack_wheels(wheels: Path, site: Path) -> None:
    """Fetch the aarch64 wheels of the device's packages, in the versions used here."""
    platforms = [
        f"--platform={name}_aarch64"
        for name in ("manylinux_2_28", "manylinux_2_27", "manylinux2014")
    ]
    wanted = [f"{name}=={version(name)}" for name in PACKAGES]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-d",
        str(wheels),
    ]
    subprocess.run([*pip, *platforms, "--only-binary=:all:", *wanted], check=True)
    for wheel in sorted(wheels.glob("*.whl")):
        shutil.unpack_archive(wheel, site, "zip")


def answers(
    processor: Processor, bundle: Path, prompts: Path, texts: Path
) -> dict[str, Any]:
    """What processor_answers.py prints there.

    Raises:
        SystemExit: It failed; the message is its own.
    """
    script = Path(__file__).with_name("processor_answers.py")
    arguments = [str(script), str(bundle), str(prompts), str(texts)]
    path = os.pathsep.join(str(item) for item in processor.path)
    run = subprocess.run(
        [*processor.command, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if run.returncode:
        raise SystemExit(f"{' '.join(processor.command)}: {run.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def compare(found: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """Golden pass rate, and cosines of the embeddings with the reference's."""
    ours, theirs = np.array(found["vectors"]), np.array(reference["vectors"])
    cosines = (ours * theirs).sum(1)
    return {
        "machine": found["machine"],
        "onnxruntime": found["onnxruntime"],
        "features": found["features"],
        "exact_mode": found["exact_mode"],
        "golden": found["asked"],
        "golden_right": found["asked"] - len(found["failures"]),
        "failures": found["failures"],
        "cosine": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
    }


def measure(
    bundle: Path, prompts: Path, work: Path, names: list[str]
) -> dict[str, dict[str, Any]]:
    """Figures by processor; cosines are with this processor's own answers."""
    texts = work / "texts.json"
    texts.write_text(json.dumps(SENTENCES), encoding="utf-8")
    reference = answers(native(work), bundle, prompts, texts)
    return {
        name: compare(
            answers(PROCESSORS[name](work), bundle, prompts, texts), reference
        )
        for name in names
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--on", nargs="*", choices=PROCESSORS, default=list(PROCESSORS))
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = (args.work or Path(folder)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        rows = measure(args.bundle, args.prompts, work, args.on)
    if args.json:
        print(json.dumps(rows))
        return
    for name, row in rows.items():
        print(
            f"{name:8} {row['machine']} ({', '.join(row['features'])}), onnxruntime "
            f"{row['onnxruntime']}, exact mode {row['exact_mode']}: golden "
            f"{row['golden_right']} of {row['golden']}, cosine {row['cosine']:.5f}, "
            f"least {row['cosine_min']:.5f}"
        )
        for line in row["failures"]:
            print(f"         {line}")


if __name__ == "__main__":
    main()
