"""The data are configured by jsonargparse: by files, by class names, with help."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import jsonargparse
import pytest
import yaml
from lightning.pytorch import LightningDataModule

from lit_consistency.data import PretrainData, SFTData
from lit_consistency.data.token_data import TokenData

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))


def parser() -> jsonargparse.ArgumentParser:
    built = jsonargparse.ArgumentParser(exit_on_error=False)
    built.add_argument("--data", type=LightningDataModule)
    return built


def test_a_class_and_its_options_on_the_command_line(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    arguments = [
        "--data=lit_consistency.data.SFTData",
        "--data.rows=lit_consistency.data.RowFiles",
        f"--data.rows.path={tmp_path / 'a.jsonl'}",
        f"--data.tokenizer_dir={tokenizer_folder}",
        "--data.too_long=refuse",
        "--data.packing=false",
        "--data.global_batch_size=1",
        "--data.micro_batch_size=1",
    ]
    data = parser().instantiate_classes(parser().parse_args(arguments)).data
    assert isinstance(data, SFTData)
    data.setup()
    assert data.stats()["train"]["n_documents"] == 1
    assert (data.packing, data.too_long, data.tokenizer_folder) == (False, "refuse", tokenizer_folder)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_file_parses_without_its_data(config: Path) -> None:
    content = yaml.safe_load(config.read_text())
    content = {"data": content["data"]}  # the other keys are of another parser
    parsed = parser().parse_object(content)
    assert parsed.data.class_path in ("lit_consistency.data.PretrainData", "lit_consistency.data.SFTData")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_file_opens_with_its_command(config: Path) -> None:
    comment = [line for line in config.read_text().splitlines() if line.startswith("#")]
    assert any(f"configs/data/{config.name}" in line for line in comment)
    assert "python -m lit_consistency fit" in "".join(comment)


@pytest.mark.parametrize("kind", [SFTData, PretrainData])
def test_help_describes_every_option_those_of_the_parent_too(kind: type) -> None:
    built = jsonargparse.ArgumentParser(exit_on_error=False)
    built.add_class_arguments(kind, "data")
    described = {action.dest.removeprefix("data."): action.help or "" for action in built._actions}
    first, *inherited = inspect.signature(TokenData).parameters
    for option in [*inspect.signature(kind).parameters, *inherited]:
        assert option == "kwargs" or len(re.findall(r"[a-z]{2,}", described[option])) > 2, option
    assert first not in described  # the subclass gives it
    assert described["global_batch_size"].startswith("Rows of one optimizer step, over all devices.")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--data.micro_batch_sise=3", "micro_batch_sise"),
        ("--data.loss_on=prompt", "loss_on"),
        ("--data.block_size=long", "block_size"),
    ],
)
def test_a_wrong_key_or_type_is_refused(argument: str, message: str) -> None:
    with pytest.raises(jsonargparse.ArgumentError, match=message):
        parser().parse_args(
            [
                "--data=lit_consistency.data.SFTData",
                "--data.rows=lit_consistency.data.RowFiles",
                "--data.rows.path=x",
                argument,
            ]
        )
