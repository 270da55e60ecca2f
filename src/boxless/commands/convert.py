"""`boxless convert`."""

from pathlib import Path

from boxless.files import Place, as_text


def convert(file: Place, out: Place, prefix: str = "", quiet: bool = False) -> Path:
    """Keep only the tensors of a checkpoint that also holds other objects, without running its code.

    Once is enough: pretrain, compare and finetune take what it writes. Names stay as they are, but for a prefix.

    Args:
        file: Checkpoint of torch.save with objects beside the weights (arguments, logs), or a pickle of NumPy's arrays,
            as Detectron2 has them.
        out: The .safetensors file to write.
        prefix: Keep only the tensors behind this prefix of their names, without it.
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
    from boxless.interop.names import without

    file, out = as_text(file), as_text(out)
    path = Path(out)
    if path.suffix != ".safetensors" or path.is_dir():
        raise UserError(f"out {out}: expected the name of a file that ends in .safetensors")
    tensors, left = converted(Path(file))
    kept = without(tensors, prefix)
    if not kept:
        raise UserError(f"prefix {prefix}: no tensor of {file} is behind it; the first is {next(iter(tensors))}")
    make_folder(path.parent)
    with written(path) as partial:
        partial.write_bytes(save({key: value.clone().contiguous() for key, value in kept.items()}, {"format": "pt"}))
    if not quiet:
        note = f"; left out: {', '.join(left)}" if left else ""
        print(f"{path}: {len(kept)} tensors{note}")
    return path
