"""Contractions: every operand an activation or a weight, every axis free."""

from __future__ import annotations

from typing import Any

from tests.build import Net
from tests.cases.table import add, case


@case("matmul", "weight", "+++ ++ -> +++")
def matmul(net: Net) -> None:
    net.sink(net.op("MatMul", net.free(2, 3, 6), net.weight(6, 5, fan=6), name="tested"))


@case("matmul", "weight first", "++ +++ -> +++")
def matmul_left(net: Net) -> None:
    net.sink(net.op("MatMul", net.weight(5, 3, fan=3), net.free(2, 3, 4), name="tested"))


@case("matmul", "two activations", "++++ ++++ -> ++++")
def matmul_two(net: Net) -> None:
    net.sink(net.op("MatMul", net.free(2, 2, 3, 4), net.free(2, 2, 4, 3), name="tested"))


@case("matmul", "broadcast batches", "+.++ +++ -> ++++")
def matmul_broadcast(net: Net) -> None:
    net.sink(net.op("MatMul", net.free(3, 1, 2, 4), net.free(2, 4, 3), name="tested"))


@case("matmul", "the second has more axes", "++ +++ -> +++")
def matmul_more(net: Net) -> None:
    net.sink(net.op("MatMul", net.free(3, 4), net.weight(2, 4, 5, fan=4), name="tested"))


@case("matmul", "vector first", "+ +++ -> ++")
def matmul_vector(net: Net) -> None:
    net.sink(net.op("MatMul", net.free(4), net.free(2, 4, 3), name="tested"))


@case("matmul", "vector last", "+++ + -> ++")
def matmul_vector_last(net: Net) -> None:
    net.sink(net.op("MatMul", net.free(2, 3, 4), net.weight(4, fan=4), name="tested"))


@case("matmul", "two vectors", "+ + -> 1")
def matmul_vectors(net: Net) -> None:
    net.sink(net.op("MatMul", net.free(6), net.weight(6, fan=6), name="tested"))


def _gemm(trans_a: int, trans_b: int) -> None:
    def build(net: Net) -> None:
        a = net.free(6, 3) if trans_a else net.free(3, 6)
        b = net.weight(5, 6, fan=6) if trans_b else net.weight(6, 5, fan=6)
        net.sink(net.op("Gemm", a, b, net.weight(5), transA=trans_a, transB=trans_b, name="tested"))

    add("gemm", f"transA {trans_a} transB {trans_b}", "++ ++ + -> ++", build)


for _a in (0, 1):
    for _b in (0, 1):
        _gemm(_a, _b)


def _gemm_bias(title: str, free: str, *shape: int) -> None:
    def build(net: Net) -> None:
        c = [net.weight(*shape)] if shape != (0,) else []
        net.sink(net.op("Gemm", net.free(3, 6), net.weight(6, 5, fan=6), *c, alpha=0.7, beta=1.3, name="tested"))

    add("gemm", title, free, build)


_gemm_bias("full bias", "++ ++ ++ -> ++", 3, 5)
_gemm_bias("column bias", "++ ++ +. -> ++", 3, 1)
_gemm_bias("one bias", "++ ++ . -> ++", 1)
_gemm_bias("no bias", "++ ++ -> ++", 0)


@case("gemm", "an activation as bias", "++ ++ ++ -> ++")
def gemm_activation(net: Net) -> None:
    net.sink(net.op("Gemm", net.free(3, 6), net.weight(6, 5, fan=6), net.free(3, 5), name="tested"))


def _einsum(equation: str, free: str, *shapes: tuple[int, ...], **options: Any) -> None:
    def build(net: Net) -> None:
        net.sink(net.op("Einsum", *(net.free(*shape) for shape in shapes), equation=equation, name="tested"))

    add("einsum", equation, free, build, **options)


_einsum("bij, bjk -> bik", "+++ +++ -> +++", (2, 3, 4), (2, 4, 5))
_einsum("bqhd,bkhd->bhqk", "++++ ++++ -> ++++", (2, 3, 2, 4), (2, 3, 2, 4))
_einsum("ij,kj", "++ ++ -> ++", (3, 4), (5, 4))
_einsum("zb,a", "++ + -> +++", (3, 4), (5,))
_einsum("ij->ji", "++ -> ++", (3, 4))
_einsum("ij->i", "++ -> +", (3, 4))
_einsum("ij->", "++ -> 1", (3, 4))
_einsum("i,j->ij", "+ + -> ++", (3,), (4,))
_einsum("a,ab,bc->c", "+ ++ ++ -> +", (3,), (3, 4), (4, 5))
_einsum("...ij,...jk->...ik", "+++ +++ -> +++", (2, 3, 4), (2, 4, 5))
_einsum("...i,i->...i", "+++ + -> +++", (2, 3, 4), (4,))
_einsum("i...,ij->j...", "+++ ++ -> +++", (4, 2, 3), (4, 5))
_einsum("ij,ij->i", "++ ++ -> +", (3, 4), (3, 4))
_einsum("Ab,bA->A", "++ ++ -> +", (3, 4), (4, 3))


@case("einsum", "a diagonal", ".. -> .")
def einsum_diagonal(net: Net) -> None:
    x = net.free(4, 4)
    net.sink(net.op("Einsum", x, equation="ii->i", name="tested"), hidden=5)
