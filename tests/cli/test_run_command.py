"""``praval run``: a team as a service, from its ready line to its exit code."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from cli_brokers import Broker
from commands import Running, praval, wait_until, write_module

from tests.servers import free_port

WORKER = """
@agent("worker", responds_to=["work"], concurrent=True)
async def worker(spore):
    say("begun", spore.knowledge["n"])
    await asyncio.sleep(spore.knowledge["seconds"])
    say("handled", spore.knowledge["n"])
    return {"n": spore.knowledge["n"]}
"""
PATIENT = """
@agent("worker", responds_to=["work"], concurrent=True)
async def worker(spore):
    say("begun", spore.knowledge["n"])
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
"""
STARTS_ITSELF = """
@worker.on_start
async def first(reef):
    for n in range(3):
        loop = asyncio.get_running_loop()
        work = {"type": "work", "n": n, "seconds": float(os.environ["SECONDS"])}
        loop.call_soon(lambda work=work: tasks.append(loop.create_task(reef.broadcast(work))))

tasks = []
"""


def work(n: int, seconds: float) -> str:
    return f'{{"type": "work", "n": {n}, "seconds": {seconds}}}'


# -- what it runs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("team", "editor, worker on the local bus"),
        ("team:reef", "namespace desk"),
        ("team:one", "ready: worker on"),
        ("team:both", "ready: editor, worker on"),
        ("team:made", "ready: editor on"),
        ("team:awaited", "ready: worker on"),
        ("team.py", "namespace desk"),
        ("team.py:both", "ready: editor, worker on"),
        ("inner/deep.py:one", "ready: deep on"),
        ("inner.deep:one", "ready: deep on"),
    ],
)
def test_it_runs_reefs_agents_lists_and_functions(tmp_path: Path, target: str, says: str) -> None:
    """From modules and files; one line tells who is at work, where, and under which pid."""
    write_module(
        tmp_path,
        WORKER
        + """
@agent("editor")
async def editor(spore):
    pass

reef = Reef(worker, editor, namespace="desk")
one = worker
both = [worker, editor]

def made():
    return (editor,)

async def awaited():
    await asyncio.sleep(0)
    return Reef(worker)
""",
    )
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "beside.py").write_text("name = 'deep'\n")
    module = "from {} import name\none = agent(name)(lambda spore: None)\n"
    module = module.format("beside" if target.endswith(".py:one") else "inner.beside")
    write_module(tmp_path / "inner", module, "deep")
    with Running("run", target) as service:
        line = service.until("ready")
        service.signal(signal.SIGTERM)
        ended = service.end()
    assert says in line
    assert f"pid {service.process.pid}" in line
    assert ended.code == 0, ended.errors
    assert ended.output.endswith("ledger: 0 deliveries: none (balanced)\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tema"], "no module 'tema' in"),
        (["tema"], 'Did you mean "team"?'),
        (["team.deeper"], "no module 'team.deeper'"),
        (["tema.py"], "There is no file"),
        (["team:"], "is no target"),
        (["te am"], "is no target"),
        (["team:raef"], "no attribute 'raef'. Did you mean \"reef\"?"),
        (["team:number"], "must be a Reef, an agent"),
        (["team:nobody"], "without agents"),
        (["team:mixed"], "must be a Reef, an agent"),
        (["team:wants"], "cannot be called without arguments"),
        (["team:twice"], "worker"),
        (["broken"], "No module named 'nosuch'"),
        (["broken"], "broken cannot be imported"),
        (["wrong"], "SyntaxError"),
        (["refused"], "Unknown provider"),
        (["team", "--namespace", "other"], "says otherwise than --namespace"),
        (["team", "--journal"], "says otherwise than --journal"),
        (["team", "--journal-at", "x.sqlite"], "says otherwise than --journal"),
        (["team", "--transport", "rediss://u:sesame@other"], "says otherwise than --transport"),
        (["team:own", "--drain", "3"], "says otherwise than --drain"),
        (["team:own", "--namespace", "x", "--drain", "3"], "--namespace, --drain"),
        (["team:one", "--transport", "http://u:sesame@x"], "begins with one of"),
        (["team:one", "--transport", "amqps://u:sesame@[x"], "cannot be read"),
        (["team:one", "--transport", "amqp://u:sesame@x"], "no TLS"),
        (["team:one", "--transport", "rediss://u:sesame@x?nosuch=1"], "Unknown key 'nosuch'"),
        (["team:one", "--transport", "rediss://u:sesame@x?ca_cert=no.pem"], "no.pem"),
        (["team:one", "--drain", "0"], "--drain"),
        (["team:one", "--log-level", "loud"], "loud"),
        ([], "MODULE:ATTRIBUTE"),
    ],
)
def test_what_cannot_be_run_is_told_with_exit_code_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    """In a sentence without secrets; a traceback only of the team's own code."""
    write_module(
        tmp_path,
        WORKER
        + """
from praval.settings import ReefSettings, Settings

reef = Reef(worker, transport="local://here", namespace="desk", journal=False)
own = Reef(worker, settings=Settings(reef_config=ReefSettings(drain_timeout=5)))
number, nobody, mixed, one = 3, [], [worker, 3], worker
twice = [worker, agent("worker")(lambda spore: None)]

def wants(argument):
    return worker
""",
    )
    write_module(tmp_path, "import nosuch\n", "broken")
    write_module(tmp_path, "x = (\n", "wrong")
    refused = "from praval.plugins import load\nload('provider', 'x', {}, group='praval.none')\n"
    write_module(tmp_path, refused, "refused")
    ended = praval("run", *arguments)
    assert ended.code == 2, ended
    assert message in " ".join(ended.errors.split()).replace("│ ", "")
    assert "praval/cli" not in ended.errors
    assert "sesame" not in ended.errors
    assert not ended.output


def test_options_are_for_what_the_target_leaves_open(redis: Broker, tmp_path: Path) -> None:
    """A Reef without a transport of its own takes the one of the command line; so do lists."""
    write_module(tmp_path, WORKER + 'reef = Reef(worker, namespace="x")\nteam = [worker]\n')
    where = f"ready: worker on redis at localhost:{redis.server.port}"
    options = ["--transport", redis.url, "--journal", "--drain", "7"]
    for target, namespace in (("team", "x"), ("team:team", "y")):
        with Running("run", target, *options, "--namespace", namespace) as service:
            line = service.until("ready")
            service.signal(signal.SIGINT)
            assert service.end().code == 0
        assert line.startswith(f"{where}; namespace {namespace}, ")
        assert (tmp_path / "home" / "praval" / "journals" / f"{namespace}.sqlite").exists()


# -- how it ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_work_in_flight_finish(broker: Broker, tmp_path: Path, number: int) -> None:
    """It says good-bye and takes nothing more in; what has begun is handled; the exit code is 0."""
    write_module(tmp_path, PATIENT)
    with Running("run", "team:worker", *broker.options) as service:
        service.until("ready")
        for n in range(2):
            assert praval("send", work(n, 0), *broker.options).code == 0
            service.until(f"begun {n}")
        service.signal(number)
        nobody = f"No host of namespace {broker.namespace!r} answered.\n"
        ask = ["agents", "--wait", 0.3, *broker.options]
        wait_until(lambda: praval(*ask).output == nobody, "it said good-bye")
        assert praval("send", work(2, 0), *broker.options).code == 0, "its group goes on to collect"
        (tmp_path / "go").touch()
        ended = service.end()
    assert ended.code == 0, ended.errors
    assert ended.output.splitlines()[-1] == "ledger: 2 deliveries: 2 handled (balanced)"
    with Running("run", "team:worker", *broker.options) as service:
        service.until("ready")
        service.shows("begun 2")
        service.signal(number)
        assert service.end().code == 0


def test_what_does_not_finish_goes_back_to_the_broker(broker: Broker, tmp_path: Path) -> None:
    """Nothing is lost, so the exit code is 0, and the next start handles it."""
    write_module(tmp_path, WORKER)
    with Running("run", "team:worker", "--drain", "0.1", *broker.options) as service:
        service.until("ready")
        assert praval("send", work(1, 3), *broker.options).code == 0
        service.until("begun 1")
        service.signal(signal.SIGTERM)
        ended = service.end()
    assert ended.code == 0, ended.errors
    assert "handled 1" not in ended.output
    assert "1 cancelled (balanced)" in ended.output
    with Running("run", "team:worker", *broker.options) as service:
        service.until("handled 1")
        service.signal(signal.SIGTERM)
        assert service.end().code == 0


def test_what_is_lost_makes_the_exit_code_1(tmp_path: Path) -> None:
    """Without a broker and without a journal nobody else has it."""
    write_module(tmp_path, WORKER + STARTS_ITSELF)
    with Running("run", "team:worker", "--drain", "0.1", SECONDS="1000") as service:
        service.until("begun 2")
        service.signal(signal.SIGTERM)
        ended = service.end()
    assert ended.code == 1
    assert "3 deliveries were lost" in ended.errors
    assert "3 cancelled (balanced)" in ended.output


def test_with_a_journal_nothing_is_lost(tmp_path: Path) -> None:
    """It is pending, and handled after the next start."""
    write_module(
        tmp_path, WORKER + STARTS_ITSELF.replace("range(3)", 'range(int(os.environ["N"]))')
    )
    command = ["run", "team:worker", "--drain", "0.1", "--journal-at", "here.sqlite"]
    with Running(*command, SECONDS="3", N="3") as service:
        service.until("begun 2")
        service.signal(signal.SIGTERM)
        ended = service.end()
    assert ended.code == 0, ended.errors
    assert "3 pending (balanced)" in ended.output
    with Running(*command, "--drain", "30", SECONDS="0", N="0") as service:
        for _ in range(3):
            service.until("handled")
        service.signal(signal.SIGTERM)
        ended = service.end()
    assert ended.code == 0, ended.errors
    assert "3 handled (balanced)" in ended.output


@pytest.mark.parametrize("kind", ["async def", "def", "to_thread"])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, kind: str) -> None:
    """Even if a handler sits in a thread that nobody can end."""
    body = {
        "async def": "await asyncio.sleep(1000)",
        "def": "time.sleep(1000)",
        "to_thread": "await asyncio.to_thread(time.sleep, 1000)",
    }[kind]
    write_module(
        tmp_path,
        f"""
@agent("stuck")
{"def" if kind == "def" else "async def"} stuck(spore):
    say("begun")
    {body}

@stuck.on_start
async def first(reef):
    global task
    task = asyncio.create_task(reef.broadcast({{}}))
""",
    )
    with Running("run", "team:stuck", "--drain", "1000") as service:
        service.until("begun")
        service.signal(signal.SIGTERM)
        service.signal(signal.SIGINT)
        ended = service.end()
    assert ended.code == 1
    assert "1 deliveries were lost" in ended.errors
    assert "Traceback" not in ended.errors


@pytest.mark.parametrize("phase", ["importing", "calling", "awaiting", "starting"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_it_is_ready_ends_it_at_once(
    tmp_path: Path, phase: str, number: int, code: int
) -> None:
    """The exit code says which signal it was."""
    write_module(
        tmp_path,
        f"""
def reach(phase):
    if phase == {phase!r}:
        say(phase)
        return 1000
    return 0

@agent("late")
async def late(spore):
    pass

@late.on_start
async def begin(reef):
    await asyncio.sleep(reach("starting"))

async def awaited():
    await asyncio.sleep(reach("awaiting"))
    return late

def made():
    time.sleep(reach("calling"))
    return awaited()

time.sleep(reach("importing"))
""",
    )
    with Running("run", "team:made") as service:
        service.until(phase)
        service.signal(number)
        ended = service.end()
    assert ended.code == code, ended
    assert "ready" not in ended.output
    assert "Traceback" not in ended.errors


def test_a_team_may_end_itself(tmp_path: Path) -> None:
    """``reef.stop()`` in a handler is like SIGTERM."""
    write_module(
        tmp_path,
        WORKER.replace("(spore):", "(spore, reef):").replace('return {"n"', "reef.stop()\n    {'n'")
        + STARTS_ITSELF,
    )
    with Running("run", "team:worker", SECONDS="0") as service:
        ended = service.end()
    assert ended.code == 0, ended.errors
    assert ended.output.count("handled") >= 4  # three lines, and the ledger


def test_a_reef_that_breaks_down_ends_the_service_with_1(tmp_path: Path) -> None:
    """A service that handles nothing any more must not look alive."""
    fatal = "class Fatal(BaseException): pass\n" + WORKER.replace(
        "    say", "    raise Fatal\n    say", 1
    )
    write_module(tmp_path, fatal + STARTS_ITSELF)
    with Running("run", "team:worker", SECONDS="0") as service:
        ended = service.end()
    assert ended.code == 1
    assert "Fatal()" in ended.errors
    assert "balanced" in ended.output


# -- brokers that refuse ---------------------------------------------------------------------


def test_a_wrong_password_is_told_with_exit_code_2(broker: Broker, tmp_path: Path) -> None:
    """Repeating the command would not help; the password is not shown."""
    write_module(tmp_path, WORKER)
    url = broker.url.replace(broker.server.password, "open-sesame")
    ended = praval("run", "team:worker", "--log-level", "debug", PRAVAL_TRANSPORT=url)
    assert ended.code == 2
    assert ended.errors.splitlines()[-1].startswith("praval run: ")
    assert "sesame" not in ended.errors
    assert not ended.output


def test_no_broker_is_told_with_exit_code_1(tmp_path: Path) -> None:
    """It may be there when the command is repeated."""
    write_module(tmp_path, WORKER)
    ended = praval(
        "run", "team:worker", "--transport", f"rediss://u:sesame@localhost:{free_port()}"
    )
    assert ended.code == 1
    assert "praval run: No connection to localhost" in ended.errors
    assert "sesame" not in ended.errors


def test_a_broker_that_nobody_vouches_for_is_refused(redis: Broker, tmp_path: Path) -> None:
    """By default only the system's authorities are trusted, and the test's is none."""
    write_module(tmp_path, WORKER)
    ended = praval("run", "team:worker", PRAVAL_TRANSPORT=redis.server.url)
    assert ended.code == 2
    assert "authority that is not trusted" in ended.errors


def test_certificates_are_found_in_their_folder(redis: Broker, tmp_path: Path) -> None:
    """As ``praval certs`` writes them: nothing about them has to be in the URL."""
    write_module(tmp_path, WORKER)
    folder = redis.server.pki.ca.parent
    with Running(
        "run", "team:worker", PRAVAL_TRANSPORT=redis.server.url, PRAVAL_TLS_CERT_DIR=str(folder)
    ) as service:
        service.until("ready: worker on redis")
        service.signal(signal.SIGTERM)
        assert service.end().code == 0


# -- what it says ----------------------------------------------------------------------------

TALKS = """
log = logging.getLogger(__name__)

@agent("talker", responds_to=["word"])
async def talker(spore):
    log.info("heard a word")
    logging.getLogger("somebody.else").info("chatter")
    raise ValueError("a bad word")
"""


def test_records_go_to_standard_error_with_time_and_level(redis: Broker, tmp_path: Path) -> None:
    """Praval's and the team's from INFO on, everybody else's from WARNING on; no secrets."""
    write_module(tmp_path, TALKS)
    with Running("run", "team:talker", *redis.options) as service:
        service.until("ready")
        assert praval("send", "word", *redis.options).code == 0
        service.complains("a bad word")
        service.signal(signal.SIGTERM)
        ended = service.end()
    assert ended.code == 0, "a handler's failure is not the service's"
    assert "1 failed" in ended.output
    lines = ended.errors.splitlines()
    assert any(line[:2] == "20" and line.endswith(" INFO team: heard a word") for line in lines)
    assert any(" ERROR praval." in line for line in lines)
    assert "chatter" not in ended.errors


@pytest.mark.parametrize("level", ["DEBUG", "warning"])
def test_the_level_can_be_chosen(broker: Broker, tmp_path: Path, level: str) -> None:
    """At no level does the password show."""
    write_module(tmp_path, TALKS)
    with Running("run", "team:talker", "--log-level", level, *broker.options) as service:
        service.until("ready")
        assert praval("send", "word", *broker.options).code == 0
        service.complains("a bad word")
        service.signal(signal.SIGTERM)
        ended = service.end()
    assert ("heard a word" in ended.errors) == (level == "DEBUG")
    assert broker.server.password not in ended.errors + ended.output


def test_a_team_that_configures_logging_is_left_alone(tmp_path: Path) -> None:
    """Records are not shown twice, and in the team's own form."""
    write_module(
        tmp_path, 'logging.basicConfig(format="MINE %(message)s")\n' + TALKS + "\n"
        "@talker.on_start\nasync def begin():\n    log.info('here we go')\n",
    )  # fmt: skip
    with Running("run", "team:talker") as service:
        service.until("ready")
        service.signal(signal.SIGTERM)
        ended = service.end()
    assert ended.errors == "MINE here we go\n"


# -- while developing ------------------------------------------------------------------------


def test_reload_starts_again_when_the_code_changes(redis: Broker, tmp_path: Path) -> None:
    """The old process drains first; changes in folders below count, other files do not."""
    (tmp_path / "parts").mkdir()
    helper = tmp_path / "parts" / "helper.py"
    helper.write_text("name = 'first'\n")
    write_module(
        tmp_path, "from parts.helper import name\n" + WORKER + "team = agent(name)(worker)"
    )
    with Running("run", "team:team", "--reload", *redis.options) as service:
        service.until("ready: first")
        assert praval("send", work(1, 0.5), *redis.options).code == 0
        service.until("begun 1")
        (tmp_path / "notes.txt").write_text("not code")
        helper.write_text("name = 'second'\n")
        service.until("ready: second")
        service.signal(signal.SIGTERM)
        ended = service.end()
    assert ended.code == 0, ended.errors
    assert "handled 1" in ended.output
    assert ended.output.count("ready") == 2
    assert "helper.py changed" in ended.errors


def test_reload_waits_while_the_code_cannot_be_imported(tmp_path: Path) -> None:
    """The error is shown, and the next change tries again."""
    write_module(tmp_path, WORKER)
    with Running("run", "team:worker", "--reload") as service:
        service.until("ready")
        write_module(tmp_path, "x = (")
        service.complains("waiting for a change")
        assert "SyntaxError" in service.errors
        write_module(tmp_path, WORKER.replace('"worker"', '"fixed"'))
        service.until("ready: fixed")
        service.signal(signal.SIGINT)
        ended = service.end()
    assert ended.code == 0, ended.errors


def test_reload_ends_with_a_team_that_ends(tmp_path: Path) -> None:
    """There is nothing to wait for then."""
    write_module(
        tmp_path,
        WORKER.replace("(spore):", "(spore, reef):").replace("say(", "reef.stop() or say(")
        + STARTS_ITSELF,
    )
    with Running("run", "team:worker", "--reload", SECONDS="0") as service:
        assert service.end().code == 0


def test_reload_leaves_no_orphan(tmp_path: Path) -> None:
    """A supervisor that is killed -9 takes the team with it, drained."""
    write_module(tmp_path, WORKER + "@worker.on_stop\ndef stop():\n    open('over', 'w').close()\n")
    with Running("run", "team:worker", "--reload") as service:
        service.until("ready")
        service.signal(signal.SIGKILL)
        wait_until((tmp_path / "over").exists, "the team has ended")


def test_reload_of_nothing_is_told(tmp_path: Path) -> None:
    """A target that is not there cannot be watched."""
    ended = praval("run", "nosuch:team", "--reload")
    assert ended.code == 2
    assert "no module 'nosuch'" in ended.errors
