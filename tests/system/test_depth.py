"""A queue that is full, as its callers see it: each tenant has a share, and is told when to come again."""

import httpx
import pytest

from tests.system.service import serving, until

pytestmark = pytest.mark.processes


def test_a_tenant_with_a_full_share_is_told_when_to_come_again_and_the_others_are_served():
    more = {"CLINVK_API_KEYS": "key-of-a,key-of-b", "CLINVK_QUEUE__MAX_DEPTH": "8", "CLINVK_WORKER__CONCURRENCY": "1"}
    with serving(**more) as service:
        base = service.apis[0][1]
        key = {"prefer": "respond-async", "authorization": "Bearer key-of-a"}

        def ask(name: str = "key-of-a", path: str = "prompt", **body: object) -> httpx.Response:
            headers = {**key, "authorization": f"Bearer {name}"}
            return httpx.post(f"{base}/api/v1/{path}", json=body, headers=headers, timeout=30)

        prompt = {"backend": "echo", "prompt": "x", "extra": ["--hang"], "ephemeral": True}
        taken = [ask(**prompt) for _ in range(4)]  # two in the window, and a quarter of eight that wait
        full = ask(**prompt)
        wide = ask(path="parallel", tasks=[prompt] * 5, max_parallel=5)
        other = ask("key-of-b", **prompt)

        assert [answer.status_code for answer in taken] == [202] * 4
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert "max_depth_per_tenant" in full.json()["detail"]
        assert 1 <= int(full.headers["retry-after"]) <= 300
        assert (wide.status_code, wide.json()["error"]["details"]["field"]) == (400, "max_parallel")
        assert other.status_code == 202
        httpx.delete(f"{base}/api/v1/runs/{taken[0].json()['id']}", headers=key)
        until(lambda: ask(**prompt).status_code == 202)
