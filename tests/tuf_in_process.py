"""The executable of the suite's protocol, called without a process of its own."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from securesystemslib.signer import CryptoSigner
from tuf_repository import TufRepository, kept_versions
from update_server import StaticServer


def loaded() -> ModuleType:
    """The executable of the suite's protocol, as a module: no process a call."""
    path = str(Path(__file__).parent / "tuf_client")
    spec = spec_from_loader("tuf_client", SourceFileLoader("tuf_client", path))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Client:
    """A client of one repository; its calls give exit codes."""

    def __init__(self, folder: Path, server: StaticServer) -> None:
        self.metadata, self.downloads = folder / "metadata", folder / "targets"
        self.metadata.mkdir(parents=True)
        self.downloads.mkdir()
        self._server, self._main = server, loaded().main

    def init(self, root: bytes) -> int:
        path = self.metadata.with_name("root.json")
        path.write_bytes(root)
        return self._run("init", str(path))

    def refresh(self) -> int:
        return self._run("--metadata-url", f"{self._server.url}/metadata", "refresh")

    def download(self, name: str) -> int:
        return self._run(
            *("--metadata-url", f"{self._server.url}/metadata"),
            *("--target-name", name, "--target-dir", str(self.downloads)),
            *("--target-base-url", f"{self._server.url}/targets", "download"),
        )

    def files(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in self.downloads.iterdir())

    def _run(self, *arguments: str) -> int:
        code = self._main(["--metadata-dir", str(self.metadata), *arguments])
        assert isinstance(code, int)
        return code


def new_client(repository: TufRepository, server: StaticServer, at: Path) -> Client:
    """One that knows the first root and nothing else."""
    found = Client(at / "client", server)
    assert found.init(repository.sign("root", repository.root)) == 0
    return found


def trusted(client: Client) -> dict[str, int]:
    return kept_versions(client.metadata)


def versions(root: int, timestamp: int, snapshot: int, targets: int) -> dict[str, int]:
    names = ("root", "timestamp", "snapshot", "targets")
    return dict(zip(names, (root, timestamp, snapshot, targets), strict=True))


def keys(count: int) -> list[CryptoSigner]:
    return [CryptoSigner.generate_ed25519() for _ in range(count)]
