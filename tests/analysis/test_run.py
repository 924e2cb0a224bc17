from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_consistency.__main__ import main
from lit_consistency.analysis.attention_rank import AttentionRank
from lit_consistency.analysis.core.model_files import ModelFiles
from lit_consistency.analysis.core.run import Options, analyze
from lit_consistency.records.analysis_folder import AnalysisFolder
from tests.analysis.models import write_model


def test_what_is_written_is_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [write_model(tmp_path / name, seed) for name, seed in (("one", 0), ("two", 1))]
    out = tmp_path / "out"
    main(["analyze", "--models", *map(str, models), "--what", "attention_rank", "--output", str(out)])
    folder = AnalysisFolder(out)
    rows = folder.read_table("attention_rank")
    assert {(row["model"], row["step"]) for row in rows} == {("one", 10), ("two", 20)}
    own = [row["pseudo_rank"] for row in rows if row["model"] == "two" and row["product"] == "qk"]
    value = sum(own) / len(own)
    assert len(own) == 8
    assert folder.numbers()["attention_rank/pseudo_rank/qk"] == pytest.approx(value)
    assert "attention_rank/pseudo_rank/qk" in capsys.readouterr().out
    events = EventAccumulator(str(out / "tensorboard" / "two")).Reload()
    (scalar,) = events.Scalars("analysis/attention_rank/pseudo_rank/qk")
    assert (scalar.step, scalar.value) == (20, pytest.approx(value))
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure") == len(list((out / "figures").glob("*.svg"))) == 3
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_an_interrupted_run_goes_on_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model")
    whole = analyze(Options({"attention_rank": AttentionRank()}, tmp_path / "whole", model))
    measured: list[str] = []
    measure = AttentionRank.measure

    def counted(self, subject, part, advance):  # type: ignore[no-untyped-def]
        if len(measured) == 1 and part == "layer 1":
            measured.append("killed")
            raise KeyboardInterrupt
        measured.append(part)
        return measure(self, subject, part, advance)

    monkeypatch.setattr(AttentionRank, "measure", counted)
    options = Options({"attention_rank": AttentionRank()}, tmp_path / "out", model)
    with pytest.raises(KeyboardInterrupt):
        analyze(options)
    assert not (tmp_path / "out" / "analysis.json").exists()
    resumed = analyze(options)
    assert measured == ["layer 0", "killed", "layer 1"]
    for name in ("attention_rank.csv",):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    # another option is another number: nothing is taken over
    analyze(Options({"attention_rank": AttentionRank(share=0.5)}, tmp_path / "out", model))
    assert measured[3:] == ["layer 0", "layer 1"]


WRONG = [
    (["--what", "attention_rnk"], "what: 'attention_rnk': expected one of attention_rank"),
    (["--what", "attention_rank", "--attention_rank.share", "2"], "share = 2.0: expected 0 < share <= 1"),
    (["--what", "attention_rank", "--model", "nowhere"], "model = nowhere: there is no such folder"),
    (["--what", "attention_rank"], "model, models, series: expected at least one model"),
    ([], "what: expected at least one analysis"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[message[:20] for _, message in WRONG])
def test_a_mistake_is_named_and_nothing_is_written(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", *given, "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_base_is_what_the_provenance_names_as_long_as_it_is_the_same(tmp_path: Path) -> None:
    from lit_consistency.analysis.core.run import _subject

    base = write_model(tmp_path / "base")
    model = write_model(tmp_path / "model", 1, base=base, scale=0.01)
    found = _subject(Options({"attention_rank": AttentionRank()}, tmp_path / "out", model)).base
    assert found is not None
    assert found.folder == base


def test_weights_are_read_one_at_a_time_from_either_format(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from lit_consistency.model import load_weights

    model = write_model(tmp_path / "model")
    weights = load_weights(model)
    pickled = {name: ModelFiles(model).tensor(name) for name in weights}
    save_file({name: tensor.clone() for name, tensor in weights.items()}, model / "lit_model.safetensors")
    (model / "lit_model.pth").unlink()
    for name, tensor in pickled.items():
        assert (ModelFiles(model).tensor(name) == tensor).all()
    matrices = ModelFiles(model).matrices
    assert sum(rows * columns for rows, columns in (m.shape for m in matrices)) == sum(
        t.numel() for t in weights.values() if t.ndim == 2
    )
    assert [m.name for m in matrices if m.layer == 1] == [
        "1.attn.q", "1.attn.k", "1.attn.v", "1.attn.proj", "1.mlp.fc", "1.mlp.proj",
    ]  # fmt: skip


def test_the_record_says_what_was_analysed(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    folder = analyze(Options({"attention_rank": AttentionRank()}, tmp_path / "out", model, command="the command"))
    record = json.loads(folder.record_file.read_text(encoding="utf-8"))
    assert record["command"] == "the command"
    assert record["models"][0]["weights_sha256"] == ModelFiles(model).hash
    assert record["options"] == {"attention_rank": {"share": 0.95}}


def test_lists_of_an_analysis_are_written_word_by_word() -> None:
    from lit_consistency.cli.analyze import _lists_joined

    given = ["--what", "probes", "--probes.tasks", "agnews", "sst2", "--forecast.runs", "a", "--seed", "1"]
    joined = ["--what", "probes", '--probes.tasks=["agnews", "sst2"]', "--forecast.runs", "a", "--seed", "1"]
    assert _lists_joined(given) == joined
    own = ["--what", "forecast", "--forecast.runs", "[a, b]", "--forecast.features", "null"]
    assert _lists_joined(own) == ["--what", "forecast", "--forecast.runs=[a, b]", "--forecast.features=null"]


def test_tau_stands_in_every_table(tmp_path: Path) -> None:
    from lit_consistency.records.provenance import Provenance

    model = write_model(tmp_path / "model")
    options = {"lr": 0.01, "weight_decay": 0.1}
    Provenance("m", "AdamW", "full", "pretrain", steps=500, tokens=9, optimizer_options=options).write(model)
    folder = analyze(Options({"attention_rank": AttentionRank()}, tmp_path / "out", model))
    assert [row["tau"] for row in folder.read_table("attention_rank")] == [pytest.approx(2)] * 24


def test_a_model_with_fewer_tokens_than_its_tokenizer_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model", padded_vocab_size=64, vocab_size=64)
    with pytest.raises(SystemExit):
        main(
            [
                "analyze",
                "--model",
                str(model),
                "--what",
                "activations",
                "--text",
                "markov/old",
                "--output",
                str(tmp_path / "out"),
            ]
        )
    assert "padded_vocab_size = 64, and its tokenizer has 378 tokens" in capsys.readouterr().err


def test_a_series_is_drawn_over_its_steps_and_holds_every_model_once(tmp_path: Path) -> None:
    """Three models of one run, of which the last is the end of the run too."""
    from shutil import copytree

    import yaml

    run = tmp_path / "run"
    for seed, step in enumerate((10, 20, 30)):
        folder = write_model(run / "series" / f"step-{step:08d}", seed)
        content = yaml.safe_load((folder / "provenance.yaml").read_text())
        (folder / "provenance.yaml").write_text(yaml.safe_dump({**content, "run": "run"}))
    copytree(folder, run / "model")
    out = tmp_path / "out"
    main(["analyze", "--series", str(run), "--what", "attention_rank", "--output", str(out)])
    rows = AnalysisFolder(out).read_table("attention_rank")
    assert list(dict.fromkeys(row["step"] for row in rows)) == [10, 20, 30]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "Over step" in page
    events = EventAccumulator(str(out / "tensorboard" / "run")).Reload()
    scalars = events.Scalars("analysis/attention_rank/pseudo_rank/vo")
    expected = [
        sum(values) / len(values)
        for step in (10, 20, 30)
        if (values := [r["pseudo_rank"] for r in rows if r["step"] == step and r["product"] == "vo"])
    ]
    assert [scalar.step for scalar in scalars] == [10, 20, 30]
    assert [scalar.value for scalar in scalars] == pytest.approx(expected)


def test_another_configuration_of_the_same_weights_is_measured_again(tmp_path: Path) -> None:
    """Rotary angles, eps of norms and the like change answers, not the weights' hash."""
    from lit_consistency.analysis.core.run import _jobs, _subject

    def mark(model: Path) -> str:
        analysis = AttentionRank()
        subject = _subject(Options({"attention_rank": analysis}, tmp_path / "out", model))
        return _jobs("attention_rank", analysis, subject)[0].fingerprint

    model = write_model(tmp_path / "model")
    before = mark(model)
    assert mark(model) == before
    file = model / "model_config.yaml"
    assert "rope_base: 10000" in file.read_text()
    file.write_text(file.read_text().replace("rope_base: 10000", "rope_base: 500000"))
    assert mark(model) != before
