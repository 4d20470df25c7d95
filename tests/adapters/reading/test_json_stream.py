"""Streaming over label files: every record once, in order, at bounded memory, however the file is written or cut."""

import json
import math
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handdata.adapters.reading import json_stream
from handdata.adapters.reading.json_stream import (
    read_json,
    read_object,
    require_once,
    stream_items,
    stream_list,
    stream_list_part,
    stream_lists,
    stream_nested_items,
)
from handdata.schemas.errors import RecordError, RejectReason

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


def write(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "labels.json"
    path.write_text(json.dumps(content, **options), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


@contextmanager
def tiny_blocks() -> Iterator[None]:
    """Blocks of seven bytes, so that every token is cut somewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "BLOCK_BYTES", 7)
        yield


@settings(deadline=None, max_examples=40)
@given(content=st.dictionaries(st.text(max_size=6), VALUES, max_size=6), ascii_only=st.booleans(), pretty=st.booleans())
def test_items_equal_what_json_reads(folder: Path, content: dict[str, Any], ascii_only: bool, pretty: bool) -> None:
    path = write(folder, content, ensure_ascii=ascii_only, indent=2 if pretty else None)
    with tiny_blocks():
        assert list(stream_items(path)) == list(content.items())


@settings(deadline=None, max_examples=40)
@given(before=VALUES, content=st.lists(VALUES, max_size=6))
def test_a_list_below_a_key_equals_what_json_reads(folder: Path, before: Any, content: list[Any]) -> None:
    path = write(folder, {"info": before, "annotations": content, "after": [1]})
    with tiny_blocks():
        assert list(stream_list(path, "annotations")) == content


@settings(deadline=None, max_examples=30)
@given(
    content=st.dictionaries(st.text(max_size=3), st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=4)
)
def test_nested_items_equal_what_json_reads(folder: Path, content: dict[str, dict[str, Any]]) -> None:
    path = write(folder, {"skipped": {"a": [{}]}, "annotations": content})
    expected = [(outer, key, value) for outer, inner in content.items() for key, value in inner.items()]
    with tiny_blocks():
        assert list(stream_nested_items(path, "annotations")) == expected


@settings(deadline=None, max_examples=40)
@given(content=st.dictionaries(st.text(max_size=6), VALUES, min_size=1, max_size=6), data=st.data())
def test_a_cut_file_gives_its_whole_records_and_then_an_error(
    folder: Path, content: dict[str, Any], data: st.DataObject
) -> None:
    path = write(folder, content, ensure_ascii=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    read = []
    with tiny_blocks(), pytest.raises(RecordError, match=r"labels\.json, byte \d+: ") as caught:
        read.extend(stream_items(path))  # extend keeps what came before the error
    assert caught.value.reason is RejectReason.LABEL_CORRUPT
    assert read == list(content.items())[: len(read)]


@settings(deadline=None, max_examples=20)
@given(lists=st.permutations([("a", [1, {"x": []}]), ("b", []), ("c", {"no": "list"}), ("d", [2]), ("e", "text")]))
def test_several_lists_are_read_in_one_pass_in_the_order_of_the_file(
    folder: Path, lists: list[tuple[str, Any]]
) -> None:
    path = write(folder, dict(lists))
    with tiny_blocks():
        found = list(stream_lists(path, "a", "b", "c"))
    elements = {"a": [1, {"x": []}], "b": [], "c": [{"no": "list"}]}
    assert found == [(name, element) for name, _ in lists for element in elements.get(name, [])]


def test_a_list_that_is_there_twice_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"a": [1], "b": [2], "a": [3]}')
    with pytest.raises(RecordError, match="'a' is there twice"):
        list(stream_lists(path, "a"))
    assert list(stream_lists(path, "b")) == [("b", 2)]


def test_records_before_the_cut_are_all_yielded(tmp_path: Path) -> None:
    path = write(tmp_path, {str(i): {"v": [i]} for i in range(100)})
    path.write_bytes(path.read_bytes()[:-5])
    keys = []
    with pytest.raises(RecordError):
        for key, _ in stream_items(path):
            keys.append(key)
    assert keys == [str(i) for i in range(99)]


def test_the_error_names_the_byte_where_the_bad_value_starts(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes('{"é": {"v": 1}, "b": {"v": nope}}'.encode())
    with pytest.raises(RecordError, match=r"byte 22: not JSON"):
        list(stream_items(path))


def test_brackets_and_quotes_within_strings_do_not_end_a_record(tmp_path: Path) -> None:
    content = {"a": {"name": '}}{"]\\'}, "}": {"name": "{" * 40}, "c": [["]", '"'], {"x": "}"}]}
    assert list(stream_items(write(tmp_path, content))) == list(content.items())


def test_nan_and_infinity_as_python_writes_them_are_read(tmp_path: Path) -> None:
    ((_, value),) = stream_items(write(tmp_path, {"a": {"xy": [math.nan, math.inf]}}))
    assert math.isnan(value["xy"][0])
    assert value["xy"][1] == math.inf


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": {}}')
    assert list(stream_items(path)) == [("a", {})]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file ends"),
        (b"[1]", "expected '{'"),
        (b'{"a" 1}', "expected ':'"),
        (b'{"a": }', "expected a value"),
        (b'{"a": 1 "b": 2}', "expected ',' or '}'"),
        (b"{1: 2}", "expected a key"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested more than 100 deep"),
        (b'{"a": ' + b"[" * 100_000, "nested more than 100 deep"),
        (b'{"a": ' + b"[" * 90, "the file ends"),
    ],
)
def test_what_is_not_json_is_rejected_with_its_place(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        list(stream_items(path))
    assert caught.value.reason is RejectReason.LABEL_CORRUPT
    assert problem in caught.value.detail


@settings(deadline=None, max_examples=40)
@given(content=st.lists(VALUES, min_size=1, max_size=6), data=st.data(), pretty=st.booleans())
def test_workers_that_share_a_list_read_each_element_once(
    folder: Path, content: list[Any], data: st.DataObject, pretty: bool
) -> None:
    before, separator = '{"other": 1, "list": [', " ,\n " if pretty else ","
    texts = [json.dumps(value) for value in content]
    path = folder / "labels.json"
    path.write_text(before + separator.join(texts) + "]}", encoding="utf-8")
    starts = [len(before + "".join(text + separator for text in texts[:count])) for count in range(len(texts))]
    cuts = sorted(data.draw(st.sets(st.sampled_from(starts))) | {starts[0]})
    ends = [*cuts[1:], path.stat().st_size]
    with tiny_blocks():
        parts = [list(stream_list_part(path, start, end)) for start, end in zip(cuts, ends, strict=True)]
    assert [value for part in parts for value in part] == content


def test_a_small_file_is_one_value(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}
    path.write_bytes(path.read_bytes() + b" {}")
    with pytest.raises(RecordError, match="expected the end of the file"):
        read_json(path)


def test_a_missing_file_and_a_missing_key_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RecordError) as caught:
        list(stream_items(tmp_path / "absent.json"))
    assert caught.value.reason is RejectReason.LABEL_MISSING
    with pytest.raises(RecordError, match="has no key 'annotations'"):
        list(stream_list(write(tmp_path, {"images": []}), "annotations"))


def test_a_value_that_never_ends_is_rejected_before_memory_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "MAX_VALUE_BYTES", 1 << 20)
    path = tmp_path / "labels.json"
    path.write_bytes(b'{"a": [' + b"1," * (4 << 20))
    with pytest.raises(RecordError, match="larger than 1048576 bytes"):
        list(stream_items(path))


def test_a_value_of_millions_of_lists_is_rejected_before_they_are_built(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes(b'{"a": [' + b"[]," * 4_000_000 + b"[]]}")
    with pytest.raises(RecordError, match="one value has 8000002 parts"):
        list(stream_items(path))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, {str(i): {"points": "x" * 1200} for i in range(10_000)})
    assert path.stat().st_size > 10 << 20
    tracemalloc.start()
    try:
        count = sum(1 for _ in stream_items(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert peak < 5 << 20


@pytest.mark.parametrize("behind", ['{"c": 3}', "[4]", "<<<<<<< HEAD", "\0\0"])
def test_what_follows_the_value_of_a_file_is_an_error_behind_all_records(tmp_path: Path, behind: str) -> None:
    path = tmp_path / "labels.json"
    readers: list[tuple[str, Callable[[Path], Iterator[Any]], list[Any]]] = [
        ('{"a": 1, "b": 2}', stream_items, [("a", 1), ("b", 2)]),
        ('{"a": {"x": 1}, "b": {}}', stream_nested_items, [("a", "x", 1)]),
        ("[1, 2]", stream_list, [1, 2]),
        ("[]", stream_list, []),
    ]
    for content, stream, expected in readers:
        path.write_text(f"\ufeff{content} \n")
        assert list(stream(path)) == expected
        path.write_text(f"{content}\n{behind}\n")
        read: list[Any] = []
        with pytest.raises(RecordError, match=r"expected the end of the file") as caught:
            read.extend(stream(path))
        assert (read, caught.value.reason) == (expected, RejectReason.LABEL_CORRUPT)


@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize(
    "inner", ['{%s, "b": 1}', "[[1], {%s}]", '{"a": [{"k": 0}, {"c": {%s}}]}', '{"t": "}\\":", %s}']
)
def test_a_key_that_is_there_twice_with_two_values_is_rejected(tmp_path: Path, inner: str, space: str) -> None:
    """Parsers take the last one: a joint or a camera would be another one, without a word."""
    path = tmp_path / "labels.json"
    for second, refused in ((2, True), (1, False)):
        value = inner % f'"k"{space}: 1, "k"{space}: {second}'
        readers: list[tuple[str, Callable[[Path], Any]]] = [
            ("%s", read_json),
            ('{"r": %s}', lambda path: list(stream_items(path))),
            ('[{"id": 1}, %s, {"id": 2}]', lambda path: list(stream_list(path))),
        ]
        for whole, read in readers:
            path.write_text(whole % value)
            if refused:
                with pytest.raises(RecordError, match="the key 'k' is there twice"):
                    read(path)
            else:
                assert read(path)


@pytest.mark.parametrize("blocks", [1 << 20, 7])
@pytest.mark.parametrize(
    ("content", "is_twice"),
    [
        ('{"a": [1], "b": [2], "a": [3]}', True),
        ('{"b": {"a": []}, "a" : [1], "a"\n: [1]}', True),
        (r'{"\u0061": [0], "a": [1]}', True),
        ('{"b": "} ]", "a": [1], "c": "{ [", "a": [2]}', True),
        ('{"b": {"a": 0}, "a": [1], "c": [{"a": 2}], "d": "\\"a\\": ", "e": "a"}', False),
        ('{"b": "a", "a": [1]}', False),
    ],
)
def test_a_key_above_what_is_streamed_may_be_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, is_twice: bool, blocks: int
) -> None:
    """Parsers take the last one, who streams the first: the other one would be lost without a word."""
    monkeypatch.setattr(json_stream, "BLOCK_BYTES", blocks)
    path = tmp_path / "labels.json"
    path.write_text(content)
    nested = tmp_path / "nested.json"
    nested.write_text(f'{{"b": {{"a": 1}}, "outer": {content}, "a": 0}}')
    if not is_twice:
        assert list(stream_list(path, "a")) == [1]
        require_once(nested, "outer", "a")
        return
    with pytest.raises(RecordError, match=r"labels\.json: the key 'a' is there twice") as caught:
        next(stream_list(path, "a"))
    assert caught.value.reason is RejectReason.LABEL_CORRUPT
    with pytest.raises(RecordError, match="the key 'a' is there twice"):
        require_once(nested, "outer", "a")


def test_an_object_that_is_read_whole_has_each_key_once(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"a": 1, "b": {}, "a": 1}')
    assert read_object(path) == {"a": 1, "b": {}}
    for content, problem in (('{"a": 1, "b": {}, "a": 2}', "the key 'a' is there twice"), ("[1]", "an object")):
        path.write_text(content)
        with pytest.raises(RecordError, match=problem):
            read_object(path)
