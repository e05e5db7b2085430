"""Video and image files: H.264 mp4 that every browser plays, written whole or not at all, with how it was made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ArtefactError, InputError

FPS = 16
"""Frames a second SANA-Video was trained at."""

CRF = 12
"""H.264 quality: visually lossless; 23 is x264's default."""

_BT709 = 1


def check_output(path: Path) -> None:
    """Raises InputError unless a video can be written under this name: worth knowing before minutes of work."""
    if path.suffix.lower() != ".mp4":
        raise InputError("Output is not an mp4 name", where=path, expected="a name ending in .mp4", got=path.suffix)
    if path.is_dir():
        raise InputError("Output is a folder", where=path, expected="a file name ending in .mp4")
    folder = next(p for p in path.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError("Output folder cannot be written", where=folder, fix="choose another --out")


def write_video(path: Path, frames: np.ndarray, *, fps: int = FPS, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes uint8 frames [F, H, W, 3] as mp4, and `metadata` both into its comment tag and beside it as JSON.

    H.264, yuv420p in BT.709 with the index in front, so that it plays while it loads. Both files are written under
    a temporary name and renamed. Raises InputError for a name or frames that cannot be written, ArtefactError when
    the disk refuses.
    """
    check_output(path)
    if (
        frames.dtype != np.uint8
        or frames.ndim != 4
        or frames.shape[-1] != 3
        or frames.shape[1] % 2
        or frames.shape[2] % 2
    ):
        got = f"{frames.dtype} {list(frames.shape)}"
        raise InputError("Frames cannot be encoded", expected="uint8 [F, H, W, 3], even H and W", got=got)
    text = json.dumps(dict(metadata or {}), indent=2, ensure_ascii=False)
    video = path.with_name(f".{path.name}.partial-{os.getpid()}")
    sidecar = path.with_name(f".{path.stem}.json.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _encode(video, frames, fps, text)
        sidecar.write_text(text + "\n", encoding="utf-8")
        sidecar.replace(path.with_suffix(".json"))
        video.replace(path)
    except OSError as error:
        raise ArtefactError("Video cannot be written", where=path, got=error.strerror, fix="free space") from error
    finally:
        video.unlink(missing_ok=True)
        sidecar.unlink(missing_ok=True)


def _encode(path: Path, frames: np.ndarray, fps: int, comment: str) -> None:
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": str(CRF)})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = av.video.reformatter.ColorRange.MPEG
        for image in frames:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())


def read_video(path: Path) -> tuple[np.ndarray, float, dict[str, Any]]:
    """Frames uint8 [F, H, W, 3], frames a second, and the metadata `write_video` stored ({} in other files).

    Raises InputError for a file that is missing or no video.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
            rate, comment = float(stream.average_rate or 0), container.metadata.get("comment", "{}")
    except (OSError, ValueError, IndexError) as error:
        raise InputError("Video cannot be read", where=path, got=error, expected="a video file") from error
    try:
        metadata = json.loads(comment)
    except json.JSONDecodeError:
        metadata = {}
    return frames, rate, metadata


def read_image(path: Path, height: int, width: int) -> np.ndarray:
    """An image file as uint8 [height, width, 3]: turned upright, scaled to cover the size, cropped at its centre.

    Raises InputError for a file that is missing or no image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError("Image cannot be read", where=path, expected="a PNG, JPEG or WebP file", got=error) from error
    return np.array(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
