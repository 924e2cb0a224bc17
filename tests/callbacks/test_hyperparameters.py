from __future__ import annotations

from typing import Any

import pytest

from lit_consistency.callbacks.hyperparameters import data_name

DATA = "lit_consistency.data"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"rows": {"class_path": f"{DATA}.RowFiles", "init_args": {"path": "rows.jsonl"}}}, "RowFiles rows.jsonl"),
        ({"rows": {"class_path": f"{DATA}.HubRows", "init_args": {"name": "openai/gsm8k"}}}, "HubRows openai/gsm8k"),
        ({"rows": {"class_path": f"{DATA}.worlds.WorldRows", "init_args": {"task": "new"}}}, "WorldRows new"),
        ({"rows": {"class_path": f"{DATA}.RowMixture", "init_args": {"sets": {"a": {}, "b": {}}}}}, "a, b"),
        ({"source": {"class_path": f"{DATA}.TextFiles", "init_args": {"path": "books"}}}, "TextFiles books"),
        ({"source": f"{DATA}.worlds.WorldText"}, "WorldText"),
    ],
)
def test_data_have_a_name(data: dict[str, Any], name: str) -> None:
    assert data_name({"class_path": f"{DATA}.SFTData", "init_args": data}) == name
