"""Target GPUs and the formats they multiply."""

from __future__ import annotations

import pytest
from sana_edge.runtime.errors import FormatError, InputError
from sana_edge.runtime.formats import FORMATS
from sana_edge.runtime.targets import find_target, load_targets, require_format

NATIVE = {
    "SM86": {"bf16", "int8"},
    "SM89": {"bf16", "int8", "fp8"},
    "SM120": {"bf16", "int8", "fp8", "mxfp8", "nvfp4"},
    "SM121": {"bf16", "int8", "fp8", "mxfp8", "nvfp4"},
}


def test_every_target_multiplies_what_its_generation_does():
    for target in load_targets().values():
        assert set(target.formats) == NATIVE[target.capability]
        for name, format in FORMATS.items():
            if name in target.formats:
                require_format(target, format)
            else:
                with pytest.raises(FormatError, match=r"(?s)does not multiply.*expected: .*int8") as error:
                    require_format(target, format)
                assert error.value.expected == ", ".join(target.formats)


def test_known_rows():
    assert find_target("rtx5090").compute_capability == (12, 0)
    assert find_target("rtx4090").compute_capability == (8, 9)
    assert {"rtx5080", "rtx5070ti", "rtx4080", "rtx3090", "dgx-spark"} <= set(load_targets())


def test_unknown_target_names_the_nearest():
    with pytest.raises(InputError, match=r"(?s)Unknown target.*did you mean rtx5090"):
        find_target("RTX5O90")
