"""The documentation holds together: every page is reached, every link leads somewhere, every module and alert has its words."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page):
    broken = []
    for link in LINK.findall(page.read_text()):
        place, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def test_the_figures_of_fuzzing_are_the_same_on_both_pages():
    row = re.compile(r"^\| [^|]+ \| ([\d,]+) \| (\d+) \| (\d+) \|$", re.MULTILINE)
    sums = []
    for page in ("fuzzing.md", "security.md"):
        found = [[int(cell.replace(",", "")) for cell in cells] for cells in row.findall((DOCS / page).read_text())]
        sums.append([sum(column) for column in zip(*found, strict=True)])

    assert sums[0] == sums[1]
    assert sums[0][0] > 5000


def test_the_index_names_every_page():
    text = (DOCS / "README.md").read_text()
    named = {(DOCS / link).resolve() for link in LINK.findall(text)}

    missing = [name_of(page) for page in DOCS.glob("*.md") if page not in named and page.name != "README.md"]

    assert missing == [], "docs/README.md lists every page"


def test_the_architecture_has_a_row_for_every_module():
    rows = re.findall(r"^\| `(.*?) \|", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    named = set()
    for row in rows:
        side = ""
        for name in re.findall(r"[\w/.]+(?:\.py|/)", row):
            side = name.split("/")[0] if "/" in name else side
            named.add(name if "/" in name else f"{side}/{name}")
    modules = [
        p for side in ("api", "worker", "shared") for p in (ROOT / side).rglob("*.py") if p.name != "__init__.py"
    ]

    folders = tuple(name for name in named if name.endswith("/"))
    missing = [name_of(p) for p in modules if name_of(p) not in named and not name_of(p).startswith(folders)]

    assert missing == [], "docs/architecture.md: add them to a row of its table"
    assert [name for name in named if not (ROOT / name).exists() and not (ROOT / "shared" / name).exists()] == []


def test_the_runbook_tells_of_every_alert_and_of_no_other():
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    told = re.findall(r"^### (.*)$", (DOCS / "runbook.md").read_text(), re.MULTILINE)

    assert sorted(told) == sorted(re.sub(r"(?<!^)(?=[A-Z])", "-", alert).lower() for alert in alerts)
