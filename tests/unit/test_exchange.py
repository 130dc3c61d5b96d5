"""What of a request is told before anything is put in line."""

import hashlib
from types import SimpleNamespace
from typing import Any

from api.compat import headers
from api.exchange import same_of
from shared.run import Outcome, Run, RunSpec, Status

BODY = b'{"model":"echo"}'


def same(**given: str) -> Any:
    found = same_of(
        SimpleNamespace(headers={name.replace("_", "-"): value for name, value in given.items()}), "t", "e", BODY
    )  # type: ignore[arg-type]  # all that it looks at
    assert found is not None
    return found


def test_a_key_that_is_the_hash_of_a_body_is_not_taken_for_the_body():
    by_key = same(idempotency_key=hashlib.sha256(BODY).hexdigest())
    by_body = same(x_stainless_retry_count="0")

    assert by_key.name != by_body.name
    assert by_key.name == same(idempotency_key=hashlib.sha256(BODY).hexdigest()).name


def test_a_models_name_that_a_cli_gives_cannot_make_a_header_of_its_own():
    spec = RunSpec(id="run_1", tenant="t", backend="claude", prompt="p")
    run = Run(
        spec=spec, status=Status.SUCCEEDED, queue="claude", created_at=0.0, outcome=Outcome(model="m\r\nx-evil: 1 漢")
    )

    assert headers(spec, None, [], run)["x-clinvk-model"] == "m??x-evil: 1 ?"
