"""llm, Simon Willison's command line tool, through its Python API and its own configuration file."""

import os
import pathlib
import tempfile
from typing import Any

import llm
import seen as report

folder = tempfile.TemporaryDirectory(prefix="clinvk-llm-")
os.environ["LLM_USER_PATH"] = folder.name


def model_of(base: str, options: dict[str, str]) -> Any:
    lines = ["- model_id: clinvk", f"  model_name: {options.get('model', 'claude')}"]
    lines += [f"  api_base: {base}/openai/v1", "  api_key_name: clinvk", ""]
    pathlib.Path(folder.name, "extra-openai-models.yaml").write_text("\n".join(lines))
    model = llm.get_model("clinvk")
    model.key = "not-needed"
    return model


def _answered(found: Any, seen: dict[str, Any]) -> None:
    usage = found.usage()
    cached = ((usage.details or {}).get("prompt_tokens_details") or {}).get("cached_tokens")
    seen.update(text=found.text(), usage={"input": usage.input, "output": usage.output, "cached": cached})


def answer(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    _answered(model_of(base, options).prompt(options["prompt"], stream=False), seen)


def stream(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    pieces = report.Pieces(seen)
    found = model_of(base, options).prompt(options["prompt"])
    for text in found:
        pieces.add(text)
    heard = seen["text"]
    _answered(found, seen)
    seen["same"] = heard == seen["text"]


def history(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    """It has no way to give a made-up history: the turns are held."""
    talk = model_of(base, options).conversation()
    talk.prompt("My name is Ada. [[fake:say n=2]]", system="You are a TEAPOT.").text()
    talk.prompt("And I live in Kraków. [[fake:say n=3]]").text()
    _answered(talk.prompt(options["prompt"]), seen)


def hangup(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    for text in model_of(base, options).prompt(options["prompt"]):
        if text:
            seen["text"] = text
            break
    os.closerange(3, 256)  # it has no way to close a stream: the program ends


report.run({name: made for name, made in globals().items() if callable(made) and not name.startswith("_")})
