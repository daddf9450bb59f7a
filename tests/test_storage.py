"""How condensed images are kept, and that every reader sees what is kept."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from edc_ray.config import Recover
from edc_ray.core import data
from edc_ray.core.storage import levels, normalized, pixels, store

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def smooth() -> torch.Tensor:
    """Two images in [0, 1], a little over its ends, of which JPEG keeps something."""
    ramp = torch.linspace(-0.01, 1.01, 16)
    image = torch.stack([ramp[:, None] + 0 * ramp, 0 * ramp[:, None] + ramp, (ramp[:, None] + ramp) / 2])
    return torch.stack([image, image.flip(2)])


def test_levels_are_rounded_or_cut() -> None:
    """B16: the official code cuts off what is between two levels."""
    images = torch.tensor([0.0, 0.4, 0.6, 99.5, 254.6, 255.0, 300.0, -3.0]).div(255).expand(1, 3, 1, 8)
    rounded, size = store(images, Recover(format="uint8"))
    cut, _ = store(images, Recover(format="uint8_truncated"))
    assert rounded[0, 0, 0].tolist() in ([0, 0, 1, v, 255, 255, 255, 0] for v in (99, 100)) and size == 24
    assert cut[0, 0, 0].tolist() == [0, 0, 0, 99, 254, 255, 255, 0] and cut.dtype == torch.uint8


def test_half_floats_keep_what_is_between_levels() -> None:
    images = smooth()
    kept, size = store(images, Recover(format="float16"))
    assert kept.dtype == torch.float16 and size == 2 * images.numel()
    torch.testing.assert_close(pixels(kept), images.clamp(0, 1), rtol=0, atol=5e-4)
    column = [torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD)]
    torch.testing.assert_close(normalized(kept, MEAN, STD), (kept.float() - column[0]) / column[1])
    assert torch.equal(levels(kept), (kept.float() * 255).round().to(torch.uint8))


@pytest.mark.parametrize("quality", [20, 95])
def test_jpeg_is_what_a_reader_of_the_file_sees(quality: int) -> None:
    cut, _ = store(smooth(), Recover(format="uint8_truncated"))
    kept, size = store(smooth(), Recover(format="jpeg", jpeg_quality=quality))
    files = []
    for image in cut:
        sink = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(sink, "JPEG", quality=quality)
        files.append(sink.getvalue())
    want = np.stack([np.array(Image.open(io.BytesIO(file))) for file in files])
    assert torch.equal(kept.permute(0, 2, 3, 1), torch.from_numpy(want)) and size == sum(map(len, files))
    assert not torch.equal(kept, cut) and (kept.int() - cut.int()).abs().float().mean() < 20


def test_bytes_stay_as_they_are_but_for_jpeg() -> None:
    images = (torch.arange(2 * 3 * 16 * 16) % 256).to(torch.uint8).view(2, 3, 16, 16)
    for cfg in (Recover(format="uint8"), Recover(format="uint8_truncated")):
        assert store(images, cfg) == (images, images.nbytes)
    half, _ = store(images, Recover(format="float16"))
    assert torch.equal(levels(half), images) and torch.equal(levels(images), images)
    assert torch.equal(normalized(images, MEAN, STD), data.normalize(images, MEAN, STD))
    assert torch.equal(pixels(images), images.float() / 255)
    assert not torch.equal(store(images, Recover(format="jpeg"))[0], images)
