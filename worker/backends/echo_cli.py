"""The echo CLI: says its prompt back word by word, as JSON lines. Standard library alone, started with -I -S."""

import json
import re
import sys
import time


def say(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> int:
    options = {}
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        options[name] = value
    turns = json.loads(sys.stdin.buffer.readline()) if "--history" in options else []
    prompt = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    delay_s = float(options.get("--delay-ms", "0")) / 1000
    code = int(options.get("--exit-code", "0"))
    say(type="init", model="echo-1")
    if "--think" in options:
        say(type="thinking", text="The prompt is to be said back. ")
    for role, text in turns:
        say(type="text", text=f"{role}: {text}\n")
    words = re.findall(r"\S+\s*|\s+", prompt)
    for word in words:
        if delay_s:
            time.sleep(delay_s)
        say(type="text", text=word)
    if "--hang" in options:
        while True:
            time.sleep(3600)
    if code:
        sys.stderr.write("echo was told to fail\n")
        return code
    say(type="result", input_tokens=len(words), output_tokens=len(words))
    return 0


if __name__ == "__main__":
    sys.exit(main())
