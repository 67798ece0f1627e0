"""A cut network learns from the network that it was cut from: distillation (Hinton et al., arXiv 1503.02531).

    python -m examples.distill

The student sees the images and what the teacher makes of them, and no labels. Half a minute on one thread.
"""

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

import graphprune
from models import digits

TEMPERATURE = 4.0


def distil(student: Any, teacher: Any, images: Tensor, epochs: int) -> None:
    """Train ``student`` to give the answers of ``teacher``, softened by a temperature."""
    teacher.eval()
    with torch.no_grad():
        wanted = log_softmax(teacher(images) / TEMPERATURE, dim=1)
    student.train()
    optimiser = torch.optim.AdamW(student.parameters(), lr=0.002)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(images)), 64):
            found = log_softmax(student(images[chosen]) / TEMPERATURE, dim=1)
            optimiser.zero_grad()
            torch.autograd.backward(
                kl_div(found, wanted[chosen], reduction="batchmean", log_target=True) * TEMPERATURE**2
            )
            optimiser.step()


def accuracy(model: Any, images: Tensor, labels: Tensor) -> float:
    """The share of digits that are named rightly."""
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def main(epochs: int) -> None:
    """Print the accuracy at each stage."""
    images, _, *test = (torch.from_numpy(part) for part in digits.split())
    teacher = digits.train()
    print(f"teacher:   {accuracy(teacher, *test):.4f}")

    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    result = graphprune.prune(teacher, example_inputs=(images[:2],), dynamic_shapes=shapes, macs=0.3)
    student = result.model  # a model of its own: the teacher is as it was
    print(f"left:      {result.report.pruned.macs / result.report.dense.macs:.1%} of the MACs")
    print(f"cut:       {accuracy(student, *test):.4f}")

    distil(student, teacher, images, epochs)
    print(f"distilled: {accuracy(student, *test):.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--epochs", type=int, default=10, help="of distillation")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    main(options.epochs)
