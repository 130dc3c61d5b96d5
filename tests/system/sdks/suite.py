"""What every client must see, whatever its language and its dialect. Each test module names its clients."""

import json
from typing import Any, ClassVar

import pytest

from tests.system.sdks.clients import Client
from tests.system.sdks.fake_claude import long_text, tokens
from tests.system.sdks.world import World, asked_paths

AWKWARD = (
    " é 漢字 👩‍👩‍👧‍👦 🪐 שלום \u202bمرحبا\u202c \u2028 \u2029 \ufeff 'q' \"d\" \\n $HOME `x` \x01\x1b[0m\x7f\t\r\n end"
)


def text_of(count: int) -> str:
    return "".join(tokens(count))


def needs(*scenarios: str) -> Any:
    def mark(test: Any) -> Any:
        test.needs = scenarios
        return test

    return mark


class Suite:
    clients: ClassVar[list[Client]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        wanted = set(getattr(metafunc.function, "needs", ()))
        taking = [client for client in self.clients if not wanted & set(client.lacks)]
        if "client" in metafunc.fixturenames:
            metafunc.parametrize("client", taking, ids=[client.name for client in taking])

    def test_an_answer_comes_whole_with_its_usage(self, world: World, client: Client) -> None:
        seen = client.see("answer", world.base, prompt="[[fake:say n=8]] hello")

        assert seen.get("error") is None
        assert seen["text"] == text_of(8)
        assert seen.get("finish") == client.finish
        usage = seen["usage"]
        assert (usage["input"], usage["output"], usage["cached"]) == (client.input_tokens, 8, 7)
        assert len(asked_paths(seen)) == 1

    def test_a_stream_comes_token_by_token_and_ends_with_its_usage(self, world: World, client: Client) -> None:
        seen = client.see("stream", world.base, prompt="[[fake:say n=40 ms=40]] hello")

        assert seen.get("error") is None
        assert seen["text"] == text_of(40)
        assert seen["chunks"] >= 20
        assert seen["last_s"] - seen["first_s"] > 40 * 0.04 / 2  # how long its CLI starts is the machine's
        assert seen.get("same", True)
        usage = seen["usage"]
        assert (usage["input"], usage["output"], usage["cached"]) == (client.input_tokens, 40, 7)
        assert seen.get("finish", (seen.get("finishes") or [None])[-1]) == client.finish

    @needs("refused")
    def test_what_cannot_be_is_refused_once_and_by_name(self, world: World, client: Client) -> None:
        world.runs()

        seen = client.see("refused", world.base, prompt="hello")

        assert client.kinds["refused"] in kinds_of(seen)
        assert status_of(seen) == 400
        assert "tool_choice" in seen["error"]["message"]
        assert len(asked_paths(seen)) == 1
        assert world.runs() == []

    @needs("unavailable")
    def test_a_backend_that_no_worker_has_is_unavailable(self, world: World, client: Client) -> None:
        seen = client.see("answer", world.base, prompt="hello", model="codex", retries=0, limit_s=90)

        assert client.kinds["unavailable"] in kinds_of(seen)
        assert status_of(seen) == 503
        assert "codex" in seen["error"]["message"]

    def test_a_missing_login_is_told_once_with_where_and_what_to_do(self, world: World, client: Client) -> None:
        world.runs()

        more = {"retries": 1} if client.repeats else {}
        seen = client.see("answer", world.base, prompt="[[fake:fail status=401]] hello", **more)

        assert client.kinds["login"] in kinds_of(seen)
        assert status_of(seen) == 502
        assert "log claude in" in seen["error"]["message"]
        assert "host0" in seen["error"]["message"]
        times = 2 if client.repeats else 1
        assert (len(asked_paths(seen)), len(world.runs())) == (times, times)

    def test_the_vendors_limit_is_a_limit_that_says_how_long(self, world: World, client: Client) -> None:
        seen = client.see("answer", world.base, prompt="[[fake:fail status=429]] hello", retries=0)

        assert client.kinds["limited"] in kinds_of(seen)
        assert status_of(seen) == 429
        if seen["error"].get("retry_after") is not None:
            assert seen["error"]["retry_after"] == "1"
            assert seen["error"]["should_retry"] == "true"

    @needs("retries")
    def test_a_limit_that_passes_is_waited_for(self, world: World, client: Client) -> None:
        world.runs()

        seen = client.see("answer", world.base, prompt=f"[[fake:limited key={client.name}]] hello")

        assert seen.get("error") is None
        assert seen["text"] == text_of(8)
        assert [request["status"] for request in seen["requests"]] == [429, 200]
        assert len(world.runs()) == 2

    @pytest.mark.parametrize("how", ["late", "die"])
    def test_a_failure_after_the_first_token_is_never_a_clean_end(self, world: World, client: Client, how: str) -> None:
        world.runs()

        seen = client.see("stream", world.base, prompt=f"[[fake:{how} n=3]] hello")

        assert seen["text"] == text_of(3)
        assert client.kinds["late"] in kinds_of(seen)
        assert ("500" if how == "late" else "out of memory") in seen["error"]["message"]
        assert seen.get("finish") is None
        assert not seen.get("finishes")
        assert len(world.runs()) == 1

    @pytest.mark.parametrize("how", ["late", "die"])
    def test_a_failure_after_the_first_token_is_an_error_of_a_whole_answer(
        self, world: World, client: Client, how: str
    ) -> None:
        seen = client.see("answer", world.base, prompt=f"[[fake:{how} n=3]] hello", retries=0)

        assert client.kinds["login"] in kinds_of(seen)  # 502, as that
        assert status_of(seen) == 502

    def test_a_history_reaches_the_model_with_its_roles(self, world: World, client: Client) -> None:
        seen = client.see("history", world.base, prompt="[[fake:seen]] Who am I?")

        assert seen.get("error") is None
        told = json.loads(seen["text"])
        assert told["system"] == "You are a TEAPOT."
        assert told["prompt"] == "[[fake:seen]] Who am I?"
        assert [turn["role"] for turn in told["turns"]] == ["user", "assistant", "user", "assistant"]
        assert told["turns"][0]["text"].startswith("My name is Ada.")
        assert told["turns"][2]["text"].startswith("And I live in Kraków.")

    @pytest.mark.parametrize("scenario", ["answer", "stream"])
    def test_a_long_text_of_awkward_characters_comes_whole(self, world: World, client: Client, scenario: str) -> None:
        seen = client.see(scenario, world.base, prompt="[[fake:long bytes=200000]] hello")

        assert seen.get("error") is None
        assert seen["text"] == long_text(200_000)

    def test_an_awkward_prompt_goes_in_as_it_is(self, world: World, client: Client) -> None:
        asked = f"[[fake:echo]]{AWKWARD}"

        seen = client.see("answer", world.base, prompt=asked)

        assert seen.get("error") is None
        assert seen["text"] == asked

    def test_a_client_that_hangs_up_ends_its_run(self, world: World, client: Client) -> None:
        world.runs()

        seen = client.see("hangup", world.base, prompt="[[fake:hang]] hello")

        assert seen["text"] == "tok0 "
        (run_id,) = world.runs()
        world.ended_as("cancelled", run_id)

    @needs("retry")
    def test_a_client_that_loses_patience_and_asks_again_joins_its_run(self, world: World, client: Client) -> None:
        world.runs()

        seen = client.see("answer", world.base, prompt="[[fake:say n=80 ms=50]] hello", timeout=1.2, retries=2)

        assert seen.get("error") is None
        assert seen["text"] == text_of(80)
        assert len(asked_paths(seen)) > 1
        assert len(world.runs()) == 1

    @needs("timeout")
    def test_a_client_that_gives_up_is_told_so_and_its_run_ends(self, world: World, client: Client) -> None:
        world.runs()

        seen = client.see("answer", world.base, prompt="[[fake:hang]] hello", timeout=1.5, retries=0)

        assert client.kinds["timeout"] in kinds_of(seen)
        (run_id,) = world.runs()
        world.ended_as("cancelled", run_id)


def kinds_of(seen: dict[str, Any]) -> list[str]:
    """The names of the exception's classes; of one that wraps others, of those too."""
    error = seen.get("error")
    assert error is not None, seen
    found = []
    while error is not None:
        found += [error["kind"], *(error.get("kinds") or []), *([error["name"]] if error.get("name") else [])]
        error = error.get("last") or error.get("cause")
    return found


def status_of(seen: dict[str, Any]) -> int | None:
    """Of the last answer; what the exceptions say of it is their own matter."""
    status: int | None = seen["requests"][-1]["status"]
    return status
