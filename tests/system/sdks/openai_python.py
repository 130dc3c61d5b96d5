"""The openai package, any major: chat completions and the Responses API."""

import time
from typing import Any

import openai
import pydantic
import seen as report

SYSTEM = "You are a TEAPOT."
TURNS = [
    {"role": "user", "content": "My name is Ada."},
    {"role": "assistant", "content": "Hello Ada."},
    {"role": "user", "content": "And I live in Kraków."},
    {"role": "assistant", "content": "A fine town."},
]


def client_of(base: str, options: dict[str, str]) -> openai.OpenAI:
    more: dict[str, Any] = {}
    if "timeout" in options:
        more["timeout"] = float(options["timeout"])
    if "retries" in options:
        more["max_retries"] = int(options["retries"])
    return openai.OpenAI(base_url=base + options.get("path", "/openai/v1"), api_key="not-needed", **more)


def usage_of(usage: Any) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input": usage.prompt_tokens,
        "output": usage.completion_tokens,
        "total": usage.total_tokens,
        "cached": usage.prompt_tokens_details.cached_tokens,
        "reasoning": usage.completion_tokens_details.reasoning_tokens,
    }


def asked(options: dict[str, str]) -> dict[str, Any]:
    return {
        "model": options.get("model", "claude"),
        "messages": [{"role": "user", "content": options["prompt"]}],
    }


def models(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    client = client_of(base, options)
    seen["models"] = [model.model_dump() for model in client.models.list()]
    seen["one"] = client.models.retrieve("claude").model_dump()
    try:
        client.models.retrieve("no/such")
    except openai.NotFoundError as error:
        seen["missing"] = report.error_of(error)


def answer(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    _answered(client_of(base, options).chat.completions.create(**asked(options)), seen)


def _answered(found: Any, seen: dict[str, Any]) -> None:
    (choice,) = found.choices
    seen.update(
        text=choice.message.content,
        role=choice.message.role,
        finish=choice.finish_reason,
        usage=usage_of(found.usage),
        id=found.id,
        model=found.model,
        object=found.object,
        created=found.created,
        tool_calls=choice.message.tool_calls,
    )


def history(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    last = {"role": "user", "content": [{"type": "text", "text": options["prompt"]}]}
    messages = [{"role": "system", "content": SYSTEM}, *TURNS, last]
    _answered(client_of(base, options).chat.completions.create(model=asked(options)["model"], messages=messages), seen)


def stream(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    pieces = report.Pieces(seen)
    ids, seen["finishes"], seen["roles"] = set(), [], []
    more = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client_of(base, options).chat.completions.create(**asked(options), **more):
        ids.add((chunk.id, chunk.created, chunk.model, chunk.object))
        for choice in chunk.choices:
            if choice.delta.role:
                seen["roles"].append(choice.delta.role)
            if choice.delta.content:
                pieces.add(choice.delta.content)
            if choice.finish_reason:
                seen["finishes"].append(choice.finish_reason)
        if chunk.usage is not None:
            seen["usage"] = usage_of(chunk.usage)
    seen["ids"] = len(ids)


def plain(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    """As everybody writes it: `chunk.choices[0]` of every chunk, usage not asked for."""
    pieces = report.Pieces(seen)
    for chunk in client_of(base, options).chat.completions.create(**asked(options), stream=True):
        pieces.add(chunk.choices[0].delta.content or "")
        seen["usage"] = chunk.usage


def helper(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    """The SDK's own accumulator, which is stricter than its iterator."""
    chat = client_of(base, options)
    completions = chat.chat.completions if hasattr(chat.chat.completions, "stream") else chat.beta.chat.completions
    pieces = report.Pieces(seen)
    with completions.stream(**asked(options), stream_options={"include_usage": True}) as events:
        for event in events:
            if event.type == "content.delta":
                pieces.add(event.delta)
        heard = seen["text"]
        _answered(events.get_final_completion(), seen)
    seen["same"] = heard == seen["text"]


def hangup(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    following = client_of(base, options).chat.completions.create(**asked(options), stream=True)
    for chunk in following:
        if chunk.choices[0].delta.content:
            seen["text"] = chunk.choices[0].delta.content
            break
    following.close()


def refused(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
    client_of(base, options).chat.completions.create(**asked(options), tools=[tool], tool_choice="required")


def fields(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    """Everything that is accepted and has no effect, at once."""
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
    found = client_of(base, options).chat.completions.with_raw_response.create(
        **asked(options),
        max_tokens=4096,
        max_completion_tokens=4096,
        temperature=0.7,
        top_p=0.5,
        n=1,
        stop=["END"],
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"50256": -100},
        seed=7,
        user="ada",
        store=False,
        metadata={"team": "x"},
        tools=[tool],
        tool_choice="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        reasoning_effort="low",
        service_tier="auto",
        extra_body={"dry_run": False, "never_heard_of": {"a": 1}, "verbosity": None},
    )
    seen["ignored"] = found.headers.get("x-clinvk-ignored")
    seen["request_id"] = found.headers.get("x-request-id")
    _answered(found.parse(), seen)


class City(pydantic.BaseModel):
    name: str
    population: int


def schema(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    """Through the SDK's own parser, which asks for strict JSON Schema."""
    client = client_of(base, options)
    seen["chat"] = client.chat.completions.parse(**asked(options), response_format=City).choices[0].message.parsed.name
    found = client.responses.parse(model=options.get("model", "claude"), input=options["prompt"], text_format=City)
    seen["response"] = found.output_parsed.name


def image(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{report.PNG}"}}
    content = [picture, {"type": "text", "text": options["prompt"]}]
    messages = [{"role": "user", "content": content}]
    _answered(client_of(base, options).chat.completions.create(model="claude", messages=messages), seen)


def sound(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    content = [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]
    messages = [{"role": "user", "content": content}]
    client_of(base, options).chat.completions.create(model="claude", messages=messages)


def response_usage(usage: Any) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input": usage.input_tokens,
        "output": usage.output_tokens,
        "total": usage.total_tokens,
        "cached": usage.input_tokens_details.cached_tokens,
        "reasoning": usage.output_tokens_details.reasoning_tokens,
    }


def _response(found: Any, seen: dict[str, Any]) -> None:
    seen.update(
        id=found.id,
        object=found.object,
        status=found.status,
        text=found.output_text,
        usage=response_usage(found.usage),
        model=found.model,
        kinds=[item.type for item in found.output],
        previous=found.previous_response_id,
    )


def respond(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    _response(
        client_of(base, options).responses.create(model=options.get("model", "claude"), input=options["prompt"]), seen
    )


def respond_retrieve(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    client = client_of(base, options)
    made = client.responses.create(
        model=options.get("model", "claude"), input=options["prompt"], metadata={"team": "x"}
    )
    found = client.responses.retrieve(made.id)
    _response(found, seen)
    seen["same"] = made.output_text == found.output_text
    seen["metadata"] = found.metadata


def respond_stream(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    pieces = report.Pieces(seen)
    seen["events"], numbers = [], []
    for event in client_of(base, options).responses.create(
        model=options.get("model", "claude"), input=options["prompt"], stream=True
    ):
        numbers.append(event.sequence_number)
        if event.type not in seen["events"][-1:]:
            seen["events"].append(event.type)
        if event.type == "response.output_text.delta":
            pieces.add(event.delta)
        elif event.type in ("response.completed", "response.failed"):
            seen["usage"] = response_usage(event.response.usage)
            seen["final"] = event.response.output_text
            seen["status"] = event.response.status
            seen["failure"] = event.response.error and event.response.error.model_dump()
        elif event.type == "error":
            seen["failure"] = event.model_dump()
    seen["numbered"] = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    seen["first_number"] = numbers[0]


def respond_helper(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    with client_of(base, options).responses.stream(
        model=options.get("model", "claude"), input=options["prompt"]
    ) as events:
        heard = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        _response(events.get_final_response(), seen)
    seen["same"] = heard == seen["text"]


def respond_background(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    client = client_of(base, options)
    found = client.responses.create(model=options.get("model", "claude"), input=options["prompt"], background=True)
    seen["first_status"], seen["polls"] = found.status, 0
    while found.status in ("queued", "in_progress"):
        time.sleep(0.05)
        found = client.responses.retrieve(found.id)
        seen["polls"] += 1
    _response(found, seen)


def respond_resume(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    """Loses the stream of a background response after three pieces of text and takes it up where it was."""
    client = client_of(base, options)
    text, after, found_id = "", None, ""
    following = client.responses.create(
        model=options.get("model", "claude"), input=options["prompt"], background=True, stream=True
    )
    for event in following:
        after = event.sequence_number
        if event.type == "response.created":
            found_id = event.response.id
        if event.type == "response.output_text.delta":
            text += event.delta
            if text.count(" ") >= 3:
                break
    following.close()
    seen["before"], seen["events"] = text, []
    for event in client.responses.retrieve(found_id, stream=True, starting_after=after):
        seen["events"].append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
    seen["text"] = text


def respond_cancel(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    client = client_of(base, options)
    made = client.responses.create(model=options.get("model", "claude"), input=options["prompt"], background=True)
    seen["cancelled"] = client.responses.cancel(made.id).status
    found = made
    while found.status in ("queued", "in_progress"):
        time.sleep(0.05)
        found = client.responses.retrieve(made.id)
    seen["status"] = found.status
    seen["again"] = client.responses.cancel(made.id).status


def respond_delete(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    client = client_of(base, options)
    made = client.responses.create(model=options.get("model", "claude"), input=options["prompt"])
    client.responses.delete(made.id)
    client.responses.retrieve(made.id)


def respond_previous(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    client = client_of(base, options)
    first = client.responses.create(model="claude", input="My name is Ada. [[fake:say n=2]]", instructions=SYSTEM)
    second = client.responses.create(
        model=options.get("model", "claude"), input=options["prompt"], previous_response_id=first.id
    )
    _response(second, seen)
    seen["expected_previous"] = first.id


def respond_history(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    items = [*TURNS, {"role": "user", "content": [{"type": "input_text", "text": options["prompt"]}]}]
    made = client_of(base, options).responses.create(model="claude", input=items, instructions=SYSTEM, store=False)
    _response(made, seen)


report.run({name: made for name, made in globals().items() if callable(made) and not name.startswith("_")})
