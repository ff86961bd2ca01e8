"""Attack 6: two requests at once, for N and for N + K leaves, make a careless witness roll back by K.

The numbered example of C2SP tlog-witness: both pass the comparison with what is held, the larger is stored, then the
smaller over it; the log then shows the witness another history of the K leaves between. Here with the records of a real
log, whose key the attacker has, and a witness that is a process.
"""

import threading

import pytest

from tests.attacks import insider
from tests.attacks.scene import MISSING_WITNESS, ORIGIN, Scene
from tests.unit.witness.making import Tree
from tests.wire.witness_house import Said

ROUNDS = 6
STEP = 20


@pytest.fixture(scope="module")
def tree(scene: Scene) -> Tree:
    return Tree(insider.leaves_of(scene.place), origin=ORIGIN, key=scene.place.signing)


@pytest.fixture(scope="module")
def other(scene: Scene) -> Tree:
    """The history that the attacker would put in its place: other records from the first on."""
    leaves = insider.leaves_of(scene.place)
    return Tree([*leaves[1:], leaves[0]], origin=ORIGIN, key=scene.place.signing)


def test_06_of_two_requests_at_once_one_wins_and_the_witness_never_rolls_back(
    scene: Scene, tree: Tree, other: Tree
) -> None:
    with scene.new_witness() as witness:
        held = 0
        outcomes = set()
        for number in range(ROUNDS):
            sizes = held + STEP, held + 2 * STEP
            answers: dict[int, Said] = {}
            together = threading.Barrier(4)

            def ask(
                size: int, held: int = held, answers: dict[int, Said] = answers, gate: threading.Barrier = together
            ) -> None:
                body = tree.asks(held, size)
                gate.wait()
                said = witness.ask(body)
                if said.status == 200 or size not in answers:
                    answers[size] = said

            # Each twice, the larger one first in every other round.
            order = [*sizes, *sizes] if number % 2 else [*reversed(sizes), *reversed(sizes)]
            threads = [threading.Thread(target=ask, args=(size,)) for size in order]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            won = [size for size in sizes if answers[size].status == 200]
            assert len(won) == 1, answers
            (lost,) = set(sizes) - set(won)
            assert (answers[lost].status, answers[lost].body) == (409, f"{won[0]}\n")
            outcomes.add(won[0] - held)
            held = won[0]
            # What the attacker wanted: a history without what was cosigned.
            assert witness.ask(other.asks(held, held)).status == 409
            assert witness.ask(tree.asks(held, held)).status == 200
        witness.stop()
        witness.start()
        assert witness.ask(tree.asks(0, STEP)).body == f"{held}\n"
        assert witness.ask(other.asks(held, held + 1)).status == 422


def test_06_a_witness_that_was_rolled_back_is_not_the_one_that_the_verifier_asks_for(scene: Scene) -> None:
    """A witness that lost its state is a new one under a key of its own, which does not count as the old one's."""
    with scene.new_witness() as another:
        assert scene.judge(scene.export, witness=[another.vkey]).code == MISSING_WITNESS
