"""What a bundle's .onnx file may hold: read before onnxruntime gets to see it.

A manifest proves that the files are those its writer meant, not that he meant well, and
onnxruntime 1.32 is content with more than a bundle may hold: it follows external data
into any file of the folder, a hard link to a foreign one included, and takes tensors of
2**40 elements that no node uses. The device has no onnx package, so this file walks the
protobuf message itself: tags and lengths, each checked to lie within what is around it.
Whatever occurs is looked at, also where protobuf would merge or override it.

Field numbers are those of onnx.proto, which never change.
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Operator domains that onnxruntime brings itself; any other needs native code."""

MAX_OPSET = 64
MAX_ELEMENTS = 2**31
"""Of one tensor: a table of 256 Ki tokens, 8 Ki wide."""

_ENDLESS = ("Loop", "Scan", "SequenceMap")
_MAX_DEPTH = 8
_NATIVE = (".so", ".dll", ".dylib", ".pyd", ".py")

Span = tuple[int, int]
Field = tuple[int, int | Span]
"""Field number and its value: a number, or the (begin, end) of its bytes."""


class GraphInvalid(ValueError):
    """The file is no graph that a bundle may hold; the message names the rule."""


def check_file_names(files: Mapping[str, int], graph: str) -> None:
    """Check the names of a bundle's files.

    Args:
        files: Bytes of each file by name.
        graph: The file of the graph.

    Raises:
        GraphInvalid: One is native code, or the graph is no .onnx file.
    """
    for name in files:
        if name.endswith(_NATIVE) or ".so." in name:
            raise GraphInvalid(
                f"{name} is native or Python code, allowed: weights, JSON and graphs; "
                "operator libraries are never loaded from a bundle"
            )
    if not graph.endswith(".onnx"):
        raise GraphInvalid(f"graph {graph} is no .onnx file")


def check_graph(path: Path, data_files: Mapping[str, int]) -> None:
    """Check a graph file.

    Args:
        path: The .onnx file.
        data_files: Bytes of each file that may hold its external data, by name.

    Raises:
        GraphInvalid: It breaks a rule; the message names it.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise GraphInvalid("0 bytes, not a graph") from None
        with mapped:
            _Walk(mapped, data_files).model()


class _Walk:
    """One pass over the bytes of a model."""

    def __init__(self, data: mmap.mmap, data_files: Mapping[str, int]) -> None:
        self._data = data
        self._data_files = data_files

    def model(self) -> None:
        graphs = 0
        for number, value in self._fields((0, len(self._data))):
            if number == 7:
                graphs += 1
                self._graph(_span(value), 0)
            elif number == 8:
                self._opset(_span(value))
            elif number in (20, 25):
                what = "training graphs" if number == 20 else "functions of its own"
                raise GraphInvalid(f"the graph has {what}, allowed: none")
        if graphs != 1:
            raise GraphInvalid(f"{graphs} graphs in the file, allowed: 1")

    def _opset(self, span: Span) -> None:
        domain, version = "", 0
        for number, value in self._fields(span):
            if number == 1:
                domain = self._text(value)
            elif number == 2 and isinstance(value, int):
                version = value
        self._domain(domain)
        if not 1 <= version <= MAX_OPSET:
            raise GraphInvalid(
                f"opset {version} of domain {domain!r}, allowed: 1 to {MAX_OPSET}"
            )

    def _domain(self, domain: str) -> None:
        if domain not in DOMAINS:
            known = ", ".join(repr(name) for name in DOMAINS)
            raise GraphInvalid(
                f"operator domain {domain[:64]!r}, allowed: {known}; "
                "operator libraries are never loaded from a bundle"
            )

    def _graph(self, span: Span, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise GraphInvalid(f"graphs nested over {_MAX_DEPTH} deep")
        for number, value in self._fields(span):
            if number == 1:
                self._node(_span(value), depth)
            elif number == 5:
                self._tensor(_span(value))
            elif number in (11, 12, 13):
                self._value(_span(value))
            elif number == 15:
                raise GraphInvalid("a sparse initializer, allowed: dense ones")

    def _node(self, span: Span, depth: int) -> None:
        for number, value in self._fields(span):
            if number == 4:
                kind = self._text(value)
                if kind in _ENDLESS:
                    raise GraphInvalid(
                        f"operator {kind} may run without end, allowed: all but "
                        f"{', '.join(_ENDLESS)}"
                    )
            elif number == 7:
                self._domain(self._text(value))
            elif number == 5:
                self._attribute(_span(value), depth)

    def _attribute(self, span: Span, depth: int) -> None:
        for number, value in self._fields(span):
            if number in (5, 10):
                self._tensor(_span(value))
            elif number in (6, 11):
                self._graph(_span(value), depth + 1)
            elif number in (22, 23):
                raise GraphInvalid("a sparse tensor, allowed: dense ones")

    def _tensor(self, span: Span) -> None:
        dims: list[int] = []
        name, external = "", False
        entries: list[tuple[str, str]] = []
        for number, value in self._fields(span):
            if number == 1:
                dims += self._numbers(value)
            elif number == 8:
                name = self._text(value)
            elif number == 13:
                external = True
                entries.append(self._entry(_span(value)))
            elif number == 14:
                external = external or value != 0
        _check_dims(name, dims)
        if external:
            self._external(name, entries)

    def _external(self, name: str, entries: list[tuple[str, str]]) -> None:
        locations = [text for key, text in entries if key == "location"]
        known = ", ".join(self._data_files) or "none"
        if len(locations) != 1 or locations[0] not in self._data_files:
            raise GraphInvalid(
                f"tensor {name[:64]!r} lies in {locations[:2]}, allowed: the graph's "
                f"own data files ({known})"
            )
        size = self._data_files[locations[0]]
        end = 0
        for key, text in entries:
            if key in ("offset", "length"):
                if not text.isdecimal() or len(text) > 16:
                    raise GraphInvalid(
                        f"tensor {name[:64]!r} has {key} {text[:24]!r}, "
                        f"allowed: 0 to {size}"
                    )
                end += int(text)
        if end > size:
            raise GraphInvalid(
                f"tensor {name[:64]!r} ends at byte {end} of {locations[0]}, "
                f"which has {size}"
            )

    def _entry(self, span: Span) -> tuple[str, str]:
        found = {1: "", 2: ""}
        for number, value in self._fields(span):
            if number in found:
                found[number] = self._text(value)
        return found[1], found[2]

    def _value(self, span: Span) -> None:
        """The fixed sizes of an input, output or value: name 1, type 2."""
        name = ""
        for number, value in self._fields(span):
            if number == 1:
                name = self._text(value)
            elif number == 2:
                _check_dims(name, self._sizes(_span(value), (1, 2, 1)))

    def _sizes(self, span: Span, way: tuple[int, ...]) -> list[int]:
        """dim_value of type.tensor_type.shape.dim: the fields of `way`, then 1."""
        found: list[int] = []
        for number, value in self._fields(span):
            if way and number == way[0]:
                found += self._sizes(_span(value), way[1:])
            elif not way and number == 1 and isinstance(value, int):
                found.append(value)
        return found

    def _numbers(self, value: int | Span) -> list[int]:
        """A repeated integer, packed or not."""
        if isinstance(value, int):
            return [value]
        place, found = value[0], []
        while place < value[1]:
            number, place = self._varint(place, value[1])
            found.append(number)
        return found

    def _text(self, value: int | Span) -> str:
        begin, end = _span(value)
        try:
            return self._data[begin:end].decode("utf-8")
        except UnicodeDecodeError:
            raise GraphInvalid(f"a name at byte {begin} is no UTF-8") from None

    def _fields(self, span: Span) -> Iterator[Field]:
        """The fields of a message; 4 and 8 byte numbers are passed over."""
        place, end = span
        while place < end:
            tag, place = self._varint(place, end)
            if not 8 <= tag < 2**32:
                # protobuf cuts a tag to 32 bits: a longer one would hide its field.
                raise GraphInvalid(f"tag {tag} at byte {place}, not a graph")
            wire = tag & 7
            if wire == 0:
                number, place = self._varint(place, end)
                yield tag >> 3, number
                continue
            if wire == 2:
                size, place = self._varint(place, end)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise GraphInvalid(f"wire type {wire} at byte {place}, not a graph")
            if size > end - place:
                raise GraphInvalid(f"a field at byte {place} ends beyond what holds it")
            if wire == 2:
                yield tag >> 3, (place, place + size)
            place += size

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        data, found, shift = self._data, 0, 0
        while place < end and shift < 70:
            byte = data[place]
            place += 1
            found |= (byte & 127) << shift
            if byte < 128:
                return found & (2**64 - 1), place
            shift += 7
        raise GraphInvalid(f"a number at byte {place} does not end, not a graph")


def _span(value: int | Span) -> Span:
    if isinstance(value, int):
        raise GraphInvalid(f"a number {value} where a message belongs, not a graph")
    return value


def _check_dims(name: str, dims: list[int]) -> None:
    """Sizes are positive numbers whose product is bounded; negative ones are huge."""
    count = 1
    for size in dims:
        count *= max(size, 1)
    if count > MAX_ELEMENTS:
        raise GraphInvalid(
            f"{name[:64]!r} has dimensions {dims[:8]}, allowed: {MAX_ELEMENTS} elements"
        )
