"""mp4 and image files: what is written comes back, plays in browsers, and is there whole or not at all."""

import json

import av
import numpy as np
import pytest
from PIL import Image
from sana_edge.runtime.errors import ArtefactError, InputError
from sana_edge.runtime.video import check_output, read_image, read_video, write_video


def moving_gradient(frames=9, height=64, width=96):
    """A smooth video in which every channel moves, so that chroma subsampling costs little."""
    t, y, x = np.mgrid[0:frames, 0:height, 0:width]
    phase = np.random.default_rng().uniform(0, 6.28, 3)
    waves = [np.sin(x / 20 + t / 5 + phase[0]), np.sin(y / 20 + phase[1]), np.sin((x + y) / 30 - t / 9 + phase[2])]
    return ((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def test_a_video_comes_back_with_its_frames_rate_and_origin(tmp_path):
    frames, path = moving_gradient(), tmp_path / "new" / "a.mp4"
    metadata = {"prompt": 'é 🔴 "quoted"\nline', "seed": 2**62, "guidance": 6.0}
    write_video(path, frames, fps=16, metadata=metadata)
    got, fps, read = read_video(path)
    assert got.shape == frames.shape
    assert psnr(got, frames) > 36
    assert (fps, read) == (16.0, metadata)
    assert json.loads((tmp_path / "new" / "a.json").read_text(encoding="utf-8")) == metadata
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.json", "a.mp4"]


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)])
def test_colours_survive(tmp_path, colour):
    frames = np.broadcast_to(np.uint8(colour), (2, 32, 32, 3))
    write_video(tmp_path / "c.mp4", frames)
    assert np.abs(read_video(tmp_path / "c.mp4")[0].astype(int) - colour).max() <= 3


def test_browsers_can_play_it_while_it_loads(tmp_path):
    write_video(tmp_path / "a.mp4", moving_gradient())
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, codec.colorspace, codec.color_range) == ("h264", "yuv420p", 1, 1)


def test_a_failed_write_keeps_the_old_video(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    write_video(path, moving_gradient(), metadata={"take": 1})
    before = path.read_bytes()

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(ArtefactError, match="No space left"):
        write_video(path, moving_gradient(), metadata={"take": 2})
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.mp4"]


def test_unusable_outputs_are_refused_before_work_starts(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.mp4").mkdir()
    check_output(tmp_path / "not" / "yet" / "there.mp4")
    for name, message in (
        ("a.avi", "mp4"),
        ("a", "mp4"),
        ("file/a.mp4", "cannot be written"),
        ("folder.mp4", "a folder"),
    ):
        with pytest.raises(InputError, match=message):
            check_output(tmp_path / name)


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 32, 32, 3)), np.zeros((32, 32, 3), np.uint8), np.zeros((1, 31, 32, 3), "u1")]
)
def test_frames_that_cannot_be_encoded_are_refused(tmp_path, frames):
    with pytest.raises(InputError, match="cannot be encoded"):
        write_video(tmp_path / "a.mp4", frames)


def test_files_that_are_no_video_or_image_are_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    for name in ("a.mp4", "missing.mp4", "a.png"):
        with pytest.raises(InputError, match="Video cannot be read"):
            read_video(tmp_path / name)
    for name in ("a.png", "cut.png", "missing.png", "."):
        with pytest.raises(InputError, match="Image cannot be read"):
            read_image(tmp_path / name, 32, 32)


def test_an_image_is_turned_upright_scaled_and_cropped_at_its_centre(tmp_path):
    bands = np.zeros((60, 200, 3), np.uint8)
    bands[:, :60], bands[:, 60:140], bands[:, 140:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(bands).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", 64, 64)[:, 2:-2] == (0, 255, 0)).all()

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(bands).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = read_image(tmp_path / "turned.jpg", 200, 60).astype(int)
    assert np.abs(turned[:50] - (255, 0, 0)).max() < 20
    assert np.abs(turned[-50:] - (0, 0, 255)).max() < 20


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_every_mode_become_rgb(tmp_path, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.new("RGB", (50, 40), (200, 200, 200)).convert(mode).save(tmp_path / name)
    image = read_image(tmp_path / name, 32, 32)
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
