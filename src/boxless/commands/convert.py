"""`boxless convert`."""

from pathlib import Path


def convert(file: str, out: str, quiet: bool = False) -> Path:
    """Keep only the tensors of a checkpoint that also holds other objects, without running its code.

    Once is enough: pretrain, compare and finetune take what it writes. Names stay as they are.

    Args:
        file: Checkpoint of torch.save with objects beside the weights (arguments, logs), or a pickle of NumPy's arrays,
            as Detectron2 has them.
        out: The .safetensors file to write.
        quiet: Print nothing.

    Returns:
        The file that was written.

    Raises:
        UserError: If the caller can fix the cause.
    """
    from safetensors.torch import save

    from boxless.errors import UserError
    from boxless.files import make_folder, written
    from boxless.interop.files import converted

    path = Path(out)
    if path.suffix != ".safetensors" or path.is_dir():
        raise UserError(f"out {out}: expected the name of a file that ends in .safetensors")
    tensors, left = converted(Path(file))
    make_folder(path.parent)
    with written(path) as partial:
        partial.write_bytes(save({key: value.clone().contiguous() for key, value in tensors.items()}, {"format": "pt"}))
    if not quiet:
        note = f"; left out: {', '.join(left)}" if left else ""
        print(f"{path}: {len(tensors)} tensors{note}")
    return path
