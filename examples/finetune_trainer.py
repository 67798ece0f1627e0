"""Cut a transformer where it stands and fine-tune it with the Hugging Face Trainer.

    python -m examples.finetune_trainer

A small BERT learns which package a paragraph of documentation is from. The texts are the docstrings of four packages
that are installed anyway, so nothing is downloaded. `in_place` cuts the model itself: it stays a
BertForSequenceClassification that the Trainer, save_pretrained and from_pretrained know. Under a minute on one thread.
"""

import argparse
import inspect
import re
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

import graphprune

PACKAGES = ("numpy", "networkx", "torch", "scipy.stats")
INPUTS = ("input_ids", "attention_mask")
WORDS, LENGTH = 4096, 48

Row = dict[str, Any]


def paragraphs(package: str) -> list[str]:
    """The paragraphs of more than eight words in the docstrings of a package, each once."""
    documented = [inspect.getdoc(value) or "" for name, value in vars(import_module(package)).items() if name[0] != "_"]
    return sorted({text for doc in documented for text in doc.split("\n\n") if len(text.split()) > 8})


def row(text: str, label: int) -> Row:
    """Words as numbers by their hash; 0 fills up. Names of the packages would give them away."""
    words = [word for word in re.findall(r"[a-z]+|[^a-z\s]", text.lower()) if not _tells(word)][:LENGTH]
    ids = [1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in words]
    fill = LENGTH - len(ids)
    return {"input_ids": ids + [0] * fill, "attention_mask": [1] * len(ids) + [0] * fill, "labels": label}


def _tells(word: str) -> bool:
    return word in ("numpy", "np", "networkx", "nx", "torch", "scipy", "stats", "tensor", "ndarray")


def data(each: int) -> tuple[Any, Any]:
    """Rows to train on, rows to test on: ``each`` paragraphs of each package, a fifth of them held out."""
    generator = np.random.default_rng(0)
    found = [paragraphs(package) for package in PACKAGES]
    rows = [row(text, i) for i, texts in enumerate(found) for text in generator.permutation(texts)[:each]]
    mixed = [rows[i] for i in generator.permutation(len(rows))]
    return mixed[len(mixed) // 5 :], mixed[: len(mixed) // 5]


def trainer(model: Any, rows: Any, epochs: float, rate: float, folder: Path) -> Trainer:
    """A Trainer with nothing about it that knows of pruning."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=rate,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    made = Trainer(model=model, args=arguments, train_dataset=rows, compute_metrics=right)
    made.remove_callback(PrinterCallback)
    return made


def right(predicted: Any) -> dict[str, float]:
    """The share of paragraphs that are given to the right package."""
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Cross entropy, for scores; both the model and its trace return logits."""
    return cross_entropy(model(**{name: batch[name] for name in INPUTS}).logits, batch["labels"])


def main(each: int, epochs: float, folder: Path) -> None:
    """Print the accuracy at each stage."""
    train, test = data(each)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=LENGTH,
    )
    config.num_labels = len(PACKAGES)
    model: Any = BertForSequenceClassification(config)

    def report(stage: str) -> None:
        found = trainer(model, train, 1, 0.0, folder).evaluate(test)
        print(f"{stage:<12}{found['eval_accuracy']:.4f}")

    trainer(model, train, 2 * epochs, 1e-3, folder).train()
    report("dense:")

    batches = [default_data_collator(train[start : start + 32]) for start in range(0, 320, 32)]
    result = graphprune.prune(
        model,
        example_inputs={name: batches[0][name] for name in INPUTS},
        dynamic_shapes={name: {0: torch.export.Dim("batch")} for name in INPUTS},
        macs=0.5,
        score="taylor",
        loss=loss,
        batches=batches,
    )
    result.in_place()
    before, after = result.report.dense, result.report.pruned
    print(f"{'left:':<12}{after.macs / before.macs:.1%} of the MACs")
    report("cut:")

    trainer(model, train, epochs, 5e-4, folder).train()
    report("fine-tuned:")
    print(model.bert.encoder.layer[0].intermediate.dense)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--each", type=int, default=1500, help="paragraphs of each package")
    parser.add_argument("--epochs", type=float, default=1, help="of fine-tuning; training takes twice as many")
    parser.add_argument("--out", type=Path, default=Path("build/examples"), help="folder that the Trainer wants")
    options = parser.parse_args()
    set_seed(0)
    torch.set_num_threads(1)
    main(options.each, options.epochs, options.out)
