"""Runs carried out by CLIs that are kept running: the pool, what lives in it, and a driver for each backend.

How another backend plugs in:

- `worker/backends/NAME_*.py`, pure: what is sent for a run, the parser of what comes, and which runs it cannot carry.
- `worker/warm/NAME.py`: a `Driver` (driver.py). It says how its process is started and greeted, and makes a `Course` of
  a run on it. JSON-RPC by lines is there (rpc.py); a CLI with another protocol brings a `Wire` of its own (wire.py).
- the driver is added to `create_drivers` (drivers.py).

The pool does the rest: when to start, which to take, when to end; it asks the driver nothing else.
"""
