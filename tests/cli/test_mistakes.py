"""Mistakes in a call that would change what is done without a word: named, before any work."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lit_consistency.__main__ import main
from lit_consistency.cli.completion import script
from lit_consistency.cli.fit import build, parsers
from lit_consistency.cli.mistakes import check_configurations, check_environment, found_configurations, overridden
from lit_consistency.cli.parser import ShortErrors, plain_types
from lit_consistency.cli.resume import find_checkpoint
from lit_consistency.cli.suggestions import CLASSES, EQUIVALENTS, class_options, suggestion
from lit_consistency.methods.base_folder import base_folder
from lit_consistency.records.model_folder import check_checkpoint_dir
from lit_consistency.records.run_folder import FINISHED, RunFolder
from lit_consistency.records.shipped import shipped
from lit_consistency.records.strict_yaml import read_strict_yaml
from lit_consistency.study.identity import contents
from lit_consistency.tasks.yaml_file import load_tasks
from tests.runs import ROOT, SCRATCH, arguments, fit

METHODS = ROOT / "configs" / "methods"
TRAINER = "LIT_CONSISTENCY_FIT__TRAINER"
KNOWN = [f"{TRAINER}__MAX_STEPS", "LIT_CONSISTENCY_FIT__MODEL__OPTIMIZER", TRAINER]


def test_a_key_that_stands_twice_is_named_with_its_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = tmp_path / "twice.yaml"
    twice.write_text("trainer:\n  max_steps: 3\n  devices: 1\n  max_steps: 4\n")
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={twice}"])
    assert stop.value.code == 2
    assert f"{twice}: max_steps stands twice, in lines 2 and 4" in capsys.readouterr().err
    task = tmp_path / "task.yaml"
    task.write_text("kind: text\nkind: choice\n")
    with pytest.raises(ValueError, match="kind stands twice, in lines 1 and 2"):
        load_tasks(str(task))


def test_every_configuration_of_the_package_has_its_keys_once(tmp_path: Path) -> None:
    """Anchors and merge keys are no repetition."""
    for file in (ROOT / "configs").rglob("*.yaml"):
        read_strict_yaml(file)
    merged = tmp_path / "merged.yaml"
    merged.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert read_strict_yaml(merged)["b"] == {"x": 3, "y": 2}


def test_two_methods_in_one_call_are_refused_by_both_files(tmp_path: Path) -> None:
    lora, pull = METHODS / "lora.yaml", METHODS / "l2.yaml"
    with pytest.raises(ValueError, match=r"lora\.yaml chooses .*LoRA, and .*l2\.yaml .*Pull"):
        check_configurations(["fit", "--config", str(lora), f"--config={pull}"])
    check_configurations(["fit", "--config", str(lora), "--config", str(METHODS / "rslora.yaml")])  # one class
    full = tmp_path / "config.yaml"  # as a run has saved it: no method is taken back
    full.write_text("model: {method: {class_path: lit_consistency.methods.Full}}\n")
    check_configurations(["fit", "--config", str(full), "--config", str(lora)])
    with pytest.raises(ValueError, match=r"lora\.yaml chooses .*LoRA, and .*config\.yaml .*Full"):
        check_configurations(["fit", "--config", str(lora), "--config", str(full)])


def test_a_variable_that_no_option_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="MAX_STEP is no option: did you mean LIT_CONSISTENCY_FIT__TRAINER__MAX_STEPS"):
        check_environment(KNOWN, {"LIT_CONSISTENCY_FIT__TRAINER__MAX_STEP": "3"})
    allowed = {"LIT_CONSISTENCY_FIT__MODEL__OPTIMIZER__INIT_ARGS__LR": "1", "LIT_CONSISTENCY_TRACEBACK": "1", "X": "1"}
    check_environment(KNOWN, {**allowed, KNOWN[0]: "3"})


def test_a_variable_that_a_configuration_overrides_is_told(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("trainer:\n  max_steps: 3\n")
    args = ["fit", f"--config={file}"]
    (line,) = overridden(args, "fit", {KNOWN[0]: "7"})
    assert f"{KNOWN[0]}=7 has no effect: {file} says trainer.max_steps = 3" in line
    assert not overridden(args, "fit", {KNOWN[0]: "3"})
    assert not overridden(["fit"], "fit", {KNOWN[0]: "7"})


def test_the_environment_is_looked_at_by_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_CONSISTENCY_FIT__TRAINER__MAX_STEPZ", "7")
    with pytest.raises(ValueError, match="LIT_CONSISTENCY_FIT__TRAINER__MAX_STEPZ is no option: did you mean"):
        build(arguments(tmp_path, *SCRATCH))


def test_a_rate_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lr = 0: nothing would be learned"):
        build(arguments(tmp_path, *SCRATCH, "--model.optimizer.init_args.lr=0"))


def test_auto_never_begins_a_finished_run_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.write_record({"status": FINISHED})
    folder.write_config("trainer: {max_steps: 4}\n")
    section = {"ckpt_path": "auto", "run": {"name": "run", "root": str(tmp_path)}}
    with pytest.raises(ValueError, match="holds a run that has finished by another configuration, and no checkpoint"):
        find_checkpoint(section)
    folder.write_record({"status": "failed"})
    assert find_checkpoint(section) is None


def test_a_checkpoint_is_saved_when_its_minutes_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 40))  # seconds; a step asks once, and a saved one again
    monkeypatch.setattr("lit_consistency.callbacks.step_checkpoint.time.monotonic", lambda: float(next(clock)))
    fit(tmp_path, "--checkpoint.every_n_minutes=1", "--checkpoint.at_end=false", "--checkpoint.keep=9")
    monkeypatch.undo()
    steps = sorted(path.name for path in RunFolder(tmp_path / "run").checkpoints.glob("*.ckpt"))
    assert steps
    assert len(steps) < 4


def test_rows_with_roles_that_are_thrown_away_and_empty_rows_are_told(tmp_path: Path) -> None:
    """The shipped base has no chat template: one is put beside a copy of its tokenizer."""
    base = tmp_path / "base"
    shutil.copytree(ROOT / "checkpoints" / "lit_consistency" / "biographies-adamw", base)
    settings = base / "tokenizer_config.json"
    known = json.loads(settings.read_text()) if settings.exists() else {}
    settings.write_text(json.dumps({**known, "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}))
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "who ?"}, {"role": "assistant", "content": "you ."}]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    args = [
        "fit",
        f"--config={ROOT}/configs/optimizers/adamw.yaml",
        f"--config={ROOT}/configs/data/sft_rows.yaml",
        f"--model.checkpoint_dir={base}",
        f"--data.init_args.rows.init_args.path={rows}",
        "--data.init_args.validation_share=null",
        "--data.init_args.block_size=32",
        "--trainer.max_steps=1",
        f"--data.init_args.cache_dir={tmp_path / 'cache'}",
        f"--run.root={tmp_path}",
    ]
    assert build(args).datamodule.prompt_style == "chat_template"
    data = build([*args, "--data.init_args.prompt_style=default"]).datamodule
    data.tokenizer_dir = base
    lost = pytest.warns(UserWarning, match=f"{rows}:1 has turns with roles, .*prompt_style null trains it")
    empty = pytest.warns(UserWarning, match="global_batch_size = 16: an epoch has 1 rows")
    with lost, empty:
        data.setup("fit")


# -------------------- outside of the clone


def test_what_the_package_brings_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quickstart, base = "configs/quickstart.yaml", "checkpoints/lit_consistency/biographies-adamw"
    assert shipped(quickstart) == ROOT / quickstart
    assert base_folder(Path(base)) == ROOT / base
    assert found_configurations(["fit", "--config", quickstart, f"--config={quickstart}", "--config", "own.yaml"]) == [
        "fit",
        "--config",
        str(ROOT / quickstart),
        f"--config={ROOT / quickstart}",
        "--config",
        "own.yaml",
    ]
    assert load_tasks("biographies/old_people")[0].name == "biographies_old_people"
    files = contents({"forgetting.retain": ["biographies/old_people"]})  # on which a study's cell depends
    assert str(ROOT / "configs" / "evaluation" / "biographies.yaml") in files
    # what stands beside the user goes first
    (tmp_path / "configs").mkdir()
    (tmp_path / quickstart).write_text("seed_everything: 1\n")
    assert shipped(quickstart) == Path(quickstart)
    assert shipped("configs/none.yaml") == Path("configs/none.yaml")
    assert shipped("elsewhere/quickstart.yaml") == Path("elsewhere/quickstart.yaml")


def test_a_wheel_brings_every_configuration_and_both_bases() -> None:
    """Of the names that pyproject.toml gives; `.ci/run` builds one and runs it in an empty folder."""
    tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11 on")
    mapped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    brought = {file for patterns in mapped.values() for pattern in patterns for file in ROOT.glob(pattern)}
    assert brought >= {*(ROOT / "configs").rglob("*.yaml")}
    assert brought >= {file for file in (ROOT / "checkpoints/lit_consistency").rglob("*") if file.is_file()}
    assert all(target == f"share/lit_consistency/{Path(patterns[0]).parent}" for target, patterns in mapped.items())


def test_a_configuration_without_its_defaults_is_the_same_one(tmp_path: Path) -> None:
    """``--print_config=skip_default``: what it leaves out is what the parser puts back."""
    parser, short = parsers()["fit"], tmp_path / "short.yaml"
    whole = parser.parse_args([f"--config={ROOT}/configs/quickstart.yaml", f"--config={METHODS}/lora.yaml"])
    short.write_text(parser.dump(whole, skip_default=True, skip_none=False))
    assert len(short.read_text()) < 0.6 * len(parser.dump(whole, skip_none=False))
    again = parser.parse_args([f"--config={short}"])
    assert parser.dump(again, skip_none=False) == parser.dump(whole, skip_none=False)


# -------------------- errors in one line, with what was probably meant

MEANT = {
    "Unrecognized arguments: --lr 0.1": "did you mean --model.optimizer.init_args.lr?",
    "Unrecognized arguments: --learning_rate 3": "did you mean --model.optimizer.init_args.lr?",
    "Unrecognized arguments: --lora_r 3": "did you mean --model.method.init_args.r?",
    "Unrecognized arguments: --blok_size 3": "did you mean --data.init_args.block_size?",
    "model.optimizer: Key 'lrr' is not expected": "did you mean lr",
    "data.init_args.rows: Key 'path' is not expected": "path is an option of RowFiles: --data.init_args.rows",
    "model.method: Expected a dot import path string: lora": "as --model.method lit_consistency.methods.LoRA",
    "model.optimizer: Expected a dot import path string: adamw": "lit_consistency.optimizers.AdamW",
}


@pytest.mark.parametrize("message", MEANT)
def test_what_was_probably_meant_is_said(message: str) -> None:
    assert str(suggestion(message)).startswith(MEANT[message]) or MEANT[message] in str(suggestion(message))


@pytest.mark.parametrize(
    "message",
    ["model.optimizer: No module named 'my'. Got value: my.Opt", "optimizer: Unexpected import path format: my.py"],
)
def test_where_the_module_of_a_class_is_looked_for_is_said(message: str) -> None:
    for command in (ShortErrors(), parsers()["fit"]):
        assert "expected the path of a class, as my_pkg.MyOpt, whose module stands in" in command.hint(message)
    for other in ("optimizer: No module named 'missing'. Got value: mine.Opt", "trainer.max_steps: abc: expected"):
        assert ShortErrors().hint(other) == ""  # a module that mine imports is another matter


def test_no_nonsense_is_suggested() -> None:
    assert suggestion("Unrecognized arguments: --qqqq 1") is None
    assert suggestion("trainer.max_steps: abc: expected a whole number") is None


def test_every_equivalent_and_class_is_one_of_ours() -> None:
    own = {key for keys in class_options().values() for key in keys} | set(CLASSES)
    own |= {action.dest for action in parsers()["fit"]._actions}
    assert not [key for key in EQUIVALENTS.values() if key not in own]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a.b: Expected a <class 'int'>. Got value: x", "a.b: x: expected a whole number"),
        ("a: Expected a <class 'tuple'>. Got value: 0.9", "a: 0.9: expected [A, B]"),
        (
            "a: Expected a <class 'NoneType'>; or Expected a <class 'int'>; or Cannot take a Union of no types.. "
            "Got value: y",
            "a: y: expected a whole number or one of the words in --help or null",
        ),
        ("a: 3 is too many; expected 2", "a: 3 is too many; expected 2"),
        ("a: Expected a <class 'int'>; or no such file. Got value: x", None),
    ],
)
def test_types_are_said_in_words(said: str, shown: str | None) -> None:
    assert plain_types(said) == (said if shown is None else shown)


def test_options_of_a_method_that_is_not_chosen_are_told_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        build(arguments(tmp_path, *SCRATCH, "--model.method.init_args.r=4"))
    said = capsys.readouterr().err
    assert "model.method.init_args.r = 4: no method is chosen of which it is an option: expected --model.method" in said
    assert "NestedArg" not in said


def test_the_folder_of_a_run_names_its_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"it is the folder of a run: expected {tmp_path}/model"):
        check_checkpoint_dir(tmp_path)


def test_a_shell_completes_commands_and_options_by_a_script(tmp_path: Path) -> None:
    """The script is run by bash, with the words that somebody has typed so far."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    (tmp_path / "complete").write_text(script())

    def completed(*typed: str) -> list[str]:
        words = " ".join(f"'{word}'" for word in typed)
        asked = f"source {tmp_path}/complete; COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _lit_consistency"
        command = [bash, "-c", f'{asked}; echo "${{COMPREPLY[@]}}"']
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()

    assert completed("lit-consistency", "ev") == ["evaluate"]
    assert "--model.optimizer.init_args.lr" in completed("lit-consistency", "fit", "--model.optimizer")
    assert completed("lit-consistency", "evaluate", "--bat") == ["--batch_tokens"]
    assert completed("lit-consistency", "fit", "comp") == ["complete"]  # a file


def test_the_readme_lists_every_equivalent() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for theirs, ours in EQUIVALENTS.items():
        assert any(f"`{theirs}`" in line and line.endswith(f"| `--{ours}` |") for line in lines), theirs
