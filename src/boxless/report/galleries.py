"""Images with labels and detections, of several runs beside each other."""

import json
from collections.abc import Sequence
from typing import Any

from boxless.report.run_report import RunReport

IMAGES = 60
"""Shown on a page, of all data together."""


def merged(reports: Sequence[RunReport]) -> list[dict[str, Any]]:
    """A set for each data that runs were measured on: images once, with what each run found in them."""
    sets: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, report in enumerate(reports):
        for gallery in report.galleries:
            key = gallery["data"], tuple(gallery["classes"])
            known = sets.setdefault(
                key, {"data": gallery["data"], "classes": gallery["classes"], "runs": [], "images": {}}
            )
            if any(run["run"] == number for run in known["runs"]):
                continue  # a fine-tuning's own evaluation, and boxless evaluate on the same labels
            names = "images", "score", "counts"
            run = {"run": number, "name": report.name, **{name: gallery[name] for name in names}}
            known["runs"].append(run)
            for shown in gallery["shown"]:
                own = {name: value for name, value in shown.items() if name != "found"}
                same = shown["file"], shown["jpeg"], json.dumps(shown["truth"])  # labels may have been fixed since
                known["images"].setdefault(same, {**own, "found": {}})["found"][number] = shown["found"]
    kept = max(1, IMAGES // max(1, len(sets)))
    return [{**each, "images": _some(list(each["images"].values()), kept)} for each in sets.values()]


def _some(images: list[Any], count: int) -> list[Any]:
    """At most `count` of them, from the first to the last."""
    return [images[row * len(images) // count] for row in range(count)] if len(images) > count else images
