"""A gemini that speaks as `gemini --acp` does and misbehaves as it is told; without --acp it prints one answer.

The prompt's first word says what a turn does (see `turn`), the model what becomes of its session; FAKE_START in the
environment names a method that is not answered (mute:METHOD) or refused as a login is (login:METHOD). Standard library
alone; started by its path, with a package.json beside it.
"""

import json
import os
import sys
import threading

OUT = threading.Lock()


def say(**message):
    with OUT:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


class Session:
    def __init__(self, id):
        self.id = id
        self.stopped = threading.Event()
        self.told = threading.Event()
        self.answers = {}

    def update(self, **update):
        say(method="session/update", params={"sessionId": self.id, "update": update})

    def text(self, text, kind="agent_message_chunk"):
        self.update(sessionUpdate=kind, content={"type": "text", "text": text})

    def ask(self, method, **params):
        """The answer of whoever drives it."""
        number = f"{self.id}/{method}"
        say(id=number, method=method, params={"sessionId": self.id, **params})
        self.told.wait(30)
        self.told.clear()
        return self.answers[number]

    def turn(self, number, text):
        what, _, rest = text.partition(" ")
        if what == "hang":
            self.text("begun ")
            self.stopped.wait(300)
            say(id=number, result={"stopReason": "cancelled"})
            return
        if what == "login":
            say(id=number, error={"code": 401, "message": "log in first"})
            return
        if what == "permit":
            call = {"toolCallId": "write_file__write_file_1_0", "title": "Writing to a.txt", "kind": "edit"}
            options = [{"optionId": option} for option in rest.split()]
            text = json.dumps(self.ask("session/request_permission", toolCall=call, options=options)["result"])
        elif what == "odd":
            text = json.dumps(self.ask("fs/read_text_file", path="/etc/passwd")["error"]["code"])
        else:
            text = f"{what} {os.getpid()} warm"
        self.text(text)
        count = {"input_tokens": 10, "output_tokens": 2}
        say(id=number, result={"stopReason": "end_turn", "_meta": {"quota": {"token_count": count}}})


def serve():
    start, _, about = os.environ.get("FAKE_START", "").partition(":")
    sessions = {}
    for line in sys.stdin:
        asked = json.loads(line)
        method, params, number = asked.get("method"), asked.get("params") or {}, asked.get("id")
        session = sessions.get(params.get("sessionId"))
        if method is None:  # an answer: its id begins with the session's
            session = sessions[number.partition("/")[0]]
            session.answers[number] = asked
            session.told.set()
        elif method == about:
            if start == "login":
                say(id=number, error={"code": -32000, "message": "Authentication required"})
        elif method == "initialize":
            say(id=number, result={"protocolVersion": 2 if start == "version" else 1})
        elif method == "session/new":
            id = f"session{os.getpid()}-{len(sessions)}"
            sessions[id] = Session(id)
            say(id=number, result={"sessionId": id})
        elif method == "session/load":
            id = params["sessionId"]
            sessions[id] = Session(id)
            say(id=number, result={})
            if start != "silent":
                for kind in ("user_message_chunk", "agent_message_chunk"):
                    sessions[id].text("earlier", kind)
        elif method == "session/set_model" and params["modelId"] == "mute":
            pass
        elif method == "session/set_model" and params["modelId"] == "refused":
            say(id=number, error={"code": -32603, "message": "no such model"})
        elif method == "session/prompt":
            text = params["prompt"][-1]["text"]
            threading.Thread(target=session.turn, args=(number, text), daemon=True).start()
        elif method == "session/cancel":
            session.stopped.set()
        else:
            say(id=number, result={})


def answer():
    sys.stdin.read()
    print(json.dumps({"type": "init", "session_id": "s", "model": "m"}))
    print(json.dumps({"type": "message", "role": "assistant", "content": "cold", "delta": True}))
    print(json.dumps({"type": "result", "status": "success", "stats": {"input_tokens": 10, "output_tokens": 2}}))


if __name__ == "__main__":
    serve() if "--acp" in sys.argv else answer()
