"""CDI edits against what the Go library made of the same specs (tests/data/cdi/README.md)."""

import json
from pathlib import Path
from typing import Any

import pytest

from grit_runtime import cdi
from grit_runtime.errors import CdiError

CASES = json.loads((Path(__file__).parent.parent / "data/cdi/cases.json").read_text())


def _bare(value: Any) -> Any:
    """Without what Go leaves out (omitempty)."""
    if isinstance(value, dict):
        kept = {key: _bare(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, "", [], {})}
    return [_bare(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_result_is_that_of_the_go_library(case: dict[str, Any], tmp_path: Path) -> None:
    for name, text in case["specs"].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    directories = sorted({str((tmp_path / name).parent) for name in case["specs"]})
    before = json.dumps(case["config"])
    if "error" in case:
        with pytest.raises(CdiError):
            cdi.inject(case["config"], case["devices"], directories)
    else:
        made = cdi.inject(case["config"], case["devices"], directories)
        assert _bare(made) == _bare(case["expected"])
    assert json.dumps(case["config"]) == before
