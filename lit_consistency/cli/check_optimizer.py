"""``python -m lit_consistency check-optimizer my_pkg.MyOpt --args.lr 1e-3``: does a class do what a run expects of it.

The checks stand in optimizers/contract.py and distributed/optimizer_contract.py; here are the call, the order, and the
table. Exit status 0 when nothing fails, 1 when something does, 2 for a mistake in the call.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from lit_consistency.cli.parser import HelpFormatter, ShortErrors, one_line, plain_options

if TYPE_CHECKING:
    from torch import nn

    from lit_consistency.optimizers.contract import Build

DESCRIPTION = """\
Check a torch.optim.Optimizer against what a run expects of it. About half a minute.

  check-optimizer my_pkg.MyOpt --args.lr 1e-3
  check-optimizer torch.optim.NAdam --args.lr 1e-3 --front

The class is imported from the working folder or an installed package; --args.NAME are its options, in YAML.
"""
OPTIONS = "--args."
Outcome = Literal["pass", "FAIL", "not applicable", "measured"]


class Row(NamedTuple):
    """A line of the table."""

    what: str
    outcome: Outcome
    why: str = ""


class CheckParser(ShortErrors):
    """Errors name the options as they are given, ``args.lr``, and not by the key that they are parsed under."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the error."""
        super().error(one_line(message).replace("optimizer.init_args.", "args.").replace("--optimizer.", "--"), ex)


def main(argv: list[str]) -> None:
    """Check the class that ``argv``, all that follows ``check-optimizer``, names."""
    parser = _parser()
    if not argv or argv[0].startswith("-"):
        if not {"-h", "--help"} & set(argv):
            parser.error("expected the path of a class first, as my_pkg.MyOpt")
        parser.parse_args(argv)
    given = [f"--optimizer={argv[0]}", *[_as_option(word) for word in argv[1:]]]
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which counts bytes, writes of itself to stderr
    from lit_consistency.module import OptimizerFactory  # torch, for which --help does not wait

    parser.add_argument("--optimizer", type=OptimizerFactory, help="The class and its --args.")
    arguments = parser.parse_args(given)
    chosen = plain_options(arguments.optimizer)
    options = {**chosen.get("init_args", {}), **chosen.get("dict_kwargs", {})}
    build = functools.partial(_class(chosen["class_path"]), **options)
    if mistake := _mistake(build):
        parser.error(f"{argv[0]}: {mistake}")
    rows = checked(build)
    _print(f"{chosen['class_path']}({', '.join(f'{k}={v!r}' for k, v in options.items())})", rows)
    failed = any(row.outcome == "FAIL" for row in rows)
    if arguments.front:
        if failed:
            print("no front: a run needs what fails above", file=sys.stderr)
        else:
            from lit_consistency.cli.optimizer_front import print_front

            try:
                failed = not print_front(chosen["class_path"], options, arguments.front_steps)
            except (ValueError, OSError) as error:
                parser.error(str(error))
    sys.exit(int(failed))


def _parser() -> CheckParser:
    parser = CheckParser(prog="lit_consistency check-optimizer", description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument(
        "--front",
        action="store_true",
        help="Also finetune the base of configs/quickstart.yaml at a third, once and three times the rate, beside "
        "AdamW: learned against forgotten. Six short runs, about four minutes on two cores.",
    )
    parser.add_argument("--front_steps", type=int, default=250, help="Steps of each of these runs.")
    return parser


def _as_option(word: str) -> str:
    return f"--optimizer.init_args.{word.removeprefix(OPTIONS)}" if word.startswith(OPTIONS) else word


def _class(path: str) -> Any:
    from jsonargparse._util import import_object

    return import_object(path)


def _mistake(build: Build) -> str | None:
    """Why the class cannot be built at all, also over a single matrix: its options are wrong, not its contract."""
    import torch

    from lit_consistency.distributed.optimizer_contract import small_model
    from lit_consistency.optimizers import parameter_groups
    from lit_consistency.optimizers.contract import first_line

    try:
        build(parameter_groups(small_model()))
    except Exception as error:  # the user's class may raise anything
        try:
            build([torch.nn.Parameter(torch.zeros(2, 2))])  # type: ignore[list-item]
        except Exception:
            return first_line(error)
    return None


# -------------------- the checks


def checked(build: Build) -> list[Row]:
    """Every row of the table.

    Args:
        build: makes the optimizer over groups; a class with its options, which other processes can unpickle.
    """
    from lit_consistency.distributed.optimizer_contract import LAYOUTS, small_model
    from lit_consistency.optimizers import contract

    first = _row("takes parameter_groups", lambda: contract.takes_groups(build, small_model))
    if first.outcome == "FAIL":
        return [first, Row("everything else", "not applicable", "it cannot be built as a run builds it")]
    single: dict[str, Callable[[], Any]] = {
        "closure": lambda: contract.calls_closure_once(build, small_model),
        "parameters move": lambda: _said(contract.unmoved(build, small_model)),
        "LoRA's adapters move alone": lambda: _said(contract.unmoved(build, _small_lora)),
        "gradients left alone": lambda: contract.leaves_gradients(build, small_model),
        "parameters without gradient": lambda: contract.keeps_without_gradient(build, small_model),
        "schedules set its rate": lambda: contract.follows_the_rate(build, small_model),
        "clipping": lambda: contract.may_be_clipped(build, small_model),
        "state through a file": lambda: _state_through_a_file(build),
        "resume, bit for bit": lambda: contract.continues_bit_for_bit(build, small_model),
    }
    rows = [first, *[_row(what, check) for what, check in single.items()], *_in_bfloat16(build)]
    rows += [_row(f"{layout}, 2 processes", check) for layout, check in _many(build, LAYOUTS).items()]
    return [*rows, _row("cost of a step", lambda: _cost(build), "measured")]


def _row(what: str, check: Callable[[], Any], outcome: Outcome = "pass") -> Row:
    """The outcome of a check: it raises, or returns what is to be said beside its passing."""
    from lit_consistency.optimizers.contract import Broken, first_line

    try:
        return Row(what, outcome, check() or "")
    except Broken as error:
        return Row(what, "FAIL", str(error))
    except Exception as error:  # the user's class may raise anything
        return Row(what, "FAIL", f"{type(error).__name__}: {first_line(error)}")


def _said(unmoved: list[str]) -> str:
    """Selective optimizers leave some in place, which is no fault, and is said."""
    return f"{len(unmoved)} stay in two steps, as {unmoved[0]}" if unmoved else ""


def _small_lora() -> nn.Module:
    import litgpt.lora
    import torch

    from lit_consistency.distributed.optimizer_contract import SIZES

    torch.manual_seed(0)
    targets = {f"lora_{part}": True for part in ("query", "key", "value", "mlp")}
    config = litgpt.lora.Config.from_name("pythia-14m", **SIZES, lora_r=2, **targets)
    model = litgpt.lora.GPT(config)
    litgpt.lora.mark_only_lora_as_trainable(model)
    return model


def _state_through_a_file(build: Build) -> str:
    from lit_consistency.distributed.optimizer_contract import small_model
    from lit_consistency.optimizers import contract, parameter_groups

    model = small_model()
    optimizer = build(parameter_groups(model))
    contract.run(optimizer, model, range(2))
    contract.through_a_file(optimizer.state_dict())
    n_parameters = sum(p.numel() for p in model.parameters())
    return f"{contract.state_bytes(optimizer) / n_parameters:.1f} bytes a parameter"


def _in_bfloat16(build: Build) -> list[Row]:
    """What becomes of parameters in bfloat16 (bf16-true); bf16-mixed keeps them in float32 and is not meant."""
    from lit_consistency.distributed.optimizer_contract import small_model
    from lit_consistency.optimizers import contract, parameter_groups

    resume = "bfloat16: resume"
    try:
        model = small_model().bfloat16()
        contract.run(build(parameter_groups(model)), model, range(2))
    except Exception as error:  # it refuses them, in whatever words
        why = f"refuses bfloat16 parameters ({contract.first_line(error)}); train in 32-true or bf16-mixed"
        return [Row("bfloat16: small steps", "not applicable", why), Row(resume, "not applicable", "as above")]

    return [
        _small_steps(build),
        _row(resume, lambda: contract.continues_bit_for_bit(build, lambda: small_model().bfloat16())),
    ]


def _small_steps(build: Build) -> Row:
    """Whether steps below bfloat16's gap are kept; torch's own round them away, which bf16-mixed is there for."""
    from lit_consistency.distributed.optimizer_contract import small_model
    from lit_consistency.optimizers import contract

    what = "bfloat16: small steps"
    try:
        kept = contract.kept_of_small_steps(build, small_model)
    except Exception as error:  # the user's class may raise anything
        return Row(what, "FAIL", f"{type(error).__name__}: {contract.first_line(error)}")
    if kept is None:
        return Row(what, "not applicable", "no coordinate went far enough in float32 to tell")
    share = f"{max(kept, 0):.0%} of the way of steps below bfloat16's gap is kept"
    if kept > 0.5:
        return Row(what, "pass", share)
    advice = (
        "no float32 masters: train in bf16-mixed or 32-true, not bf16-true, or extend GroupOptimizer, which has them"
    )
    return Row(what, "not applicable", f"{share}; {advice}")


def _many(build: Build, layouts: tuple[str, ...]) -> dict[str, Callable[[], None]]:
    """Two processes are started once, and said of every layout what came of it."""
    from lit_consistency.distributed.optimizer_contract import on_two_processes
    from lit_consistency.optimizers.contract import Broken

    @functools.cache
    def found() -> dict[str, str | None]:
        return on_two_processes(build)

    def check(layout: str) -> None:
        if complaint := found()[layout]:
            raise Broken(complaint)

    return {layout: functools.partial(check, layout) for layout in layouts}


def _cost(build: Build) -> str:
    """Milliseconds and megabytes of a step beside our AdamW's, of the same 3.4M parameters."""
    from lit_consistency.optimizers import AdamW, parameter_groups
    from lit_consistency.optimizers.contract import set_grads, state_bytes
    from lit_consistency.optimizers.measure import medians, peak_bytes

    optimizers = {}
    for name, make in (("it", build), ("AdamW", AdamW)):
        model = _larger_model()
        set_grads(model, 0)
        optimizers[name] = make(parameter_groups(model))
    ms = medians({name: optimizer.step for name, optimizer in optimizers.items()}, "cpu", rounds=7)
    state = {name: state_bytes(optimizer) / 1e6 for name, optimizer in optimizers.items()}
    peak = {name: peak_bytes(optimizer.step, "cpu") / 1e6 for name, optimizer in optimizers.items()}
    n_parameters = sum(p.numel() for p in _larger_model().parameters())
    return (
        f"{ms['it']:.1f} ms against AdamW's {ms['AdamW']:.1f} ({ms['it'] / ms['AdamW']:.1f} times), state "
        f"{state['it']:.1f} MB against {state['AdamW']:.1f}, {peak['it']:.1f} MB more while it steps against "
        f"{peak['AdamW']:.1f}; {n_parameters / 1e6:.1f}M parameters in float32, CPU"
    )


def _larger_model() -> nn.Module:
    from lit_consistency.model import GPT, model_config

    sizes = {"n_layer": 4, "n_embd": 256, "n_head": 4, "padded_vocab_size": 512, "block_size": 8}
    return GPT(model_config("pythia-14m", None, sizes | {"intermediate_size": 1024}, None))


def _print(title: str, rows: list[Row]) -> None:
    """The table; reasons are wrapped under their column."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_edge=False, box=None, pad_edge=False)
    for name in ("what a run expects", "outcome", "why"):
        table.add_column(name, no_wrap=name != "why")
    for row in rows:
        table.add_row(row.what, row.outcome, Text(row.why))
    Console().print(table)
