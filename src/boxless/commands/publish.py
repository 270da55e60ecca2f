"""`boxless publish`."""

from pathlib import Path

from boxless.files import Place, as_text


def publish(run: Place, to: Place, quiet: bool = False) -> str:
    """Publish a finished run with a model card, to a folder or the Hugging Face Hub.

    The card (README.md) has recipe, data, results with their spread over seeds, use and limits; read it and say where
    the data are from. Names and pictures of your images, and paths of your machine, stay behind.

    Args:
        run: Folder that boxless pretrain or finetune wrote.
        to: Folder to write; or hf://user/name, a repository of the Hugging Face Hub, created as private if it is new.
        quiet: Print nothing.

    Returns:
        The folder, or the repository's page.

    Raises:
        UserError: If the caller can fix the cause.
    """
    import tempfile

    from boxless.export.publish import prepare
    from boxless.interop.hub import is_address, upload

    run, to = as_text(run), as_text(to)
    if is_address(to):
        with tempfile.TemporaryDirectory() as folder:
            place = upload(prepare(run, Path(folder)), to)
    else:
        place = str(prepare(run, Path(to)))
    if not quiet:
        print(f"{place}: read its README.md, the model card, and say there where the data are from")
    return place
