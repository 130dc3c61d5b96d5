"""Every name in Redis, as a table; a new name is added here or nowhere.

All names begin with `clinvk:` but for the Celery queues (lists named after a backend, or `backend@host`) and what
kombu keeps beside them (`_kombu.binding.*`).

| name                      | type   | holds                                                               | lives               |
|---------------------------|--------|---------------------------------------------------------------------|---------------------|
| clinvk:run:{id}           | hash   | the run: spec, status, times, attempt, sequence, cancel, outcome    | retention after end |
| clinvk:events:{id}        | stream | its events; entry id 0-{sequence}, field e                          | retention after end |
| clinvk:followers:{id}     | set    | API processes that follow it                                        | until its end       |
| clinvk:runs:{tenant}      | zset   | run ids of a tenant by creation time                                | retention           |
| clinvk:waiting            | zset   | waiting runs by creation time (ms)                                  | always              |
| clinvk:queued             | zset   | queued runs by the time of their last hint (ms)                     | always              |
| clinvk:running            | zset   | running runs by the end of their lease (ms)                         | always              |
| clinvk:unfollowed         | zset   | attached runs that nobody follows, by since when (ms)               | always              |
| clinvk:line:{queue}|{tenant} | zset | a tenant's waiting runs for a queue, by priority and arrival       | while not empty     |
| clinvk:turns:{queue}      | zset   | tenants with a line for a queue, by their last turn                 | while not empty     |
| clinvk:turn               | string | counter of turns and arrivals                                       | always              |
| clinvk:held:queue:{queue} | set    | runs queued or running there: the backend's window                  | while not empty     |
| clinvk:held:tenant:{t}    | set    | runs queued or running of a tenant: its window                      | while not empty     |
| clinvk:slots:{queue}      | hash   | instance -> slots it gives to that queue                            | while offered       |
| clinvk:room:{queue}       | string | size of the backend's window: what the fleet carries, a little more | while offered       |
| clinvk:limits             | hash   | tenant, or key with a window of its own -> its size; absent: none   | always              |
| clinvk:tenants            | zset   | tenants by their last run (ms)                                      | as long as anything of them |
| clinvk:usage:{day}        | set    | tenants with runs that ended on that day (days since 1970)          | usage retention     |
| clinvk:usage:{day}:{tenant} | hash | measure|key|backend|model -> runs, tokens, cost, time of that day   | usage retention     |
| clinvk:instances          | zset   | worker instances by the end of their announcement (ms)              | always              |
| clinvk:instance:{id}      | string | an `Instance` as JSON                                               | its announcement    |
| clinvk:apis               | zset   | API processes by the end of their lease (ms)                        | always              |
| clinvk:api:{id}:runs      | set    | runs that an API process follows                                    | its lease           |
| clinvk:session:{id}       | hash   | a session: host, backend, the CLI's own id, directory               | session retention   |
| clinvk:swept              | string | when the last sweep was (ms)                                        | always              |
| clinvk:hold               | string | no lease is judged before this (ms): Redis or the sweepers were away | a lease            |
| clinvk:queues             | set    | Celery queues that some instance offers                             | while offered       |
| clinvk:impatient          | zset   | unstarted runs by the end of their caller's patience (ms)           | until their start   |
| clinvk:same:{hash}        | hash, list | the run, or runs, that the same request has started             | 24 h; 1 h           |
| clinvk:run:{flow}         | hash   | a flow: flow, status, sequence, ends; followed as a run is          | retention after end |
| clinvk:group:{flow or session} | hash | its window, its host, those it has left, why it takes no more runs | its own             |
| clinvk:line:group:{id}, clinvk:held:group:{id} | list, set | its runs that wait for its window, and those in it | while not empty |
| clinvk:closed:{flow}      | hash   | lane -> failure, of lanes that got no run                           | retention after end |
| clinvk:flows:{tenant}     | zset   | flow ids of a tenant by creation time                               | retention           |
| clinvk:grouped            | zset   | runs that wait for their flow's or session's own window             | always              |
| clinvk:left               | string | counter of runs that have left a line                               | always              |
| clinvk:pace               | hash   | how many do so in a second, as the sweep sees it                    | always              |
| clinvk:bound              | hash   | queue of one host -> runs that wait for it                          | while not empty     |
| clinvk:stranded           | hash   | such a queue that nobody takes from -> since when (ms)              | a minute longer     |
| clinvk:due                | zset   | flows that are to be carried on, by since when (ms)                 | until carried on    |
| clinvk:sessions           | zset   | all sessions by last use (ms)                                       | while not empty     |
| clinvk:sessions:{tenant}, ...|{backend}|{status} | zset | the same of a tenant, by backend and status      | while not empty     |
| clinvk:sessionids:{tenant} | zset  | the same by id, for prefixes                                        | while not empty     |
| clinvk:drained            | set    | hosts that an operator has taken out of service                     | until undrained     |
| clinvk:rate:{who}         | hash   | a caller's token bucket                                             | until it is full    |
| clinvk:audit              | stream | who did what to whose, as JSON in the field e                       | audit retention     |
| clinvk:totals             | hash   | what `/metrics` counts: ends, waits, durations, tokens, requests    | always              |
| clinvk:vitals:{api}       | string | what an API process uses: `Vitals` as JSON                          | 10 s                |
| clinvk:chores:{host}      | list   | what a host is to remove of deleted sessions                        | session retention   |

Channels: `clinvk:live:{api}` carries events to an API process, `clinvk:orders:{instance}` orders to a worker.
"""

PREFIX = "clinvk:"

WAITING = "clinvk:waiting"
QUEUED = "clinvk:queued"
QUEUES = "clinvk:queues"  # those that some instance offers
RUNNING = "clinvk:running"
UNFOLLOWED = "clinvk:unfollowed"
IMPATIENT = "clinvk:impatient"
DUE = "clinvk:due"
GROUPED = "clinvk:grouped"
LEFT = "clinvk:left"
PACE = "clinvk:pace"
BOUND = "clinvk:bound"
STRANDED = "clinvk:stranded"
DRAINED = "clinvk:drained"
TOTALS = "clinvk:totals"
SESSIONS = "clinvk:sessions"
TURN = "clinvk:turn"
TENANTS = "clinvk:tenants"
AUDIT = "clinvk:audit"
LIMITS = "clinvk:limits"
INSTANCES = "clinvk:instances"
APIS = "clinvk:apis"
SWEPT = "clinvk:swept"
HOLD = "clinvk:hold"


TASK = "clinvk.run"  # the one Celery task; its id is the run's id
EXCHANGE = "clinvk"


def run(id: str) -> str:
    return "clinvk:run:" + id


def events(id: str) -> str:
    return "clinvk:events:" + id


def runs(tenant: str) -> str:
    return "clinvk:runs:" + tenant


def instance(id: str) -> str:
    return "clinvk:instance:" + id


def session(id: str) -> str:
    return "clinvk:session:" + id


def sessions(tenant: str, backend: str = "", status: str = "") -> str:
    return f"clinvk:sessions:{tenant}" + (f"|{backend}|{status}" if backend or status else "")


def session_ids(tenant: str) -> str:
    return "clinvk:sessionids:" + tenant


def flows(tenant: str) -> str:
    return "clinvk:flows:" + tenant


def group(id: str) -> str:
    return "clinvk:group:" + id


def closed(flow_id: str) -> str:
    return "clinvk:closed:" + flow_id


def rate(who: str) -> str:
    return "clinvk:rate:" + who


def chores(host: str) -> str:
    return "clinvk:chores:" + host


def vitals(api: str) -> str:
    return "clinvk:vitals:" + api


def live(api: str) -> str:
    return "clinvk:live:" + api


def orders(instance: str) -> str:
    return "clinvk:orders:" + instance


def queue(backend: str, host: str | None = None) -> str:
    """The Celery queue for a backend on any host, or on one; on "", which no host is called, nobody takes runs."""
    return backend if host is None else f"{backend}@{host}"


def usage_tenants(day: int) -> str:
    return f"clinvk:usage:{day}"


def usage(day: int, tenant: str) -> str:
    return f"clinvk:usage:{day}:{tenant}"
