"""`boxless export`."""

from pathlib import Path
from typing import Literal


def export(
    run: str,
    out: str,
    to: Literal["torchvision-backbone", "torchvision-detector"] = "torchvision-backbone",
    quiet: bool = False,
) -> Path:
    """Write what a run trained as plain safetensors in torchvision's names, for use without boxless.

    Beside it comes a text of the same name, .README.txt, with the lines of Python that load it.

    Args:
        run: Folder that boxless pretrain or finetune wrote.
        out: The .safetensors file to write.
        to: torchvision-backbone: the ResNet without its classifier. torchvision-detector: all that torchvision's
            detector of the kind has a place for; of a pretraining run the parts that it trained.
        quiet: Print nothing.

    Returns:
        The file.

    Raises:
        UserError: For anything that the caller can mend.
    """
    from boxless.errors import UserError
    from boxless.runs import exporting

    path = Path(out)
    if path.suffix != ".safetensors" or path.is_dir():
        raise UserError(f"out {out}: expected the name of a file that ends in .safetensors")
    if path.resolve() == (Path(run) / "weights.safetensors").resolve():
        raise UserError(f"out {out}: would overwrite the run's own weights; name another file")
    makers = {"torchvision-backbone": exporting.backbone, "torchvision-detector": exporting.detector}
    if to not in makers:
        raise UserError(f"to: {to}; expected {' or '.join(makers)}")
    tensors, text = makers[to](run, path.name)
    readme = exporting.write(path, tensors, text)
    if not quiet:
        print(f"{path}: {len(tensors)} tensors; {readme} says how to load them")
    return path
