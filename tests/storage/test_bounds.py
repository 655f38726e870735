"""Locks end by themselves when their holder's link is cut, and tables are made once, however many start together."""

import signal
import subprocess
import sys
import threading
import time
from urllib.parse import urlencode

import pytest
import servers
import sqlalchemy
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from autonuq.storage import exclusion, sql
from autonuq.storage.exclusion import bounded_redis, file_exclusion
from autonuq.storage.open import open_storage
from autonuq.storage.retries import is_connection_lost

SHORT = {
    "postgresql": {"options": "-c idle_in_transaction_session_timeout=2s -c lock_timeout=4s"},
    "mysql": {"init_command": "SET wait_timeout = 2, innodb_lock_wait_timeout = 4, lock_wait_timeout = 4"},
    "redis": {},
}
SERVERS = [
    pytest.param("postgresql", marks=pytest.mark.postgres),
    pytest.param("mysql", marks=pytest.mark.slow),
    pytest.param("redis", marks=pytest.mark.slow),
]

HOLDER = """
import sys, time
from autonuq.storage import exclusion
exclusion.LONGEST_HOLD_S = 2  # Redis asks nobody else
from autonuq.storage.open import open_storage
storage = open_storage(sys.argv[1])
with storage.exclusive("net"):
    print("held", flush=True)
    input()
print("released", storage.names(), flush=True)
"""


@pytest.fixture
def cut_link():
    """Make a link to a server that can be cut, and return it with the URL that leads through it."""
    links = []

    def make(url):
        links.append(servers.Proxy(make_url(url).port))
        return links[-1], make_url(url).set(port=links[-1].port).render_as_string(hide_password=False)

    yield make
    for link in links:
        link.close()


def with_short_bounds(url):
    options = SHORT[make_url(url).get_backend_name() if "redis" not in url else "redis"]
    return f"{url}?{urlencode(options)}" if options else url


def started(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, text=True, **pipes)


@pytest.mark.parametrize("storage_url", SERVERS, indirect=True)
@pytest.mark.parametrize("how", ["cut", "suspended"])
def test_a_holder_that_vanishes_loses_the_lock_and_goes_on_without_harm(storage_url, how, cut_link, tmp_path):
    """The server's own keepalive of two hours would have decided. Whoever comes back sees no error."""
    link, through = cut_link(storage_url)
    own = open_storage(with_short_bounds(storage_url))
    own.create(tmp_path.name)
    holder = started(HOLDER, with_short_bounds(through))
    assert holder.stdout.readline() == "held\n", holder.communicate()
    if how == "cut":
        link.cut()
    else:
        holder.send_signal(signal.SIGSTOP)
    entered = threading.Event()

    def enter():
        with own.exclusive("net"):
            entered.set()

    threading.Thread(target=enter, daemon=True).start()
    assert entered.wait(30)
    link.mend()
    holder.send_signal(signal.SIGCONT)
    output, errors = holder.communicate("\n", timeout=60)
    assert output.startswith("released")
    assert tmp_path.name in output
    assert errors == ""


@pytest.mark.postgres
def test_a_transaction_that_is_cut_off_gives_its_rows_back(postgresql, cut_link, tmp_path):
    """Optuna locks rows; a host that vanishes between two statements holds them."""
    link, through = cut_link(postgresql.url)
    far, own = open_storage(with_short_bounds(through)), open_storage(with_short_bounds(postgresql.url))
    study = own.create(tmp_path.name)
    with engine_of(far).connect() as connection:
        connection.execute(sqlalchemy.text("SELECT * FROM studies FOR UPDATE"))
        link.cut()
        assert study.ask().number == 0
        link.mend()
        with pytest.raises(DBAPIError) as error:
            connection.execute(sqlalchemy.text("SELECT 1"))
    assert is_connection_lost(error.value)


@pytest.mark.postgres
def test_every_transaction_is_bounded(postgresql):
    """With transactions of other clients before and after, as PgBouncer hands out sessions."""
    names = ("idle_in_transaction_session_timeout", "lock_timeout")
    query = sqlalchemy.text(f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}")
    shown = []
    for url in (postgresql.url, with_short_bounds(postgresql.url)):
        with engine_of(open_storage(url)).connect() as connection:
            shown.append(tuple(connection.execute(query).one()))
    assert shown == [("30s", "40s"), ("2s", "4s")]  # what the URL says counts


def engine_of(storage):
    """Return the engine of a storage of ours, which hides it behind its patience."""
    return storage.backend.get_all_studies.__wrapped__.__self__._backend.engine


def test_the_bounds_keep_a_pause_below_a_minute():
    assert exclusion.LONGEST_HOLD_S < exclusion.LONGEST_WAIT_S < 60


def test_a_suspended_holder_of_a_file_is_passed_by(tmp_path, monkeypatch):
    """The system would not take the lock from it."""
    monkeypatch.setattr(exclusion, "LONGEST_HOLD_S", 0.2)
    exclusive = file_exclusion(tmp_path / "net.journal")
    with exclusive("net"):
        waiter = threading.Thread(target=lambda: exclusive("net").__enter__(), daemon=True)
        waiter.start()
        waiter.join(10)
        assert not waiter.is_alive()


def test_what_a_url_says_counts():
    assert bounded_redis("redis://:pw@host:1/0") == (
        "redis://:pw@host:1/0?socket_connect_timeout=10&socket_timeout=15&socket_keepalive=True&health_check_interval=15"
    )
    own = bounded_redis("redis://host/0?socket_timeout=3")
    assert own.count("socket_timeout") == 1
    assert "socket_timeout=3&" in own


def test_a_driver_gets_only_what_it_knows(monkeypatch):
    """What the URL has already is left to it."""
    got = []

    def stop(url, options):
        got.append(options["connect_args"])
        raise ConnectionError

    monkeypatch.setattr(sql, "RDBStorage", stop)
    for url in (
        "postgresql://h/x?connect_timeout=3",
        "postgresql+psycopg2://h/x",
        "postgresql+pg8000://h/x",
        "mysql://h/x",
        "mysql+mysqldb://h/x",
        "mysql+mysqlconnector://h/x",
    ):
        with pytest.raises(ConnectionError):
            sql.open_database(url)
    assert "connect_timeout" not in got[0]
    assert {"keepalives", "prepare_threshold"} <= got[0].keys()
    assert "keepalives" in got[1] and "prepare_threshold" not in got[1]
    assert got[2] == got[5] == {}
    assert got[3] == got[4] == {"connect_timeout": 10, "read_timeout": 45, "write_timeout": 15}


OPENER = """
import sys
import optuna
from autonuq.storage import sql
from autonuq.storage.open import open_storage
optuna.storages.RDBStorage("sqlite://")  # now everything is loaded, and they begin at the same moment
print("ready", flush=True)
input()
print(open_storage(sys.argv[1]).names(), flush=True)
"""


@pytest.mark.parametrize(
    "storage_url",
    [pytest.param("sqlite", marks=pytest.mark.slow), pytest.param("journal", marks=pytest.mark.slow), *SERVERS],
    indirect=True,
)
def test_hosts_that_start_together_on_an_empty_database_all_come_up(storage_url, tmp_path):
    """Three of three failed: type "studydirection" already exists."""
    for repeat in range(2):
        url = emptied(storage_url, repeat)
        openers = [started(OPENER, url) for _ in range(4)]
        for opener in openers:
            assert opener.stdout.readline() == "ready\n"
        for opener in openers:
            opener.stdin.write("\n")
            opener.stdin.flush()
        ends = [opener.communicate(timeout=60) for opener in openers]
        assert [opener.returncode for opener in openers] == [0] * 4, ends
        assert {output for output, _ in ends} == {"[]\n"}
        assert open_storage(url).names() == []  # a version that was entered twice would end this


def emptied(url, repeat):
    """Return the URL of another database that is empty, where there is one."""
    scheme = url.partition("://")[0]
    if scheme in ("sqlite", "journal"):
        return f"{url}{repeat}"
    if scheme == "redis":
        return url.replace("/0", f"/{repeat}")
    driver = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}[scheme]
    engine = sqlalchemy.create_engine(make_url(url).set(drivername=driver), isolation_level="AUTOCOMMIT")
    name = f"empty{time.time_ns()}"
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return make_url(url).set(database=name).render_as_string(hide_password=False)
