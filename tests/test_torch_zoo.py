"""Ten of the architectures of docs/zoo-torch.md: permuted, half of every Dim cut, run. And a wrong rule fails."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from graphprune.analysis import analyse
from graphprune.formats import of
from graphprune.rules import RULES, Op
from graphprune.rules.registry import Rule
from graphprune.verify import Proof
from models.transformers_zoo import ZOO, build
from tools.torch_zoo import Row, line, measure, page, total

QUICK = "bert gpt2 bloom phi3 qwen2_moe mamba t5 swin levit pvt_v2".split()

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", QUICK)
def test_architecture(name: str) -> None:
    """Proved within rounding; a coupling broken on purpose shows; half of every Dim leaves less than a third."""
    row = measure(name)
    assert row.proved, row.error
    assert row.broken > 1e-3
    assert row.kept <= 0.32
    assert row.dims >= 5


def test_wrong_rule_fails() -> None:
    """The permutation proof sees a linear layer whose rule forgets that its rows are its outputs."""

    def forgetful(op: Op) -> None:
        for layout in (*op.ins, *op.outs):
            op.speak_of(*(layout or ()))

    module, inputs = build("vit")
    format = of(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, "linear", Rule("linear", "", forgetful))
        model = format.read(module, example_inputs=inputs)
        proof = Proof(format, model, analyse(model.graph))
        check = proof.permutation()
    assert not check.passed
    assert check.error is not None
    assert check.error > 1e-2


def test_weights_are_generic() -> None:
    """No tensor of a built model is constant, and nothing is left in half precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, _ = build("resnet")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.numel() > 1:
            assert str(tensor.dtype) == "torch.float64"
            assert np.ptp(tensor.detach().numpy()) > 0.05, name


def test_page() -> None:
    """What is not proved is listed with its error, and counts in the last line."""
    rows = [Row("good", kept=0.2, frozen=["it is ordered (7)"]), Row("bad", error="torch.export cannot trace it")]
    text = list(page(rows))
    assert line(rows[0]) in text
    assert "- bad: torch.export cannot trace it" in text
    assert text[-1] == total(rows)
    assert text[-1].startswith("1 of 2 architectures proved")
    assert len(ZOO) >= 50
