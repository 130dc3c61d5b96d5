"""A stub CLI that says a word every 50 ms: `ticker.py WORDS`, with the time at which it was said."""

import json
import sys
import time

sys.stdin.buffer.read()
print(json.dumps({"type": "init"}), flush=True)
for _ in range(int(sys.argv[1])):
    time.sleep(0.05)
    print(json.dumps({"type": "text", "text": f"{time.time():.6f} "}), flush=True)
print(json.dumps({"type": "result", "input_tokens": 1, "output_tokens": 1}), flush=True)
