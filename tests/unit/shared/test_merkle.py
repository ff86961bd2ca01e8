"""The Merkle tree against the vectors of Certificate Transparency and against its own definition."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.transparency import merkle

# The eight leaves, and what RFC 6962 makes of them, as the implementations of Certificate Transparency test it.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): INCLUSION[0, 8],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def mth(leaves: list[bytes]) -> bytes:
    """MTH word for word as RFC 6962 2.1 defines it."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962 2.1.2."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def nodes(leaves: list[bytes]) -> merkle.Node:
    return lambda height, index: mth(leaves[index << height : (index + 1) << height])


def numbered(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def test_roots_are_those_of_the_vectors() -> None:
    compact = merkle.CompactRange()
    assert compact.root().hex() == ROOTS[0]
    for leaf, root in zip(LEAVES, ROOTS[1:], strict=True):
        compact.append(merkle.leaf_hash(leaf))
        assert compact.root().hex() == root
        assert merkle.root_of(compact.size, nodes(LEAVES)).hex() == root


@pytest.mark.parametrize("place", INCLUSION)
def test_inclusion_proofs_are_those_of_the_vectors(place: tuple[int, int]) -> None:
    index, size = place
    proof = merkle.inclusion_proof(index, size, nodes(LEAVES))
    assert [one.hex() for one in proof] == INCLUSION[place]
    assert merkle.verify_inclusion(merkle.leaf_hash(LEAVES[index]), index, size, proof, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize("place", CONSISTENCY)
def test_consistency_proofs_are_those_of_the_vectors(place: tuple[int, int]) -> None:
    older, newer = place
    proof = merkle.consistency_proof(older, newer, nodes(LEAVES))
    assert [one.hex() for one in proof] == CONSISTENCY[place]
    roots = bytes.fromhex(ROOTS[older]), bytes.fromhex(ROOTS[newer])
    assert merkle.verify_consistency(older, newer, *roots, proof)


def test_every_proof_of_small_trees_follows_the_definition_and_verifies() -> None:
    leaves = numbered(20)
    roots = [mth(leaves[:size]) for size in range(21)]
    node = nodes(leaves)
    for size in range(1, 21):
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, node)
            assert proof == path(index, leaves[:size])
            assert merkle.verify_inclusion(merkle.leaf_hash(leaves[index]), index, size, proof, roots[size])
        for older in range(1, size + 1):
            proof = merkle.consistency_proof(older, size, node)
            assert proof == subproof(older, leaves[:size], True)
            assert merkle.verify_consistency(older, size, roots[older], roots[size], proof)


def test_a_compact_range_tells_of_every_perfect_subtree_once() -> None:
    leaves = numbered(300)
    told: dict[tuple[int, int], bytes] = {}
    compact = merkle.CompactRange()
    for leaf in leaves:
        compact.append(merkle.leaf_hash(leaf), lambda height, index, node: told.setdefault((height, index), node))
    assert compact.root() == mth(leaves)
    assert set(told) == {(height, index) for height in range(9) for index in range(300 >> height)}
    assert all(node == nodes(leaves)(*place) for place, node in told.items())
    assert compact.hashes == [told[place] for place in merkle.subtrees(300)]


@given(st.integers(1, 40), st.data())
def test_an_inclusion_proof_proves_nothing_else(size: int, data: st.DataObject) -> None:
    leaves = numbered(size)
    index = data.draw(st.integers(0, size - 1))
    proof = path(index, leaves)
    root, leaf = mth(leaves), merkle.leaf_hash(leaves[index])
    other = data.draw(st.integers(0, 64).filter(lambda number: number != index))
    changed = list(proof)
    if changed:
        changed[data.draw(st.integers(0, len(changed) - 1))] = bytes(32)
        assert not merkle.verify_inclusion(leaf, index, size, changed, root)
        assert not merkle.verify_inclusion(leaf, index, size, proof[:-1], root)
    assert not merkle.verify_inclusion(leaf, other, size, proof, root)
    assert not merkle.verify_inclusion(leaf, index, size, [*proof, bytes(32)], root)
    assert not merkle.verify_inclusion(bytes(32), index, size, proof, root)
    assert not merkle.verify_inclusion(leaf, index, size, proof, bytes(32))


@given(st.integers(1, 40), st.data())
def test_a_consistency_proof_proves_nothing_else(newer: int, data: st.DataObject) -> None:
    leaves = numbered(newer)
    older = data.draw(st.integers(1, newer))
    proof = subproof(older, leaves, True)
    roots = mth(leaves[:older]), mth(leaves)
    forged = mth([b"forged", *leaves[1:older]])
    assert not merkle.verify_consistency(older, newer, forged, roots[1], proof)
    assert not merkle.verify_consistency(older, newer, roots[0], forged if older != newer else bytes(32), proof)
    assert not merkle.verify_consistency(older, newer, *roots, [*proof, bytes(32)])
    if proof:
        assert not merkle.verify_consistency(older, newer, *roots, proof[:-1])
        assert not merkle.verify_consistency(older, newer, *roots, [bytes(32), *proof[1:]])


@given(
    st.integers(-2, 70),
    st.integers(-2, 70),
    st.lists(st.binary(min_size=30, max_size=33), max_size=70),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)
def test_arbitrary_proofs_are_refused(first: int, second: int, proof: list[bytes], leaf: bytes, root: bytes) -> None:
    if not (first == 0 and second == 1 and not proof and leaf == root):
        assert not merkle.verify_inclusion(leaf, first, second, proof, root)
    if not (first == second >= 0 and not proof and leaf == root):
        assert not merkle.verify_consistency(first, second, leaf, root, proof)


def test_a_proof_of_64_hashes_is_refused_whatever_it_holds() -> None:
    assert not merkle.verify_inclusion(bytes(32), 0, 2**64, [bytes(32)] * 64, bytes(32))


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (5, 4), (-1, 3)])
def test_no_inclusion_proof_beyond_the_tree(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        merkle.inclusion_proof(index, size, nodes(numbered(8)))


@pytest.mark.parametrize(("older", "newer"), [(0, 1), (3, 2), (-1, 2)])
def test_no_consistency_proof_from_the_empty_tree_or_backwards(older: int, newer: int) -> None:
    with pytest.raises(ValueError, match="no proof"):
        merkle.consistency_proof(older, newer, nodes(numbered(8)))
