"""Running an ONNX model for a score: one thread, few words."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def session(model: str | Path | bytes) -> Any:
    """An ONNX Runtime session on one thread, for a path or the bytes of a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def classes(model: str | Path | bytes, images: npt.NDArray[np.float32], batch: int = 250) -> npt.NDArray[np.int64]:
    """The class that a model with one input and one output gives each image."""
    loaded = session(model)
    name = loaded.get_inputs()[0].name
    parts = [images[at : at + batch] for at in range(0, len(images), batch)]
    return np.concatenate([loaded.run(None, {name: part})[0].argmax(1) for part in parts]).astype(np.int64)
