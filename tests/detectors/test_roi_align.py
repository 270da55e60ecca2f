"""RoIAlign's own gradient against torchvision's."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from boxless.detectors import roi_align as module
from boxless.detectors.roi_align import roi_align


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(0, 3),
    st.integers(0, 9),
    st.integers(1, 4000),
)
def test_pools_and_differentiates_as_torchvision_does(
    seed: int, cells: tuple[int, int], size: tuple[int, int], sampling: int, count: int, room: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    features = torch.rand(2, 3, *cells, generator=random, dtype=torch.float64)
    corners = torch.rand(count, 2, 2, generator=random, dtype=torch.float64) * 18 - 3  # some lie outside
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    boxes[::4, 2:] = boxes[::4, :2]  # some are empty
    rois = torch.cat([torch.randint(0, 2, (count, 1), generator=random).double(), boxes], 1)
    gradient = torch.rand(count, 3, *size, generator=random, dtype=torch.float64)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    kept, module.ROOM = module.ROOM, room
    try:
        pooled = roi_align(ours, rois, size, sampling)
        pooled.backward(gradient)
    finally:
        module.ROOM = kept
    expected = ops.roi_align(theirs, rois, size, sampling_ratio=sampling, aligned=True)
    expected.backward(gradient)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-10, rtol=1e-8)
