"""The kinds of figures: the runs that have them, what each needs, and where they go."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from boxless.data.annotations.read import read_labels
from boxless.data.index import ImageIndex
from boxless.data.open import index_images
from boxless.errors import UserError
from boxless.figures import features, pairs, scores, views
from boxless.figures.views import Picture
from boxless.plots.style import save
from boxless.recipes.overrides import did_you_mean
from boxless.recipes.schema import PretrainRecipe, TrainingRecipe
from boxless.runs.run import Run
from boxless.tasks.compare_table import is_comparison
from boxless.tasks.feature_extractor import FeatureExtractor, load_feature_extractors
from boxless.training.progress import say


@dataclass(frozen=True)
class FigureContext:
    """The run, the data and the settings that figures are drawn from.

    Attributes:
        runs: folders; the first one's figures are drawn, the others stand beside it.
        data: images or labels, None if none were given.
        seed: chooses images and draws views.
        quiet: print nothing.
    """

    runs: tuple[str, ...]
    data: str | list[str] | None
    seed: int
    quiet: bool

    @property
    def folder(self) -> Path:
        """The run that is pictured."""
        return Path(self.runs[0])

    @cached_property
    def recipe(self) -> TrainingRecipe | None:
        """The run's recipe; None of a comparison."""
        if is_comparison(self.folder):
            return None
        return Run.open(self.folder).recipe

    @property
    def kind(self) -> str:
        """The kind of training: pretraining, fine-tuning or comparison."""
        if self.recipe is None:
            return "comparison"
        return "pretraining" if isinstance(self.recipe, PretrainRecipe) else "fine-tuning"

    @cached_property
    def index(self) -> ImageIndex:
        """The images of the data."""
        assert self.data is not None
        return index_images(self.data)

    @cached_property
    def no_labels(self) -> str:
        """Why the data are no labels; empty if they are."""
        if not isinstance(self.data, str):
            return f"--data {' '.join(self.data or ())}: are images; name COCO JSON, VOC or YOLO labels"
        try:
            read_labels(self.data, "val")
        except UserError as error:
            return str(error)
        return ""

    @property
    def labels(self) -> str | None:
        """The data, if they are labels."""
        return self.data if isinstance(self.data, str) and not self.no_labels else None

    @cached_property
    def loaded(self) -> list[FeatureExtractor]:
        """Random weights, and the runs' networks."""
        return load_feature_extractors(self.runs, None, self.seed)

    @property
    def networks(self) -> list[FeatureExtractor]:
        """The runs' networks; beside a single one, random weights."""
        return self.loaded[-len(self.runs) :] if len(self.runs) > 1 else [self.loaded[-1], self.loaded[0]]

    @property
    def pretraining(self) -> PretrainRecipe:
        """The recipe of a pretraining, which `Kind.of` has made sure of."""
        assert isinstance(self.recipe, PretrainRecipe)
        return self.recipe

    @cached_property
    def detections(self) -> scores.MatchedDetections:
        """The detector's detections in the labelled images."""
        assert isinstance(self.data, str)
        return scores.MatchedDetections(self.runs[0], self.data, self.quiet)


@dataclass(frozen=True)
class Kind:
    """A kind of figure: the runs that have it, what else it needs, and how it is drawn."""

    of: tuple[str, ...]
    needs: str
    draw: Callable[[FigureContext], Iterator[Picture]]

    def lacking(self, name: str, context: FigureContext) -> str | None:
        """Why it cannot be drawn, in one line, or None."""
        if context.kind not in self.of:
            return f"kind {name}: is of a {' or '.join(self.of)}, and {context.folder} is a {context.kind}"
        if self.needs and context.data is None:
            return f"kind {name}: needs --data: {self.needs}"
        if self.needs == LABELS and context.no_labels:
            return f"kind {name}: needs labels: {context.no_labels}"
        if name == "emd" and context.pretraining.method.name != "self-emd":
            return f"kind emd: is of method self-emd, and {context.folder} is of {context.pretraining.method.name}"
        if name == "gain" and context.kind == "fine-tuning" and len(context.runs) != 2:
            return "kind gain: needs two runs, --run RUN REFERENCE"
        return None


IMAGES, LABELS = "images, of which a few are drawn", "labels (COCO JSON, a Pascal VOC folder, a YOLO data.yaml)"
PRETRAINED, BOTH, DETECTOR = ("pretraining",), ("pretraining", "fine-tuning"), ("fine-tuning",)


def _one(draw: Callable[[FigureContext], Picture]) -> Callable[[FigureContext], Iterator[Picture]]:
    return lambda context: iter([draw(context)])


def _gain(s: FigureContext) -> Iterator[Picture]:
    if s.kind == "comparison":
        yield from scores.draw_gains(s.folder)
    else:
        yield scores.draw_gain(s.folder, Path(s.runs[1]))


KINDS = {
    "curves": Kind(BOTH, "", _one(lambda s: scores.draw_curves(s.folder))),
    "views": Kind(PRETRAINED, IMAGES, _one(lambda s: views.draw_views(s.index, s.pretraining, s.folder, s.seed))),
    "proposals": Kind(
        PRETRAINED, IMAGES, lambda s: views.draw_proposals(s.index, s.pretraining, s.folder, s.labels, s.seed)
    ),
    "maps": Kind(BOTH, IMAGES, _one(lambda s: features.draw_maps(s.networks, s.index, s.seed))),
    "pca": Kind(BOTH, IMAGES, _one(lambda s: features.draw_pca(s.networks, s.index, s.seed))),
    "attention": Kind(BOTH, IMAGES, _one(lambda s: features.draw_attention(s.networks, s.index, s.seed))),
    "correspondence": Kind(
        PRETRAINED, IMAGES, lambda s: pairs.draw_correspondence(s.networks, s.loaded[0], s.pretraining, s.index, s.seed)
    ),
    "correlation": Kind(
        PRETRAINED,
        IMAGES,
        _one(lambda s: pairs.draw_correlation(s.folder, s.pretraining, s.networks[0], s.index, s.seed)),
    ),
    "emd": Kind(
        PRETRAINED, IMAGES, _one(lambda s: pairs.draw_emd(s.folder, s.pretraining, s.networks[0], s.index, s.seed))
    ),
    "detections": Kind(DETECTOR, LABELS, lambda s: scores.draw_detections(s.detections)),
    "precision-recall": Kind(DETECTOR, LABELS, _one(lambda s: scores.draw_precision_recall(s.detections))),
    "confusion": Kind(DETECTOR, LABELS, _one(lambda s: scores.draw_confusion(s.detections))),
    "gain": Kind(("fine-tuning", "comparison"), "", _gain),
    "label-efficiency": Kind(("comparison",), "", lambda s: scores.draw_label_efficiency(s.folder)),
}


def select_kinds(names: Sequence[str], context: FigureContext) -> tuple[list[str], list[str]]:
    """The kinds to draw, and of those that were not asked for by name why each is left out.

    Raises:
        UserError: for a kind that is unknown, or asked for and cannot be drawn; or where none can.
    """
    for name in names:
        if name not in KINDS:
            near = did_you_mean(name, list(KINDS)) or ":"
            raise UserError(f"kinds: unknown kind {name!r}{near} the kinds are {', '.join(KINDS)}")
    lacking = {name: KINDS[name].lacking(name, context) for name in names or KINDS}
    refused = [reason for reason in lacking.values() if reason]
    if refused and (names or len(refused) == len(lacking)):
        raise UserError(refused[0])
    return [name for name, reason in lacking.items() if reason is None], refused


def draw_figures(names: Sequence[str], context: FigureContext) -> tuple[dict[str, str], list[str]]:
    """Draw and write the kinds, each as soon as it is drawn: file -> caption, and what was left out and why."""
    drawn, left_out = select_kinds(names, context)
    written: dict[str, str] = {}
    for name in drawn:
        try:
            for picture in KINDS[name].draw(context):
                png, _ = save(picture.figure, context.folder / "figures" / picture.name, picture.caption)
                written[str(png)] = picture.caption
                say(f"figures: {png}", context.quiet)
        except UserError as error:
            if names:
                raise
            left_out.append(f"kind {name}: {error}")
    return written, left_out
