"""The chunk format: what goes in comes out, for any record."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from romancy_stream.broker.embedded.chunks import decode, encode, size_of, split
from romancy_stream.broker.embedded.limits import CHUNK_BYTES_LIMIT, CHUNK_RECORDS_LIMIT
from romancy_stream.broker.port import OutRecord, Record

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
records = st.builds(
    OutRecord,
    topic=st.just("t"),
    key=st.binary(max_size=8),
    value=st.none() | st.binary(max_size=20),
    headers=st.lists(st.tuples(names, st.none() | st.binary(max_size=8)), max_size=4),
)


@given(st.lists(records, min_size=1, max_size=20))
def test_a_chunk_gives_back_its_records(written: list[OutRecord]) -> None:
    expected = [Record("t", 3, 70 + n, out.key, out.value, list(out.headers), 123_456) for n, out in enumerate(written)]
    assert decode(encode(written), 70, 123_456, "t", 3) == expected


def test_the_format_on_the_disk_never_changes() -> None:
    written = [OutRecord("t", b"key", b"value", [("a", b"1"), ("é", b"")]), OutRecord("t", b"", None, [])]
    assert encode(written).hex() == (
        "0200000008000000" + "03000000" + "05000000" + "0a000000" + "01000000" + "00000000" + "00000000" + "ffffffff"
        "02000000" + b"key".hex() + b"value".hex() + '["a","é"]'.encode().hex() + b"1".hex() + b"[]".hex()
    )


def test_chunks_keep_to_their_limits() -> None:
    small = [OutRecord("t", b"", b"%d" % n, []) for n in range(2 * CHUNK_RECORDS_LIMIT + 1)]
    large = [OutRecord("t", b"", b"x" * (CHUNK_BYTES_LIMIT // 3), []) for _ in range(5)]
    huge = [OutRecord("t", b"", b"x" * (2 * CHUNK_BYTES_LIMIT), [])]
    runs = list(split(small + large + huge))
    assert [out for run, _ in runs for out in run] == small + large + huge
    for run, size in runs:
        assert size == sum(map(size_of, run))
        assert len(run) <= CHUNK_RECORDS_LIMIT
        assert size <= CHUNK_BYTES_LIMIT or run == huge
