"""A report as spans of OpenTelemetry. The only user of opentelemetry, which is not one of our requirements: it is
looked for in a directory of its own beside what we install, which an update of ours leaves as it is.
"""

import os
import sys
from typing import Any

from grit_runtime.errors import GritError, UsageError
from grit_runtime.inspection import words
from grit_runtime.report.model import Operation

_NANO = 1_000_000_000

_PACKAGES = "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
_PLACE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "otel")


def send(found: Operation) -> int:
    """Send the operation as one span with its phases below it, to where OTEL_* in the environment says.

    Returns:
        How many spans were sent.

    Raises:
        UsageError: the library isn't installed, or nobody knows when the operation began.
        GritError: they were not taken.
    """
    sys.path.append(_PLACE)  # the last: what we bring along ourselves comes first
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    except ImportError as err:
        raise UsageError(
            f"cannot send spans: {err.name or err} is not installed",
            hint=f"`python3 -m pip install --target {_PLACE} {_PACKAGES}`",
        ) from None
    if found.began is None:
        raise UsageError(f"the record in {found.source} does not say when it began, which spans need")
    made = InMemorySpanExporter()
    about = Resource.create({"service.name": "grit-runtime", "service.version": words.shown(found.version)})
    provider = TracerProvider(resource=about, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(made))
    _record(provider.get_tracer("grit-runtime"), found, found.began)
    exporter: Any = OTLPSpanExporter()
    try:
        spans = made.get_finished_spans()
        result = exporter.export(spans)
    except Exception as err:  # noqa: BLE001 - whatever a transport of theirs raises
        raise GritError(f"the spans could not be sent: {err}", hint="see OTEL_EXPORTER_OTLP_ENDPOINT") from None
    finally:
        exporter.shutdown()
    if result.name != "SUCCESS":
        raise GritError("the spans were not taken", hint="see OTEL_EXPORTER_OTLP_ENDPOINT")
    return len(spans)


def _record(tracer: Any, found: Operation, began: float) -> None:
    from opentelemetry.trace import StatusCode, set_span_in_context

    def at(seconds: float) -> int:
        return int((began + seconds) * _NANO)

    said = {"container.id": found.container, "grit.checkpoint": found.images, "grit.outcome": found.outcome}
    about = {key: words.shown(value) for key, value in said.items()}
    whole = tracer.start_span(words.shown(found.operation), start_time=at(0), attributes=about)
    if not found.ok:
        whole.set_status(StatusCode.ERROR, words.shown(found.error, 5000))
    for phase in found.phases:
        size = {} if phase.size is None else {"grit.bytes": phase.size}
        beside = {"grit.beside": True} if phase.span else {}
        span = tracer.start_span(
            words.shown(phase.name),
            context=set_span_in_context(whole),
            start_time=at(phase.begin),
            attributes={**size, **beside},
        )
        span.end(end_time=at(phase.end))
    whole.end(end_time=at(found.seconds))
