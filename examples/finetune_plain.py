"""Cut a trained network to half of its MACs, mend its batch norms, fine-tune it: plain PyTorch.

    python -m examples.finetune_plain

The digits network and its data are in models/digits.py. Half a minute on one thread.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import graphprune
from models import digits

Batch = tuple[Tensor, Tensor]


def loss(model: Any, batch: Batch) -> Tensor:
    """What scores, statistics and training have in common: a model and a batch in, a number out."""
    images, labels = batch
    return cross_entropy(model(images), labels)


def accuracy(model: Any, test: Batch) -> float:
    """The share of digits that are named rightly."""
    model.eval()
    with torch.no_grad():
        return float((model(test[0]).argmax(1) == test[1]).double().mean())


def fine_tune(model: Any, images: Tensor, labels: Tensor, epochs: int) -> None:
    """An ordinary training loop."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.002)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(images)), 64):
            optimiser.zero_grad()
            torch.autograd.backward(loss(model, (images[chosen], labels[chosen])))
            optimiser.step()


def main(epochs: int, folder: Path) -> None:
    """Print the accuracy at each stage, save what came out."""
    images, labels, *held_out = (torch.from_numpy(part) for part in digits.split())
    test = (held_out[0], held_out[1])
    batches = list(zip(torch.split(images, 64), torch.split(labels, 64), strict=True))
    model = digits.train()
    print(f"dense:        {accuracy(model, test):.4f}")

    result = graphprune.prune(
        model,
        example_inputs=(images[:2],),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        macs=0.5,
        score="taylor",
        loss=loss,
        batches=batches,
    )
    small = result.model
    before, after = result.report.dense, result.report.pruned
    print(f"left:         {after.macs / before.macs:.1%} of the MACs")
    print(f"cut:          {accuracy(small, test):.4f}")

    graphprune.reestimate_batch_norm(small, batches, loss)
    print(f"re-estimated: {accuracy(small, test):.4f}")

    fine_tune(small, images, labels, epochs)
    print(f"fine-tuned:   {accuracy(small, test):.4f}")

    folder.mkdir(parents=True, exist_ok=True)
    result.save(folder / "digits-small.pt2")  # the whole program: torch.export.load needs no code of ours
    torch.save(small.state_dict(), folder / "digits-small.pt")  # the weights alone
    again = torch.export.load(folder / "digits-small.pt2").module()
    with torch.no_grad():
        same = torch.equal(again(test[0]), small(test[0]))
    print(f"saved:        {folder / 'digits-small.pt2'}, computes the same: {same}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--epochs", type=int, default=5, help="of fine-tuning")
    parser.add_argument("--out", type=Path, default=Path("build/examples"), help="folder for the result")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    main(options.epochs, options.out)
