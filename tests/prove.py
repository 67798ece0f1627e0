"""The property that everything is held to, and what of it a table entry can say in one line.

`Subject` is a model with its analysis and its proof. Where ONNX Runtime has no kernel for the whole model as it stands,
onnx's reference implementation runs it instead, before the cut and after it alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from graphprune.analysis import Analysis, Atom, analyse
from graphprune.dims import Dim, Positions, atoms, resolve, take
from graphprune.errors import VerifyError
from graphprune.formats import onnx as format_
from graphprune.formats.onnx import OnnxModel
from graphprune.graph import Array, Node
from graphprune.signature import Layout
from graphprune.verify import Check, Proof, difference


class Reference:
    """The ONNX format with onnx's reference implementation in place of ONNX Runtime."""

    def __getattr__(self, name: str) -> Any:
        return getattr(format_, name)

    @staticmethod
    def run(model: OnnxModel, *, threads: int = 1) -> Any:
        """As `graphprune.formats.onnx.run`."""
        del threads
        evaluator = ReferenceEvaluator(model.inline())

        def runner(feeds: dict[str, Array]) -> dict[str, Array]:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))
            except Exception as error:  # whatever an implementation in numpy may raise on shapes that do not fit
                raise VerifyError(f"the reference does not run the model: {error!r}") from error

        return runner


def engine(model: OnnxModel) -> ModuleType | Reference:
    """ONNX Runtime where it runs ``model``, else the reference."""
    try:
        format_.trials(model, format_.run(model))
    except VerifyError:
        return Reference()
    return format_


class Subject:
    """One model under proof."""

    def __init__(self, proto: onnx.ModelProto, seed: int = 0) -> None:
        self.model = format_.read(proto)
        self.analysis: Analysis = analyse(self.model.graph)
        self.format: Any = engine(self.model)
        self.proof = Proof(self.format, self.model, self.analysis, seed=seed)
        self.random = np.random.default_rng(seed)

    @property
    def sizes(self) -> list[int]:
        """Sizes of all prunable atoms."""
        return [atom.size for atom in self.analysis.prunable]

    def cut(self, few: bool = False) -> dict[Dim, Positions]:
        """Random positions to keep of every prunable atom, at least as many as it needs."""
        kept = {}
        for atom in self.analysis.prunable:
            step = atom.multiple
            least = min(-(-atom.least // step) * step, atom.size)
            count = least if few else int(self.random.integers(least // step, atom.size // step + 1)) * step
            rows = 1 if atom.dim.under is None else atom.dim.under.extent
            found = np.stack([np.sort(self.random.permutation(atom.size)[:count]) for _ in range(rows)])
            kept[atom.dim] = found if rows > 1 else found[0]
        return kept

    def atom(self, size: int) -> Atom:
        """The only prunable atom of this size."""
        (found,) = [atom for atom in self.analysis.prunable if atom.size == size]
        return found

    def pruned(self, chosen: dict[Dim, Positions] | None = None, **keep: Sequence[int]) -> OnnxModel:
        """The model cut to ``chosen``, or to the positions ``size_7=[0, 3]`` of the only atom of that size."""
        named = {self.atom(int(name.partition("_")[2])).dim: np.array(kept) for name, kept in keep.items()}
        made = self.format.apply(self.model, self.analysis, named if chosen is None else chosen)
        assert isinstance(made, OnnxModel)
        return made

    def checks(self, chosen: dict[Dim, Positions] | None = None) -> list[Check]:
        """All three proofs; one that cannot even run has failed."""
        chosen = self.cut() if chosen is None else chosen
        pruned = self.format.apply(self.model, self.analysis, chosen)
        return [
            self._settled("permutation", self.proof.permutation),
            self._settled("zero equals cut", lambda: self.proof.zero_equals_cut(chosen)),
            self._settled("loads and runs", lambda: self.proof.runs(pruned, chosen)),
        ]

    @staticmethod
    def _settled(name: str, check: Callable[[], Check]) -> Check:
        try:
            return check()
        except VerifyError as error:
            return Check(name, False, error.what)

    def failures(self, chosen: dict[Dim, Positions] | None = None) -> list[str]:
        """What did not pass."""
        return [str(check) for check in self.checks(chosen) if not check.passed]

    # One node of it.

    def node(self, name: str) -> Node:
        """The node called ``name``; of one with bodies what stands behind them."""
        return [node for node in self.analysis.graph.nodes if node.name == name][-1]

    def layouts(self, node: Node) -> tuple[list[Layout | None], list[Layout | None]]:
        """Layouts of a node's inputs and outputs."""
        facts = self.analysis.facts
        ins = [facts.private.get((node.index, i), facts.layouts.get(name)) for i, name in enumerate(node.inputs)]
        return ins, [facts.layouts.get(name) for name in node.outputs]

    def touching(self, node: Node) -> list[Atom]:
        """Prunable atoms that lie on an axis of the node."""
        layouts = [layout for group in self.layouts(node) for layout in group if layout]
        found = {atom for layout in layouts for dim in layout for atom in atoms(dim)}
        return [atom for atom in self.analysis.prunable if atom.dim in found]

    def freedom(self, node: Node) -> str:
        """One sign an axis: ``+`` may be cut, ``~`` may be cut but not exactly, ``.`` whole."""
        ins, outs = ([self._signs(layout) for layout in group] for group in self.layouts(node))
        return f"{' '.join(ins)} -> {' '.join(outs)}"

    def _signs(self, layout: Layout | None) -> str:
        if layout is None:
            return "/"
        return "".join(map(self._sign, layout)) or "1"

    def _sign(self, dim: Dim) -> str:
        found = [self.analysis.by_dim.get(atom) for atom in atoms(dim)]
        free = [atom for atom in found if atom is not None and atom.reason is None]
        if not free:
            return "."
        return "~" if all(atom.inexact for atom in free) else "+"

    def scrambled(self, atom: Atom, seen: float, tries: int = 4) -> float:
        """How far the outputs move when positions of ``atom`` are permuted in its first weight and nowhere else.

        Tries several permutations, until one moves them by more than ``seen``.
        """
        moved = 0.0
        for shift in range(1, tries + 1):
            if moved <= seen:
                positions = np.roll(np.arange(atom.size), 1) if shift == 1 else self.random.permutation(atom.size)
                moved = max(moved, self._moved(atom, positions))
        return moved

    def _moved(self, atom: Atom, positions: Positions) -> float:
        use, turned = atom.uses[0], {atom.dim: positions}
        data = self.model.graph.weights[use.weight].load().take(take(use.dim, turned), use.axis)
        model = self.model.copy()
        model.put({use.weight: data})
        moved = []
        for proof in (self.proof, *self.proof.others):
            runner = proof.run(model)
            runs = zip(proof.dense, proof.trials, strict=True)
            moved += [difference(dense, runner(feeds)) for dense, (_, feeds) in runs]
        return max(moved)


def parameter(model: OnnxModel, name: str, i: int) -> list[int]:
    """The constant that input ``i`` of the node ``name`` of a written model holds."""
    node = next(node for node in model.proto.graph.node if node.name == name)
    return [int(v) for v in np.reshape(model.graph.weights[node.input[i]].load(), -1)]


def attribute(model: OnnxModel, name: str, key: str) -> Any:
    """An attribute of the node ``name`` of a written model, None where it is absent."""
    node = next(node for node in model.proto.graph.node if node.name == name)
    found = [onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == key]
    return found[0] if found else None


def describe(layout: Sequence[Dim]) -> str:
    """A layout as text, for known answers."""
    return ", ".join(str(resolve(dim)) for dim in layout)
