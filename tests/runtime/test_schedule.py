"""Schedulers by name, against those of the upstream pipelines."""

import json
import shutil

import pytest
import torch
from sana_edge.runtime.errors import ArtefactError, InputError
from sana_edge.runtime.schedule import load_scheduler


@pytest.mark.parametrize("steps", [3, 20, 50])
def test_timesteps_are_those_of_the_upstream_pipelines(checkpoint, steps):
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaVideoPipeline

    solver = SanaVideoPipeline.from_pretrained(checkpoint, transformer=None, vae=None, text_encoder=None).scheduler
    euler = FlowMatchEulerDiscreteScheduler(shift=8.0)
    for name, expected in (("dpm-solver++", solver), ("flow-match-euler", euler)):
        expected.set_timesteps(steps)
        scheduler = load_scheduler(checkpoint, name, steps)
        assert type(scheduler) is type(expected)
        torch.testing.assert_close(scheduler.timesteps, expected.timesteps)
        torch.testing.assert_close(scheduler.sigmas, expected.sigmas)


def test_an_unknown_scheduler_is_refused_with_the_known_ones(checkpoint):
    with pytest.raises(InputError, match=r"(?s)dpm-solver\+\+, flow-match-euler.*heun"):
        load_scheduler(checkpoint, "heun", 5)


def test_a_checkpoint_with_another_solver_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint / "scheduler", tmp_path / "scheduler")
    path = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"algorithm_type": "sde-dpmsolver++"}))
    with pytest.raises(ArtefactError, match="sde-dpmsolver"):
        load_scheduler(tmp_path, "dpm-solver++", 5)
    del config["flow_shift"]
    path.write_text(json.dumps(config))
    with pytest.raises(ArtefactError, match="flow_shift"):
        load_scheduler(tmp_path, "flow-match-euler", 5)
