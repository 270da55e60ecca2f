"""UP-DETR: Unsupervised Pre-training for Object Detection with Transformers (Dai et al., 2021, arXiv:2011.09094).

Random patches are cut out of an image, described by the backbone and added to DETR's object queries, a group of queries
per patch. DETR finds where in the image they came from (random query patch detection). The queries that are matched
with a patch also reconstruct the backbone's features of it. It trains the transformer, on a frozen backbone from
another pretraining (`--weights`).

If paper and official code differ, this module follows the paper, and the code's way is an option:

- Query embeddings are shuffled among the groups (off in the code, because the authors later found that it does not
  help: `shuffle=False`).
- There are two classes, match and no match. (The code has an unused third.)

Departures from both: images and their boxes are squashed to a square, whose size is drawn once per batch from the
paper's range; the transformer normalises after each block, as in DETR's paper and Hugging Face's transformers
(UP-DETR's code normalises before). If the patches do not divide the queries evenly, group sizes differ by one.

Not said by the paper, and as in the code: a query drops its whole patch with probability `mask`, and the rest is not
scaled up; any query may be matched with any patch; the reconstruction does not affect the matching; each decoder layer
is matched and trained separately; a query without a match has weight patches / queries.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from boxless.data.transforms.color import Photometric
from boxless.data.transforms.crops import ViewSpec
from boxless.detectors.criterion import Objects, match, set_loss
from boxless.detectors.trunk import Trunk, freeze
from boxless.errors import UserError
from boxless.geometry.boxes import own_rows
from boxless.geometry.view import View
from boxless.losses import byol_loss
from boxless.methods.method import MethodOutput


@dataclass(frozen=True)
class UPDETRConfig:
    """UP-DETR's hyper-parameters (paper, section 4; official code)."""

    name: Literal["up-detr"] = "up-detr"
    size: int = 480
    """Largest side of the square to which an image is resized, px."""
    smallest: float = 2 / 3
    """Smallest side as a fraction of it; each batch draws one in between, a multiple of 16 px (code: 320 to 480)."""
    patches: int = 10
    """Number M of query patches per image."""
    patch_size: int = 128
    """Side of the square that a patch is resized to, px."""
    least_side: int = 8
    """Least side of a patch in the source, and least difference to the image's side, px (code)."""
    patch: Photometric = Photometric(flip=0.0, saturation=0.4, blur=0.5)  # noqa: RUF009 (frozen)
    """Colours and blur of the patches; the image itself keeps its colours, and nothing is flipped (code)."""
    mask: float = 0.1
    """Probability that a query does not get its patch in training."""
    shuffle: bool = True
    """Assign the query embeddings to groups again at each step (paper), or keep the assignment (official code)."""
    reconstruct: float = 1.0
    """Weight of the reconstruction; 0 drops it."""
    freeze_backbone: bool = True
    """Keep the backbone as loaded (paper); false trains it too, if no pretrained one is at hand."""

    needs_boxes: ClassVar[bool] = False

    def views(self) -> tuple[ViewSpec, ...]:
        """The whole image, then the patches."""
        image = ViewSpec(self.size, Photometric(flip=0.0, jitter=0.0, gray=0.0, blur=0.0))
        return image, *[ViewSpec(self.patch_size, self.patch, least_side=self.least_side)] * self.patches

    def at_size(self, size: int) -> "UPDETRConfig":
        """The same method on images of another size, with patches, of at least 32 px, scaled to match."""
        patch_size = max(32, round(self.patch_size * size / self.size))
        patch = self.patch.at_scale(patch_size / self.patch_size)
        return replace(self, size=size, patch_size=patch_size, patch=patch)

    def build(self, trunk: Trunk) -> "UPDETR":
        """Build UP-DETR around a trunk whose neck is DETR's transformer.

        Raises:
            UserError: if it has another neck, or fewer queries than patches.
        """
        if trunk.config.neck != "transformer":
            raise UserError(
                f"trunk.neck: {trunk.config.neck}; up-detr pretrains DETR's transformer: set trunk.neck=transformer "
                "(and detector.kind=detr to fine-tune)"
            )
        queries = trunk.config.transformer.queries
        if not 1 <= self.patches <= queries:
            raise UserError(f"method.patches: {self.patches}; expected 1 to {queries}, the number of queries")
        return UPDETR(trunk, self)


class UPDETR(nn.Module):
    """See the module's docstring."""

    group: Tensor

    def __init__(self, trunk: Trunk, config: UPDETRConfig) -> None:
        super().__init__()
        self.config = config
        self.trains = ("transformer",) if config.freeze_backbone else ("backbone", "transformer")
        if config.freeze_backbone:
            freeze(trunk, 5)
        width = trunk.config.transformer.width
        self.backbone, self.transformer = trunk.backbone.body, trunk.transformer
        self.patch_to_query = nn.Linear(trunk.body_width, width)
        self.classify = nn.Linear(width, 2)  # match, no match
        self.align = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, trunk.body_width))
        self.register_buffer("group", groups(trunk.config.transformer.queries, config.patches), persistent=False)

    def forward(
        self, views: tuple[View, ...], boxes: Tensor, valid: Tensor, generator: torch.Generator
    ) -> MethodOutput:
        """Compute the loss of images and their patches; proposals are not used."""
        image = self._resized(views[0], generator)
        features = self.backbone(image.image)["3"]  # (B, C, h, w)
        batch, patches = len(features), len(views) - 1
        cut = torch.stack([view.image for view in views[1:]], 1)  # (B, M, 3, s, s)
        described = self.backbone(cut.flatten(0, 1))["3"].mean((2, 3)).unflatten(0, (batch, patches))  # p: (B, M, C)
        objects = self._objects(image, views[1:])

        queries = self._queries(self.patch_to_query(described), generator)  # (B, N, width)
        seen = features.new_ones((batch, *features.shape[-2:]), dtype=torch.bool)
        states = self.transformer(features, seen, queries, self.group)  # (L, B, N, width)
        logits, found = self.classify(states), self.transformer.boxes(states)

        matching = match(logits, found, objects)  # sigma of eq. 1: (L, B, M)
        no_match = patches / queries.shape[1]
        terms = set_loss(logits, found, objects, matching, no_match, count=batch * patches)
        target = described.detach().expand(len(states), -1, -1, -1)[matching.matched]  # (L * B * M, C)
        rebuilt = self.align(matching.of(states))
        # |p/|p| - p'/|p'||^2 (eq. 3) is 2 - 2 cos(p, p'), here the mean over patches summed over layers.
        terms["reconstruction"] = self.config.reconstruct * len(states) * byol_loss(rebuilt, target)
        loss = torch.stack(list(terms.values())).sum()
        last = batch * patches  # layers come first, so that the last rows are the last layer's
        scalars = {name: term.detach() for name, term in terms.items()}
        return MethodOutput(loss, scalars, rebuilt.detach()[-last:], target[-last:])

    def after_step(self, step: int, total_steps: int) -> None:
        """Do nothing: UP-DETR has no target."""

    def _resized(self, image: View, generator: torch.Generator) -> View:
        """Resize the images to one size of the range, a multiple of 16 px if there is one."""
        largest = self.config.size
        least = max(1, -(-round(self.config.smallest * largest) // 16))
        steps = torch.randint(least, max(least, largest // 16) + 1, (), generator=generator)
        size = min(16 * int(steps), largest)
        return image if size == largest else image.resized(size)

    def _queries(self, patches: Tensor, generator: torch.Generator) -> Tensor:
        """Object queries (B, N, width), each with the patch (B, M, width) of its group, or without it if masked."""
        embeddings = self.transformer.query_position_embeddings.weight  # (N, width)
        if self.config.shuffle and self.training:
            embeddings = embeddings[torch.randperm(len(embeddings), generator=generator).to(embeddings.device)]
        added = patches[:, self.group]
        if self.training:
            rows, queries = added.shape[:2]
            kept = own_rows(rows, lambda rows: torch.rand(rows, queries, generator=generator)) >= self.config.mask
            added = added * kept.to(added.device)[..., None]
        return embeddings + added

    @staticmethod
    def _objects(image: View, patches: tuple[View, ...]) -> Objects:
        """The patches' boxes in the image, as DETR's objects of a single class."""
        source = torch.stack([patch.windows() for patch in patches], 1)  # (B, M, 4)
        height, width = image.size
        inside, _ = image.boxes(source)
        boxes = box_convert(inside / inside.new_tensor([width, height, width, height]), "xyxy", "cxcywh")
        boxes = boxes.to(image.image.device, non_blocking=True)
        labels = torch.zeros(boxes.shape[:2], dtype=torch.long, device=boxes.device)
        return Objects(labels, boxes, torch.ones_like(labels, dtype=torch.bool))


def groups(queries: int, patches: int) -> Tensor:
    """Return the patch 0..patches-1 of each query, (queries,), in contiguous groups whose sizes differ by at most one.

    The official code's mask loops over queries per patch instead of patches, which is right only if the two are
    equal; otherwise some queries see nothing and the loss is NaN.
    """
    return torch.arange(queries) * patches // queries
