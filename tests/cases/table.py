"""What an entry of the rules table is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from graphprune.formats.onnx.names import rule_name
from tests.build import OPSET, Net

Build = Callable[[Net], None]

STANDARD = {rule_name(s.name): s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
"""ONNX op types by the names that rules use."""


@dataclass(frozen=True)
class Case:
    """``build`` makes a model with a node "tested"; ``free`` says what of it may be cut."""

    op: str
    title: str
    free: str
    build: Build
    opset: int

    def __str__(self) -> str:
        return f"{self.op}-{self.title}" if self.title else self.op

    def model(self, seed: int = 0) -> onnx.ModelProto:
        """The model, with weights of this ``seed``."""
        net = Net(seed, self.opset)
        self.build(net)
        return net.model()


CASES: list[Case] = []


def add(op: str, title: str, free: str, build: Build, *, opset: int = OPSET) -> None:
    """Put one entry into the table."""
    CASES.append(Case(op, title, free, build, opset))


def case(op: str, title: str, free: str, *, opset: int = OPSET) -> Callable[[Build], Build]:
    """As `add`, as a decorator."""

    def register(build: Build) -> Build:
        add(op, title, free, build, opset=opset)
        return build

    return register
