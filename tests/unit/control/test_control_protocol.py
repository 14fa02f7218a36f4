# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from pyvmm.control import protocol
from pyvmm.control.protocol import LINE_LIMIT, Lines, ProtocolError, parse


def taken(lines):
    found = []
    while (line := lines.take()) != b"":
        found.append(line)
    return found


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_lines_do_not_care_how_the_bytes_are_cut(step):
    lines, found = Lines(), []
    stream = b'{"do":"a"}\n\n  \r\n{"do":"b"}\r\nhalf'
    for at in range(0, len(stream), step):
        lines.feed(stream[at : at + step])
        found += taken(lines)
    assert found == [b'{"do":"a"}', b'{"do":"b"}']


@pytest.mark.parametrize("step", [1 << 16, 1 << 21])
def test_line_that_is_too_long_is_reported_once_and_skipped(step):
    lines, found = Lines(), []
    stream = b"x" * (3 * LINE_LIMIT) + b"\nnext\n"
    for at in range(0, len(stream), step):
        lines.feed(stream[at : at + step])
        found += taken(lines)
        assert len(lines._buffer) <= LINE_LIMIT + step
    assert found == [None, b"next"]


def test_longest_line_is_taken():
    lines = Lines()
    lines.feed(b"x" * LINE_LIMIT + b"\n" + b"y" * (LINE_LIMIT + 1) + b"\n")
    assert taken(lines) == [b"x" * LINE_LIMIT, None]


def test_request_is_its_name_its_id_and_its_parameters():
    request = parse(b'{"id": "a", "do": "stop", "grace": 5}')
    assert (request.do, request.id, request.params) == ("stop", "a", {"grace": 5})


@pytest.mark.parametrize(
    ("line", "sentence", "id"),
    [
        (None, "The line is longer than 1048576 bytes.", None),
        (b"pause", "The line is not JSON: ", None),
        (b"\xff\xfe", "The line is not JSON: ", None),
        (b"[" * 100_000, "The line is not JSON: ", None),
        (b"1" * 10_000, "The line is not JSON: ", None),
        (b'{"do": "stop", "grace": NaN}', "The line is not JSON: NaN is not a number", None),
        (b"[]", 'A request is an object such as {"do": "status"}.', None),
        (b"{}", 'The request has no "do"', None),
        (b'{"id": 4, "do": 5}', 'The request has no "do"', 4),
        (b'{"id": [1], "do": "status"}', 'The "id" of a request is a string or a number.', None),
        (b'{"id": 1e999, "do": "status"}', 'The "id" of a request is a string or a number.', None),
    ],
)  # fmt: skip
def test_line_that_is_no_request_is_one_sentence(line, sentence, id):
    with pytest.raises(ProtocolError) as refused:
        parse(line)
    assert str(refused.value).startswith(sentence)
    assert refused.value.id == id


def test_answers_are_one_line_each():
    assert json.loads(protocol.success("a", {"text": "two\nlines"})) == {
        "id": "a",
        "ok": True,
        "result": {"text": "two\nlines"},
    }
    assert protocol.failure(None, "No.") == b'{"id":null,"ok":false,"error":"No."}\n'
