"""Reports: what is made of a record, with everything in it hostile."""

import copy
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from grit_runtime import config as configuration
from grit_runtime.commands import report as command
from grit_runtime.errors import CheckpointError, GritError, UsageError
from grit_runtime.inspection import words
from grit_runtime.report import metrics, model, page, read, spans, text
from grit_runtime.workflow import operations
from tests.unit.pages import HOSTILE, RECORD, elements

_LINE = re.compile(r'([a-z_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (-?[0-9.e+-]+)')


def _parsed(**more: Any) -> model.Operation:
    return model.parse({**copy.deepcopy(RECORD), **more}, "/logs/operations/r.json")


def test_the_sum_counts_what_overlaps_once_and_says_so() -> None:
    found = _parsed()
    assert (found.added, found.covered, found.share) == (10.0, 10.0, 1.0)
    assert "10.000 s of 10.000 s by the wall clock (100.0%); lines with + are beside them" in text.check(found)
    phases = [*RECORD["phases"], {"name": "verify", "begin": 2.0, "end": 4.0}]
    found = _parsed(phases=phases, seconds=12.0)
    assert (found.added, found.covered) == (12.0, 10.0)
    assert "10.000 s of 12.000 s by the wall clock (83.3%); added up they are 12.000 s, for 2.000 s" in text.check(
        found
    )


def test_what_overlaps_is_drawn_in_lanes_below_each_other() -> None:
    names = [[phase.name for phase in lane] for lane in model.lanes(_parsed().phases)]
    assert names == [["begin", "criu", "memory"], ["huge pages"], ["reading"]]


def test_the_text_has_each_phase_with_its_share_bytes_and_rate() -> None:
    said = text.render(_parsed())
    assert re.search(r"memory +4\.000 +40\.0% +8\.0 GiB +2\.0 GiB/s  memory written or filled past CRIU", said)
    assert "huge pages: set X from madvise to always at 6.000 s, put back after 2.500 s" in said
    assert "took 10.000 s" in said


def test_a_failure_names_its_phase_and_what_was_put_back_by_undoing() -> None:
    phases = copy.deepcopy(RECORD["phases"])
    phases[3]["unended"] = True
    said = text.render(_parsed(outcome="failed", error=HOSTILE, phases=phases))
    assert "failed in `memory`, which began at 6.000 s" in said
    assert "put back by the undoing" in said
    assert "\x1b" not in said
    assert HOSTILE.splitlines()[0] not in said.splitlines()


@pytest.mark.parametrize("render", [text.render, page.render, metrics.render])
def test_nothing_hostile_comes_through(render: Any) -> None:
    phases = [{"name": HOSTILE, "begin": 0, "end": 1, "span": span, "detail": HOSTILE} for span in (False, True)]
    said = render(_parsed(container=HOSTILE, images=HOSTILE, error=HOSTILE, outcome=HOSTILE, phases=phases,
                          versions={"grit-runtime": HOSTILE}))  # fmt: skip
    assert "\x1b" not in said
    if render is page.render:
        there = elements(said)
        assert not {"script", "img", "iframe", "object", "embed"} & {tag for tag, _ in there}
        assert all(not name.startswith("on") for _, attributes in there for name in attributes)
        assert {tag for tag, attributes in there if {"src", "href", "xlink:href"} & set(attributes)} == {"link"}
    if render is metrics.render:
        lines = [line for line in said.split("\n")[:-1] if not line.startswith("#")]
        assert lines
        assert all(_LINE.fullmatch(line) for line in lines)


def test_the_page_is_whole_and_fetches_nothing() -> None:
    said = page.render(_parsed())
    assert re.findall(r"[a-z]+://[^\"' ]*", said.replace('xmlns="http://www.w3.org/2000/svg"', "")) == []
    bars = [attributes for tag, attributes in elements(said) if tag == "rect"]
    assert len(bars) == len(RECORD["phases"])
    assert all(float(bar["x"]) > 0 and float(bar["x"]) + float(bar["width"]) <= 1000 for bar in bars)
    assert len({bar["y"] for bar in bars}) == 3


def test_metrics_have_a_series_once_and_the_end_of_openmetrics() -> None:
    phases = [*RECORD["phases"], {"name": "memory", "begin": 10, "end": 11, "bytes": 1}]
    said = metrics.render(_parsed(phases=phases))
    found = {(m[1], m[2]): m[3] for m in map(_LINE.fullmatch, said.splitlines()) if m}
    assert len(found) == len([line for line in said.splitlines() if not line.startswith("#")])
    assert found["grit_runtime_operation_phase_seconds", 'operation="restore",phase="memory"'] == "5.0"
    assert found["grit_runtime_operation_phase_bytes", 'operation="restore",phase="memory"'] == str((8 << 30) + 1)
    assert said.endswith("# EOF\n")
    families = re.findall(r"^# TYPE (\S+) gauge$", said, re.MULTILINE)
    assert len(families) == len(set(families))


@pytest.mark.parametrize(
    "wrong",
    [
        {"phases": [{"name": "a", "begin": 2, "end": 1}]},
        {"phases": [{"name": "a", "begin": float("nan"), "end": 1}]},
        {"phases": [{"name": "a", "begin": -1, "end": 1}]},
        {"phases": [{"name": "a", "begin": 0, "end": 1e300}]},
        {"phases": [{"name": 3, "begin": 0, "end": 1}]},
        {"phases": [{"name": "a", "begin": 0, "end": 1, "bytes": "many"}]},
        {"phases": ["a"]},
        {"phases": {"a": 1}},
        {"phases": [{"name": "a", "begin": 0, "end": 1}] * 1000},
        {"seconds": True},
        {"container": None},
        {"format": 2},
        {"format": "1"},
    ],
    ids=str,
)
def test_a_damaged_record_is_one_clear_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"r\.json"):
        _parsed(**wrong)
    if "phases" in wrong:
        with pytest.raises(CheckpointError, match="phases"):
            model.of_manifest(wrong, "/cp")


def _site(path: Path) -> Any:
    return configuration.Config(log_dir=str(path))


def _keep(path: Path, name: str, **more: Any) -> None:
    folder = path / operations.FOLDER
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({**RECORD, **more}))


def test_the_newest_record_is_found_or_that_of_a_container(tmp_path: Path) -> None:
    site = _site(tmp_path)
    with pytest.raises(UsageError, match="there is no record in"):
        read.operation(site, "")
    _keep(tmp_path, "20260101T000000.000Z-restore-abc.json", container="abc")
    _keep(tmp_path, "20260101T000001.000Z-restore-abd.json", container="abd")
    _keep(tmp_path, "20260102T000001.000Z-restore-z-abc.json", container="z-abc")
    (tmp_path / operations.FOLDER / "note").write_text("not ours")
    (tmp_path / operations.FOLDER / "20260104T000001.000Z-restore-abc.json").touch()  # its writer was killed
    assert read.operation(site, "").container == "z-abc"
    assert read.operation(site, "ab").container == "abd"
    assert read.operation(site, "abc").container == "abc"
    with pytest.raises(UsageError, match="no record of a container nix"):
        read.operation(site, "nix")
    _keep(tmp_path, "20260103T000000.000Z-restore-abc.json", phases=3)
    found, unread = read.everything(site, "")
    assert [each.container for each in found] == ["z-abc", "abd", "abc"]
    assert len(unread) == 1
    assert text.listing(found).count("\n") == 4


def test_a_checkpoint_tells_of_its_making(tmp_path: Path) -> None:
    images = tmp_path / "cp"
    images.mkdir()
    manifest = {"format": 1, "files": [], "machine": {"architecture": "x"}, "container": {"id": "abc"}}
    (images / "grit.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="has no phases"):
        read.operation(_site(tmp_path), str(images))
    (images / "grit.json").write_text(json.dumps({**manifest, "phases": RECORD["phases"][:2]}))
    found = read.operation(_site(tmp_path), str(images))
    assert (found.complete, found.container, found.seconds) == (False, "abc", 6.0)
    more = {"operation": "checkpoint", "images": str(images)}
    _keep(tmp_path, "20260101T000000.000Z-checkpoint-abc.json", **more, phases=RECORD["phases"][:1])
    assert not read.operation(_site(tmp_path), str(images)).complete, "it is of another checkpoint that was there"
    _keep(tmp_path, "20260101T000000.000Z-checkpoint-abc.json", **more)
    assert read.operation(_site(tmp_path), str(images)).complete
    with pytest.raises(UsageError, match="holds no grit"):
        read.operation(_site(tmp_path), str(tmp_path))


class _Collector(BaseHTTPRequestHandler):
    """Takes spans as OpenTelemetry's collector does."""

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        raw = self.rfile.read(int(self.headers["content-length"]))
        request = ExportTraceServiceRequest.FromString(raw)
        spans_of = [span for each in request.resource_spans for scope in each.scope_spans for span in scope.spans]
        self.server.taken = [*getattr(self.server, "taken", []), *spans_of]  # type: ignore[attr-defined]
        self.send_response(400 if self.path.startswith("/full") else 200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Collector) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("container", ["abc", HOSTILE])
def test_spans_arrive_at_a_collector(collector: HTTPServer, container: str) -> None:
    found = _parsed(outcome="failed", error=container, container=container)
    assert spans.send(found) == 6
    taken = {span.name: span for span in collector.taken}  # type: ignore[attr-defined]
    whole = taken.pop("restore")
    assert set(taken) == {phase.name for phase in found.phases}
    assert {span.parent_span_id for span in taken.values()} == {whole.span_id}
    assert {span.trace_id for span in taken.values()} == {whole.trace_id}
    assert (whole.end_time_unix_nano - whole.start_time_unix_nano) / 1e9 == pytest.approx(10)
    assert (taken["memory"].start_time_unix_nano - whole.start_time_unix_nano) / 1e9 == pytest.approx(6)
    assert whole.status.message == words.shown(container, 5000)


def test_spans_that_are_not_taken_are_an_error(collector: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}/full")
    with pytest.raises(GritError, match=r"not taken \(see OTEL"):
        spans.send(_parsed())


def test_spans_without_the_library_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")] + ["opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UsageError, match=r"opentelemetry.* is not installed \(`python3 -m pip install --target .* opentelemetry-sdk "
    ):
        spans.send(_parsed())


def test_the_help_names_every_way() -> None:
    said = command.command.help or ""
    assert all(word in said for word in ("--html", "--openmetrics", "DIRECTORY", "Exits with 0"))
