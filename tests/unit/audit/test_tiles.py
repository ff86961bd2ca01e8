"""The layout of C2SP tlog-tiles, by the specification's own examples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.audit import tiles
from services.audit.tiles import ENTRIES, Tile
from shared.transparency import merkle


def test_the_path_of_the_specification_s_example() -> None:
    assert Tile(0, 1234067).path == "tile/0/x001/x234/067"
    assert Tile(0, 273, 112).path == "tile/0/273.p/112"
    assert Tile(ENTRIES, 0).path == "tile/entries/000"


def test_a_tree_of_70000_has_the_tiles_that_the_specification_counts() -> None:
    found = list(tiles.tiles_of(70_000))
    assert [sum(t.level == level and t.width == 256 for t in found) for level in (0, 1, 2)] == [273, 1, 0]
    assert [(t.level, t.index, t.width) for t in found if t.width < 256] == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]


def test_a_tree_of_256_has_a_full_tile_and_one_above_of_width_1() -> None:
    assert list(tiles.tiles_of(256)) == [Tile(0, 0), Tile(1, 0, 1)]


@given(st.integers(-1, 63), st.integers(0, 10**12), st.integers(1, 256))
def test_a_path_names_one_tile_and_is_read_back(level: int, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    assert tiles.parse_path(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/0",
        "tile/64/000",
        "tile/00/000",
        "tile/0/x000/001",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/0/../000",
        "tile/0/000\n",
        "/tile/0/000",
        "tile/entries/1",
        "tile/-1/000",
        "",
    ],
)
def test_other_forms_of_a_path_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="tile"):
        tiles.parse_path(path)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_a_bundle_is_read_back(entries: list[bytes]) -> None:
    assert tiles.decode_bundle(tiles.encode_bundle(entries)) == entries


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5), st.data())
def test_a_bundle_that_is_cut_inside_an_entry_is_refused(entries: list[bytes], data: st.DataObject) -> None:
    whole = tiles.encode_bundle(entries)
    ends = {len(tiles.encode_bundle(entries[:count])) for count in range(len(entries) + 1)}
    cut = data.draw(st.integers(0, len(whole) - 1).filter(lambda length: length not in ends))
    with pytest.raises(ValueError, match="inside an entry"):
        tiles.decode_bundle(whole[:cut])


def test_an_entry_over_65535_bytes_has_no_bundle() -> None:
    with pytest.raises(OverflowError):
        tiles.encode_bundle([bytes(65536)])


def test_nodes_out_of_tiles_are_those_of_the_tree() -> None:
    size = 1000
    hashes = [merkle.leaf_hash(str(number).encode()) for number in range(size)]
    row = {0: hashes}
    for level in (1,):
        row[level] = [
            merkle.perfect_root(row[level - 1][start : start + 256]) for start in range(0, size // 256 * 256, 256)
        ]
    compact = merkle.CompactRange()
    for one in hashes:
        compact.append(one)
    node = tiles.reader(lambda level, index: b"".join(row[level][index * 256 : (index + 1) * 256]))
    assert merkle.root_of(size, node) == compact.root()
    with pytest.raises(LookupError):
        node(0, size)
