# SPDX-License-Identifier: Apache-2.0
"""Flattened device trees: a tree of nodes, written as a blob (for the guest) or as source (for people).

Devicetree Specification v0.4, chapter 5. A property's value is one of

- ``None``: an empty property, a flag
- ``str``: a string; ``list[str]``: a list of strings
- ``int``: one 32-bit cell
- a list (or tuple) of ``int`` (one cell), :class:`U64` (two cells) and :class:`Node` (its phandle)
- ``bytes``: as they are

Nodes that others refer to get their phandle when the tree is written, numbered from 1 in tree order, so
equal trees give equal bytes.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Value = None | str | int | bytes | Sequence[str] | Sequence["int | U64 | Node"]

_MAGIC, _VERSION, _LAST_COMPATIBLE = 0xD00DFEED, 17, 16
_BEGIN_NODE, _END_NODE, _PROP, _END = 1, 2, 3, 9
_HEADER = struct.Struct(">10I")
_PROP_HEADER = struct.Struct(">3I")
_END_OF_NODE = struct.pack(">I", _END_NODE)
_NO_RESERVATIONS = bytes(16)
_STRUCTURE_AT = _HEADER.size + len(_NO_RESERVATIONS)

_NAME_LIMIT = 31  # section 2.2.1 and 2.2.4
_NODE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,._+-")
_PROPERTY_CHARACTERS = _NODE_CHARACTERS | frozenset("?#")


class U64:
    """A 64-bit number among cells: two of them, the high one first."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{value} does not fit into 64 bits")
        self.value = value

    def __repr__(self) -> str:
        return f"U64({self.value:#x})"


class Node:
    """A node: properties in the order in which they were set, then children in the order of creation."""

    __slots__ = ("_children", "_properties", "name", "parent")

    def __init__(self, name: str = "", parent: Node | None = None) -> None:
        self.name = name
        self.parent = parent
        self._properties: dict[str, Value] = {}
        self._children: dict[str, Node] = {}

    @property
    def path(self) -> str:
        """The full path, ``/`` for the root."""
        if self.parent is None:
            return self.name or "/"
        return self.parent.path.rstrip("/") + "/" + self.name

    @property
    def properties(self) -> Mapping[str, Value]:
        """The properties by name, in order."""
        return self._properties

    @property
    def children(self) -> Iterator[Node]:
        """The child nodes, in order."""
        return iter(self._children.values())

    def child(self, name: str) -> Node:
        """A new child called ``name``. Raises ValueError for a bad name and for one that is taken."""
        base, at, unit = name.partition("@")
        if (
            not 0 < len(base) <= _NAME_LIMIT
            or bool(at) != bool(unit)
            or not set(base + unit) <= _NODE_CHARACTERS
        ):
            raise ValueError(f"{name!r} cannot be the name of a node in {self.path}")
        if name in self._children:
            raise ValueError(f"{self.path} already has a node {name!r}")
        node = self._children[name] = Node(name, self)
        return node

    def __setitem__(self, name: str, value: Value) -> None:
        """Set a property. Raises ValueError, naming node and property, for what a tree cannot hold."""
        try:
            _check_property(name, value)
        except ValueError as error:
            raise ValueError(f"property {name!r} of {self.path}: {error}") from None
        self._properties[name] = value

    def __getitem__(self, name: str) -> Value:
        return self._properties[name]

    def __contains__(self, name: str) -> bool:
        return name in self._properties

    def __repr__(self) -> str:
        return f"<Node {self.path}>"


def _check_property(name: str, value: Value) -> None:
    if not 0 < len(name) <= _NAME_LIMIT or not set(name) <= _PROPERTY_CHARACTERS:
        raise ValueError("not a valid property name")
    if name in ("phandle", "linux,phandle"):
        raise ValueError("phandles are given out when the tree is written")
    if value is None or isinstance(value, bytes):
        return
    if isinstance(value, str):
        _encode_string(value)
    elif isinstance(value, (list, tuple)):
        _check_list(value)
    else:
        _check_cell(value)


def _check_list(values: Sequence[object]) -> None:
    if not values:
        raise ValueError("an empty list; an empty property is None")
    if isinstance(values[0], str):
        for item in values:
            if not isinstance(item, str):
                raise ValueError(f"a list of strings cannot hold {item!r}")
            _encode_string(item)
    else:
        for item in values:
            if not isinstance(item, (U64, Node)):
                _check_cell(item)


def _check_cell(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is neither a string, a cell, bytes nor a list of them")
    if not 0 <= value < 1 << 32:
        raise ValueError(f"{value:#x} does not fit into a 32-bit cell; wrap it into U64")


def _encode_string(text: str) -> bytes:
    """``text`` with its terminator; bytes of an argument that were not UTF-8 come through unchanged."""
    if "\0" in text:
        raise ValueError(f"{text!r} contains a NUL character")
    return text.encode("utf-8", "surrogateescape") + b"\0"


# Phandles --------------------------------------------------------------------------------------------


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _phandles(root: Node) -> dict[Node, int]:
    """The phandle of every node that a property refers to. Raises ValueError for one outside the tree."""
    nodes = list(_walk(root))
    within = set(nodes)
    wanted: set[Node] = set()
    for node in nodes:
        for name, value in node.properties.items():
            if isinstance(value, (list, tuple)):
                targets = {item for item in value if isinstance(item, Node)}
                if not targets <= within:
                    raise ValueError(f"property {name!r} of {node.path} refers to a node outside the tree")
                wanted |= targets
    return {node: number for number, node in enumerate((n for n in nodes if n in wanted), 1)}


# The blob --------------------------------------------------------------------------------------------


class Layout:
    """The blob (version 17) of the tree under ``root``, whose size is known before all values are.

    ``boot_cpu`` is the booting hart's id. Raises ValueError when a property refers to a node elsewhere.
    """

    __slots__ = ("_boot_cpu", "_names", "_names_size", "_offsets", "_own", "_parts", "_phandles", "size")

    def __init__(self, root: Node, boot_cpu: int = 0) -> None:
        self._boot_cpu = boot_cpu
        self._phandles = _phandles(root)
        # The strings block: every property name once, in order of first use.
        self._names: list[bytes] = []
        self._names_size = 0
        self._offsets: dict[str, int] = {}
        self._parts: list[bytes] = []
        self._own: dict[Node, int] = {}  # which part is a node's beginning and properties
        self._add(root)
        self._parts.append(struct.pack(">I", _END))
        #: Of the blob, in bytes.
        self.size = self._strings_at() + self._names_size
        self.size += -self.size % 8

    def update(self, node: Node) -> None:
        """Take over other values of a node's properties, which are the same ones and as long as before."""
        at = self._own[node]
        own = self._beginning(node)
        if len(own) != len(self._parts[at]):
            raise ValueError(f"the properties of {node.path} take another number of bytes than before")
        self._parts[at] = own

    def blob(self) -> bytes:
        """The blob itself."""
        structure, names = b"".join(self._parts), b"".join(self._names)
        strings_at = self._strings_at()
        header = _HEADER.pack(
            *(_MAGIC, self.size, _STRUCTURE_AT, strings_at, _HEADER.size),
            *(_VERSION, _LAST_COMPATIBLE, self._boot_cpu, len(names), len(structure)),
        )
        return (header + _NO_RESERVATIONS + structure + names).ljust(self.size, b"\0")

    def _strings_at(self) -> int:
        return _STRUCTURE_AT + sum(map(len, self._parts))

    def _add(self, node: Node) -> None:
        self._own[node] = len(self._parts)
        self._parts.append(self._beginning(node))
        for child in node.children:
            self._add(child)
        self._parts.append(_END_OF_NODE)

    def _beginning(self, node: Node) -> bytes:
        name = node.name.encode() + b"\0"
        parts = [struct.pack(">I", _BEGIN_NODE), name, bytes(-len(name) % 4)]
        for key, value in node.properties.items():
            self._add_property(parts, key, _value_bytes(value, self._phandles))
        if node in self._phandles:
            self._add_property(parts, "phandle", struct.pack(">I", self._phandles[node]))
        return b"".join(parts)

    def _add_property(self, parts: list[bytes], name: str, data: bytes) -> None:
        offset = self._offsets.get(name)
        if offset is None:
            offset = self._offsets[name] = self._names_size
            self._names.append(name.encode() + b"\0")
            self._names_size += len(name) + 1
        parts += (_PROP_HEADER.pack(_PROP, len(data), offset), data, bytes(-len(data) % 4))


def flatten(root: Node, boot_cpu: int = 0) -> bytes:
    """The blob of a tree all of whose values are known; see Layout."""
    return Layout(root, boot_cpu).blob()


def _value_bytes(value: Value, phandles: dict[Node, int]) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return _encode_string(value)
    if isinstance(value, int):
        return struct.pack(">I", value)
    return b"".join([_item_bytes(item, phandles) for item in value])


def _item_bytes(item: str | int | U64 | Node, phandles: dict[Node, int]) -> bytes:
    if isinstance(item, int):
        return struct.pack(">I", item)
    if isinstance(item, str):
        return _encode_string(item)
    if isinstance(item, U64):
        return struct.pack(">Q", item.value)
    return struct.pack(">I", phandles[item])


# The source ------------------------------------------------------------------------------------------


def to_dts(root: Node) -> str:
    """Device tree source of the tree under ``root``, for people and for ``dtc``.

    References are written as paths (``&{/soc/...}``), and every node referred to keeps the phandle that
    :func:`flatten` gives it. Raises ValueError when a property refers to a node outside the tree.
    """
    lines = ["/dts-v1/;", ""]
    _print_node(lines, root, _phandles(root), "")
    return "\n".join(lines) + "\n"


def _print_node(lines: list[str], node: Node, phandles: dict[Node, int], indent: str) -> None:
    lines.append(f"{indent}{node.name or '/'} {{")
    inner = indent + "\t"
    for name, value in node.properties.items():
        lines.append(inner + name + (";" if value is None else f" = {_value_source(value)};"))
    if node in phandles:
        lines.append(f"{inner}phandle = <{phandles[node]:#x}>;")
    for child in node.children:
        lines.append("")
        _print_node(lines, child, phandles, inner)
    lines.append(indent + "};")


def _value_source(value: Value) -> str:
    if isinstance(value, bytes):
        return f"[{value.hex(' ')}]"
    items = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(items[0], str):
        return ", ".join(_quote(str(item)) for item in items)
    return "<" + " ".join(_cell_source(item) for item in items) + ">"


def _cell_source(item: object) -> str:
    if isinstance(item, U64):
        return f"{item.value >> 32:#x} {item.value & 0xFFFF_FFFF:#x}"
    if isinstance(item, Node):
        return f"&{{{item.path}}}"
    return f"{item:#x}"


def _quote(text: str) -> str:
    printable = (
        "\\" + chr(byte) if byte in b'"\\' else chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"
        for byte in _encode_string(text)[:-1]
    )
    return '"' + "".join(printable) + '"'
