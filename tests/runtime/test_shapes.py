"""Video sizes: the latents of valid ones, and a useful refusal of the rest."""

import pytest
from sana_edge.runtime.errors import InputError
from sana_edge.runtime.shapes import LatentGeometry, VideoShape

WAN = LatentGeometry(channels=16, temporal=4, spatial=8, patch=2)
LTX2 = LatentGeometry(channels=128, temporal=8, spatial=32, patch=1)


@pytest.mark.parametrize(
    ("geometry", "video", "latents", "tokens"),
    [
        (WAN, VideoShape(81, 480, 832), (16, 21, 60, 104), 32_760),
        (LTX2, VideoShape(81, 704, 1280), (128, 11, 22, 40), 9_680),
        (WAN, VideoShape(1, 16, 16), (16, 1, 2, 2), 1),
    ],
)
def test_published_geometries(geometry, video, latents, tokens):
    assert geometry.latent_shape(video) == latents
    assert geometry.tokens(video) == tokens


@pytest.mark.parametrize(
    ("video", "name", "fix"),
    [
        (VideoShape(80, 480, 832), "frames", "use 77 or 81"),
        (VideoShape(81, 481, 832), "height", "use 480 or 496"),
        (VideoShape(81, 480, 8), "width", "use 16"),
        (VideoShape(0, 480, 832), "frames", "use 1"),
        (VideoShape(-3, 480, 832), "frames", "use 1"),
        (VideoShape(81, 480, -16), "width", "use 16"),
    ],
)
def test_sizes_that_do_not_divide_name_the_nearest_that_do(video, name, fix):
    with pytest.raises(InputError, match=name) as error:
        WAN.latent_shape(video)
    assert error.value.fix is not None and error.value.fix.startswith(fix)
