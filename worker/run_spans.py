"""The spans of one run on its worker: its time in the queue, its life here, its CLI. Where none are made, nothing."""

import contextlib
from collections.abc import Iterator

import msgspec

from shared import trace
from shared.run import Outcome, RunSpec
from shared.spans import Span, Spans
from shared.store.runs import Claim


class RunSpans:
    """Begins with the claim; `end` when the run's end is stored."""

    def __init__(self, spans: Spans | None, claim: Claim, host: str) -> None:
        self._spans = spans
        self._run: Span | None = None
        spec = claim.spec
        if spans is None:
            return
        above = trace.parse(spec.traceparent or "", spec.tracestate or "")
        queue = spans.begin(f"queue {spec.backend}", above, "consumer", ago_s=claim.waited_s)
        queue.set(clinvk__run_id=spec.id, clinvk__backend=spec.backend, clinvk__attempt=claim.attempt)
        queue.end()
        self._run = spans.begin(f"run {spec.backend}", above)
        self._run.set(
            clinvk__run_id=spec.id,
            clinvk__backend=spec.backend,
            clinvk__tenant=spec.tenant,
            clinvk__host=host,
            clinvk__request_id=spec.request_id,
            clinvk__flow_id=spec.flow_id,
            clinvk__session_id=spec.session_id,
            clinvk__attempt=claim.attempt,
        )

    @contextlib.contextmanager
    def cli(self, spec: RunSpec) -> Iterator[RunSpec]:
        """From the preparing of the CLI to its end; its `TRACEPARENT` leads to this span."""
        if self._spans is None or self._run is None:
            yield spec
            return
        span = self._spans.begin(f"cli {spec.backend}", self._run.place, "client")
        failed: str | None = None
        try:
            yield msgspec.structs.replace(spec, traceparent=span.place.parent)
        except BaseException as error:
            failed = type(error).__name__
            raise
        finally:
            span.end(failed)

    def end(self, outcome: Outcome) -> None:
        if self._run is None:
            return
        usage, failure = outcome.usage, outcome.failure
        self._run.set(
            clinvk__status=outcome.status.value,
            clinvk__exit_code=outcome.exit_code,
            clinvk__model=outcome.model,
            clinvk__code=failure.code if failure else None,
            clinvk__cause=failure.cause if failure else None,
            gen_ai__usage__input_tokens=usage.input_tokens if usage else None,
            gen_ai__usage__output_tokens=usage.output_tokens if usage else None,
        )
        # A CLI's own words may hold some of the prompt: the code alone.
        self._run.end(failure.code if failure is not None and failure.code != "cancelled" else None)
