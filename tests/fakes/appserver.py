"""A codex that speaks as `codex app-server` does and misbehaves as it is told; with `exec` it prints one answer.

The prompt's first word says what a turn does (see `Turn.run`), the model what becomes of its thread, and FAKE_START in
the environment how it comes up. Standard library alone; started by its path, with a package.json beside it.
"""

import json
import os
import subprocess
import sys
import threading
import time

OUT = threading.Lock()
ASIDE = os.environ.get("HOME", "") + "/.codex/archived_sessions"


def aside(thread):
    return f"{ASIDE}/rollout-2026-{thread}.jsonl"


def say(message):
    data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
    with OUT:
        os.write(1, data) if len(data) < 4096 else sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


class Turn:
    def __init__(self, thread, policy, text):
        self.thread = thread
        self.policy = policy
        self.words = text.split(" ", 1)
        self.id = f"turn-{thread}"
        self.stopped = threading.Event()
        self.started = threading.Event()
        self.deaf = self.words[0] == "deaf"
        threading.Thread(target=self.run, daemon=True).start()

    def note(self, method, **params):
        say({"method": method, "params": {"threadId": self.thread, "turnId": self.id, **params}})

    def delta(self, text):
        self.note("item/agentMessage/delta", itemId="m", delta=text)

    def end(self, status, **more):
        total = {"inputTokens": 10, "outputTokens": 2, "cachedInputTokens": 1, "reasoningOutputTokens": 0}
        self.note("thread/tokenUsage/updated", tokenUsage={"total": total})
        self.note("turn/completed", turn={"id": self.id, "status": status, "error": None, **more})

    def refuses(self, turn):
        """An interrupt, as the CLI does: of a turn that is not under way, but for one that has no name."""
        return (turn or self.words[0] == "shy") and not self.started.is_set()

    def run(self):
        what, rest = self.words[0], self.words[-1]
        while what in ("shy", "coming") and not os.path.exists(rest) and not self.stopped.is_set():
            time.sleep(0.005)
        self.started.set()
        self.note("turn/started", turn={"id": self.id, "status": "inProgress"})
        print(f"{what}: too many requests", file=sys.stderr, flush=True)  # not of the run that ends badly later
        if what in ("hang", "deaf", "shy", "coming"):
            self.delta("begun ")
            self.stopped.wait(300)
            self.end("interrupted")
            return
        if what == "die":
            self.delta("begun ")
            while not os.path.exists(rest):
                time.sleep(0.005)
            os._exit(3)
        if what == "blurt":
            print(f"panicked at {rest}", file=sys.stderr, flush=True)
            os._exit(101)
        if what == "grow":
            self.held = b"x" * (int(rest) << 20)
            self.delta("grown ")
            self.stopped.wait(300)
            self.end("interrupted")
            return
        if what == "unauthorized":
            self.end("failed", error={"message": "who are you?", "codexErrorInfo": "unauthorized"})
            return
        if what == "nonsense":
            while True:
                say(b"this is no JSON\n" * 100)
        if what == "flood":
            while not self.stopped.is_set():
                self.delta("x" * 4000)
            if rest != what:
                open(rest, "w").close()
            self.end("interrupted")
            return
        if what == "foul":
            say(b'{"method":"item/started","params":{"threadId":"\xff\xfe"}}\n' * 3)
            say(
                b'{"id":9,"method":"item/tool/call","params":{"threadId":"' + self.thread.encode() + b'","x":"\xff"}}\n'
            )
            say(b'{"id":9,"method":"item/tool/call","params":{"threadId":"\xff"}}\n')
        if what == "noisy":
            for _ in range(12):
                say(b"this is no JSON\n" * 99)
                self.delta("n")
        if what == "stray":
            while True:
                say(b'{"method":"x","params":{"threadId":"nobody","text":"' + b"y" * 1_000_000 + b'"}}\n')
        if what == "line":
            while True:
                say(b"z" * 1_000_000)
        if what == "garbage":
            say(b'\n\xff\xfe not text\n{"half": \n[1,2]\n17\nnull\n' + b'{"method":5}\n' + b"[" * 100_000 + b"\n")
        if what in ("tool", "late"):
            env = {"PATH": "/usr/bin:/bin", **self.policy}
            item = {"type": "commandExecution", "id": "c", "command": rest}
            if what == "tool":
                self.note("item/started", item=item)
            child = subprocess.Popen(["/bin/sh", "-c", rest], env=env, stdout=subprocess.DEVNULL)
            if what == "late":
                child.wait()
                self.note("item/started", item=item)
            self.stopped.wait(300)
            self.end("interrupted")
            return
        text = f"{what} {os.getpid()} "
        self.delta(text)
        self.delta("warm")
        self.note("item/completed", item={"type": "agentMessage", "id": "m", "text": text + "warm"})
        self.end("completed")


def serve():
    start, _, arg = os.environ.get("FAKE_START", "").partition(":")
    if start == "exit":
        sys.exit("this cannot start")
    if start == "slow":
        while not os.path.exists(arg):
            time.sleep(0.01)
    threads, turns, count = {}, {}, 0
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        if "method" not in asked:
            continue
        method, params, number = asked["method"], asked.get("params") or {}, asked.get("id")
        thread = params.get("threadId")
        result = {}
        if method == "initialize" and start == "refuse":
            say({"id": number, "error": {"code": -1, "message": "not today"}})
            continue
        if method in ("thread/start", "thread/resume"):
            if params.get("model") == "mute":
                continue
            if params.get("model") == "odd":
                say({"id": number, "result": {"thread": 5}})
                continue
            if params.get("model") == "foul":
                say(b'{"id":%d,"result":{"thread":{"id":"\xff"}}}\n' % number)
                continue
            if params.get("model") == "refused":
                say({"id": number, "error": {"code": -32600, "message": f"no such model for {params}"}})
                continue
            count += 1
            thread = thread or f"thread{os.getpid()}-{count}"
            prefix = "shell_environment_policy.set."
            config = params.get("config") or {}
            threads[thread] = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
            result = {"thread": {"id": thread}}
        if method == "turn/start":
            text = params["input"][-1]["text"]
            if text == "refuse":
                say({"id": number, "error": {"code": -32600, "message": "it will not"}})
                continue
            say({"id": number, "result": {"turn": {"id": f"turn-{thread}"}}})
            turns[thread] = Turn(thread, threads[thread], text)
            continue
        if method == "thread/archive" and (thread not in turns or os.path.exists(__file__ + ".archives")):
            say({"id": number, "error": {"code": -32600, "message": f"no rollout found for thread id {thread}"}})
            continue
        if method == "thread/archive":
            os.makedirs(ASIDE, exist_ok=True)
            open(aside(thread), "w").close()
            if os.path.exists(__file__ + ".dies"):
                os._exit(1)
        if method == "thread/unarchive" or (method == "thread/resume" and os.path.exists(aside(thread))):
            if method == "thread/resume" or not os.path.exists(aside(thread)):
                say({"id": number, "error": {"code": -32600, "message": f"session {thread} is archived or not"}})
                continue
            os.unlink(aside(thread))
        if method == "turn/interrupt":
            if turns[thread].deaf:
                continue
            if turns[thread].refuses(params["turnId"]):
                say({"id": number, "error": {"code": -32600, "message": "no active turn to interrupt"}})
                continue
            turns[thread].stopped.set()
        if number is not None:
            say({"id": number, "result": result})


def answer():
    if "resume" in sys.argv and os.path.exists(aside(sys.argv[-2])):
        sys.exit("this session is archived")
    print(json.dumps({"type": "thread.started", "thread_id": "t"}))
    sys.stdin.read()
    print(json.dumps({"type": "item.completed", "item": {"id": "i", "type": "agent_message", "text": "cold"}}))
    print(json.dumps({"type": "turn.completed", "usage": {"input_tokens": 10, "output_tokens": 2}}))


if __name__ == "__main__":
    if "unarchive" in sys.argv:
        os.unlink(aside(sys.argv[-1]))
    else:
        serve() if "app-server" in sys.argv else answer()
