"""What is written otherwise for speed says the same; an ensemble in one network says what its teachers say."""

import numpy as np
import pytest


def _resizing(path, mode):
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    scales = helper.make_tensor("scales", kind, [4], [1.0, 1.0, 2.0, 2.0])
    how = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nodes = [
        helper.make_node("Relu", ["image"], ["before"], "first"),
        helper.make_node("Resize", ["before", "", "scales"], ["after"], "resize", **how),
        helper.make_node("Relu", ["after"], ["out"], "last"),
    ]
    ends = [
        helper.make_tensor_value_info(*one) for one in (("image", kind, [1, 3, 4, 5]), ("out", kind, [1, 3, 8, 10]))
    ]
    graph = helper.make_graph(nodes, "resizing", ends[:1], ends[1:], [scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return onnx


@pytest.mark.parametrize(("mode", "rewritten"), [("nearest", True), ("linear", False)])
def test_a_doubled_plane_is_copied_to_the_same_values_and_nothing_else_is_touched(tmp_path, mode, rewritten):
    pytest.importorskip("torch")
    from distillation.compress import double_by_copying
    from distillation.runtime import session

    path = tmp_path / "model.onnx"
    onnx = _resizing(path, mode)
    image = np.random.default_rng(1).normal(size=(1, 3, 4, 5)).astype(np.float32)
    (before,) = session(path).run(None, {"image": image})
    double_by_copying(path)
    (after,) = session(path).run(None, {"image": image})
    assert np.array_equal(before, after)
    assert ("Resize" not in {node.op_type for node in onnx.load(path).graph.node}) is rewritten


def test_an_ensemble_in_one_network_answers_as_its_teachers_together():
    torch = pytest.importorskip("torch")
    from distillation.ensemble import Ensemble, probabilities

    torch.manual_seed(1)
    teachers = [torch.nn.Conv2d(1, 4, 3, 2, 1).eval() for _ in range(2)]
    grids = np.random.default_rng(1).integers(0, 255, (2, 256, 256)).astype(np.uint8)
    with torch.no_grad():
        logits, _, _ = Ensemble(teachers)(torch.from_numpy(grids[:, None].astype(np.float32) / 255))
    assert torch.allclose(logits.sigmoid(), probabilities(teachers, grids), atol=0.01)  # one of them in bfloat16
