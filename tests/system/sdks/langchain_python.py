"""langchain-openai and langchain-anthropic."""

from typing import Any

import pydantic
import seen as report
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

TURNS = [
    SystemMessage("You are a TEAPOT."),
    HumanMessage("My name is Ada."),
    AIMessage("Hello Ada."),
    HumanMessage("And I live in Kraków."),
    AIMessage("A fine town."),
]


def model_of(base: str, options: dict[str, str]) -> Any:
    more: dict[str, Any] = {}
    if "timeout" in options:
        more["timeout"] = float(options["timeout"])
    if "retries" in options:
        more["max_retries"] = int(options["retries"])
    name = options.get("model", "claude")
    if options["dialect"] == "anthropic":
        return ChatAnthropic(base_url=base + "/anthropic", api_key="not-needed", model=name, **more)
    more["use_responses_api"] = options["dialect"] == "responses"
    more["stream_usage"] = True  # with a base URL of one's own it does not ask for it by itself
    return ChatOpenAI(base_url=base + "/openai/v1", api_key="not-needed", model=name, **more)


def usage_of(usage: Any) -> dict[str, Any] | None:
    if usage is None:
        return None
    cached = (usage.get("input_token_details") or {}).get("cache_read")
    return {"input": usage["input_tokens"], "output": usage["output_tokens"], "cached": cached}


def _answered(found: Any, seen: dict[str, Any]) -> None:
    told = found.response_metadata
    finish = told.get("finish_reason") or told.get("stop_reason") or told.get("status")
    seen.update(text=found.text, finish=finish, usage=usage_of(found.usage_metadata))


def answer(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    _answered(model_of(base, options).invoke(options["prompt"]), seen)


def history(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    _answered(model_of(base, options).invoke([*TURNS, HumanMessage(options["prompt"])]), seen)


def stream(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    pieces = report.Pieces(seen)
    whole = None
    for chunk in model_of(base, options).stream(options["prompt"]):
        if chunk.text:
            pieces.add(chunk.text)
        whole = chunk if whole is None else whole + chunk
    heard = seen["text"]
    _answered(whole, seen)
    seen["same"] = heard == seen["text"]


def hangup(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    following = model_of(base, options).stream(options["prompt"])
    for chunk in following:
        if chunk.text:
            seen["text"] = chunk.text
            break
    following.close()


def refused(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    tool = {"name": "clock", "description": "tells the time", "parameters": {"type": "object", "properties": {}}}
    model_of(base, options).bind_tools([tool], tool_choice="any").invoke(options["prompt"])


def schema(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    class City(pydantic.BaseModel):
        name: str
        population: int

    asking = model_of(base, options).with_structured_output(City, method="json_schema")
    seen["text"] = asking.invoke(options["prompt"]).name


report.run({name: made for name, made in globals().items() if callable(made) and not name.startswith("_")})
