"""A view of a source image that remembers where each of its pixels came from."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxless.geometry.affine import compose, crop_and_resize, invert, mirror, transform_points
from boxless.geometry.boxes import area, clip, transform_boxes


class View(NamedTuple):
    """Views of a batch of images, all of one size.

    Attributes:
        image: (B, 3, H, W), uint8 as cropped or float as the network sees it.
        from_source: (B, 2, 3), source pixels -> view pixels.
    """

    image: Tensor
    from_source: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.image.shape[-2], self.image.shape[-1]

    def to(self, *arguments: Any, **options: Any) -> "View":
        """The same views on another device (`torch.Tensor.to`)."""
        return View(self.image.to(*arguments, **options), self.from_source.to(*arguments, **options))

    def mirrored(self, chosen: Tensor) -> "View":
        """The same views, flipped left and right where `chosen` (B,) is true."""
        image = torch.where(chosen[:, None, None, None], self.image.flip(-1), self.image)
        return View(image, compose(mirror(self.size[1], chosen), self.from_source))

    def resized(self, size: int) -> "View":
        """The same views as size x size images (bilinear, anti-aliased)."""
        height, width = self.size
        image = self.image.float()
        image = torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
        if not self.image.is_floating_point():
            image = image.round().clamp(0, 255).to(self.image.dtype)
        whole = self.from_source.new_tensor([[0, 0, width, height]]).expand(len(image), 4)
        return View(image, compose(crop_and_resize(whole, size, size), self.from_source))

    def with_image(self, image: Tensor) -> "View":
        """The same places under other pixel values (B, 3, H, W)."""
        return View(image, self.from_source)

    def boxes(self, source_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Where source boxes lie in these views.

        Args:
            source_boxes: (B, K, 4), source px.

        Returns:
            (B, K, 4) in view px, cut to the view, and (B, K) the share of each box's area that the view shows, 0..1
            (0 for boxes without area).
        """
        height, width = self.size
        whole = transform_boxes(self.from_source, source_boxes)
        visible = clip(whole, width, height)
        return visible, area(visible) / area(whole).clamp(min=1e-6)

    def cell_centres(self, rows: int, columns: int) -> Tensor:
        """Centres of the cells of a rows x columns feature map, (B, rows, columns, 2) in source px, xy."""
        height, width = self.size
        device = self.from_source.device
        y = (torch.arange(rows, device=device) + 0.5) * (height / rows)
        x = (torch.arange(columns, device=device) + 0.5) * (width / columns)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).expand(len(self.from_source), -1, -1, -1)
        return transform_points(invert(self.from_source), grid)
