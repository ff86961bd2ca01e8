"""The Merkle tree of RFC 6962 section 2.1 over SHA-256: hashes, roots, inclusion and consistency proofs."""

from collections.abc import Callable, Sequence
from hashlib import sha256

HASH_SIZE = 32
"""Length of every hash in bytes."""

EMPTY_ROOT = sha256(b"").digest()
"""MTH of the empty list (RFC 6962 2.1)."""

MAX_PROOF = 63
"""More hashes than a proof in any tree of fewer than 2**63 leaves can need (C2SP tlog-proof)."""

Node = Callable[[int, int], bytes]
"""`node(height, index)`: root of the perfect subtree of 2**height leaves that starts at leaf index * 2**height."""


def leaf_hash(leaf: bytes) -> bytes:
    """Hash of one leaf: SHA-256(0x00 || leaf)."""
    return sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


def perfect_root(hashes: Sequence[bytes]) -> bytes:
    """Root over 2**k hashes of one level, k >= 0."""
    row = list(hashes)
    while len(row) > 1:
        row = [node_hash(row[i], row[i + 1]) for i in range(0, len(row), 2)]
    return row[0]


class CompactRange:
    """The roots of the perfect subtrees that a tree of `size` leaves splits into, largest first.

    Enough to append to the tree and to give its root, in O(log size) memory.
    """

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if len(hashes) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} perfect subtrees, not {len(hashes)}")
        self.size = size
        self.hashes = list(hashes)

    def copy(self) -> "CompactRange":
        """An independent range of the same tree."""
        return CompactRange(self.size, self.hashes)

    def append(self, hash_of_leaf: bytes, emit: Callable[[int, int, bytes], None] | None = None) -> None:
        """Add one leaf; `emit(height, index, hash)` hears of every perfect subtree that it completes, itself first."""
        node, height, index = hash_of_leaf, 0, self.size
        while True:
            if emit is not None:
                emit(height, index, node)
            if not index & 1:
                break
            node = node_hash(self.hashes.pop(), node)
            index >>= 1
            height += 1
        self.hashes.append(node)
        self.size += 1

    def root(self) -> bytes:
        """Root of the tree."""
        if not self.hashes:
            return EMPTY_ROOT
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root


def subtrees(size: int) -> list[tuple[int, int]]:
    """(height, index) of the perfect subtrees of a tree of `size` leaves, largest first."""
    result = []
    start = 0
    for height in range(size.bit_length() - 1, -1, -1):
        if size >> height & 1:
            result.append((height, start >> height))
            start += 1 << height
    return result


def _split(length: int) -> int:
    """The largest power of two below `length` (RFC 6962 2.1)."""
    return 1 << (length - 1).bit_length() - 1


def subtree_root(start: int, end: int, node: Node) -> bytes:
    """MTH(D[start:end]) for a range that the recursion of RFC 6962 2.1 reaches; `node` gives the perfect ones."""
    length = end - start
    if length & length - 1 == 0:
        height = length.bit_length() - 1
        return node(height, start >> height)
    middle = start + _split(length)
    return node_hash(subtree_root(start, middle, node), subtree_root(middle, end, node))


def root_of(size: int, node: Node) -> bytes:
    """Root of the tree of the first `size` leaves."""
    return EMPTY_ROOT if size == 0 else subtree_root(0, size, node)


def inclusion_proof(index: int, size: int, node: Node) -> list[bytes]:
    """PATH(index, D[size]) of RFC 6962 2.1.1, from the leaf upwards. Raises ValueError unless 0 <= index < size."""
    if not 0 <= index < size:
        raise ValueError(f"no leaf {index} in a tree of {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(subtree_root(middle, end, node))
            end = middle
        else:
            path.append(subtree_root(start, middle, node))
            start = middle
    path.reverse()
    return path


def consistency_proof(older: int, newer: int, node: Node) -> list[bytes]:
    """PROOF(older, D[newer]) of RFC 6962 2.1.2. Raises ValueError unless 0 < older <= newer."""
    if not 0 < older <= newer:
        raise ValueError(f"no proof from a tree of {older} to one of {newer}")
    path: list[bytes] = []
    start, end, whole = 0, newer, True
    while older != end:
        middle = start + _split(end - start)
        if older <= middle:
            path.append(subtree_root(middle, end, node))
            end = middle
        else:
            path.append(subtree_root(start, middle, node))
            start, whole = middle, False
    if not whole:
        path.append(subtree_root(start, end, node))
    path.reverse()
    return path


def verify_inclusion(hash_of_leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether `path` proves the leaf at `index` in the tree with this root (RFC 9162 2.1.3.2)."""
    if not 0 <= index < size or len(path) > MAX_PROOF or not _hashes([hash_of_leaf, root, *path]):
        return False
    position, last, node = index, size - 1, hash_of_leaf
    for sibling in path:
        if last == 0:
            return False
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            node = node_hash(node, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and node == root


def verify_consistency(older: int, newer: int, older_root: bytes, newer_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether `path` proves that the older tree is a prefix of the newer one (RFC 9162 2.1.4.2).

    A tree of size 0 is a prefix of every tree; its proof is empty and its root is that of the empty tree.
    """
    if not 0 <= older <= newer or len(path) > MAX_PROOF or not _hashes([older_root, newer_root, *path]):
        return False
    if older == newer:
        return not path and older_root == newer_root
    if older == 0:
        return not path and older_root == EMPTY_ROOT
    nodes = [older_root, *path] if older & older - 1 == 0 else list(path)
    if not nodes:
        return False
    position, last = older - 1, newer - 1
    while position & 1:
        position >>= 1
        last >>= 1
    old = new = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old, new = node_hash(node, old), node_hash(node, new)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            new = node_hash(new, node)
        position >>= 1
        last >>= 1
    return last == 0 and old == older_root and new == newer_root


def _hashes(values: Sequence[bytes]) -> bool:
    return all(len(value) == HASH_SIZE for value in values)
