"""Batch-norm re-estimation of ONNX files: the statistics by hand, what they mend, what is written, what is refused."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

import graphprune
from graphprune.errors import UsageError
from models import digits
from tests.build import Net

Floats = npt.NDArray[np.float64]
# Batches of different sizes: an average over batches that forgets how large they are is wrong.
BATCHES = [np.random.default_rng(n).standard_normal((n, 3, 4)) * n + n for n in (2, 5, 9)]


def norm(net: Net, x: str, shared: list[str] | None = None) -> str:
    """A batch norm of three channels with statistics that fit nothing; ``shared``: its mean and variance."""
    rng = np.random.default_rng(3)
    scale, bias, mean, variance = (net.const(rng.uniform(0.5, 1.5, 3), np.float32) for _ in range(4))
    return net.op("BatchNormalization", x, scale, bias, *(shared or [mean, variance]))


def net(opset: int = 18) -> onnx.ModelProto:
    """Two batch norms."""
    made = Net(opset=opset)
    made.output(norm(made, made.op("Relu", norm(made, made.input("batch", 3, 4)))))
    return made.model()


def fed(model: onnx.ModelProto, batches: list[Floats]) -> int:
    """Re-estimate on ``batches`` of the one input."""
    return graphprune.reestimate_batch_norm(model, [{model.graph.input[0].name: b.astype(np.float32)} for b in batches])


def vectors(model: onnx.ModelProto) -> list[list[Floats]]:
    """Scale, bias, mean and variance of each batch norm."""
    held = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    return [[held[name] for name in n.input[1:]] for n in model.graph.node if n.op_type == "BatchNormalization"]


@pytest.mark.parametrize("opset", [12, 18])
def test_statistics_are_those_of_all_values(opset: int) -> None:
    """The first batch norm sees the inputs; the second what the first makes of each batch by its own statistics."""
    model = net(opset)
    before = vectors(model)
    assert fed(model, BATCHES) == 2
    (scale, bias, mean, variance), second = vectors(model)
    values = np.concatenate([batch.transpose(1, 0, 2).reshape(3, -1) for batch in BATCHES], axis=1)
    np.testing.assert_allclose(mean, values.mean(1), rtol=1e-5)
    np.testing.assert_allclose(variance, values.var(1, ddof=1), rtol=1e-5)
    inner = []
    for batch in BATCHES:
        rows = batch.transpose(1, 0, 2).reshape(3, -1)
        own = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
        inner.append(np.maximum(own * scale[:, None] + bias[:, None], 0))
    np.testing.assert_allclose(second[2], np.concatenate(inner, 1).mean(1), rtol=1e-4)
    np.testing.assert_allclose(second[3], np.concatenate(inner, 1).var(1, ddof=1), rtol=1e-4)
    for old, new in zip(before, vectors(model), strict=True):
        np.testing.assert_array_equal(old[:2], new[:2])


def test_a_vector_that_two_read_is_written_for_each() -> None:
    """An exporter merges equal statistics; what differs afterwards gets vectors of its own."""
    made = Net()
    shared = [made.const(np.zeros(3), np.float32), made.const(np.ones(3), np.float32)]
    x = made.input("batch", 3, 4)
    made.output(made.op("Add", norm(made, x, shared), norm(made, made.op("Exp", x), shared)))
    model = made.model()
    assert fed(model, [batch / 9 for batch in BATCHES]) == 2
    one, two = vectors(model)
    assert np.abs(one[2] - two[2]).min() > 0.1
    graphprune.load(model)


def test_digits_stay_where_they_were() -> None:
    """On the images that a batch norm was trained on, little changes: what training kept is a moving average of it."""
    model = onnx.load(digits.PATH)
    before = vectors(model)
    assert graphprune.reestimate_batch_norm(model, batches()) == 6
    for old, new in zip(before, vectors(model), strict=True):
        assert np.abs((new[2] - old[2]) / np.sqrt(old[3])).max() < 0.1
        assert np.abs(np.log(new[3] / old[3])).max() < 0.2
    assert digits.accuracy(model.SerializeToString()) > 0.99


def test_scaled_activations_are_mended() -> None:
    """A convolution that is five times as loud is no other network once its batch norm knows."""
    model = onnx.load(digits.PATH)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "block1.conv1.weight")
    weight.CopyFrom(numpy_helper.from_array(5 * numpy_helper.to_array(weight), weight.name))
    broken = digits.accuracy(model.SerializeToString())
    graphprune.reestimate_batch_norm(model, batches())
    assert broken < 0.9
    assert digits.accuracy(model.SerializeToString()) > 0.99


def batches() -> list[dict[str, npt.NDArray[np.float32]]]:
    """The digits that the network was trained on."""
    images = digits.split()[0]
    return [{"image": images[at : at + 128]} for at in range(0, len(images), 128)]


def test_refusals_change_nothing() -> None:
    model = net()
    before = model.SerializeToString()
    name = model.graph.input[0].name
    nan = np.full((2, 3, 4), np.nan)
    with pytest.raises(UsageError, match="not finite in batch 1; nothing was changed"):
        fed(model, [BATCHES[0], nan])
    with pytest.raises(UsageError, match="there are no batches"):
        fed(model, [])
    with pytest.raises(UsageError, match="batch 0 is no mapping"):
        graphprune.reestimate_batch_norm(model, BATCHES)
    with pytest.raises(UsageError, match="in place, on batches of inputs by name, and without a loss"):
        graphprune.reestimate_batch_norm(model, [{name: BATCHES[0]}], lambda model, batch: 0)
    assert model.SerializeToString() == before
    bare = Net()
    bare.output(bare.op("Relu", bare.input("batch", 3)))
    with pytest.raises(UsageError, match="nothing to re-estimate"):
        fed(bare.model(), BATCHES)
