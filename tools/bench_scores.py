"""What scores keep: accuracy of the digits model without fine-tuning, by score, budget and multiple.

    python -m tools.bench_scores

Prints a markdown table. One trained model, 450 held-out images: a check that a score does its work, not a ranking.
"""

import argparse

import graphprune
from models import digits

SHARES = (0.9, 0.75, 0.6, 0.5)


def accuracy(score: str, share: float, multiple: int) -> float:
    """Held-out accuracy at ``share`` of the MACs."""
    result = graphprune.prune(str(digits.PATH), macs=share, score=score, multiple=multiple, verify="none")
    return digits.accuracy(result.model.SerializeToString())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--scores", nargs="+", default=["l1", "l2", "bn-scale", "random"])
    options = parser.parse_args()
    print("| score | multiple |" + "".join(f" {share:.0%} of MACs |" for share in SHARES))
    print("|---|---|" + "---|" * len(SHARES))
    for score in options.scores:
        for multiple in (8, 1):
            row = "".join(f" {accuracy(score, share, multiple):.3f} |" for share in SHARES)
            print(f"| {score} | {multiple} |{row}")


if __name__ == "__main__":
    main()
