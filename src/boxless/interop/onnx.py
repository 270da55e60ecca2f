"""A whole detector as an ONNX file: an image in, boxes out, for images of any size.

PyTorch's older exporter is used, which traces: torchvision's detectors have paths of their own for it, and its newer
one does not take them. RT-DETR's file asks for the traced number of queries: an image must have as many cells.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boxless.errors import UserError

OPSET = 17
SIZES = ((224, 320), (256, 192))
"""Height and width of the images that a file is traced and tried with, px."""


class _OneImage(nn.Module):
    """A detector of lists of images as a function of one."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Values of what is found in an image (3, H, W), in the order of `outputs`."""
        return tuple(self.detector([image])[0].values())


def require() -> None:
    """Check that ONNX and its runtime are installed.

    Raises:
        UserError: if they are not.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError:
        raise UserError("to: onnx needs onnx and onnxruntime; install them with pip install 'boxless[onnx]'") from None
    assert onnx.__version__


def export(path: Path, detector: nn.Module, classes: Sequence[str]) -> list[str]:
    """Write the file; returns the names of its outputs.

    Args:
        path: path of the .onnx file.
        detector: in evaluation mode, on the CPU.
        classes: names, kept in the file's metadata; label k is classes[k - 1].
    """
    import onnx

    image = _image(SIZES[0])
    with torch.no_grad():
        names = list(detector([image])[0])
    with warnings.catch_warnings(), _attention_in_steps():
        warnings.simplefilter("ignore")  # of tracing: what torchvision's own paths for ONNX keep constant
        torch.onnx.export(
            _OneImage(detector).eval(),
            (image,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_axes={"image": {1: "height", 2: "width"}, **{name: {0: "found"} for name in names}},
        )
    model = onnx.load(path)
    _narrow_cosines(model)
    onnx.helper.set_model_props(model, {"classes": json.dumps(list(classes))})
    onnx.save(model, path)
    return names


def _narrow_cosines(model: Any) -> None:
    """Let cosines be of 32 bits: RT-DETR's positions are of 64, whose cosine onnxruntime before 1.31 lacks."""
    import onnx

    nodes = []
    for node in model.graph.node:
        if node.op_type == "Cos":
            (given,), (wanted,) = node.input, node.output
            narrow, cosine = f"{wanted}_of_32_bits", f"{wanted}_in_32_bits"
            nodes.append(onnx.helper.make_node("Cast", [given], [narrow], to=onnx.TensorProto.FLOAT))
            nodes.append(onnx.helper.make_node("Cos", [narrow], [cosine]))
            nodes.append(onnx.helper.make_node("CastLike", [cosine, given], [wanted]))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@contextmanager
def _attention_in_steps() -> Iterator[None]:
    """PyTorch's attention in one step, which it takes where no gradients are asked for, has no name in ONNX."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def difference(path: Path, detector: nn.Module) -> float:
    """The largest difference between what onnxruntime and the detector find, on images of two sizes.

    It is relative where a value (a coordinate in px) is above 1, absolute below, and infinite where they find different
    numbers of objects.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for size in SIZES:
        image = _image(size)
        with torch.no_grad():
            expected = list(detector([image])[0].values())
        given = [torch.from_numpy(value) for value in session.run(None, {"image": image.numpy()})]
        for one, other in zip(given, expected, strict=True):
            if one.shape != other.shape:
                return float("inf")
            apart = (one.double() - other.double()).abs() / other.double().abs().clamp(min=1)
            largest = max(largest, float(apart.max()) if apart.numel() else 0.0)
    return largest


def how_to_load(file: str) -> str:
    """The lines of Python that run the file."""
    return "\n".join(
        [
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("{file}")',
            'found = session.run(None, {"image": image})  # (3, H, W) float32, RGB in 0..1; boxes are in its px',
        ]
    )


def _image(size: tuple[int, int]) -> Tensor:
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
