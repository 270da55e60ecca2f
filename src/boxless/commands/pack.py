"""`boxless pack`: images with all that is known of them, as a few large tar files."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from boxless.files import Place, Places, as_text

if TYPE_CHECKING:
    from boxless.data.index import ImageIndex
    from boxless.data.shards.write import Extras


@dataclass(frozen=True)
class PackResult:
    """Contents of the folder that `pack` wrote.

    Attributes:
        manifest: the file to give as data.
        shards: tar files.
        images: images in them.
        bytes: bytes of all tar files.
        written: shards that this run wrote.
        left_out: (key, reason) of the images that could not be read.
    """

    manifest: Path
    shards: int
    images: int
    bytes: int
    written: int
    left_out: list[tuple[str, str]]

    def __str__(self) -> str:
        from boxless.data.images import skipped_report

        kept = self.shards - self.written
        lines = [f"{self.manifest}: {self.images} images in {self.shards} shards, {self.bytes / 1e9:.3g} GB"]
        if kept:
            lines.append(f"{kept} shards were there already, their checksums are right; {self.written} written")
        if self.left_out:
            lines.append(skipped_report(self.left_out, more=f', under "left_out" in {self.manifest}'))
        return "\n".join(lines)


def pack(
    data: Places,
    out: Place,
    proposals: Place | None = None,
    shard_mb: int = 500,
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    quiet: bool = False,
) -> PackResult:
    """Pack images, with their labels and proposals, into tar files that are fast to read, copy and download.

    The files follow WebDataset's convention; images keep their bytes. A run that is stopped goes on when the same
    command is given again; once all is packed, it checks every file and writes those that are broken again.

    Args:
        data: Images: a folder, a list file, a labelled data set named by its file or split (labels are packed too), or
            several of these.
        out: Folder of the tar files and their manifest, out/manifest.json, which is given as --data of other commands.
        proposals: Table made by boxless propose for these images, to pack too.
        shard_mb: Largest size of a tar file, in millions of bytes.
        workers: Tar files that are written at a time, by threads or on the cluster; default one per core.
        engine: local: this machine; ray: a Ray cluster that is running, whose machines write the tar files themselves
            and must all find the images and the folder of out under the same paths (pip install 'boxless[ray]').
        ray_address: HOST:PORT of the cluster's head; default $RAY_ADDRESS, or a cluster on this machine.
        quiet: Print nothing.

    Raises:
        UserError: for data, proposals or a folder that cannot be used.
    """
    from boxless.data.open import MANIFEST, index_images
    from boxless.data.shards.pack import pack_images
    from boxless.data.shards.read import ShardIndex
    from boxless.data.shards.write import plan_shards
    from boxless.errors import UserError
    from boxless.parallel import available_cores, chosen_engine
    from boxless.training.progress import progress

    data, out, proposals = as_text(data), as_text(out), as_text(proposals)
    if shard_mb < 1 or (workers is not None and workers < 1):
        raise UserError(f"shard_mb={shard_mb}, workers={workers}: expected 1 or more")
    index = index_images(data)
    if isinstance(index, ShardIndex):
        raise UserError(f"{data}: is packed already")
    if (without := _without_labels(data)) and not quiet:
        print(
            f"boxless: {', '.join(without)}: packed without labels, which are packed where all of --data is named by "
            "label files or splits: train.json, data.yaml, FOLDER:train",
            file=sys.stderr,
            flush=True,
        )
    with chosen_engine(engine, ray_address, workers) as cluster:
        extras, facts = _beside(index, data, proposals)
        plan = plan_shards(index, extras, shard_mb * 1_000_000)
        with progress(len(index), quiet, "pack") as advance:
            packed = pack_images(plan, facts, Path(out), workers or available_cores(), advance, cluster)
    result = PackResult(Path(out) / MANIFEST, **vars(packed))
    if not quiet:
        print(result)
    return result


def _beside(index: "ImageIndex", data: str | list[str], proposals: str | None) -> "tuple[Extras, dict[str, Any]]":
    """Files packed beside each image, and their description in the manifest."""
    import json
    from io import BytesIO

    import numpy as np

    from boxless.data.shards.read import FACTS, PROPOSALS
    from boxless.proposals.table import ProposalTable

    table = ProposalTable.open(proposals) if proposals else None
    boxes = table.aligned_to(index) if table else None
    labels, categories = _labels(index, data)

    def extras(row: int) -> dict[str, bytes]:
        parts = {}
        if boxes is not None:
            file = BytesIO()
            np.save(file, boxes.boxes(row))
            parts[PROPOSALS] = file.getvalue()
        parts[FACTS] = json.dumps({"key": index.key(row), **labels.get(row, {})}).encode()
        return parts

    return extras, {"proposals": table.settings if table else None, "categories": categories}


def _without_labels(data: str | list[str]) -> list[str]:
    """The places that have labels which are not packed."""
    from boxless.data.annotations.read import formats_in
    from boxless.data.open import is_labelled

    places = [data] if isinstance(data, str) else data
    if all(is_labelled(place) for place in places):
        return []
    return [place for place in places if is_labelled(place) or formats_in(Path(place))]


def _labels(index: "ImageIndex", data: str | list[str]) -> tuple[dict[int, dict[str, Any]], Any]:
    """COCO's facts and annotations of each row that has any, and COCO's categories; of labelled data sets only."""
    from os.path import abspath

    from boxless.data.annotations.read import read_labels
    from boxless.data.annotations.types import check_losses
    from boxless.data.open import is_labelled

    places = [data] if isinstance(data, str) else data
    if not all(is_labelled(place) for place in places):
        return {}, None
    labelled = read_labels(places)
    check_losses(labelled)
    coco = labelled.as_coco()
    rows = {abspath(index.path(row)): row for row in range(len(index))}
    by_number: dict[int, dict[str, Any]] = {}
    by_row: dict[int, dict[str, Any]] = {}
    for image, entry in zip(labelled.images, coco["images"], strict=True):
        own = {name: value for name, value in entry.items() if name not in ("id", "file_name")}
        row = rows[abspath(image.path)]
        by_row[row] = by_number[entry["id"]] = {"image_id": image.image_id, **own, "annotations": []}
    for annotation in coco["annotations"]:
        own = {name: value for name, value in annotation.items() if name not in ("id", "image_id")}
        by_number[annotation["image_id"]]["annotations"].append(own)
    return by_row, coco["categories"]
