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


def flatten(root: Node, boot_cpu: int = 0) -> bytes:
    """The blob (version 17) of the tree under ``root``; ``boot_cpu`` is the booting hart's id.

    Raises ValueError when a property refers to a node outside the tree.
    """
    strings = _Strings()
    body: list[bytes] = []
    _write_node(body, root, _phandles(root), strings)
    body.append(struct.pack(">I", _END))
    structure, names = b"".join(body), b"".join(strings.blocks)
    reservations_at = _HEADER.size
    structure_at = reservations_at + len(_NO_RESERVATIONS)
    strings_at = structure_at + len(structure)
    total = strings_at + len(names) + -(strings_at + len(names)) % 8
    header = _HEADER.pack(
        *(_MAGIC, total, structure_at, strings_at, reservations_at),
        *(_VERSION, _LAST_COMPATIBLE, boot_cpu, len(names), len(structure)),
    )
    return (header + _NO_RESERVATIONS + structure + names).ljust(total, b"\0")


class _Strings:
    """The strings block: every property name once, in order of first use."""

    __slots__ = ("blocks", "offsets", "size")

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.offsets: dict[str, int] = {}
        self.size = 0

    def offset(self, name: str) -> int:
        if name not in self.offsets:
            self.offsets[name] = self.size
            self.blocks.append(name.encode() + b"\0")
            self.size += len(name) + 1
        return self.offsets[name]


def _write_node(body: list[bytes], node: Node, phandles: dict[Node, int], strings: _Strings) -> None:
    name = node.name.encode() + b"\0"
    body.append(struct.pack(">I", _BEGIN_NODE) + name + bytes(-len(name) % 4))
    for key, value in node.properties.items():
        _write_property(body, strings.offset(key), _value_bytes(value, phandles))
    if node in phandles:
        _write_property(body, strings.offset("phandle"), struct.pack(">I", phandles[node]))
    for child in node.children:
        _write_node(body, child, phandles, strings)
    body.append(_END_OF_NODE)


def _write_property(body: list[bytes], name_offset: int, data: bytes) -> None:
    body.append(_PROP_HEADER.pack(_PROP, len(data), name_offset) + data + bytes(-len(data) % 4))


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
