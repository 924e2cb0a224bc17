"""WiSE-FT: between a base and the finetuned model, exact at both ends, and refused where the two do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_consistency.cli.export import main
from lit_consistency.model import export_hf, export_interpolated, load_weights, save_model, weights_hash
from lit_consistency.model.interpolation import interpolate
from lit_consistency.records.provenance import read_provenance
from tests.model.tiny_models import tiny_checkpoint, tiny_config, tiny_provenance, tiny_tokenizer


def pair(root: Path, dtype: torch.dtype = torch.float32, tokenizer_dir: Path | None = None) -> tuple[Path, Path]:
    """A base, and a model trained from it: noise of size 0.1 on every weight."""
    base, finetuned = root / "base", root / "finetuned"
    model = tiny_checkpoint(base, "pythia-14m", tokenizer_dir)
    generator = torch.Generator().manual_seed(2)
    weights = {
        name: (tensor + 0.1 * torch.randn(tensor.shape, generator=generator)).to(dtype)
        for name, tensor in model.state_dict().items()
    }
    provenance = tiny_provenance(tokens=5).next_stage(
        model="pythia-14m", optimizer="Muon", method="full", stage="sft", base=str(base), base_hash=weights_hash(base)
    )
    save_model(finetuned, weights, model.config, tokenizer_dir, provenance)
    return base, finetuned


def command(base: Path, finetuned: Path, out: Path, *more: str) -> list[str]:
    return ["--checkpoint_dir", str(finetuned), "--with", str(base), "--out_dir", str(out), *more]


def test_it_is_the_weighted_mean_of_the_two(tmp_path: Path) -> None:
    base, finetuned = pair(tmp_path)
    main(command(base, finetuned, tmp_path / "out", "--to", "litgpt", "--interpolate", "0.25"))
    found, b, f = (load_weights(folder) for folder in (tmp_path / "out", base, finetuned))
    assert found.keys() == b.keys()
    for name, tensor in found.items():
        expected = 0.75 * b[name].double() + 0.25 * f[name].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ends_are_the_models_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    base, finetuned = pair(tmp_path, dtype)
    folders = export_interpolated(base, finetuned, [0, 1], tmp_path / "out")
    for end, folder in zip(folders, (base, finetuned), strict=True):
        found, expected = load_weights(end), load_weights(folder)
        assert all(torch.equal(found[name], expected[name].float()) for name in expected)
        assert all(torch.equal(found[name].signbit(), expected[name].signbit()) for name in expected)


def test_half_precision_is_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    base, finetuned = (torch.randn(1000, generator=generator).bfloat16() for _ in range(2))
    exact = 0.7 * base.double() + 0.3 * finetuned.double()
    found = interpolate(base, finetuned, 0.3)
    assert found.dtype == torch.bfloat16
    assert (found == exact.bfloat16()).float().mean() > 0.99
    twice = (0.7 * base + 0.3 * finetuned).double()
    assert (found.double() - exact).abs().sum() < (twice - exact).abs().sum()


def test_a_minus_zero_of_the_base_stays_one() -> None:
    assert interpolate(torch.tensor([-0.0]), torch.tensor([1.0]), 0.0).signbit().item()


def test_several_shares_write_a_folder_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, finetuned = pair(tmp_path)
    main(command(base, finetuned, tmp_path / "out", "--to", "litgpt", "--interpolate", "0.25", "0.5", "1"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.25", "0.5", "1"]
    assert capsys.readouterr().err.splitlines() == [f"wrote {tmp_path}/out/{share}" for share in ("0.25", "0.5", "1")]
    quarter, half = (load_weights(tmp_path / "out" / share)["lm_head.weight"] for share in ("0.25", "0.5"))
    assert not torch.equal(quarter, half)


def test_the_provenance_says_what_lies_at_both_ends(tmp_path: Path) -> None:
    base, finetuned = pair(tmp_path)
    main(command(base, finetuned, tmp_path / "out", "--to", "litgpt", "--interpolate", "0.5"))
    found = read_provenance(tmp_path / "out")
    assert found is not None
    assert (found.method, found.stage, found.base, found.base_hash) == (
        "wise_ft",
        "interpolation",
        str(base),
        weights_hash(base),
    )
    assert found.interpolation == {
        "share": 0.5,
        "base": str(base),
        "base_hash": weights_hash(base),
        "finetuned": str(finetuned),
        "finetuned_hash": weights_hash(finetuned),
    }
    assert [stage["optimizer"] for stage in found.stages] == ["AdamW", "Muon", "none"]
    assert found.pretraining_optimizer == "AdamW"
    assert found.command is not None
    assert found.command.startswith("python -m lit_consistency export --checkpoint_dir")


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    tokenizer_dir = tiny_tokenizer(tmp_path / "tokenizer")
    base, finetuned = pair(tmp_path, tokenizer_dir=tokenizer_dir)
    (folder,) = export_interpolated(base, finetuned, [0.5], tmp_path / "out")
    assert (folder / "tokenizer.json").read_bytes() == (tokenizer_dir / "tokenizer.json").read_bytes()


def test_for_transformers_it_is_the_export_of_the_same_model(tmp_path: Path) -> None:
    base, finetuned = pair(tmp_path)
    export_interpolated(base, finetuned, [0.5], tmp_path / "lit")
    export_hf(tmp_path / "lit", tmp_path / "expected")
    main(command(base, finetuned, tmp_path / "out", "--interpolate", "0.5"))
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "expected"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found.keys() == expected.keys()
    assert (tmp_path / "out" / "config.json").read_text() == (tmp_path / "expected" / "config.json").read_text()
    assert read_provenance(tmp_path / "out").method == "wise_ft"


def changed(root: Path, what: str) -> tuple[Path, Path]:
    """A pair of which the finetuned model does not fit."""
    base, finetuned = pair(root)
    config, weights = tiny_config("pythia-14m"), dict(load_weights(finetuned))
    if what == "config":
        config.norm_eps = 0.5
    elif what == "shape":
        weights["lm_head.weight"] = torch.zeros(3, 32)
    elif what == "new name":
        weights["extra.weight"] = torch.zeros(1)
    else:
        del weights["lm_head.weight"]
    save_model(finetuned, weights, config, None, tiny_provenance(), overwrite=True)
    return base, finetuned


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("config", "norm_eps = 0.5 here and 1e-05 there"),
        ("shape", r"lm_head.weight has shape \[3, 32\] here and \[96, 32\] there"),
        ("new name", "extra.weight is here and not there"),
        ("missing name", "lm_head.weight is there and not here"),
    ],
)
def test_models_that_do_not_fit_are_refused_with_the_first_difference(tmp_path: Path, what: str, message: str) -> None:
    base, finetuned = changed(tmp_path, what)
    with pytest.raises(
        ValueError, match=f"finetuned does not fit .*base: {message}; expected a model and its own base"
    ):
        export_interpolated(base, finetuned, [0.5], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--interpolate", "1.5"], "interpolate = 1.5: expected 0 <= interpolate <= 1"),
        (["--interpolate", "0.5", "-0.1"], "interpolate = -0.1: expected"),
        (["--interpolate", "0.5", "0.5"], "interpolate = [0.5, 0.5]: expected one number or several different ones"),
        (["--interpolate", "0.5", "0.5000000001"], "expected numbers that differ in six digits"),
        ([], "--with: expected --interpolate too"),
    ],
)
def test_a_mistake_in_the_call_exits_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    base, finetuned = pair(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(command(base, finetuned, tmp_path / "out", *more))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_base_is_asked_for_and_a_mere_copy_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, finetuned = pair(tmp_path)
    for more, message in (
        (["--interpolate", "0.5"], "--interpolate: expected --with too"),
        (["--to", "litgpt"], "to = litgpt: expected --interpolate and --with too"),
    ):
        with pytest.raises(SystemExit):
            main(["--checkpoint_dir", str(finetuned), "--out_dir", str(tmp_path / "out"), *more])
        assert message in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named_as_it_was_given(tmp_path: Path) -> None:
    base, finetuned = pair(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"^with = {tmp_path / 'none'}: there is no such folder"):
        export_interpolated(tmp_path / "none", finetuned, [0.5], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=f"^checkpoint_dir = {tmp_path / 'none'}: there is no such folder"):
        export_interpolated(base, tmp_path / "none", [0.5], tmp_path / "out")


def test_what_stands_there_is_kept_unless_overwritten(tmp_path: Path) -> None:
    base, finetuned = pair(tmp_path)
    export_interpolated(base, finetuned, [0.5], tmp_path / "out")
    before = weights_hash(tmp_path / "out")
    with pytest.raises(ValueError, match="--overwrite to replace its model"):
        export_interpolated(base, finetuned, [0.7], tmp_path / "out")
    assert weights_hash(tmp_path / "out") == before
    export_interpolated(base, finetuned, [0.7], tmp_path / "out", overwrite=True)
    assert weights_hash(tmp_path / "out") != before


def test_a_model_that_transformers_does_not_know_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for name in ("base", "finetuned"):
        tiny_checkpoint(tmp_path / name, "pythia-14m", n_query_groups=2)
    with pytest.raises(ValueError, match="to = hf: pythia-14m is computed by no family of transformers"):
        export_interpolated(tmp_path / "base", tmp_path / "finetuned", [0.5], tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()


def test_a_base_that_the_provenance_does_not_know_is_warned_of(tmp_path: Path) -> None:
    base, finetuned = pair(tmp_path)
    (stranger,) = export_interpolated(base, finetuned, [0.5], tmp_path / "stranger")
    with pytest.warns(UserWarning, match=r"finetuned was not trained from .*stranger, says its provenance"):
        export_interpolated(stranger, finetuned, [0.5], tmp_path / "out")
    assert (tmp_path / "out" / "lit_model.pth").is_file()
