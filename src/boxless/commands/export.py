"""`boxless export`."""

from pathlib import Path
from typing import Literal

from boxless.files import Place, as_text

SUFFIXES = {
    "torchvision-backbone": ".safetensors",
    "torchvision-detector": ".safetensors",
    "timm": ".safetensors",
    "detectron2": ".pkl",
    "mmdetection": ".pth",
    "transformers": "",
    "safetensors": ".safetensors",
    "onnx": ".onnx",
}


def export(
    run: Place,
    out: Place,
    to: Literal[
        "torchvision-backbone",
        "torchvision-detector",
        "timm",
        "detectron2",
        "mmdetection",
        "transformers",
        "safetensors",
        "onnx",
    ] = "torchvision-backbone",
    quiet: bool = False,
) -> Path:
    """Write a run's trained weights in another library's format, for use without boxless.

    Beside it comes a text, NAME.README.txt, with the lines of Python that load it there and find objects in an image.
    They are run on images of the run's validation data, and nothing is written if they find something else.

    Args:
        run: Folder that boxless pretrain or finetune wrote.
        out: The file to write: .safetensors, for detectron2 .pkl, for mmdetection .pth, for onnx .onnx; for
            transformers a folder.
        to: torchvision-backbone: the backbone without its classifier. torchvision-detector: all that torchvision's
            detector of the kind has a place for; of a pretraining run the parts that it trained. timm: the backbone.
            detectron2, mmdetection: the whole detector, the pretrained trunk, or the backbone where they name no more.
            transformers: DETR or RT-DETR, as from_pretrained takes it. safetensors: all weights as they are.
            onnx: a whole detector, from image to boxes.
        quiet: Print nothing.

    Returns:
        The file or folder.

    Raises:
        UserError: If the caller can fix the cause.
    """
    from boxless.errors import UserError
    from boxless.export.export import export_run

    run, out = as_text(run), as_text(out)
    if to not in SUFFIXES:
        raise UserError(f"to: {to}; expected {', '.join(SUFFIXES)}")
    path, suffix = Path(out), SUFFIXES[to]
    if suffix and (path.suffix != suffix or path.is_dir()):
        raise UserError(f"out {out}: expected the name of a file that ends in {suffix}")
    if not suffix and path.is_file():
        raise UserError(f"out {out}: is a file; transformers takes a folder")
    if path.resolve() == (Path(run) / "weights.safetensors").resolve():
        raise UserError(f"out {out}: would overwrite the run's own weights; name another file")
    description, readme = export_run(run, path, to)
    if not quiet:
        print(f"{path}: {description}; {readme} says how to load them")
    return path
