"""The states that a power cut may leave a disk in, from what a program did to it.

What POSIX promises, and no more: what was written to a file is there once the file was
synced; a name is there, or gone, once its folder was synced; a rename is whole or not
there. Before that, of the writes to a file any part may be there (none, all, the first,
all but one, some, one torn between sectors, or its length alone), and of the changes of
names as well, whatever their order.

Method: ALICE (Pillai et al., OSDI 2014), on calls instead of blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import PurePosixPath
from random import Random

from crash_shim import Call

SECTOR = 512
SOME = 5
"""Random choices of writes, of names and of both, at each point, besides those by rule;
and the changes of names, the last ones, that are chosen from one by one."""

Tree = dict[str, "Content | None"]
"""Files by path, and what they hold; None for a folder."""


@dataclass(frozen=True)
class Content:
    """Bytes of a file, or where a link leads, and what tells them from others."""

    data: bytes
    digest: bytes
    link: bool = False

    @classmethod
    def of(cls, data: bytes, link: bool = False) -> "Content":
        key = b"link" if link else b""
        return cls(data, blake2b(data, digest_size=16, key=key).digest(), link)


@dataclass(frozen=True)
class Write:
    """Bytes at a place of a file, or a new length (then `data` is empty)."""

    offset: int
    data: bytes
    cuts: bool = False


@dataclass
class Node:
    """A file or folder.

    Attributes:
        content: What is safe of it.
        pending: Writes since the last sync.
        names: Of a folder, the nodes that are safe by name; None for a file.
    """

    content: Content = field(default_factory=lambda: Content.of(b""))
    pending: list[Write] = field(default_factory=list)
    names: dict[str, "Node"] | None = None

    def sync(self) -> None:
        self.content = applied(self.content, self.pending)
        self.pending = []


@dataclass(frozen=True, eq=False)
class Naming:
    """One change of a folder's names: the node that has it, None for none.

    Attributes:
        folder: The folder.
        name: The name.
        node: What it names now.
        also: The other half of a rename inside the folder, whole or not there.
        after: The half in another folder, without which this one cannot be.
    """

    folder: Node
    name: str
    node: Node | None
    also: str = ""
    after: "Naming | None" = None


def applied(content: Content, writes: list[Write]) -> Content:
    """What a file holds after some writes."""
    found = bytearray(content.data)
    for write in writes:
        if write.cuts:
            del found[write.offset :]
        size = write.offset + len(write.data)
        if len(found) < size or write.cuts:
            found.extend(bytes(size - len(found)))
        found[write.offset : size] = write.data
    return Content.of(bytes(found))


class Disk:
    """A disk with what is safe on it and what is not yet."""

    def __init__(self, root: str) -> None:
        """An empty folder at `root`."""
        self._root = PurePosixPath(root)
        self.top = Node(names={})
        self.pending: list[Naming] = []
        self._open: dict[int, Node] = {}
        self._live: dict[int, dict[str, Node]] = {id(self.top): {}}
        self._files: list[Node] = []

    def do(self, call: Call) -> None:
        """Follow one call."""
        match call.kind:
            case "open":
                node = self._opened(call)
                self._open[call.fd] = node
                if call.offset and not call.created:
                    node.pending.append(Write(0, b"", cuts=True))
            case "close":
                self._open.pop(call.fd, None)
            case "write":
                self._open[call.fd].pending.append(Write(call.offset, call.data))
            case "truncate":
                self._open[call.fd].pending.append(Write(call.offset, b"", cuts=True))
            case "fsync":
                self._sync(self._open[call.fd])
            case "mkdir":
                folder, name = self._place(call.path)
                node = Node(names={})
                self._live[id(node)] = {}
                self._name(folder, name, node)
            case "unlink" | "rmdir":
                folder, name = self._place(call.path)
                self._name(folder, name, None)
            case "symlink":
                folder, name = self._place(call.other)
                self._name(folder, name, Node(Content.of(call.path.encode(), True)))
            case "link":
                source, old = self._place(call.path)
                target, new = self._place(call.other)
                self._name(target, new, self._live[id(source)][old])
            case "rename":
                self._rename(call)

    def files(self) -> list[Node]:
        """Files with writes that are not safe."""
        named = {id(node) for names in self._live.values() for node in names.values()}
        named |= {id(change.node) for change in self.pending}
        return [node for node in self._files if node.pending and id(node) in named]

    def tree(self, names: set[Naming], contents: dict[int, Content]) -> Tree:
        """What is on the disk if just these names, and these contents, made it."""
        found: Tree = {}
        self._collect(self.top, "", names, contents, found)
        return found

    def _collect(
        self,
        folder: Node,
        path: str,
        chosen: set[Naming],
        contents: dict[int, Content],
        found: Tree,
    ) -> None:
        assert folder.names is not None
        names = dict(folder.names)
        for change in self.pending:
            if change.folder is folder and change in chosen:
                if change.node is None:
                    names.pop(change.name, None)
                else:
                    names[change.name] = change.node
                if change.also:
                    names.pop(change.also, None)
        for name, node in names.items():
            place = f"{path}{name}"
            if node.names is None:
                found[place] = contents.get(id(node), node.content)
            else:
                found[place] = None
                self._collect(node, f"{place}/", chosen, contents, found)

    def _place(self, path: str) -> tuple[Node, str]:
        """The folder of a path as it is now, and the name in it."""
        node = self.top
        *parents, name = PurePosixPath(path).relative_to(self._root).parts
        for part in parents:
            node = self._live[id(node)][part]
        return node, name

    def _opened(self, call: Call) -> Node:
        if PurePosixPath(call.path) == self._root:
            return self.top
        folder, name = self._place(call.path)
        found = self._live[id(folder)].get(name)
        if found is None or call.created:
            found = Node()
            self._files.append(found)
            self._name(folder, name, found)
        return found

    def _name(
        self,
        folder: Node,
        name: str,
        node: Node | None,
        also: str = "",
        after: Naming | None = None,
    ) -> Naming:
        live = self._live[id(folder)]
        if node is None:
            live.pop(name, None)
        else:
            live[name] = node
        if also:
            live.pop(also, None)
        change = Naming(folder, name, node, also, after)
        self.pending.append(change)
        return change

    def _rename(self, call: Call) -> None:
        source, old = self._place(call.path)
        target, new = self._place(call.other)
        node = self._live[id(source)][old]
        if source is target:
            self._name(target, new, node, also=old)
            return
        made = self._name(target, new, node)
        self._name(source, old, None, after=made)

    def _sync(self, node: Node) -> None:
        if node.names is None:
            node.sync()
            return
        for change in [item for item in self.pending if item.folder is node]:
            if change.node is None:
                node.names.pop(change.name, None)
            else:
                node.names[change.name] = change.node
            if change.also:
                node.names.pop(change.also, None)
        self.pending = [item for item in self.pending if item.folder is not node]


def states(disk: Disk, random: Random) -> Iterator[Tree]:
    """Trees that a power cut now may leave: by rule, and some by chance."""
    files = disk.files()
    safe = [node.content for node in files]
    written = [applied(node.content, node.pending) for node in files]
    namings = list(_namings(disk.pending, random))
    nothing, everything = namings[0], namings[-1]
    by_file = [list(_contents(node, random)) for node in files]

    def tree(names: set[Naming], contents: list[Content]) -> Tree:
        by_node = {id(node): it for node, it in zip(files, contents, strict=True)}
        return disk.tree(names, by_node)

    for names in namings:
        yield tree(names, safe)
        yield tree(names, written)
    for place, contents in enumerate(by_file):
        for content in contents:
            for names in (nothing, everything):
                for others in (safe, written):
                    yield tree(names, [*others[:place], content, *others[place + 1 :]])
    for _ in range(SOME if files else 0):
        some = [random.choice(contents) for contents in by_file]
        yield tree(random.choice(namings), some)


def _contents(node: Node, random: Random) -> Iterator[Content]:
    """What a file with writes that are not safe may hold."""
    safe, writes = node.content, node.pending
    count = len(writes)
    for end in range(count + 1):
        yield applied(safe, writes[:end])
    for gone in range(count - 1):
        yield applied(safe, writes[:gone] + writes[gone + 1 :])
    for _ in range(SOME if count > 2 else 0):
        yield applied(safe, [item for item in writes if random.random() < 0.5])
    last = writes[-1]
    for size in range(SECTOR, len(last.data), SECTOR):
        # The beginning without the end, and the end without the beginning.
        first = Write(last.offset, last.data[:size])
        second = Write(last.offset + size, last.data[size:])
        yield applied(safe, [*writes[:-1], first])
        yield applied(safe, [*writes[:-1], second])
    if last.data:
        # Its length without its bytes.
        yield applied(safe, [*writes[:-1], Write(last.offset, bytes(len(last.data)))])


def _namings(pending: list[Naming], random: Random) -> Iterator[set[Naming]]:
    """Which changes of names may be safe: none first, all last."""
    older, last = pending[:-SOME], pending[-SOME:]
    subsets = [set(older) | set(last[:end]) for end in range(len(last))]
    subsets += [{*older, *last} - {gone} for gone in last[:-1]]
    subsets += [{item} for item in last]
    subsets += [
        {item for item in pending if random.random() < 0.5}
        for _ in range(SOME if len(pending) > 3 else 0)
    ]
    seen: set[frozenset[Naming]] = set()
    yield set()
    for some in subsets:
        # A rename is never half there: its source goes only where its target came.
        whole = frozenset(
            item
            for item in some
            if item.after is None or item.after in some or item.after not in pending
        )
        if whole and len(whole) < len(pending) and whole not in seen:
            seen.add(whole)
            yield set(whole)
    yield set(pending)
