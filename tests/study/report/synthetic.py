"""A study that never ran, with all that a real one has: diverged, failed and missing cells, edges, odd names."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np

from lit_consistency.study.report.content import (
    CellRow,
    ClaimResult,
    Content,
    Effect,
    Front,
    FrontPoint,
    HeatMap,
    RateCurve,
    Variance,
)

BASES = ("AdamW", "Muon")
FINETUNERS = {"AdamW": 3e-4, "Muon": 2e-3, "MoFO": 4e-4, "LoRA r=8, AdamW, of every linear layer": 3e-3}
LEARNING, FORGETTING = "learned/new_people", "forget/old_people"
STEPS = range(30, 301, 30)
HOSTILE = "</script><script>window.hostile = true</script>"
NAN = math.nan


def content(seeds: int = 10, front_seeds: int = 10) -> Content:
    """2 bases x 4 finetuners x 6 rates x ``seeds``, and the bases; fronts of the first ``front_seeds``."""
    cells = [_base(base, seed) for base in BASES for seed in range(seeds)]
    for base in BASES:
        for name, middle in FINETUNERS.items():
            for k in range(6):
                cells += [_cell(base, name, float(f"{middle * 2.0 ** (k - 3):.1g}"), seed) for seed in range(seeds)]
    finetuned = [c for c in cells if c.stage == "finetune" and int(c.coordinates["base_seed"]) < front_seeds]
    groups: dict[tuple[str, str], list[CellRow]] = defaultdict(list)
    for cell in finetuned:
        groups[cell.coordinates["base"], cell.coordinates["finetuner"]].append(cell)
    return Content(
        title="Does the optimizer of pretraining forget less?",
        description="Two bases of 1M parameters, pretrained with AdamW and with Muon on biographies of invented people, "  # noqa: E501
        "are taught new people by four finetuners at six rates each.\n\nRead at matched learning: what share of the new "  # noqa: E501
        "facts is known, and how much of the old ones is gone. Every base seed has a world of its own.",
        command="python -m lit_consistency study --config configs/studies/consistency.yaml",
        study_file="# the study\nstages:\n  pretrain: {axes: {optimizer: [AdamW, Muon]}}\n  finetune: {base: pretrain}\n",  # noqa: E501
        axes={
            "pretrain": {"optimizer": list(BASES), "base_seed": [str(s) for s in range(seeds)]},
            "finetune": {
                "base": list(BASES),
                "finetuner": list(FINETUNERS),
                "lr": sorted({c.coordinates["lr"] for c in finetuned}, key=float),
                "base_seed": [str(s) for s in range(seeds)],
            },
        },
        cells=cells,
        claims=claims(),
        effects=effects(),
        fronts=[_front(f"{base} base", name, groups[base, name]) for base, name in groups],
        rates=[_rates(f"{base} base", name, groups[base, name]) for base, name in groups],
        heat_maps=heat_maps(),
        variances=[
            Variance(FORGETTING, f"{n} on {b}", {"base": 0.021 + 0.004 * i, "order": 0.002, "items": 0.008 - 0.002 * i})
            for b in BASES
            for i, n in enumerate(FINETUNERS)
        ],
        environment={"lit_consistency": "0.3.0", "torch": "2.11.0", "processor": "x86_64, 2 cores", "threads": 1}
        | {"commit": "0123456789abcdef0123456789abcdef01234567", "a <b>name</b> & more": HOSTILE},
        not_run=[
            "LoRA of rank 64 and more: at a width of 128 it is no low rank.",
            "SGD as a finetuner with 10 seeds: 3 seeds show that its front lies far behind.",
        ],
        made="27 November 2026, 20:15 UTC",
        learning=LEARNING,
        forgetting=FORGETTING,
    )


# -------------------- cells


def _base(base: str, seed: int) -> CellRow:
    loss = 0.59 + 0.01 * math.sin(seed) - (0.02 if base == "Muon" else 0)
    return CellRow(
        name=f"pretrain-{base.lower()}-s{seed}",
        stage="pretrain",
        coordinates={"optimizer": base, "base_seed": str(seed)},
        state="finished",
        seconds=129.4 + 3 * seed,
        metrics={"val/loss": loss, "val/loss.stderr": 0.004},
        curve=[{"step": float(s), "val/loss": loss + 2 * math.exp(-s / 60)} for s in STEPS],
        command=f"python -m lit_consistency fit --config configs/pretrain.yaml --seed_everything {seed}",
        config=configuration(base, 1e-3, seed),
        log="step 300 | loss 0.601\nsaved\n",
    )


def _cell(base: str, finetuner: str, rate: float, seed: int) -> CellRow:
    rng = np.random.default_rng([seed, BASES.index(base), list(FINETUNERS).index(finetuner), round(1e9 * rate)])
    of_base = np.random.default_rng([seed, BASES.index(base)]).normal(0, 0.02)
    u = math.log2(rate / FINETUNERS[finetuner]) + 1
    matched = base == finetuner
    learned = lambda t: 0.985 / (1 + math.exp(-1.6 * (u + 1.2))) * (1 - math.exp(-4 * t / 300))  # noqa: E731
    cost = 0.11 * (0.72 if matched else 1.0) * (1.5 if "LoRA" in finetuner else 1.0)
    forgot = lambda t: min(cost * 1.42**u * (t / 300) ** 0.8 + (0.02 + of_base) * t / 300, 0.95)  # noqa: E731
    state, error, last = "finished", "", 300
    if u >= 3 and seed % 3 == 0:
        state, error, last = "diverged", "the loss is nan at step 151: stopped before the optimizer moved", 150
    elif finetuner == "MoFO" and rate == 4e-4 and seed == 3:
        state, error, last = "failed", f"RuntimeError: no rows in 'worlds/{HOSTILE}'", 0
    elif base == "Muon" and seed == 9 and u == -2:
        state, last = "missing", 0
    curve = [
        {
            "step": float(t),
            LEARNING: learned(t) + float(rng.normal(0, 0.006)),
            FORGETTING: forgot(t) + float(rng.normal(0, 0.006)),
            "kl_to_base": 0.8 * forgot(t) + 0.05,
            "retain/old_text": 0.587 + 1.2 * forgot(t),
            "distance/all": 4 * 1.3**u * (t / 300) ** 0.5,
            "train/loss": 2.0 - 1.8 * learned(t),
        }
        for t in STEPS
        if t <= last
    ]
    if state == "diverged":
        curve[-1] |= {LEARNING: NAN, FORGETTING: 7.5, "train/loss": math.inf}
    metrics = {}
    if state in ("finished", "diverged"):
        end = {k: v for k, v in curve[-1].items() if k != "step"}
        metrics = end | {f"{LEARNING}.stderr": 0.006, f"{FORGETTING}.stderr": 0.009}
    slug = finetuner.lower().replace(" ", "-").replace(",", "").replace("=", "")
    return CellRow(
        name=f"finetune-{base.lower()}-{slug}-lr{rate:g}-s{seed}" + (f"-{HOSTILE}" if state == "failed" else ""),
        stage="finetune",
        coordinates={"base": base, "finetuner": finetuner, "lr": f"{rate:g}", "base_seed": str(seed)},
        state=state,
        seconds=NAN if state == "missing" else 29 + 2 * rng.random(),
        metrics=metrics,
        curve=curve,
        command=f"python -m lit_consistency fit --config configs/quickstart.yaml --model.lr {rate:g} --seed_everything {seed}",  # noqa: E501
        config=configuration(finetuner, rate, seed),
        log=_log(curve, error) if state != "missing" else "",
        error=error,
        folder=Path("checkpoints/studies/consistency") / f"{base}-{slug}-{rate:g}-{seed}",
    )


def configuration(optimizer: str, rate: float, seed: int) -> str:
    """About 2.5 KB of YAML, as a complete configuration has."""
    lines = [f"seed_everything: {seed}", "model:", f"  optimizer: {optimizer}", f"  lr: {rate}", "trainer:"]
    lines += [f"  option_{i:02d}: value of option {i * 7919 % 101}" for i in range(80)]
    return "\n".join(lines) + "\n"


def _log(curve: list[dict[str, float]], error: str) -> str:
    lines = [f"step {row['step']:.0f} | loss {row['train/loss']:.4f} | \x1b[32m48,211 tokens/s\x1b[0m" for row in curve]
    return "\n".join([*lines, "0%\r50%\r100% überprüft ✓ 日本語", error or "finished", HOSTILE])


# -------------------- what is made of them


def _front(panel: str, group: str, cells: list[CellRow]) -> Front:
    seeds: dict[str, list[FrontPoint]] = defaultdict(list)
    for cell in cells:
        seed = cell.coordinates["base_seed"]
        if cell.state == "finished":
            for row in cell.curve[4:]:
                kind = "end" if row["step"] == 300 else "step"
                label = f"lr {cell.coordinates['lr']}, step {row['step']:.0f}"
                seeds[seed].append(FrontPoint(row[LEARNING], row[FORGETTING], seed, cell.name, kind, label, True))
        elif cell.state == "diverged":
            seeds[seed].append(FrontPoint(0.9, 7.5, seed, cell.name, "end", f"lr {cell.coordinates['lr']}", False))
    points, corners = [], []
    for rows in seeds.values():
        best = [p for p in rows if p.on_front and not any(_dominates(q, p) for q in rows)]
        corners.append(sorted((p.learning, p.forgetting) for p in best))
        points += [FrontPoint(**{**p.__dict__, "on_front": p in best}) for p in rows]
    return Front(panel, group, points, surfaces(corners), (0.71, 0.68, 0.74), (0.0, 1.0))


def _dominates(q: FrontPoint, p: FrontPoint) -> bool:
    return (
        q.learning >= p.learning
        and q.forgetting <= p.forgetting
        and (q.learning, q.forgetting) != (p.learning, p.forgetting)
    )


def surfaces(fronts: list[list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    """Attainment surfaces by brute force: at every learning that occurs, what each seed forgets at least."""
    n = len(fronts)
    grid = sorted({learning for front in fronts for learning, _ in front})
    least = np.array([[min((f for x, f in front if x >= g), default=math.inf) for g in grid] for front in fronts])
    least.sort(axis=0)
    found = {}
    for k in range(n):
        corners = [(g, float(f)) for g, f in zip(grid, least[k], strict=True) if math.isfinite(f)]
        # of equal forgetting only the largest learning is a corner
        kept = [c for c, after in zip(corners, [*corners[1:], (0.0, -1.0)], strict=True) if c[1] != after[1]]
        found[f"{k + 1}/{n}"] = kept
    return found


def _rates(panel: str, group: str, cells: list[CellRow]) -> RateCurve:
    values: dict[float, dict[str, float]] = defaultdict(dict)
    for cell in cells:
        value = cell.metrics.get(FORGETTING, NAN) if cell.state == "finished" else NAN
        values[float(cell.coordinates["lr"])][cell.coordinates["base_seed"]] = value
    points = []
    for rate in sorted(values):
        known = np.array([v for v in values[rate].values() if math.isfinite(v)])
        if len(known) == 0:
            points.append((rate, NAN, NAN, NAN))
            continue
        half = 2.3 * known.std(ddof=1) / math.sqrt(len(known)) if len(known) > 1 else NAN
        points.append((rate, float(known.mean()), float(known.mean() - half), float(known.mean() + half)))
    seeds = {seed for row in values.values() for seed in row}
    singles = {seed: [(rate, values[rate][seed]) for rate in sorted(values)] for seed in sorted(seeds, key=int)}
    mark = (
        "best at the edge" if group == "MoFO" else "level not bracketed" if "LoRA" in group and "Muon" in panel else ""
    )
    best = points[0 if mark == "best at the edge" else 2][0]
    return RateCurve(panel, group, "lr", FORGETTING, points, singles, best, mark, 0.18)


def claims() -> list[ClaimResult]:
    command = "python -m lit_consistency study --config configs/studies/consistency.yaml --only stage=finetune"
    row = lambda *values: ClaimResult(*values, command)  # noqa: E731
    return [
        row("consistency", "Finetuning with the optimizer of pretraining forgets less than its two main effects explain.", "supported", "points", -0.052, -0.081, -0.023, 0.01, 10, 0, 0.0008, ""),  # noqa: E501
        row("adamw_forgets_less", "At equal learning, AdamW forgets less than Muon, whatever the base.", "contradicted", "points", 0.034, 0.019, 0.049, 0.01, 10, 0, 0.004, ""),  # noqa: E501
        row("mofo_is_free", "MoFO learns as much as AdamW at the same rate.", "equivalent", "log-odds", 0.0021, -0.0068, 0.011, 0.02, 10, 0, 0.61, ""),  # noqa: E501
        row("lora_keeps_more", "LoRA of rank 8 keeps more than full finetuning with the same optimizer when both are read where 90% of the new facts are learned, on a base that was pretrained by Muon.", "undecided", "points", -0.013, -0.045, 0.019, 0.01, 10, 34, 0.38, ""),  # noqa: E501
        row("wider_lora", f"A name with markup {HOSTILE} stays text.", "no verdict", "points", NAN, NAN, NAN, 0.01, 0, 0, NAN, "level not bracketed: no rate of LoRA reaches a learning of 0.9 on the Muon base"),  # noqa: E501
    ]  # fmt: skip


def effects() -> list[Effect]:
    rows = []
    for scale, factor in (("points", 1.0), ("log-odds", 5.1)):
        for kind, name, value, half, p, mark in (
            ("main", "finetuner: Muon − AdamW", -0.008, 0.014, 0.24, ""),
            ("main", "base: Muon − AdamW", -0.031, 0.017, 0.002, ""),
            ("interaction", "interaction: matched − mismatched", -0.052, 0.021, 0.0004, ""),
            ("simple", "Muon − AdamW on the AdamW base", 0.034, 0.015, 0.004, ""),
            ("simple", "Muon − AdamW on the Muon base", -0.061, 0.019, 0.0001, ""),
            ("difference", "LoRA r=8, AdamW, of every linear layer − AdamW on the Muon base", -0.013, 0.032, 0.38, "level not bracketed"),  # noqa: E501
            ("difference", "SGD − AdamW on the AdamW base", NAN, NAN, NAN, "one seed"),
        ):  # fmt: skip
            v, h = factor * value, factor * half
            n = 1 if math.isnan(value) else 10
            rows.append(
                Effect(
                    "Forgetting at learning 0.9",
                    name,
                    kind,
                    scale,
                    v,
                    v - h,
                    v + h,
                    p,
                    n,
                    0.004 * factor,
                    0.018 * factor,
                    mark,
                )
            )
    return rows


def heat_maps() -> list[HeatMap]:
    return [
        HeatMap(
            "Forgetting at learning 0.9 (points)", "base", list(BASES), "finetuner", list(FINETUNERS),
            [[0.122, 0.156, 0.118, 0.171], [0.131, 0.089, 0.127, NAN]],
            [[0.011, 0.014, 0.012, 0.021], [0.013, 0.009, 0.012, NAN]], higher_is_better=False,
        ),
        HeatMap(
            "Change of every retained task (accuracy)", "finetuner", list(FINETUNERS), "task",
            ["old people", "old text", "arithmetic", "a task whose name says very much about it", "blimp", "sciq", "piqa", "arc_easy", "<script>", "lambada"],  # noqa: E501
            [[0.01 * ((7 * i + 3 * j) % 11 - 6) for j in range(10)] for i in range(4)],
            [[NAN] * 10 for _ in range(4)],
        ),
    ]  # fmt: skip
