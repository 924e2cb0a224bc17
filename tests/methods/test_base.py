from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from lit_consistency.methods import Method
from lit_consistency.model import model_config

CONFIGS = Path(__file__).parents[2] / "configs"
OVERLAYS = sorted((CONFIGS / "methods").glob("*.yaml"))
MODELS = sorted((CONFIGS / "models").glob("*.yaml"))


def method_of(overlay: Path) -> Method:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model.method", type=Method)
    return parser.instantiate_classes(parser.parse_path(overlay)).model.method


# kl is an anchor, which stands beside a method: tests/methods/test_anchor.py
@pytest.mark.parametrize("overlay", [path for path in OVERLAYS if path.stem != "kl"], ids=lambda path: path.stem)
def test_every_overlay_trains_and_gives_a_base_model_back(overlay: Path) -> None:
    method = method_of(overlay)
    assert method.name == overlay.stem
    config = model_config("pythia-14m", None, {"n_layer": 1, "n_embd": 32, "vocab_size": 64, "block_size": 16}, None)
    model = method.build(config)
    method.prepare(model)
    assert any(parameter.requires_grad for parameter in model.parameters())
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    fresh = method.build(config)
    method.load(fresh, method.merged_state(model))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_file_gives_a_configuration(path: Path) -> None:
    model = yaml.safe_load(path.read_text())["model"]
    assert model.keys() == {"name", "checkpoint_dir", "overrides"}
    assert model_config(**model, vocab_size=1000).n_layer >= 1


@pytest.mark.parametrize("path", OVERLAYS + MODELS, ids=lambda path: path.stem)
def test_every_file_opens_with_the_command_that_runs_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# python -m lit_consistency fit --config ")
    assert first.endswith(f"--config configs/{path.parent.name}/{path.name}")


def test_there_are_overlays_and_models() -> None:
    assert {"full", "hft", "l1", "l1_decoupled", "l2", "l2_decoupled", "lora", "dora", "rslora"} <= {
        path.stem for path in OVERLAYS
    }
    assert {"tiny", "small"} <= {path.stem for path in MODELS}
