"""Tell pictures of labels from the images that they lie beside, in a folder of the same names."""

import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

_SAMPLED = 4
"""Files of a folder that are opened."""
_FEW = 64
"""Most grey values of a picture of labels; a photograph has more."""
_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".gif")


def label_map_folders(root: str, keys: Sequence[str]) -> dict[str, int]:
    """Folders of label maps below `root`, and the number of files in each.

    All their files have the name of an image in another folder but for its ending, and those that are opened have its
    size and few grey values or palette colours.

    Args:
        root: folder that the keys are relative to.
        keys: posix paths of all images.
    """
    photographs = {key.rpartition("/")[0] for key in keys if not key.lower().endswith(_ENDINGS)}
    if len({key.rpartition("/")[0] for key in keys} - photographs) == 0:
        return {}
    files: dict[str, dict[str, str]] = defaultdict(dict)
    for key in keys:
        folder, _, name = key.rpartition("/")
        files[folder][os.path.splitext(name)[0]] = key
    found = {}
    for folder, own in files.items():
        first = next(iter(own))
        others = [] if folder in photographs else [each for each in files if first in files[each] and each != folder]
        stems = sorted(own)[:: max(1, len(own) // _SAMPLED)][:_SAMPLED]
        for other in sorted(others):
            pairs = [(os.path.join(root, own[s]), os.path.join(root, files[other].get(s, ""))) for s in stems]
            if own.keys() <= files[other].keys() and all(_is_map(*pair) for pair in pairs):
                found[folder] = len(own)
                break
    return found


def _is_map(path: str, beside: str) -> bool:
    try:
        with Image.open(path) as picture, Image.open(beside) as image:
            if picture.size != image.size or picture.mode not in ("P", "L", "1", "I", "I;16"):
                return False
            values = len(np.unique(np.asarray(picture)))
            return values <= _FEW and (image.mode not in ("P", "L", "1") or values < len(np.unique(np.asarray(image))))
    except Exception:  # decoders raise anything; what cannot be read is no label map
        return False
