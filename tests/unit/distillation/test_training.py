"""Losses see only what is labelled, a short training learns, and the exported file is the same function."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distillation import procedural
from distillation.data import CHANNELS, Pool, Radiograph, on_grid
from distillation.measures import dice
from distillation.runtime import answer, session, upsampled
from services.inference.preprocessing import GRID, letterbox

pytestmark = pytest.mark.training
SQUARE = letterbox(GRID, GRID)
FLOOR = 0.70


def drawn_pool(count: int, seed: int) -> tuple[Pool, np.ndarray]:
    rng = np.random.default_rng(seed)
    drawn = [procedural.chest(rng) for _ in range(count)]
    grids = np.stack([grid for grid, _ in drawn])
    masks = np.stack([mask for _, mask in drawn])
    targets = np.stack([np.stack([on_grid(m, SQUARE, 128) for m in mask], -1) for mask in masks])
    everything = np.rint(targets * 255).astype(np.uint8)
    items = [Radiograph(str(i), "drawn", "train", str(i), "field", {}) for i in range(count)]
    full = np.full_like(everything, 255)
    margins = np.full((count, 4), 0.05, np.float32)
    return Pool(items, grids, everything, full, np.ones((count, 4), bool), [SQUARE] * count, margins), masks


def test_unlabelled_channels_and_ignored_cells_move_nothing():
    torch = pytest.importorskip("torch")
    from distillation.losses import labelled

    logits = torch.zeros(2, 4, 16, 16, requires_grad=True)
    weight = torch.ones(2, 4, 16, 16)
    weight[:, 3], weight[0, 1, :8] = 0, 0
    complete = torch.tensor([[True, True, False, False]] * 2)
    labelled(logits, torch.rand(2, 4, 16, 16), weight, complete).backward()
    assert logits.grad is not None
    assert not logits.grad[:, 3].any()
    assert not logits.grad[0, 1, :8].any()
    assert logits.grad[0, 1, 8:].all()


def test_edges_that_nobody_knows_move_nothing_and_count_apart_from_the_flags():
    torch = pytest.importorskip("torch")
    from distillation.losses import flagged

    logits = torch.zeros(2, 34, requires_grad=True)
    weight = torch.ones(2, 34)
    weight[0, 6:] = 0
    loss = flagged(logits, torch.ones(2, 34), weight)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2 * np.log(2))
    assert logits.grad is not None
    assert not logits.grad[0, 6:].any()
    assert logits.grad[:, :6].all()


def test_a_student_of_before_the_edges_is_taken_up_and_other_weights_are_not(tmp_path):
    torch = pytest.importorskip("torch")
    from distillation.models import Student, earlier_student

    state = {name: value for name, value in Student().state_dict().items() if not name.startswith("edges.")}
    torch.save(state, tmp_path / "average.pt")
    taken = earlier_student(tmp_path / "average.pt").state_dict()
    assert all(torch.equal(taken[name], value) for name, value in state.items())
    del state["head.bias"]
    torch.save(state, tmp_path / "average.pt")
    with pytest.raises(ValueError, match="not the weights"):
        earlier_student(tmp_path / "average.pt")


def test_where_edges_alone_are_learnt_nothing_else_moves(tmp_path):
    torch = pytest.importorskip("torch")
    from distillation.batches import Mixture
    from distillation.models import Student
    from distillation.train import Plan, fit, student_loss

    torch.manual_seed(1)
    student = Student()
    before = {name: values.clone() for name, values in student.state_dict().items()}
    student.train_edges_alone()
    mixture = Mixture(drawn_pool(4, 1)[0], {}, 1, parts={"drawn": 3})
    after = fit(student, student_loss, mixture, Plan("edges", 4, threads=1), tmp_path).state_dict()
    moved = {name for name, values in after.items() if not torch.equal(values, before[name])}
    assert moved == {name for name in before if name.startswith("edges.")}


def test_images_without_teachers_are_not_distilled():
    torch = pytest.importorskip("torch")
    from distillation.losses import distilled

    logits = torch.randn(2, 4, 16, 16, requires_grad=True)
    nobody = torch.zeros(2, 4, dtype=torch.bool)
    distilled(logits, torch.rand(2, 4, 16, 16), torch.tensor([True, False]), nobody).backward()
    assert logits.grad is not None
    assert logits.grad[0].any()
    assert not logits.grad[1].any()


@pytest.mark.timeout(240)
def test_a_training_of_seconds_learns_resumes_exports_and_quantises(tmp_path):
    torch = pytest.importorskip("torch")
    from distillation.batches import Mixture
    from distillation.compress import calibration_grids, export, parity, quantise
    from distillation.models import Student
    from distillation.train import Plan, fit, student_loss

    pool, _ = drawn_pool(24, 1)
    unseen, truth = drawn_pool(8, 2)
    mixture = Mixture(pool, {"drawn": 4}, 5, labelled_turns=False)
    torch.manual_seed(5)
    run = tmp_path / "run"
    fit(Student(), student_loss, mixture, Plan("first", 30, seed=5, rate=3e-3), run)
    model = fit(Student(), student_loss, mixture, Plan("second", 120, seed=5, rate=3e-3), run)
    assert json.loads((run / "run.json").read_text())["steps_done"] == 120

    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    export(model, whole)
    images = torch.from_numpy(unseen.grids[:3])[:, None].float() / 255
    ours = session(whole).run(None, {"image": images.numpy()})
    with torch.no_grad():
        for theirs, exported in zip(model(images), ours, strict=True):
            assert float((theirs - torch.from_numpy(exported)).abs().max()) < 1e-3
    quantise(whole, small, calibration_grids(pool, 24, 1))
    assert small.stat().st_size <= 500_000
    assert parity(whole, small, unseen.grids)["mask_agreement_dice"] > 0.97

    found = answer(session(small), unseen.grids)
    reached = [
        np.mean([dice(upsampled(found.logits[i])[c] > 0, truth[i, c]) for i in range(len(truth))])
        for c in range(len(CHANNELS))
    ]
    assert min(reached) > FLOOR, dict(zip(CHANNELS, reached, strict=True))


def test_torchvision_imports_beside_a_cpu_build_of_torch():
    pytest.importorskip("torch")
    from distillation.torchvision_guard import torchvision

    assert torchvision().models.resnet18(weights=None) is not None


def test_a_pruned_student_is_narrower_keeps_its_outputs_shapes_and_without_pruning_is_the_same_function():
    torch = pytest.importorskip("torch")
    from distillation.models import Student
    from distillation.prune import pruned, settle

    torch.manual_seed(1)
    student = Student().eval()
    image = torch.rand(2, 1, 256, 256)
    with torch.no_grad():
        whole, same, half = (one(image) for one in (student, pruned(student, 0.0).eval(), pruned(student, 0.5).eval()))
    assert all(torch.equal(a, b) for a, b in zip(whole, same, strict=True))
    assert [a.shape for a in half] == [a.shape for a in whole]
    weights = [sum(p.numel() for p in one.parameters()) for one in (student, pruned(student, 0.5))]
    assert weights[1] < 0.5 * weights[0]
    grids = np.random.default_rng(1).integers(0, 255, (32, 256, 256)).astype(np.uint8)
    settled = settle(pruned(student, 0.5), grids)
    assert not settled.training
    assert not torch.equal(settled.stem[0][1].running_mean, student.stem[0][1].running_mean[:4])
