# SPDX-License-Identifier: Apache-2.0
"""Device trees as blobs, checked with libfdt, and as source."""

import struct

import libfdt
import pytest

from pyvmm.fdt import U64, Layout, Node, flatten, to_dts


def open_blob(root, boot_cpu=0):
    return libfdt.FdtRo(flatten(root, boot_cpu))


def read(root, path, name):
    fdt = open_blob(root)
    return bytes(fdt.getprop(fdt.path_offset(path), name))


def test_flatten_empty_root_is_a_valid_version_17_blob():
    fdt = open_blob(Node())
    assert (fdt.magic(), fdt.version(), fdt.last_comp_version()) == (0xD00DFEED, 17, 16)
    assert fdt.num_mem_rsv() == 0
    assert fdt.get_name(0) == ""


def test_flatten_boot_cpu_is_in_the_header():
    assert open_blob(Node(), boot_cpu=3).boot_cpuid_phys() == 3


@pytest.mark.parametrize("length", range(1, 10))
def test_flatten_total_size_is_the_length_and_a_multiple_of_8(length):
    root = Node()
    root["x" * length] = "y" * length
    blob = flatten(root)
    assert len(blob) % 8 == 0
    assert struct.unpack_from(">I", blob, 4)[0] == len(blob)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, b""),
        ("serial0", b"serial0\0"),
        ("", b"\0"),
        ("Zürich", "Zürich".encode() + b"\0"),
        ("\udcff", b"\xff\0"),
        (["a", "bc"], b"a\0bc\0"),
        (0x12345678, b"\x12\x34\x56\x78"),
        ([1, 0xFFFFFFFF], b"\0\0\0\1\xff\xff\xff\xff"),
        ([U64(0x1_0000_0002), 3], b"\0\0\0\1\0\0\0\2\0\0\0\3"),
        (b"\1\2\3", b"\1\2\3"),
        (b"", b""),
    ],
)
def test_flatten_value_has_the_specified_bytes(value, expected):
    root = Node()
    root.child("n")["value"] = value
    assert read(root, "/n", "value") == expected


def test_flatten_keeps_order_of_nodes_and_properties():
    root = Node()
    for name in ("z", "a", "m"):
        root[name] = None
        root.child(name)
    fdt = open_blob(root)
    first = fdt.first_subnode(0)
    second = fdt.next_subnode(first)
    assert [fdt.get_name(node) for node in (first, second, fdt.next_subnode(second))] == ["z", "a", "m"]
    offset = fdt.first_property_offset(0)
    names = [fdt.get_property_by_offset(offset).name]
    for _ in range(2):
        offset = fdt.next_property_offset(offset)
        names.append(fdt.get_property_by_offset(offset).name)
    assert names == ["z", "a", "m"]


def test_flatten_reference_becomes_the_phandle_of_its_target():
    root = Node()
    controller = root.child("pic")
    root.child("uart")["interrupts-extended"] = [controller, 9]
    fdt = open_blob(root)
    assert read(root, "/uart", "interrupts-extended") == struct.pack(">II", 1, 9)
    assert fdt.node_offset_by_phandle(1) == fdt.path_offset("/pic")


def test_flatten_gives_phandles_in_tree_order_and_only_where_needed():
    root = Node()
    first, unused, second = root.child("first"), root.child("unused"), root.child("second")
    root["to"] = [second, first]
    fdt = open_blob(root)
    assert read(root, "/", "to") == struct.pack(">II", 2, 1)
    assert fdt.get_phandle(fdt.path_offset("/first")) == 1
    assert fdt.get_phandle(fdt.path_offset(unused.path)) == 0


def test_flatten_equal_trees_give_equal_bytes():
    def tree():
        root = Node()
        pics = [root.child(f"pic@{i}") for i in range(8)]
        for pic in reversed(pics):
            pic["next"] = [pics[0], pic]
        return root

    assert flatten(tree()) == flatten(tree())


def test_flatten_reference_outside_the_tree_is_refused_with_both_named():
    root = Node()
    root.child("a")["link"] = [Node()]
    with pytest.raises(ValueError, match=r"property 'link' of /a refers to a node outside the tree"):
        flatten(root)


def test_setting_a_property_again_replaces_it_in_place():
    root = Node()
    root["a"], root["b"] = 1, 2
    root["a"] = 3
    assert list(root.properties.items()) == [("a", 3), ("b", 2)]
    assert root["a"] == 3
    assert "b" in root
    assert "c" not in root


@pytest.mark.parametrize("value", [-1, 1 << 32, 1.5, True, [1, "a"], ["a", 1], [], [True], ["a\0b"], {}])
def test_property_value_that_a_tree_cannot_hold_is_refused_with_node_and_property_named(value):
    node = Node().child("soc").child("uart@0")
    with pytest.raises(ValueError, match=r"property 'reg' of /soc/uart@0: "):
        node["reg"] = value
    assert "reg" not in node


@pytest.mark.parametrize("name", ["", "x" * 32, "sp ace", "sl/ash", "phandle", "linux,phandle"])
def test_property_name_that_is_not_allowed_is_refused(name):
    with pytest.raises(ValueError, match=r"property .* of /"):
        Node()[name] = 1


@pytest.mark.parametrize("name", ["", "@0", "a@", "x" * 32, "sp ace", "a/b", "caf\u00e9"])
def test_node_name_that_is_not_allowed_is_refused(name):
    with pytest.raises(ValueError, match="cannot be the name of a node in /"):
        Node().child(name)


def test_second_child_of_one_name_is_refused():
    root = Node()
    root.child("uart@0")
    with pytest.raises(ValueError, match="/ already has a node 'uart@0'"):
        root.child("uart@0")


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_u64_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match="does not fit into 64 bits"):
        U64(value)


def test_dts_shows_every_kind_of_value():
    root = Node()
    pic = root.child("pic@1")
    pic["interrupt-controller"] = None
    root["text"] = ['say "hi"\\', "line\n"]
    root["cells"] = [U64(1 << 32), pic, 9]
    root["bytes"] = b"\x01\xff"
    assert to_dts(root) == (
        "/dts-v1/;\n"
        "\n"
        "/ {\n"
        '\ttext = "say \\"hi\\"\\\\", "line\\x0a";\n'
        "\tcells = <0x1 0x0 &{/pic@1} 0x9>;\n"
        "\tbytes = [01 ff];\n"
        "\n"
        "\tpic@1 {\n"
        "\t\tinterrupt-controller;\n"
        "\t\tphandle = <0x1>;\n"
        "\t};\n"
        "};\n"
    )


def test_value_that_comes_later_is_as_if_it_had_been_there_before():
    root = Node()
    chosen = root.child("chosen")
    root.child("soc")["interrupt-parent"] = [chosen]
    chosen["start"] = [U64(0)]
    layout = Layout(root)
    chosen["start"] = [U64(0x8000_0000)]
    layout.update(chosen)
    assert layout.blob() == flatten(root)
    assert layout.size == len(layout.blob())


def test_value_of_another_length_cannot_come_later():
    root = Node()
    chosen = root.child("chosen")
    chosen["start"] = [U64(0)]
    layout = Layout(root)
    chosen["start"] = [0]
    with pytest.raises(ValueError, match="/chosen take another number of bytes"):
        layout.update(chosen)
