"""The check of a document without jsonschema answers as jsonschema does."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime import config, conform, documents

SCHEMA = json.loads(Path(config.__file__).with_name("config.schema.json").read_text())
CDI = json.loads((Path(config.__file__).parent / "cdi/schema.json").read_text())

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 90000), st.floats(), st.text(max_size=3), st.dates(),
    st.sampled_from([0.0, 1.0, 2.5, "/x", "auto", "", "/"]),
)  # fmt: skip
_ANY = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3)
    ),
    max_leaves=6,
)


def _of(schema: dict[str, Any], root: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Documents of the schema's shape, with a mistake here and there."""
    if "$ref" in schema:
        return _of(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    right: st.SearchStrategy[Any] = _SCALARS
    if "enum" in schema:
        right = st.sampled_from(schema["enum"])
    elif schema.get("type") == "object" and "properties" in schema:
        parts = {key: _of(value, root) for key, value in schema["properties"].items()}
        right = st.fixed_dictionaries({}, optional=parts)
    elif schema.get("type") == "object":
        right = st.dictionaries(st.sampled_from(["a", "tcp-close", "A b", 1]), _ANY, max_size=3)
    elif schema.get("type") == "array":
        right = st.lists(_of(schema["items"], root), max_size=3)
    elif schema.get("type") == "string":
        right = st.sampled_from(["/x", "/x/y", "x", "a:b", "\n", ""])
    elif schema.get("type") in ("integer", "number"):
        right = st.one_of(st.integers(-1, 300), st.sampled_from([0.5, 1.0, float("nan"), 86400, 86401]))
    return st.one_of(right, right, right, right, right, right, _ANY)


def _agree(data: Any, schema: dict[str, Any]) -> None:
    assert conform.conforms(data, schema) == jsonschema.Draft202012Validator(schema).is_valid(data)


@given(_of(SCHEMA, SCHEMA))
def test_it_answers_as_jsonschema_does(data: Any) -> None:
    _agree(data, SCHEMA)


@given(_ANY)
def test_also_of_what_looks_like_nothing_that_is_wanted(data: Any) -> None:
    _agree(data, SCHEMA)


@pytest.mark.parametrize(
    "options", [{}, {"a": True}, {"a": 1}, {"a": ["x"]}, {"a": [1]}, {"A": 1}, {"a": "x#"}, {1: 1}]
)
def test_of_options_of_criu_too(options: dict[Any, Any]) -> None:
    _agree({"criu": {"dump": options}}, SCHEMA)


def test_what_it_does_not_know_is_left_to_jsonschema() -> None:
    with pytest.raises(conform.UnknownKeywordError):
        conform.conforms({}, {"dependentRequired": {}})
    with pytest.raises(conform.UnknownKeywordError):
        conform.conforms(1, {"enum": [1]})


def test_the_example_and_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    example = Path(__file__).resolve().parents[2] / "examples/config.yaml"
    data = documents.load_yaml(example.read_bytes())
    with monkeypatch.context() as patched:
        patched.setattr(jsonschema, "Draft202012Validator", None)  # it isn't asked
        assert documents.violations(data, "config.schema.json") == []
    assert documents.violations({**data, "tcp": "no"}, "config.schema.json") == [
        "tcp: 'no' is not one of ['inside', 'close', 'established', 'refuse']"
    ]


def test_devices_specs_too() -> None:
    for case in json.loads((Path(__file__).parents[1] / "data/cdi/cases.json").read_text()):
        for text in case["specs"].values():
            try:
                data = documents.load_yaml(text.encode())
            except ValueError:
                continue
            try:
                _agree(data, CDI)
            except conform.UnknownKeywordError:
                continue
