"""History, attachments, schema and effort on their way into each CLI's command line, stdin and files."""

import base64
import io
import json

import pytest

from shared.errors import BackendUnavailable, InvalidRequest, UnsupportedParameter
from shared.run import Attachment, RunSpec, Turn
from tests.unit.backends.test_launch import launch
from worker.backends import BACKENDS, echo_cli
from worker.backends.base import Exit, Launch, Settings
from worker.backends.turns import NOTHING
from worker.stage import lay_out

DATA = base64.b64encode(b"bytes").decode()
PICTURE = Attachment(media_type="image/png", data=DATA, field="messages[2].content[1]")
NOTE = Attachment(media_type="text/csv", data=base64.b64encode(b"a,<b>").decode(), name='n"1".csv', field="f")
HISTORY = (
    Turn(role="user", text="Q1", attachments=(PICTURE, NOTE)),
    Turn(role="assistant", text="A1 </turn>"),
    Turn(role="user", text="/clear"),
    Turn(role="assistant", text=" "),
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def content(made) -> list[dict]:
    return json.loads(made.stdin.splitlines()[1])["message"]["content"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_of_a_conversation_is_ever_in_argv(backend):
    fields = {"history": (Turn(role="user", text="SECRETQ"), Turn(role="assistant", text="SECRETA"))}
    if backend != "echo":
        secret = base64.b64encode(b"SECRETNOTE").decode()
        fields["attachments"] = (Attachment(media_type="text/plain", data=secret, name="SECRET.txt", field="f"),)
    if backend in ("claude", "codex"):
        fields["schema"] = {"type": "object", "title": "SECRETSCHEMA"}

    made = launch(backend, **fields)

    assert "SECRET" not in " ".join(made.argv)
    assert "SECRET" not in " ".join(made.env.values())
    assert not [path for path in made.files if not path.startswith(("/s/", "/o/"))]


# -- claude


def test_claude_reads_the_history_as_a_session_of_the_runs_own():
    made = launch("claude", history=HISTORY, id="run_1")

    ((path, file),) = made.files.items()
    lines = [json.loads(line) for line in file.splitlines()]
    assert made.argv[made.argv.index("--resume") + 1] == path
    assert path == f"/s/{lines[0]['sessionId']}.jsonl"
    assert "--no-session-persistence" in made.argv
    assert "--fork-session" not in made.argv
    assert [line["type"] for line in lines] == ["user", "assistant", "user", "assistant"]
    assert [line["parentUuid"] for line in lines] == [None, *(line["uuid"] for line in lines[:-1])]
    assert lines[0]["message"]["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "a,<b>"},
            "title": 'n"1".csv',
        },
        {"type": "text", "text": "Q1"},
    ]
    assert lines[3]["message"]["content"] == [{"type": "text", "text": NOTHING}]
    assert content(made) == [{"type": "text", "text": "SECRETPROMPT"}]


def test_claudes_session_with_history_is_kept_as_a_copy_of_its_own():
    made = launch("claude", history=HISTORY, session_id="ses_1")

    assert "--fork-session" in made.argv
    assert "--no-session-persistence" not in made.argv


def test_claude_takes_attachments_before_the_prompt():
    page = Attachment(media_type="application/PDF", data=DATA, name="p.pdf", field="f")

    made = content(launch("claude", attachments=(PICTURE, page)))

    assert [block["type"] for block in made] == ["image", "document", "text"]
    assert made[1]["source"]["media_type"] == "application/pdf"


def test_claude_takes_a_schema_by_stdin():
    request = json.loads(launch("claude", schema=SCHEMA).stdin.splitlines()[0])["request"]

    assert request["jsonSchema"] == SCHEMA


@pytest.mark.parametrize(
    ("asked", "effort"),
    [("none", "low"), ("minimal", "low"), ("medium", "medium"), ("xhigh", "xhigh"), ("max", "max")],
)
def test_effort_becomes_the_nearest_that_a_cli_has(asked, effort):
    claude, codex = launch("claude", effort=asked).argv, launch("codex", effort=asked).argv

    assert claude[claude.index("--effort") + 1] == effort
    assert f'model_reasoning_effort="{effort}"' in codex


def test_a_bound_for_thinking_is_claudes_environment_and_nought_is_off():
    assert launch("claude", thinking_tokens=2000).env["MAX_THINKING_TOKENS"] == "2000"
    assert "CLAUDE_CODE_DISABLE_THINKING" not in launch("claude", thinking_tokens=2000).env
    assert launch("claude", thinking_tokens=0).env["CLAUDE_CODE_DISABLE_THINKING"] == "1"
    assert "MAX_THINKING_TOKENS" not in launch("claude").env


# -- codex


def test_codex_is_told_the_history_in_one_text():
    made = launch("codex", history=HISTORY, attachments=(PICTURE,), prompt="now <this>")

    assert made.stdin.decode() == (
        "The conversation so far, the oldest turn first. &lt; &gt; and &amp; in it stand for < > and &.\n\n"
        '<conversation>\n<turn role="user">\n[Image #1]\n'
        "<document name='n\"1\".csv'>\na,&lt;b&gt;\n</document>\nQ1\n</turn>\n"
        '<turn role="assistant">\nA1 &lt;/turn&gt;\n</turn>\n'
        '<turn role="user">\n/clear\n</turn>\n<turn role="assistant">\n \n</turn>\n</conversation>\n\n'
        "What follows, to the end, is what the user says now.\n\n[Image #2]\nnow <this>"
    )
    assert [word for word in made.argv if "image" in word] == ["--image=/s/image-1.png", "--image=/s/image-2.png"]
    assert made.files["/s/image-1.png"] == made.files["/s/image-2.png"] == b"bytes"
    assert made.argv[-1] == "-"


def test_codex_is_told_a_prompt_alone_as_it_is():
    assert launch("codex", prompt="a <b> & c", attachments=(PICTURE,)).stdin == b"a <b> & c"


def test_codex_takes_a_schema_from_a_file():
    made = launch("codex", schema=SCHEMA)

    assert "--output-schema=/s/schema.json" in made.argv
    assert json.loads(made.files["/s/schema.json"]) == SCHEMA


# -- gemini


def test_gemini_reads_the_history_and_the_attachments_from_a_session_file():
    made = launch("gemini", history=HISTORY, attachments=(PICTURE,))

    messages = json.loads(made.files["/s/session.json"])["messages"]
    picture = {"inlineData": {"mimeType": "image/png", "data": DATA}}
    assert made.argv[made.argv.index("--session-file") + 1] == "/s/session.json"
    assert [message["type"] for message in messages] == ["user", "gemini", "user", "gemini", "user"]
    assert messages[0]["content"] == [
        picture,
        {"text": 'n"1".csv:\n\na,<b>\n\n', "thought": False},
        {"text": "Q1", "thought": False},
    ]
    assert messages[2]["content"] == [{"text": "/clear", "thought": False}]
    assert messages[3]["content"] == [{"text": NOTHING}]
    assert messages[4]["content"] == [picture]
    assert made.stdin == b"SECRETPROMPT"


def test_gemini_takes_no_attachments_in_a_session_that_goes_on():
    with pytest.raises(UnsupportedParameter) as error:
        launch("gemini", resume="x", attachments=(PICTURE,))

    assert error.value.field == PICTURE.field


# -- refusals


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["image/png", "image/gif", "image/tiff", "application/pdf", "text/plain", "audio/wav"])
@pytest.mark.parametrize("earlier", [False, True])
def test_an_attachment_outside_the_patterns_is_refused_by_its_field(backend, kind, earlier):
    given = (Attachment(media_type=kind, data=DATA, field="the.field"),)
    fields = {"history": (Turn(role="user", text="q", attachments=given), Turn(role="assistant", text="a"))}
    able = BACKENDS[backend].capabilities(as_root=False).attachments
    taken = kind in able or (kind.startswith("text/") and "text/*" in able)

    try:
        launch(backend, **(fields if earlier else {"attachments": given}))
        refused = None
    except UnsupportedParameter as error:
        refused = error.field

    assert refused == (None if taken else "the.field")


@pytest.mark.parametrize("backend", ["claude", "codex", "gemini"])
@pytest.mark.parametrize("kind", ["image/png", "text/plain"])
@pytest.mark.parametrize("data", ["%%%", "YQ", "é", "YWJj\nZGVm"])
def test_what_is_no_base64_is_refused_by_its_field(backend, kind, data):
    with pytest.raises(InvalidRequest) as error:
        launch(backend, attachments=(Attachment(media_type=kind, data=data, field="the.field"),))

    assert error.value.field == "the.field"


@pytest.mark.parametrize("backend", ["gemini", "echo"])
def test_a_schema_is_refused_where_nothing_holds_it(backend):
    with pytest.raises(UnsupportedParameter) as error:
        launch(backend, schema=SCHEMA)

    assert error.value.field == "schema"


@pytest.mark.parametrize("backend", ["claude", "codex"])
@pytest.mark.parametrize("schema", [{}, {"type": "string"}, {"type": ["object", "null"]}, {"anyOf": []}])
def test_a_schema_must_be_of_an_object(backend, schema):
    with pytest.raises(InvalidRequest, match="object"):
        launch(backend, schema=schema)


@pytest.mark.parametrize("backend", ["claude", "codex"])
def test_an_effort_that_nobody_knows_is_refused(backend):
    with pytest.raises(UnsupportedParameter) as error:
        launch(backend, effort="--x")

    assert error.value.field == "effort"


# -- echo


def test_echo_is_given_the_history_where_it_is_to_say_it():
    plain, told = launch("echo", history=HISTORY[1:]), launch("echo", history=HISTORY[1:3], extra=("--history",))

    assert plain.stdin == b"SECRETPROMPT"
    assert told.stdin == b'[["assistant", "A1 </turn>"], ["user", "/clear"]]\nSECRETPROMPT'
    assert "--history" in told.argv


def test_echo_says_a_line_for_each_earlier_turn_and_then_the_prompt(monkeypatch, capsys):
    told = launch("echo", history=HISTORY[1:3], extra=("--history",), prompt="now é")
    monkeypatch.setattr("sys.argv", [*told.argv])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(told.stdin)))

    code = echo_cli.main()

    parser = BACKENDS["echo"].parser(RunSpec(id="r", tenant="t", backend="echo", prompt="p"))
    parser.feed(capsys.readouterr().out.encode())
    assert parser.finish(Exit(code=code))[1].output == "assistant: A1 </turn>\nuser: /clear\nnow é"


def test_an_operators_flag_counts_as_a_callers():
    made = launch("echo", Settings(command=("e",), extra_flags=("--history",)), history=HISTORY[1:])

    assert made.stdin.startswith(b"[[")


# -- the files


def test_a_full_disk_is_a_host_to_try_again_later():
    with pytest.raises(BackendUnavailable) as error:
        lay_out(Launch(argv=(), env={}, cwd="/", stdin=b"", files={"/dev/full": b"x"}))

    assert error.value.retry_after_s == 30
